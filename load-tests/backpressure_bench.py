"""A producer much faster than the worker, for a minute. `python load-tests/backpressure_bench.py [--json FILE]`

A real broker, worker, sink and the product's own producer of usage (`publish_events`), each a process, on one machine.
Their resident sizes are sampled every second, and what the worker has taken in and not finished. Memory is bounded if
the last third of the minute is no larger than the one before, though the backlog has grown all the time.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from confluent_kafka import Producer
from growth_fill import CATALOG

from sink_world import SinkProcess
from tallygate.connectors.kafka_admin import declare_topics
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.connectors.usage_producer import publish_events
from tallygate.schemas import topics
from tallygate.schemas.catalog import catalog_key, encode_catalog
from tallygate.schemas.events import UsageEvent, encode_event
from topic_waits import await_leaders
from worker_process import WorkerProcess

PARTITIONS = 8
CUSTOMERS = 1000


def produce(brokers: str, seconds: float) -> None:
    """Sends for so long; prints how many events the broker has confirmed."""
    until = time.monotonic() + seconds
    encoded = []
    for n in range(10_000):
        event = UsageEvent(
            specversion="1.0", id="ID", source="s", type="llm.call", subject=f"c{n % CUSTOMERS}", data={"tokens": 1}
        )
        encoded.append(encode_event(event).split(b'"ID"'))
    numbers = itertools.takewhile(lambda n: n % 1000 or time.monotonic() < until, itertools.count())
    events = ((b'"%d"' % n).join(encoded[n % len(encoded)]) for n in numbers)
    print(publish_events({"bootstrap.servers": brokers}, events).events)


def resident_mb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


def unfinished(found: dict[str, float]) -> dict[str, float]:
    name = f'{{topic="{topics.USAGE}"}}'
    return {
        "unfinished_records": found[f"tallygate_unfinished_records{name}"],
        "unfinished_mb": found[f"tallygate_unfinished_bytes{name}"] / (1 << 20),
    }


def measured(seconds: int) -> dict[str, object]:
    samples: list[dict[str, float]] = []
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="tallygate-pressure-") as work:
        brokers = kafka.bootstrap
        declare_topics({"bootstrap.servers": brokers}, topics.topic_specs(PARTITIONS))
        await_leaders(brokers)
        producer = Producer({"bootstrap.servers": brokers})
        producer.produce(topics.CATALOG, encode_catalog(CATALOG), catalog_key(CATALOG.version))
        producer.flush(30)
        with (
            WorkerProcess(brokers, Path(work) / "worker", tick_ms=1000) as worker,
            SinkProcess(brokers, Path(work) / "sink") as sink,
        ):
            while worker.metrics().get("tallygate_owned_partitions") != PARTITIONS:
                time.sleep(0.1)
            client = subprocess.Popen(
                [sys.executable, __file__, "--produce", brokers, str(seconds)], stdout=subprocess.PIPE, text=True
            )
            started = time.monotonic()
            while client.poll() is None:
                found = worker.metrics()
                samples.append(
                    {
                        "worker_mb": resident_mb(worker.process.pid),
                        "sink_mb": resident_mb(sink.process.pid),
                        "client_mb": resident_mb(client.pid),
                        "events": found["tallygate_events_total"],
                        **unfinished(found),
                    }
                )
                time.sleep(1)
            wall = time.monotonic() - started
            sent = int(client.communicate()[0])
    third = len(samples) // 3
    result: dict[str, object] = {
        "seconds": round(wall),
        "events_sent": sent,
        "events_counted": int(samples[-1]["events"]),
        "times_faster": round(sent / max(1, samples[-1]["events"]), 1),
    }
    for name in ("worker_mb", "sink_mb", "client_mb", "unfinished_records", "unfinished_mb"):
        parts = samples[:third], samples[third : 2 * third], samples[2 * third : -1]
        result[f"{name}_max_by_third"] = [round(max(each[name] for each in part)) for part in parts]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--produce", nargs=2, metavar=("BROKERS", "SECONDS"), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    if options.produce:
        produce(options.produce[0], float(options.produce[1]))
        return
    result: dict[str, object] = {
        "load_average_before": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "partitions": PARTITIONS,
    }
    result |= measured(options.seconds)
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    for name, value in result.items():
        print(f"{name:34} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
