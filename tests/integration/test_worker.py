"""Workers on a real broker: shared partitions, take-over, bad input, what operators see, and how a worker ends."""

import re
import signal
import socket
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from confluent_kafka import Producer

from asker import Asker, accepted, counted, decided, records
from kafka_fixture import Broker, BrokerPool
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.journal import OPEN_KEY, PARTITION_KEY, row_key
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import Balance, Check, GiveGrant, Reserve, Settle
from worker_process import WorkerProcess

CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",)),),
)
PARTITIONS = 4
#: One customer in each partition.
CUSTOMERS = {partition_of(f"customer-{n}", PARTITIONS): f"customer-{n}" for n in range(50)}


@pytest.fixture
def brokers(module_kafka: Broker) -> str:
    return module_kafka.bootstrap


@pytest.fixture
def asker(brokers: str) -> Iterator[Asker]:
    asker = Asker(brokers)
    asker.apply(CATALOG)
    yield asker
    asker.close()


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """A group of the test's own: it need not wait until members of another test are found to be gone."""
    return request.node.name


def reserve(id: str, customer: str, credits: int = 75) -> Reserve:
    return Reserve(id=id, customer=customer, feature="llm", credits=Decimal(credits))


def grant(id: str, customer: str, credits: int = 500) -> GiveGrant:
    return GiveGrant(id=id, customer=customer, amount=Decimal(credits))


def owned(worker: WorkerProcess) -> float:
    return worker.metrics()["tallygate_owned_partitions"]


def until_counted(brokers: str, customer: str, events: int) -> None:
    for _ in range(300):
        if counted(brokers).get(customer, 0) >= events:
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"usage of {customer} was never counted")


def until_owned(worker: WorkerProcess, number: int) -> None:
    for _ in range(300):
        if owned(worker) == number:
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"it owns {owned(worker)} partitions, not {number}\n{worker.log()}")


def test_two_workers_share_and_one_takes_over(brokers: str, asker: Asker, group: str, tmp_path: Path) -> None:
    with WorkerProcess(brokers, tmp_path, group=group) as first:
        until_owned(first, PARTITIONS)
        asker.ask(*(grant(f"share-g{n}", c) for n, c in CUSTOMERS.items()))
        with WorkerProcess(brokers, tmp_path, group=group) as second:
            until_owned(second, PARTITIONS // 2)
            until_owned(first, PARTITIONS // 2)
            asker.ask(*(reserve(f"share-r{n}-{i}", c) for n, c in CUSTOMERS.items() for i in range(10)))
            assert first.stop() == 0
            until_owned(second, PARTITIONS)
            answers = asker.ask(*(reserve(f"share-s{n}-{i}", c, 1) for n, c in CUSTOMERS.items() for i in range(60)))
            assert second.stop() == 0
    for customer in CUSTOMERS.values():
        assert sum(a.allowed for a in answers if a.customer == customer) == 50  # 500 - 6 × 75
    assert not asker.contradictions()
    assert {count for (op, id, _), count in decided(brokers).items() if id.startswith("share-")} == {1}


def opened(worker: WorkerProcess) -> list[int]:
    """The partitions that it has opened, in order."""
    return [int(number) for number in re.findall(r"partition (\d+) opened: term", worker.log())]


def test_a_rolling_restart_moves_nothing(brokers: str, asker: Asker, group: str, tmp_path: Path) -> None:
    one = WorkerProcess(brokers, tmp_path / "one", group=group, instance_id="one")
    with one, WorkerProcess(brokers, tmp_path / "two", group=group, instance_id="two") as two:
        for worker in (one, two):
            until_owned(worker, PARTITIONS // 2)
        before, keeps = opened(two), set(opened(two)[-PARTITIONS // 2 :])
        asker.ask(*(grant(f"roll-g{n}", c) for n, c in CUSTOMERS.items()))
        assert one.stop() == 0
        # The other goes on meanwhile, for its own.
        assert all(a.allowed for a in asker.ask(*(reserve(f"roll-a{n}", CUSTOMERS[n]) for n in keeps)))
        with WorkerProcess(brokers, tmp_path / "one", group=group, instance_id="one") as again:
            until_owned(again, PARTITIONS // 2)
            assert all(a.allowed for a in asker.ask(*(reserve(f"roll-b{n}", c) for n, c in CUSTOMERS.items())))
            assert set(opened(again)) == set(CUSTOMERS) - keeps
            assert opened(two) == before
            assert owned(two) == PARTITIONS // 2
            assert again.stop() == 0
        assert two.stop() == 0


def test_bad_input_ends_as_dead_letter_or_refusal_and_the_partition_goes_on(
    brokers: str, asker: Asker, group: str, tmp_path: Path
) -> None:
    customer = "bad-input"
    home = partition_of(customer, PARTITIONS)
    event = (
        b'{"specversion":"1.0","id":"%s","source":"t","type":"llm.call","subject":"bad-input","data":{"tokens":%s}%s}'
    )
    bad_usage: dict[bytes | None, str] = {
        b"\xff\xfe": "malformed",
        None: "malformed",
        b'{"specversion":"1.0","id":"1","source":"t","type":"llm.call"}': "customer_missing",
        b'{"specversion":"1.0","id":"1","source":"t","type":"llm.call","subject":""}': "customer_missing",
        event % (b"u-neg", b"-1", b""): "quantity_invalid",
        event % (b"u-nan", b'"NaN"', b""): "quantity_invalid",
        event % (b"u-huge", b"1e40", b""): "quantity_invalid",
        event % (b"u-future", b"1", b',"time":"2099-01-01T00:00:00Z"'): "time_in_future",
        event % (b"u-large", b'1,"pad":"' + b"x" * 70_000 + b'"', b""): "too_large",
    }
    bad_requests = {
        b"{": "malformed",
        b'{"type":"tallygate.fly.v1","id":"q","customer":"bad-input"}': "type_unknown",
        b'{"type":"tallygate.balance.v1","id":"q"}': "customer_missing",
    }
    with WorkerProcess(brokers, tmp_path, group=group) as worker:
        until_owned(worker, PARTITIONS)
        asker.ask(grant("bad-g", customer))
        for value in bad_usage:
            asker.put(topics.USAGE, value, customer, home)
        asker.put(topics.USAGE, event % (b"u-lost", b"1", b""), customer, (home + 1) % PARTITIONS)
        for value in bad_requests:
            asker.put(topics.REQUESTS, value, customer, home)
        asker.put(
            topics.REQUESTS,
            b'{"type":"tallygate.balance.v1","id":"elsewhere","customer":"bad-input"}',
            customer,
            home,
            reply_to="somebody-elses-topic",
        )
        asker.use(customer, "u-good")
        refused = asker.ask(
            reserve("bad-negative", customer, -1),
            Settle(id="bad-settle", customer=customer, hold="never-there"),
            Balance(id="bad-after", customer=customer),
        )
        asker.send(GiveGrant(id="bad-g", customer=customer, amount=Decimal(501)))
        asker.ask(Balance(id="bad-last", customer=customer))
        until_counted(brokers, customer, 1)  # usage has a lane of its own
        metrics = worker.metrics()
        assert worker.stop() == 0
    assert [(a.allowed, a.reason.value) for a in refused] == [
        (False, "quantity_invalid"),
        (False, "hold_unknown"),
        (True, "allowed"),
    ]
    assert [a.reason.value for a in asker.answers["bad-g"]] == ["allowed", "id_conflict"]

    letters = list(records(brokers, topics.DEAD_LETTERS))
    found = {}
    for letter in letters:
        headers = dict(letter.headers)
        topic, partition, _offset = headers[topics.HEADER_DEAD_SOURCE].decode().split("/")
        assert letter.key == headers[topics.HEADER_DEAD_SOURCE]
        assert headers["tallygate-key"] == customer.encode()
        assert headers[topics.HEADER_DEAD_MESSAGE]
        found[topic, letter.value, int(partition)] = headers[topics.HEADER_DEAD_REASON].decode()
    wanted = {(topics.USAGE, value, home): reason for value, reason in bad_usage.items()}
    wanted |= {(topics.REQUESTS, value, home): reason for value, reason in bad_requests.items()}
    wanted[topics.USAGE, event % (b"u-lost", b"1", b""), (home + 1) % PARTITIONS] = "wrong_partition"
    assert {key: reason for key, reason in found.items() if reason != "reply_topic_not_allowed"} == wanted
    assert list(found.values()).count("reply_topic_not_allowed") == 1
    assert len(letters) == len(found)
    assert counted(brokers)[customer] == 1
    assert sum(v for k, v in metrics.items() if k.startswith("tallygate_dead_letters_total")) == len(found)


def test_a_higher_term_in_the_journal_ends_the_worker(brokers: str, group: str, tmp_path: Path) -> None:
    with WorkerProcess(brokers, tmp_path, group=group) as worker:
        until_owned(worker, PARTITIONS)
        producer = Producer({"bootstrap.servers": brokers})
        headers = [(topics.HEADER_TERM, b"900"), (topics.HEADER_SEQ, b"0")]
        producer.produce(topics.JOURNAL, b'{"row":"open.v1","owner":"x","at":1}', OPEN_KEY, 2, headers=headers)
        producer.flush(10)
        assert worker.ended() == 3
        assert re.search(r"ending: partition 2: term \d+ is over, another owner opened term 900\n", worker.log())
        assert "Traceback" not in worker.log()


def test_a_stale_row_is_refused_and_written_again(brokers: str, asker: Asker, group: str, tmp_path: Path) -> None:
    customer = "stale-row"
    home = partition_of(customer, PARTITIONS)
    with WorkerProcess(brokers, tmp_path, group=group) as worker:
        asker.ask(grant("stale-g", customer))
        key = row_key(customer, "grant", "stale-g")
        true = [r.value for r in accepted(records(brokers, topics.JOURNAL)) if r.key == key][-1]
        producer = Producer({"bootstrap.servers": brokers})
        for stale in (key, row_key(customer, "grant", "never-given")):
            headers = [(topics.HEADER_TERM, b"0"), (topics.HEADER_SEQ, b"7")]
            producer.produce(topics.JOURNAL, b'{"row":"of an owner that is none"}', stale, home, headers=headers)
        producer.flush(10)
        worker.wait_for("2 rows of a former owner overwritten")
        answer = asker.ask(Balance(id="stale-b", customer=customer))[0]
        assert worker.metrics()["tallygate_stale_records_total"] == 2
        assert worker.stop() == 0
    assert answer.statement is not None
    assert [(g.id, g.balance) for g in answer.statement.grants] == [("stale-g", "500")]
    last = {r.key: r.value for r in records(brokers, topics.JOURNAL)}
    assert last[key] == true
    assert last[row_key(customer, "grant", "never-given")] is None


def test_a_worker_that_was_paused_past_its_session_ends_and_nothing_is_given_twice(
    brokers: str, asker: Asker, group: str, tmp_path: Path
) -> None:
    customer = CUSTOMERS[0]
    with (
        WorkerProcess(brokers, tmp_path / "1", group=group) as first,
        WorkerProcess(brokers, tmp_path / "2", group=group) as second,
    ):
        until_owned(first, PARTITIONS // 2)
        until_owned(second, PARTITIONS // 2)
        asker.ask(grant("pause-g", customer))
        owner = first if 'tallygate_term{partition="0"}' in first.metrics() else second
        other = second if owner is first else first
        owner.signal(signal.SIGSTOP)
        answers = asker.ask(*(reserve(f"pause-r{n}", customer, 100) for n in range(20)), seconds=60)
        until_owned(other, PARTITIONS)
        owner.signal(signal.SIGCONT)
        assert owner.ended() in (3, 70)
        asker.ask(*(reserve(f"pause-s{n}", customer, 100) for n in range(5)))
        assert other.stop() == 0
    assert not asker.contradictions()
    entered = decided(brokers)
    assert all(entered["reserve", a.id, a.allowed] == 1 for a in answers)


def test_a_new_catalog_takes_effect_at_one_place_in_the_journal(
    brokers: str, asker: Asker, group: str, tmp_path: Path
) -> None:
    customer = CUSTOMERS[1]
    question = Check(id="catalog-1", customer=customer, feature="later", credits=Decimal(1))
    with WorkerProcess(brokers, tmp_path, group=group) as worker:
        asker.ask(grant("catalog-g", customer))
        assert asker.ask(question)[0].reason.value == "feature_unknown"
        later = Catalog(version=2, meters=CATALOG.meters, features=(*CATALOG.features, Feature("later", ("credits",))))
        asker.apply(later)
        worker.wait_for("catalog version 2 is known")
        answer = asker.ask(Check(id="catalog-2", customer=customer, feature="later", credits=Decimal(1)))[0]
        assert (answer.allowed, answer.catalog) == (True, 2)
        assert worker.stop() == 0
    versions = [
        int(found[1])
        for r in accepted(records(brokers, topics.JOURNAL))
        if r.key == PARTITION_KEY and r.partition == partition_of(customer, PARTITIONS)
        for found in [re.search(rb'"catalog":(\d+)', r.value or b"")]
        if found
    ]
    assert versions == sorted(versions)
    assert versions[-1] == 2


# How it ends, and what it says


def test_missing_topics_are_one_line(broker_pool: BrokerPool, tmp_path: Path) -> None:
    with broker_pool.borrowed() as bare, WorkerProcess(bare.bootstrap, tmp_path) as worker:
        assert worker.ended() == 1
        assert "run `tallygate topics`" in worker.log().splitlines()[-1]
        assert "Traceback" not in worker.log()


def test_a_taken_metrics_address_is_one_line(brokers: str, group: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with WorkerProcess(brokers, tmp_path, group=group, metrics_address=address) as worker:
            assert worker.ended() == 1
            assert "set TALLYGATE_METRICS_ADDRESS" in worker.log().splitlines()[-1]


def test_two_workers_on_one_data_folder_do_not_meet(brokers: str, group: str, tmp_path: Path) -> None:
    with WorkerProcess(brokers, tmp_path, group=group) as first:
        until_owned(first, PARTITIONS)
        with WorkerProcess(brokers, tmp_path, group=f"{group}-2") as second:  # another group takes everything over
            until_owned(second, PARTITIONS)
            assert first.ended() == 3
            assert second.stop() == 0
    folders = [
        line.split("partitions, ")[1] for line in (first.log() + second.log()).splitlines() if "is ready" in line
    ]
    assert len(set(folders)) == 2


def test_answers_on_topics_that_are_not_listed_are_refused(
    brokers: str, asker: Asker, group: str, tmp_path: Path
) -> None:
    customer = CUSTOMERS[2]
    with WorkerProcess(brokers, tmp_path, group=group, reply_topics=["tallygate.replies.other.v1"]) as worker:
        until_owned(worker, PARTITIONS)
        asker.send(grant("listed-g", customer))
        for _ in range(100):
            if any("reply_topic_not_allowed" in name for name in worker.metrics()):
                break
            asker.poll(0.1)
        assert worker.stop() == 0
    assert "listed-g" not in asker.answers
    assert ("grant", "listed-g", True) not in decided(brokers)
