"""Usage batches end to end, with the worker's profile: `python load-tests/usage_batch_bench.py --rate 500000`

A broker, a worker and a sink of its own; Arrow batches of 1 000 events for 10 000 customers with a heavy tail, one
meter and credits, sent when they are due. Lag counts from then until ClickHouse's sum of events shows them.
`--profile` needs `py-spy` on the path. `tallygate bench usage --shape batch` is the bench for users; this one looks
inside.
"""

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from confluent_kafka import Producer

from tallygate.connectors.client import Tallygate
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.topics import USAGE
from tallygate.schemas.usage_batch import BatchId, batch_headers
from tallygate.topologies.bench.figures import Meters, percentiles
from tallygate.topologies.local_stack import LocalStack
from tallygate.topologies.settings import Settings, load_settings
from tallygate.topologies.sql_server import ask
from tallygate.topologies.usage_load import UsageLoad

CATALOG = """
meters:
  tokens: {event_type: llm.call, value: input_tokens, dimensions: %s}
features:
  llm:
    meters: [tokens]
    rates: [{meter: tokens, credits: 250, per: 1000000}]
    overage: unlimited
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=200_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--customers", type=int, default=10_000)
    parser.add_argument("--dimensions", default="", help="of the meter, with commas: model")
    parser.add_argument("--grants", action="store_true", help="give every customer credits first, else all is owed")
    parser.add_argument("--profile", type=Path, help="where the worker's profile goes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tallygate-bench-") as name:
        result = measured(Path(name), options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measured(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    catalog = folder / "catalog.yaml"
    catalog.write_text(CATALOG % json.dumps([d for d in options.dimensions.split(",") if d]))
    settings = load_settings(
        data_dir=folder, partitions=options.partitions, sql_address="127.0.0.1:0", metrics_address="", relay=""
    )
    load = UsageLoad(options.partitions, customers=options.customers)
    kafka = LocalKafka(folder / "kafka")
    with LocalStack(settings, kafka, example=catalog, catalog=catalog, say=print) as stack:
        stack.wait_ready()
        if options.grants:
            asyncio.run(give(stack.settings, load.customers))
        before = os.getloadavg()[0]
        meters, began = Meters(stack), time.monotonic()
        profiler = None
        if options.profile:
            profiler = subprocess.Popen(
                f"py-spy record -d {int(options.seconds)} -r 200 -f raw -t --gil -o {options.profile} "
                f"-p {stack.pids('worker')[0]}".split(),
                stdout=subprocess.DEVNULL,
            )
        seen: list[tuple[float, int]] = []
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(stack.settings, seen, stop))
        watcher.start()
        sent, cpu, late = send(stack.settings, load, options.rate, options.seconds, began)
        sent_seconds = time.monotonic() - began
        until = time.monotonic() + 120
        while (not seen or seen[-1][1] < sent) and time.monotonic() < until:
            time.sleep(0.1)
            stack.check()
        done = time.monotonic() - began
        stop.set()
        watcher.join()
        figures = meters.read()
        if profiler is not None:
            profiler.wait()
    lags = [(at - began - min(count, sent - 1) / options.rate) * 1000 for at, count in seen if 0 < count < sent]
    worker = figures["worker_cpu_seconds"] or 1
    return {
        "offered_per_second": options.rate,
        "sent": sent,
        "counted": seen[-1][1] if seen else 0,
        "send_seconds": round(sent_seconds, 2),
        "all_visible_after_seconds": round(done, 2),
        "generator_late_ms_max": round(late * 1000),
        **percentiles("lag_ms", lags),
        "worker_events_per_cpu_second": round(sent / worker),
        **figures,
        "generator_cpu_seconds": round(cpu, 2),
        "load_average": [before, os.getloadavg()[0]],
        "cores": os.cpu_count(),
        "partitions": options.partitions,
        "customers": options.customers,
        "dimensions": options.dimensions,
        "grants": options.grants,
    }


async def give(settings: Settings, customers: list[str]) -> None:
    waiting = iter(customers)
    async with Tallygate(settings.kafka_brokers, service="cli", timeout=60) as client:

        async def work() -> None:
            for customer in waiting:
                await client.grant(customer, 10**9, id="bench")

        await asyncio.gather(*(work() for _ in range(256)))


def send(settings: Settings, load: UsageLoad, rate: int, seconds: float, began: float) -> tuple[int, float, float]:
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka_brokers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.kbytes": 256 * 1024,
        }
    )
    cpu, late = time.thread_time(), 0.0
    order, epoch = load.order(), time.time_ns() // 1_000_000
    total = int(rate * seconds) // load.events
    for number in range(total):
        due = began + number * load.events / rate
        while (now := time.monotonic()) < due:
            time.sleep(max(due - now, 0.001))
        late = max(late, now - due)
        partition = next(order)
        value = load.batch(partition, time.time_ns() // 1_000_000)
        headers = batch_headers(BatchId("bench", epoch, number))
        while True:
            try:
                producer.produce(USAGE, value, partition=partition, headers=headers)
                break
            except BufferError:
                producer.poll(0.01)
        producer.poll(0)
    producer.flush()
    return total * load.events, time.thread_time() - cpu, late


def watch(settings: Settings, seen: list[tuple[float, int]], stop: threading.Event) -> None:
    while not stop.wait(0.1):
        text = ask(settings, "SELECT sum(events) AS n FROM sink_usage_deltas", "jsonl")
        seen.append((time.monotonic(), int(json.loads(text)["n"])))


if __name__ == "__main__":
    main()
