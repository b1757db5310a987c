"""Kafka compacts the journal while workers and the sink are at work: what is left gives the same state.

In production everything is kept for 24 hours, which the sink must not fall behind. Here it is a moment. So that nothing
is taken that the sink has not read, however slow the machine is, nothing is appended before the sink has stored what is
there: the newest segment is never compacted, and only an append begins another.
"""

import shutil
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient, ResourceType

from asker import Asker, records
from kafka_fixture import Broker
from sink_world import SinkProcess, alter
from tallygate.connectors.consuming import replay
from tallygate.pipeline.replay import forgotten_range
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import Balance, GiveGrant, Reserve, Settle
from tallygate.topologies import ledger
from tallygate.topologies.follower import Follower
from tallygate.topologies.tables import RocksTable
from tallygate.topologies.topic_reading import bounds
from worker_process import WorkerProcess

PARTITIONS = 4
CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",)),),
)
CUSTOMERS = {partition_of(f"customer-{n}", PARTITIONS): f"customer-{n}" for n in range(50)}
SECONDS_MAX = 60


def test_a_journal_compacted_at_work_gives_the_same_state(fresh_kafka: Broker, tmp_path: Path) -> None:
    brokers = fresh_kafka.bootstrap
    asker = Asker(brokers)
    asker.apply(CATALOG)
    # A tick is an append, too: they are as rare as they may be.
    seldom = {"tick_ms": 60_000, "session_timeout_ms": 240_000}
    with SinkProcess(brokers, tmp_path / "sink") as sink:
        with WorkerProcess(brokers, tmp_path / "worker", **seldom) as worker:
            asker.ask(*(GiveGrant(id=f"g-{c}", customer=c, amount=Decimal(1000)) for c in CUSTOMERS.values()))
            asker.ask(*(reserve(f"open-{c}", c, 5) for c in CUSTOMERS.values()))
            await_sink(sink)
            make_it_compact(brokers)
            laps = work_until_compacted(asker, sink, brokers)
            assert worker.stop() == 0
        # A new worker without local files: from what compaction has left.
        with WorkerProcess(brokers, tmp_path / "cold", **seldom) as cold:
            statements = asker.ask(*(Balance(id=f"b-{c}", customer=c) for c in CUSTOMERS.values()))
            await_sink(sink)
            settled = asker.ask(*(Settle(id=f"last-{c}", customer=c, hold=f"open-{c}") for c in CUSTOMERS.values()))
            assert cold.stop() == 0
        verified = ledger.verify(sink.settings, None, 30.0, lambda what, done, of: None)
        # Of each lap two legs to hold a credit, and two to consume it; all of them before they were compacted.
        assert sink.figure("SELECT count() FROM postings") > 4 * laps * len(CUSTOMERS)
    assert verified.difference is None
    for answer in statements:
        assert answer.statement is not None
        [pool] = answer.statement.pools
        assert (pool.balance, pool.held) == (str(1000 - laps - 5), "5")
    assert all(answer.allowed for answer in settled)
    assert not asker.contradictions()
    asker.close()
    for partition in CUSTOMERS:
        assert cold_rows(brokers, tmp_path, partition) == kept_rows(tmp_path / "cold", partition)


def make_it_compact(brokers: str) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    for broker in admin.list_topics(timeout=10).brokers:
        alter(admin, ResourceType.BROKER, str(broker), {"log.cleaner.backoff.ms": "100"})
    quick = {"min.compaction.lag.ms": "2000", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    alter(admin, ResourceType.TOPIC, topics.JOURNAL, quick)


def work_until_compacted(asker: Asker, sink: SinkProcess, brokers: str) -> int:
    """Reserves and settles a credit for everybody, again and again, until most of the journal is gone; how often."""
    until = time.monotonic() + SECONDS_MAX
    laps = 0
    while True:
        for _ in range(4):
            laps += 1
            asker.ask(*(reserve(f"r{laps}-{c}", c, 1) for c in CUSTOMERS.values()))
            await_sink(sink)
            asker.ask(*(Settle(id=f"s{laps}-{c}", customer=c, hold=f"r{laps}-{c}") for c in CUSTOMERS.values()))
            ends = await_sink(sink)
        left = Counter(record.partition for record in records(brokers, topics.JOURNAL))
        if all(left[p] < ends[p] / 2 for p in CUSTOMERS):
            return laps
        assert time.monotonic() < until, f"not compacted: {left} records are left of {ends}"


def await_sink(sink: SinkProcess) -> dict[int, int]:
    """Until the sink has stored the journal up to where it ends now; where that is."""
    ends = {p: end for p, (_, end) in bounds(sink.settings, topics.JOURNAL).items()}
    stored = "SELECT partition, next_offset FROM sink_offsets FINAL"
    sink.wait_for(
        lambda: {int(r["partition"]): int(r["next_offset"]) for r in sink.ask(stored)}.items() >= ends.items()
    )
    return ends


def reserve(id: str, customer: str, credits: int) -> Reserve:
    return Reserve(id=id, customer=customer, feature="llm", credits=Decimal(credits), ttl_seconds=86_400)


def kept_rows(folder: Path, partition: int) -> list[tuple[bytes, bytes]]:
    """What the worker has left in its table, without ids: those older than the compaction lag may be gone."""
    table = RocksTable(next(folder.glob(f"workers/0/*/{partition}")))
    found = without_ids(table)
    table.close()
    return found


def cold_rows(brokers: str, folder: Path, partition: int) -> list[tuple[bytes, bytes]]:
    """The same, from the journal as it is left."""
    path = folder / "anew" / str(partition)
    shutil.rmtree(path, ignore_errors=True)
    table = RocksTable(path)
    follower = Follower(table, lambda: 0)
    end = max(record.offset for record in records(brokers, topics.JOURNAL) if record.partition == partition) + 1
    for record in replay(brokers, (topics.JOURNAL, partition), 0, end, group="test"):
        follower.take(record)
    follower.flush()
    found = without_ids(table)
    table.close()
    return found


def without_ids(table: Any) -> list[tuple[bytes, bytes]]:
    seen, _ = forgotten_range(DAY_MS)
    return [(key, value) for key, value in table.scan(b"", b"\xff" * 8) if not key.startswith(seen)]
