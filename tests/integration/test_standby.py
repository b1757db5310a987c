"""Warm standby on a real broker: what a worker follows, it takes over by reading the tail alone."""

import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from asker import Asker, decided, records
from kafka_fixture import Broker
from tallygate.connectors.consuming import replay
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import GiveGrant, Reserve
from tallygate.topologies.follower import Follower
from tallygate.topologies.tables import RocksTable
from worker_process import WorkerProcess

PARTITIONS = 4
CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",)),),
)
CUSTOMERS = {partition_of(f"customer-{n}", PARTITIONS): f"customer-{n}" for n in range(50)}
FILLED = 400  # requests for each customer, before anything is taken over


@pytest.fixture
def asker(fresh_kafka: Broker) -> Iterator[Asker]:
    asker = Asker(fresh_kafka.bootstrap)
    asker.apply(CATALOG)
    yield asker
    asker.close()


def until(worker: WorkerProcess, **gauges: float) -> None:
    for _ in range(300):
        found = worker.metrics()
        if all(found[f"tallygate_{name}"] == value for name, value in gauges.items()):
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"never {gauges}\n{worker.log()}")


def test_a_standby_takes_a_killed_workers_partitions_over_by_reading_the_tail(
    fresh_kafka: Broker, asker: Asker, tmp_path: Path
) -> None:
    brokers, group = fresh_kafka.bootstrap, f"workers of {tmp_path}"
    first = WorkerProcess(brokers, tmp_path / "first", group=group, standby=True)
    second = WorkerProcess(brokers, tmp_path / "second", group=group, standby=True)
    with first, second:
        for worker in (first, second):
            until(worker, owned_partitions=PARTITIONS // 2, standby_partitions=PARTITIONS // 2)
        asker.ask(*(GiveGrant(id=f"g{n}", customer=c, amount=Decimal(FILLED)) for n, c in CUSTOMERS.items()))
        asker.ask(*(ask(f"r{n}-{i}", c) for i in range(FILLED // 2) for n, c in CUSTOMERS.items()))
        before = opened(second)
        first.kill()
        asker.ask(*(ask(f"s{n}-{i}", c) for i in range(FILLED // 2 - 1) for n, c in CUSTOMERS.items()), seconds=60)
        until(second, owned_partitions=PARTITIONS, standby_partitions=0)
        taken = {partition: found for partition, found in opened(second).items() if partition not in before}
        answers = asker.ask(*(ask(f"t{n}-{i}", c) for i in range(2) for n, c in CUSTOMERS.items()))
        assert second.stop() == 0
    assert len(taken) == PARTITIONS // 2
    sizes = {p: sum(r.partition == p for r in records(brokers, topics.JOURNAL)) for p in taken}
    for partition, tail in taken.items():
        assert tail < sizes[partition] / 10, (tail, sizes)
    # Of each customer's credits, all but one were set aside before, whoever owned them.
    assert sorted((a.customer, a.allowed) for a in answers) == sorted(
        (c, y) for c in CUSTOMERS.values() for y in (0, 1)
    )
    assert not asker.contradictions()
    assert {count for (_, id, _), count in decided(brokers).items() if id[0] in "rst"} == {1}


def test_a_standbys_table_is_what_the_journal_alone_gives(fresh_kafka: Broker, asker: Asker, tmp_path: Path) -> None:
    """Also where a table was left behind for a while, and across a restart of the standby."""
    brokers, group = fresh_kafka.bootstrap, f"workers of {tmp_path}"
    with WorkerProcess(brokers, tmp_path / "owner", group=group) as owner:
        until(owner, owned_partitions=PARTITIONS)
        for lap in range(2):
            asker.ask(*(GiveGrant(id=f"g{n}-{lap}", customer=c, amount=Decimal(5)) for n, c in CUSTOMERS.items()))
            with WorkerProcess(brokers, tmp_path / "spare", group=group, standby=True) as spare:
                until(spare, owned_partitions=PARTITIONS // 2, standby_partitions=PARTITIONS // 2)
                asker.ask(*(ask(f"r{n}-{lap}-{i}", c) for i in range(3) for n, c in CUSTOMERS.items()))
                followed = set(CUSTOMERS) - opened(spare).keys()
                assert spare.stop() == 0
        assert owner.stop() == 0
    for partition in followed:
        table = RocksTable(next((tmp_path / "spare").glob(f"workers/0/*/{partition}")))
        anew = RocksTable(tmp_path / "anew" / str(partition))
        follower = Follower(anew, lambda: 0)
        for record in replay(brokers, (topics.JOURNAL, partition), 0, table.position.offset, group="test"):
            follower.take(record)
        follower.flush()
        assert table.scan(b"", b"\xff" * 8) == anew.scan(b"", b"\xff" * 8)
        table.close()
        anew.close()


def ask(id: str, customer: str) -> Reserve:
    return Reserve(id=id, customer=customer, feature="llm", credits=Decimal(1))


def opened(worker: WorkerProcess) -> dict[int, float]:
    """The records that each opening has read, by partition: the newest of each."""
    found = worker.metrics()
    return {p: found[f'tallygate_recovery_records{{partition="{p}"}}'] for p in range(PARTITIONS) if has(found, p)}


def has(found: dict[str, float], partition: int) -> bool:
    return f'tallygate_recovery_records{{partition="{partition}"}}' in found
