"""Brokers that go away, and what a worker finds when it comes back: its tables, the journal's tail, or nothing."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from asker import Asker, decided, records
from integration.test_worker import CATALOG, CUSTOMERS, PARTITIONS, grant, reserve, until_owned
from kafka_fixture import ContainerKafka
from tallygate.connectors.consuming import replay
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas import topics
from tallygate.schemas.requests import Settle
from tallygate.topologies.cluster import Cluster
from tallygate.topologies.follower import Follower
from tallygate.topologies.settings import load_settings
from tallygate.topologies.tables import RocksTable
from worker_process import WorkerProcess

Kafka = LocalKafka | ContainerKafka


@pytest.fixture
def asker(fresh_kafka: Kafka) -> Iterator[Asker]:
    asker = Asker(fresh_kafka.bootstrap)
    asker.apply(CATALOG)
    yield asker
    asker.close()


def test_a_broker_that_is_away_at_the_start_is_waited_for(fresh_kafka: Kafka, asker: Asker, tmp_path: Path) -> None:
    fresh_kafka.kill()
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path) as worker:
        worker.wait_for("is away .*; waiting")
        fresh_kafka.start()
        until_owned(worker, PARTITIONS)
        asker.ask(grant("g", CUSTOMERS[0]))
        assert worker.log().count("is away") == 1
        assert "is back" in worker.log()
        assert worker.stop() == 0


async def test_where_a_partition_ends_is_known_again_when_its_leader_has_changed(fresh_kafka: Kafka) -> None:
    """A leader's epoch changes with a restart; librdkafka's AdminClient would ask under the one it knew, for long."""
    cluster = Cluster(load_settings(kafka_brokers=fresh_kafka.bootstrap))
    await cluster.layout()
    assert await cluster.bounds(topics.JOURNAL, 0) == (0, 0)
    fresh_kafka.kill()
    fresh_kafka.start()
    async with asyncio.timeout(60):
        assert await cluster.bounds(topics.JOURNAL, 0) == (0, 0)


def test_a_worker_that_waits_for_a_broker_can_be_stopped(fresh_kafka: Kafka, tmp_path: Path) -> None:
    fresh_kafka.kill()
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path) as worker:
        worker.wait_for("is away .*; waiting")
        assert worker.stop() == 0


def test_a_broker_killed_in_the_middle_costs_time_and_nothing_else(
    fresh_kafka: Kafka, asker: Asker, tmp_path: Path
) -> None:
    # A session that is longer than the broker is away: otherwise librdkafka takes the partitions for lost.
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path, session_timeout_ms=60_000) as worker:
        until_owned(worker, PARTITIONS)
        asker.ask(*(grant(f"g{n}", c) for n, c in CUSTOMERS.items()))
        asks = [reserve(f"r{n}-{i}", c, 10) for n, c in CUSTOMERS.items() for i in range(60)]
        for ask in asks[:120]:
            asker.send(ask)
        fresh_kafka.kill()
        fresh_kafka.start()
        answers = asker.ask(*asks, seconds=90)
        assert worker.process.poll() is None, worker.log()
        assert worker.stop(60) == 0
    for customer in CUSTOMERS.values():
        assert sum(a.allowed for a in answers if a.customer == customer) == 50
    assert not asker.contradictions()
    assert set(decided(fresh_kafka.bootstrap).values()) == {1}


def test_a_broker_away_for_longer_ends_the_worker_and_the_next_one_waits(
    fresh_kafka: Kafka, asker: Asker, tmp_path: Path
) -> None:
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path, append_timeout_ms=2000) as worker:
        until_owned(worker, PARTITIONS)
        asker.ask(grant("g", CUSTOMERS[0]))
        fresh_kafka.kill()
        assert worker.ended() == 3
        assert "was not answered (no answer within 2 s)" in worker.log().splitlines()[-1]
        assert "Traceback" not in worker.log()
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path) as again:
        again.wait_for("is away .*; waiting")
        fresh_kafka.start()
        assert asker.ask(reserve("r", CUSTOMERS[0], 500), seconds=60)[0].allowed
        assert again.stop() == 0


def test_inputs_deleted_before_they_were_read_stop_the_worker_until_somebody_says_so(
    fresh_kafka: Kafka, asker: Asker, tmp_path: Path
) -> None:
    brokers, customer = fresh_kafka.bootstrap, CUSTOMERS[1]
    with WorkerProcess(brokers, tmp_path) as worker:
        asker.ask(grant("g", customer))
        assert worker.stop() == 0
    asker.use(customer, "e1", "e2", "e3")
    asker.ask_nobody(reserve("r1", customer))
    admin = AdminClient({"bootstrap.servers": brokers})
    for future in admin.delete_records([TopicPartition(topics.REQUESTS, 1, OFFSET_END)]).values():
        future.result()
    with WorkerProcess(brokers, tmp_path) as worker:
        assert worker.ended() == 1
        assert "tallygate.requests.v1 partition 1: 1 records were deleted before they were read" in worker.log()
        assert "set TALLYGATE_SKIP_DELETED_INPUTS=true" in worker.log().splitlines()[-1]
    with WorkerProcess(brokers, tmp_path, skip_deleted_inputs=True) as worker:
        assert asker.ask(reserve("r2", customer, 500))[0].allowed
        assert "going on without them" in worker.log()
        assert worker.stop() == 0


def test_a_journal_that_takes_no_such_batch_is_one_line(fresh_kafka: Kafka, tmp_path: Path) -> None:
    admin = AdminClient({"bootstrap.servers": fresh_kafka.bootstrap})
    limit = ConfigEntry("max.message.bytes", "100", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topics.JOURNAL, incremental_configs=[limit])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path) as worker:
        assert worker.ended() == 1
        assert "the broker refuses an append" in worker.log().splitlines()[-1]
        assert "tallygate topics" in worker.log().splitlines()[-1]


def journaled(brokers: str) -> list[int]:
    """How many records each partition of the journal has."""
    found = Counter(record.partition for record in records(brokers, topics.JOURNAL))
    return [found[partition] for partition in range(PARTITIONS)]


def rows(table: RocksTable) -> list[tuple[bytes, bytes]]:
    return table.scan(b"", b"\xff" * 8)


def test_table_and_tail_hold_byte_for_byte_what_the_journal_alone_gives(
    fresh_kafka: Kafka, asker: Asker, tmp_path: Path
) -> None:
    brokers = fresh_kafka.bootstrap
    with WorkerProcess(brokers, tmp_path, tick_ms=100) as worker:
        asker.ask(*(grant(f"g{n}", c) for n, c in CUSTOMERS.items()))
        asker.ask(*(reserve(f"r{n}-{i}", c) for n, c in CUSTOMERS.items() for i in range(4)))
        answered, deadline = journaled(brokers), time.monotonic() + 30
        while any(now < before + 3 for now, before in zip(journaled(brokers), answered, strict=True)):
            assert time.monotonic() < deadline  # the tick writes what waits for the table
        worker.kill()
    before = sum(journaled(brokers))
    shutil.copytree(next(tmp_path.glob("workers/0/*/0")).parent, tmp_path / "copy")
    with WorkerProcess(brokers, tmp_path) as worker:
        asker.ask(*(Settle(id=f"s{n}", customer=c, hold=f"r{n}-0") for n, c in CUSTOMERS.items()), seconds=60)
        for n, customer in CUSTOMERS.items():
            asker.use(customer, *(f"e{n}-{i}" for i in range(20)))
        asker.ask(*(grant(f"h{n}", c) for n, c in CUSTOMERS.items()))
        resumed = [float(v) for k, v in worker.metrics().items() if k.startswith("tallygate_recovery_records")]
        assert worker.stop() == 0
    journal = list(records(brokers, topics.JOURNAL))
    assert sum(resumed) < before / 2  # it went on from its tables
    for partition in range(PARTITIONS):
        end = sum(record.partition == partition for record in journal)
        old, new = RocksTable(tmp_path / "copy" / str(partition)), RocksTable(tmp_path / "new" / str(partition))
        assert 0 < old.position.offset < end
        for table in (old, new):
            follower = Follower(table, lambda: 0)
            for record in replay(brokers, (topics.JOURNAL, partition), table.position.offset, end, group="test"):
                follower.take(record)
            follower.flush()
        assert rows(old) == rows(new)
        assert old.position == new.position
        old.close()
        new.close()


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_tables_that_are_gone_are_built_anew(fresh_kafka: Kafka, asker: Asker, tmp_path: Path, damage: str) -> None:
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path) as worker:
        asker.ask(*(grant(f"g{n}", c) for n, c in CUSTOMERS.items()))
        asker.ask(*(reserve(f"r{n}", c, 400) for n, c in CUSTOMERS.items()))
        assert worker.stop() == 0
    tables = next(tmp_path.glob("workers/0/*/0")).parent
    if damage == "deleted":
        shutil.rmtree(tables)
    else:
        for manifest in tables.glob("*/MANIFEST*"):
            manifest.write_bytes(manifest.read_bytes()[:20])
    with WorkerProcess(fresh_kafka.bootstrap, tmp_path) as worker:
        answers = asker.ask(*(reserve(f"s{n}", c, 101) for n, c in CUSTOMERS.items()))
        answers += asker.ask(*(reserve(f"t{n}", c, 100) for n, c in CUSTOMERS.items()))
        assert worker.stop() == 0
    assert [a.allowed for a in answers] == [False] * PARTITIONS + [True] * PARTITIONS
    lines = worker.log().count("building it anew from the journal")
    assert lines == (0 if damage == "deleted" else PARTITIONS)
