"""A backlog is the broker's: a worker takes of it no more than its limits, however much there is."""

import time
from pathlib import Path

import msgspec
from confluent_kafka import Producer

from asker import Asker
from kafka_fixture import Broker
from tallygate.connectors.lanes import LaneLimits
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.partitions import partition_of
from tallygate.topologies.batch_lane import RUN_BYTES_MAX
from worker_process import WorkerProcess

PARTITIONS = 4
CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",)),),
)
CUSTOMERS = {partition_of(f"customer-{n}", PARTITIONS): f"customer-{n}" for n in range(50)}
EVENTS, PADDING = 80_000, 4_000  # 320 MB, several times what may be under way
MB = 1 << 20


def test_a_worker_holds_no_more_of_a_backlog_than_its_limits(fresh_kafka: Broker, tmp_path: Path) -> None:
    brokers = fresh_kafka.bootstrap
    asker = Asker(brokers)
    asker.apply(CATALOG)
    asker.close()
    with WorkerProcess(brokers, tmp_path / "worker") as worker:
        while worker.metrics()["tallygate_owned_partitions"] < PARTITIONS:
            time.sleep(0.05)
        idle = resident_bytes(worker)
        fill(brokers)
        limits = LaneLimits()
        records, size, resident = [], [], []
        for _ in range(100):
            found = worker.metrics()
            records.append(found[f'tallygate_unfinished_records{{topic="{topics.USAGE}"}}'])
            size.append(found[f'tallygate_unfinished_bytes{{topic="{topics.USAGE}"}}'])
            resident.append(resident_bytes(worker))
            if found["tallygate_events_total"] == EVENTS:
                break
            time.sleep(0.1)
    room = limits.lane_bytes_max + PARTITIONS * RUN_BYTES_MAX
    one_round = limits.records_per_chunk_max * (PADDING + 500)
    assert max(size) > limits.partition_bytes_max / 2, "the worker kept up: this shows nothing"
    assert max(size) <= room + one_round
    assert max(records) <= limits.lane_records_max + limits.records_per_chunk_max
    # What is under way is there twice or three times (fetched, as records, decoded), and never the whole backlog.
    assert max(resident) - idle < EVENTS * PADDING * 3 / 4, [f"{each / MB:.0f}" for each in (idle, *resident)]


def fill(brokers: str) -> None:
    """Usage of all customers, as fast as the broker takes it."""
    producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random", "linger.ms": 20})
    names = list(CUSTOMERS.values())
    for number in range(EVENTS):
        who = names[number % len(names)]
        event = {
            "specversion": "1.0",
            "id": f"e{number}",
            "source": "test",
            "type": "llm.call",
            "subject": who,
            "data": {"tokens": 1, "note": "x" * PADDING},
        }
        while True:
            try:
                producer.produce(topics.USAGE, msgspec.json.encode(event), who)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(120) == 0


def resident_bytes(worker: WorkerProcess) -> int:
    lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
