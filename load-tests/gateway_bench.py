"""What the gateway costs: reserve over HTTP beside reserve over Kafka, in the same run; and usage in batches.

    python load-tests/gateway_bench.py [--rate 500] [--seconds 10] [--rounds 2] [--batch 1000] [--json FILE]

A broker, a worker and a gateway of its own, in processes of their own. Decisions are open loop: their latency counts
from when they should have been sent, and the two ways take turns. Usage is closed loop over a few connections, with no
worker running; what counts is how many events the gateway takes for each second of its processor time.
"""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import uvloop

from tallygate.connectors.client import Tallygate
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.keys import SCOPES
from tallygate.topologies.bench.figures import conditions, cpu_seconds, load_average, percentiles
from tallygate.topologies.keys_topic import create_key
from tallygate.topologies.local_stack import LocalStack
from tallygate.topologies.settings import load_settings

CUSTOMERS = 200
CONNECTIONS = 64


class Http:
    """HTTP/1.1 over kept connections, and nothing that costs more than a few microseconds."""

    def __init__(self, url: str, key: str) -> None:
        host, _, port = url.rpartition("/")[2].rpartition(":")
        self._place = (host, int(port))
        self._key = key
        self._free: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()

    async def connect(self, connections: int) -> None:
        for _ in range(connections):
            self._free.put_nowait(await asyncio.open_connection(*self._place, limit=1 << 20))

    async def post(self, path: str, body: bytes, media: str = "application/json") -> tuple[int, bytes]:
        reader, writer = await self._free.get()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: {media}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        found = await reader.readexactly(length)
        self._free.put_nowait((reader, writer))
        return int(answer[9:12]), found


async def at_rate(rate: int, seconds: float, send: Any) -> list[float]:
    """Latencies in ms, each from when it was due."""
    loop = asyncio.get_running_loop()
    found: list[float] = []

    async def one(number: int, due: float) -> None:
        await send(number)
        found.append((loop.time() - due) * 1000)

    begin = loop.time() + 0.1
    tasks = []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        if (left := due - loop.time()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    return found


async def decisions(stack: LocalStack, key: str, rate: int, seconds: float, rounds: int) -> dict[str, Any]:
    feature = stack.catalog.features[0].name
    http = Http(stack.gateway_url, key)
    await http.connect(CONNECTIONS)
    latencies: dict[str, list[float]] = {"kafka": [], "http": []}
    async with Tallygate(stack.settings.kafka_brokers, service="cli", timeout=30) as client:
        for number in range(CUSTOMERS):
            await client.grant(f"customer-{number}", 1_000_000)

        async def over_kafka(number: int) -> None:
            answer = await client.reserve(f"customer-{number % CUSTOMERS}", feature=feature, credits=1, ttl_seconds=30)
            assert answer.allowed, answer

        async def over_http(number: int) -> None:
            body = b'{"customer":"customer-%d","feature":"%s","credits":"1","ttl_seconds":30}'
            status, answer = await http.post("/v1/reserve", body % (number % CUSTOMERS, feature.encode()))
            assert status == 200, answer
            assert b'"allowed":true' in answer, answer

        await at_rate(rate, 2, over_kafka)
        await at_rate(rate, 2, over_http)
        before, began = cpu_seconds(stack.pids("gateway")), time.monotonic()
        for _ in range(rounds):
            latencies["kafka"] += await at_rate(rate, seconds, over_kafka)
            latencies["http"] += await at_rate(rate, seconds, over_http)
        spent, took = cpu_seconds(stack.pids("gateway")) - before, time.monotonic() - began
    return {
        "rate": rate,
        "each_way": len(latencies["http"]),
        **percentiles("kafka_ms", latencies["kafka"]),
        **percentiles("http_ms", latencies["http"]),
        "gateway_cpu_ms_per_call": round(spent * 1000 / len(latencies["http"]), 3),
        "gateway_cpu_share": round(spent / took, 2),
    }


def batch(size: int, number: int) -> bytes:
    events = [
        {
            "specversion": "1.0",
            "id": f"{number}-{each}",
            "source": "/bench",
            "type": "llm.call",
            "subject": f"customer-{each % CUSTOMERS}",
            "time": "2026-01-31T12:00:00Z",
            "data": {"input_tokens": 800, "output_tokens": 120, "team": "apps", "model": "code"},
        }
        for each in range(size)
    ]
    return json.dumps(events, separators=(",", ":")).encode()


async def usage(stack: LocalStack, key: str, size: int, seconds: float) -> dict[str, Any]:
    http = Http(stack.gateway_url, key)
    await http.connect(4)
    bodies = [batch(size, number) for number in range(8)]  # repeated: to the gateway they are all alike
    sent = 0
    until = 0.0

    async def keep_sending(number: int) -> None:
        nonlocal sent
        while time.monotonic() < until:
            status, answer = await http.post("/v1/usage", bodies[number % 8], "application/cloudevents-batch+json")
            assert status == 202, answer
            sent += size
            number += 1

    until = time.monotonic() + 1
    await keep_sending(0)
    sent = 0
    before, began = cpu_seconds(stack.pids("gateway")), time.monotonic()
    until = began + seconds
    await asyncio.gather(*map(keep_sending, range(4)))
    spent, took = cpu_seconds(stack.pids("gateway")) - before, time.monotonic() - began
    return {
        "batch": size,
        "event_bytes": round(len(bodies[0]) / size),
        "events": sent,
        "events_per_second": round(sent / took),
        "events_per_cpu_second_of_the_gateway": round(sent / spent),
        "gateway_cpu_share": round(spent / took, 2),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rate", type=int, default=500)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--batch", type=int, default=1000)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        settings = load_settings(
            kafka_brokers="127.0.0.1:9",
            data_dir=folder,
            sql_address="127.0.0.1:0",
            metrics_address="",
            gateway_address="127.0.0.1:0",
            gateway_metrics_address="",
            gateway_calls_per_second=0,
            gateway_timeout_ms=30_000,
        )
        example = ends.enter_context(as_file(files("tallygate.topologies").joinpath("demo_data", "catalog.yaml")))
        kafka = LocalKafka(folder / "kafka")
        stack = ends.enter_context(LocalStack(settings, kafka, example=example, gateway=True))
        stack.wait_ready()
        key = create_key(stack.settings, SCOPES).text
        time.sleep(1)  # the gateway hears of it
        before = load_average()
        found: dict[str, Any] = {
            "decisions": uvloop.run(decisions(stack, key, given.rate, given.seconds, given.rounds))
        }
        for pid in (*stack.pids("worker"), *stack.pids("sink")):
            os.kill(pid, signal.SIGTERM)  # nobody checks the stack from here on, so they stay away
        found["usage"] = uvloop.run(usage(stack, key, given.batch, given.seconds))
        found["conditions"] = conditions(stack.settings, True, before)
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
