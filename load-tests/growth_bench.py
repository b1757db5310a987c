"""Takeover, memory and cost with many customers. `python load-tests/growth_bench.py FOLDER [--json FILE]`

FOLDER keeps the broker with its journal, so that the customers are written once: the first run fills it (`growth_fill`)
and measures nothing. Then, with real workers and the broker on this machine:

cold       a worker without local files opens all partitions
warm       the same worker again, with its tables
standby    beside it a second one that follows its partitions; the first is killed
memory     resident size of the worker at each point, and after it has touched very many customers
cost       CPU time of the worker per usage event, over 10 000 customers and over all of them
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import msgspec
from confluent_kafka import Producer
from growth_fill import CATALOG, customer, run_fill
from rich.console import Console

from tallygate.connectors.kafka_admin import declare_topics
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas import topics
from tallygate.schemas.catalog import catalog_key, encode_catalog
from tallygate.topologies.settings import load_settings
from topic_waits import await_leaders
from worker_process import WorkerProcess

PARTITIONS = 8
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
console = Console(stderr=True)


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    with LocalKafka(folder) as kafka:
        await_leaders(kafka.bootstrap)
        yield kafka.bootstrap


def filled(folder: Path, customers: int) -> None:
    with broker(folder) as brokers:
        declare_topics({"bootstrap.servers": brokers}, topics.topic_specs(PARTITIONS))
        await_leaders(brokers)
        records = run_fill(load_settings(kafka_brokers=brokers), PARTITIONS, customers)
        producer = Producer({"bootstrap.servers": brokers})
        producer.produce(topics.CATALOG, encode_catalog(CATALOG), catalog_key(CATALOG.version))
        producer.flush(30)
    (folder / "filled.json").write_text(json.dumps({"customers": customers, "records": records}))


def cpu_seconds(worker: WorkerProcess) -> float:
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_mb(worker: WorkerProcess, field: str = "VmRSS") -> int:
    lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) // 1024


def until(worker: WorkerProcess, seconds: float = 300, **gauges: float) -> None:
    due = time.monotonic() + seconds
    while any(worker.metrics().get(f"tallygate_{name}") != value for name, value in gauges.items()):
        assert time.monotonic() < due, f"never {gauges}\n{worker.log()}"
        time.sleep(0.02)


def opened(worker: WorkerProcess, since: float, cpu_before: float) -> dict[str, float]:
    """What it took to own all partitions; `records` were read of the journal."""
    until(worker, owned_partitions=PARTITIONS)
    wall, cpu = time.monotonic() - since, cpu_seconds(worker) - cpu_before
    records = sum(v for k, v in worker.metrics().items() if k.startswith("tallygate_recovery_records"))
    return {
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "records": int(records),
        "records_per_second": round(records / wall),
        "records_per_cpu_second": round(records / cpu) if cpu else 0,
        "resident_mb": resident_mb(worker),
    }


def start(brokers: str, folder: Path, **settings: Any) -> WorkerProcess:
    return WorkerProcess(brokers, folder, group="growth", tick_ms=1000, **settings)


def cost(worker: WorkerProcess, brokers: str, lap: str, customers: int, events: int, seed: int) -> dict[str, float]:
    """Usage events of random customers, sent as fast as the worker takes them."""
    rng, counted = random.Random(seed), "tallygate_events_total"
    before, cpu, started = worker.metrics().get(counted, 0), cpu_seconds(worker), time.monotonic()
    producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random", "linger.ms": 20})
    met = set()
    for number in range(events):
        who = customer(rng.randrange(customers))
        met.add(who)
        event = {
            "specversion": "1.0",
            "id": f"{lap}-{number}",
            "source": "growth",
            "type": "llm.call",
            "subject": who,
            "data": {"tokens": 1},
        }
        producer.produce(topics.USAGE, msgspec.json.encode(event), who)
        if number % 1000 == 0:
            producer.poll(0)
    producer.flush(60)
    while worker.metrics().get(counted, 0) < before + events:
        time.sleep(0.05)
    wall, used = time.monotonic() - started, cpu_seconds(worker) - cpu
    return {
        "customers": customers,
        "customers_met": len(met),
        "events": events,
        "events_per_second": round(events / wall),
        "cpu_us_per_event": round(used / events * 1e6, 1),
        "resident_mb": resident_mb(worker),
        "resident_mb_max": resident_mb(worker, "VmHWM"),
    }


def measured(folder: Path, customers: int, events: int, parts: set[str]) -> dict[str, dict[str, Any]]:
    work = Path(tempfile.mkdtemp(prefix="tallygate-growth-"))
    result: dict[str, dict[str, Any]] = {}
    try:
        with broker(folder) as brokers:
            if "takeover" in parts:
                console.print("cold: a worker without local files")
                with start(brokers, work / "one") as worker:
                    worker.wait_for("metrics on")
                    result["cold"] = opened(worker, time.monotonic(), cpu_seconds(worker))
                    worker.kill()
                console.print("warm: the same with its tables, killed before")
                with start(brokers, work / "one") as worker:
                    worker.wait_for("metrics on")
                    result["warm"] = opened(worker, time.monotonic(), cpu_seconds(worker))
                    assert worker.stop() == 0
            if "standby" in parts:
                result["standby"] = standby(brokers, work)
            if "cost" in parts:
                console.print("cost and memory")
                with start(brokers, work / "one") as worker:
                    until(worker, owned_partitions=PARTITIONS)
                    result["cost_first"] = cost(worker, brokers, f"w{time.time()}", 10_000, events // 5, 0)
                    result["cost_10k"] = cost(worker, brokers, f"a{time.time()}", 10_000, events, 1)
                    result["cost_all"] = cost(worker, brokers, f"b{time.time()}", customers, events, 2)
                    assert worker.stop() == 0
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def standby(brokers: str, work: Path) -> dict[str, float]:
    """From the kill of the owner of half of the partitions until the other one owns them all."""
    console.print("standby: two workers that follow each other, until they have caught up; then one is killed")
    settings = {"standby": True, "session_timeout_ms": 6000}
    with start(brokers, work / "one", **settings) as one, start(brokers, work / "two", **settings) as two:
        for worker in (one, two):
            until(worker, owned_partitions=PARTITIONS // 2, standby_partitions=PARTITIONS // 2)
        resident = resident_mb(two)
        one.kill()
        started, cpu = time.monotonic(), cpu_seconds(two)
        until(two, owned_partitions=PARTITIONS)
        wall = time.monotonic() - started
        opened_in = [v for k, v in two.metrics().items() if k.startswith("tallygate_recovery_seconds")]
        tails = [v for k, v in two.metrics().items() if k.startswith("tallygate_recovery_records")]
        found = {
            "seconds_from_the_kill": round(wall, 2),
            "session_timeout_seconds": 6,
            "opening_seconds_max": round(sorted(opened_in)[PARTITIONS // 2 - 1], 3),
            "records_read_max": sorted(tails)[PARTITIONS // 2 - 1],
            "cpu_seconds": round(cpu_seconds(two) - cpu, 2),
            "resident_mb": resident,
        }
        assert two.stop() == 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the broker and its journal")
    parser.add_argument("--customers", type=int, default=1_000_000, help="how many the first run writes")
    parser.add_argument("--events", type=int, default=100_000, help="in each measurement of cost")
    parser.add_argument("--only", action="append", choices=["takeover", "standby", "cost"], help="default: all of them")
    parser.add_argument("--json", type=Path, help="write the result there; what it holds of other parts stays")
    options = parser.parse_args()
    if not (options.folder / "filled.json").exists():
        filled(options.folder, options.customers)
        console.print("filled; run it again to measure")
        return
    held = json.loads((options.folder / "filled.json").read_text())
    conditions = {
        **held,
        "partitions": PARTITIONS,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "broker": "LocalKafka on the same machine, one node, defaults",
    }
    parts = set(options.only or ["takeover", "standby", "cost"])
    before = round(os.getloadavg()[0], 2)
    found = measured(options.folder, held["customers"], options.events, parts)
    load = [before, round(os.getloadavg()[0], 2)]
    result: dict[str, object] = {**conditions, **{name: {**each, "load_average": load} for name, each in found.items()}}
    for name, value in result.items():
        print(f"{name:22} {value}")
    if options.json:
        earlier = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps({**earlier, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
