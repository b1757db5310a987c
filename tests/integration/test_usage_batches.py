"""Usage through the client: buffered, sent in batches, counted once by a worker; and what happens when things break."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka import Producer

from asker import Asker, counted, entries, records
from integration.test_worker import CATALOG, CUSTOMERS, until_owned
from kafka_fixture import Broker
from tallygate.connectors.client import ClientClosed, RefusedRequest, Tallygate, TallygateSync, UsageLost
from tallygate.connectors.usage_batches import encode_batch
from tallygate.schemas import topics
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import Balance
from tallygate.schemas.usage_batch import ARROW, BatchId, batch_headers
from worker_process import WorkerProcess

PARTITIONS = len(CUSTOMERS)


@pytest.fixture(scope="module")
def worker(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    asker = Asker(module_kafka.bootstrap)
    asker.apply(CATALOG)
    with WorkerProcess(module_kafka.bootstrap, tmp_path_factory.mktemp("worker")) as worker:
        until_owned(worker, PARTITIONS)
        yield worker
        assert worker.stop() == 0
    asker.close()


def until(brokers: str, wanted: dict[str, int]) -> None:
    """Until so many tokens of each customer are counted; and no more."""
    asker = Asker(brokers)
    found: dict[str, int] = {}
    for attempt in range(100):
        asker.ask(*(Balance(id=f"look-{attempt}-{customer}", customer=customer) for customer in wanted))
        found = tokens(brokers)
        if all(found.get(customer) == number for customer, number in wanted.items()):
            break
    asker.close()
    assert {customer: found.get(customer, 0) for customer in wanted} == wanted


def tokens(brokers: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in entries(brokers):
        nanos = sum(delta.quantity_nanos for delta in entry.usage)
        found[entry.customer] = found.get(entry.customer, 0) + nanos // 10**9
    return found


def batches_of(brokers: str, customer: str) -> list[Any]:
    """The batch records in the customer's partition."""
    home = partition_of(customer, PARTITIONS)
    found = [record for record in records(brokers, topics.USAGE) if record.partition == home]
    return [record for record in found if dict(record.headers).get("content-type") == ARROW]


async def test_what_tasks_report_is_counted_once(module_kafka: Broker, worker: WorkerProcess) -> None:
    async with Tallygate(module_kafka.bootstrap, service="cli") as client:

        async def report(customer: str) -> None:
            for number in range(2_500):
                await client.usage(customer, "llm.call", {"tokens": number % 7, "user": None}, time=datetime.now(UTC))

        await asyncio.gather(*(report(f"a-{n}") for n in range(4)))
        await client.flush()
        until(module_kafka.bootstrap, dict.fromkeys([f"a-{n}" for n in range(4)], sum(n % 7 for n in range(2_500))))
        await client.usage("a-0", "llm.call", {"tokens": Decimal("0.5")})
        await client.usage("a-0", "llm.call", {"tokens": "0.5"})
    until(module_kafka.bootstrap, {"a-0": 1 + sum(n % 7 for n in range(2_500))})


def test_threads_share_a_client_and_a_small_buffer(module_kafka: Broker, worker: WorkerProcess) -> None:
    with TallygateSync(module_kafka.bootstrap, service="cli", usage_buffer=10, usage_linger=30) as client:

        def report(number: int) -> None:
            for _ in range(200):
                client.usage(f"b-{number}", "llm.call", {"tokens": 1})

        threads = [threading.Thread(target=report, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    until(module_kafka.bootstrap, {f"b-{number}": 200 for number in range(5)})
    with pytest.raises(ClientClosed, match="not running"):
        client.usage("b-0", "llm.call", {"tokens": 1})


def test_what_a_program_reports_before_it_just_ends_is_sent(module_kafka: Broker, worker: WorkerProcess) -> None:
    program = f"""
        from tallygate.connectors.client import TallygateSync
        client = TallygateSync({module_kafka.bootstrap!r}, service="cli", usage_linger=60).start()
        for _ in range(3):
            client.usage("c-0", "llm.call", {{"tokens": 2}})
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    until(module_kafka.bootstrap, {"c-0": 6})


async def test_what_is_wrong_is_said_before_it_is_sent(module_kafka: Broker) -> None:
    async with Tallygate(module_kafka.bootstrap, service="cli") as client:
        with pytest.raises(TypeError, match=r"data.tokens is 1.5 \(float\)"):
            await client.usage("d-0", "llm.call", {"tokens": 1.5})  # type: ignore[dict-item]
        for customer, type, data, words in (
            ("", "llm.call", {"tokens": 1}, "customer is to be 1 to 256"),
            ("d-0", "tallygate.usage.voided", {"id": "x"}, "single event"),
            ("d-0", "llm.call", {"subject": "x"}, "property 'subject'"),
            ("d-0", "llm.call", {"tokens": Decimal("1e-10")}, "9 decimal places"),
        ):
            with pytest.raises(RefusedRequest, match=words):
                await client.usage(customer, type, data)  # type: ignore[arg-type]
        with pytest.raises(RefusedRequest, match="time needs an offset"):
            await client.usage("d-0", "llm.call", {"tokens": 1}, time=datetime(2026, 1, 1))
    assert not [record for record in batches_of(module_kafka.bootstrap, "d-0") if b"d-0" in (record.value or b"")]


def test_a_batch_that_comes_again_or_is_wrong_counts_for_nobody(module_kafka: Broker, worker: WorkerProcess) -> None:
    customer = "e-0"
    home = partition_of(customer, PARTITIONS)
    producer = Producer({"bootstrap.servers": module_kafka.bootstrap})
    event = (customer, "llm.call", None, {"tokens": 5})
    other = next(f"e-{n}" for n in range(99) if partition_of(f"e-{n}", PARTITIONS) != home)
    before = worker.metrics()
    for sequence, value in (
        (1, encode_batch([event])),
        (2, encode_batch([event, (other, "llm.call", None, {"tokens": 5})])),
        (1, encode_batch([event])),
        (3, b"nothing"),
        (4, encode_batch([event] * 3)),
    ):
        producer.produce(topics.USAGE, value, partition=home, headers=batch_headers(BatchId("hand", 1, sequence)))
    producer.flush(30)
    until(module_kafka.bootstrap, {customer: 20})
    after = worker.metrics()
    assert after["tallygate_duplicate_events_total"] - before["tallygate_duplicate_events_total"] == 1
    dead = [dict(record.headers) for record in records(module_kafka.bootstrap, topics.DEAD_LETTERS)]
    assert sorted(letter["tallygate-reason"] for letter in dead) == [b"malformed", b"wrong_partition"]
    assert other not in counted(module_kafka.bootstrap)


async def test_usage_that_the_broker_does_not_confirm_is_reported(fresh_kafka: Any) -> None:
    client = Tallygate(
        fresh_kafka.bootstrap, service="cli", timeout=10, kafka={"message.timeout.ms": "3000"}, usage_buffer=20
    )
    await client.start()
    await client.usage("f-0", "llm.call", {"tokens": 1})
    await client.flush()
    fresh_kafka.kill()
    for _ in range(20):
        await client.usage("f-0", "llm.call", {"tokens": 1})
    with pytest.raises(UsageLost, match="20 usage events were not confirmed") as lost:
        await client.flush()
    assert lost.value.events == 20
    await client.usage("f-0", "llm.call", {"tokens": 1})
    with pytest.raises(UsageLost, match=r"^1 usage events were not confirmed"):
        await client.close()
