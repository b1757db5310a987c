"""What the transport costs: records a second through an agent, latency to the agent, and the journal's read-back.

    python load-tests/transport_bench.py --brokers 127.0.0.1:9092 [throughput] [latency] [readback]

Each measurement runs in a process of its own, on topics of its own. Latency is open loop: counted from when a record
should have been sent. Beside the transport stand a plain Faust agent over aiokafka, and an aiokafka consumer.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as AiokafkaPartition
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tallygate.connectors.lanes import Lane
from tallygate.schemas.records import Chunk
from tallygate.topologies.transport import app_settings, chunk_topic, transport_of

PARTITIONS = 4
SWITCH_SECONDS = 0.0005


def new_topic(brokers: str) -> str:
    topic = f"bench.{uuid.uuid4().hex[:10]}"
    admin = AdminClient({"bootstrap.servers": brokers})  # named: an answer does not outlive its client
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    return topic


def fill(brokers: str, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20, "queue.buffering.max.messages": count + 1})
    for number in range(count):
        producer.produce(topic, b"x" * 200, key=b"customer-%d" % (number % 1000), partition=number % PARTITIONS)
    producer.flush()


def send_at_rate(brokers: str, topic: str, rate: int, seconds: float) -> None:
    """Records whose values are when they should have been sent, in monotonic ns."""
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 0})
    begin = time.monotonic_ns()
    for number in range(int(rate * seconds)):
        due = begin + number * 1_000_000_000 // rate
        while (now := time.monotonic_ns()) < due:
            time.sleep((due - now) / 1e9)
        producer.produce(topic, b"%d" % due, partition=number % PARTITIONS)
        producer.poll(0)
    producer.flush()


def percentiles(values_ns: list[int]) -> str:
    ordered = sorted(values_ns)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] / 1e6 for part in (0.5, 0.99, 0.999)]
    return "p50 {:.2f} p99 {:.2f} p99.9 {:.2f} ms".format(*at)


class FromBeginning:
    """Hooks that own nothing: every topic from offset 0."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    async def opening(self, partition: int) -> dict[str, int]:
        return {self._topic: 0}

    async def closing(self, partition: int) -> None: ...

    async def lost(self, partitions: Any) -> bool:
        return True


def chunked_app(brokers: str, topic: str, take: Callable[[Chunk], None]) -> Any:
    app = faust.App(f"bench-{uuid.uuid4()}", **app_settings(brokers=brokers, data_dir=Path(tempfile.mkdtemp())))
    transport_of(app).hooks = FromBeginning(topic)

    @app.agent(chunk_topic(app, topic), name="bench")
    async def bench(stream: Any) -> None:
        async for event in stream.noack().events():
            take(event.value)
            event.ack()

    return app


def plain_app(brokers: str, topic: str, take: Callable[[bytes], None]) -> Any:
    app = faust.App(
        f"bench-{uuid.uuid4()}",
        broker="aiokafka://" + brokers,
        datadir=tempfile.mkdtemp(),
        topic_disable_leader=True,
        web_enabled=False,
        value_serializer="raw",
    )

    @app.agent(app.topic(topic, key_type=bytes, value_type=bytes), name="bench")
    async def bench(stream: Any) -> None:
        async for value in stream:
            take(value)

    return app


async def throughput(brokers: str, kind: str, topic: str, count: int) -> str:
    finished = asyncio.Event()
    seen = 0
    begin = cpu = 0.0

    def take(size: int) -> None:
        nonlocal seen, begin, cpu
        if not seen:
            begin, cpu = time.monotonic(), time.process_time()
        seen += size
        if seen >= count:
            finished.set()

    if kind == "chunked":
        app = chunked_app(brokers, topic, lambda chunk: take(len(chunk.records)))
    else:
        app = plain_app(brokers, topic, lambda value: take(1))
    await app.start()
    async with asyncio.timeout(240):
        await finished.wait()
    line = (
        f"{count / (time.monotonic() - begin):,.0f} records/s, {count / (time.process_time() - cpu):,.0f} a CPU-second"
    )
    await app.stop()
    return line


async def latency(brokers: str, kind: str, rate: int, seconds: float) -> str:
    topic = new_topic(brokers)
    finished = asyncio.Event()
    late: list[int] = []

    def take(value: bytes) -> None:
        late.append(time.monotonic_ns() - int(value))
        if len(late) >= int(rate * seconds):
            finished.set()

    def take_chunk(chunk: Chunk) -> None:
        for record in chunk.records:
            take(record.value or b"")

    app = chunked_app(brokers, topic, take_chunk) if kind == "chunked" else plain_app(brokers, topic, take)
    await app.start()
    await asyncio.sleep(3)
    sender = multiprocessing.get_context("spawn").Process(target=send_at_rate, args=(brokers, topic, rate, seconds))
    sender.start()
    async with asyncio.timeout(seconds + 60):
        await finished.wait()
    await app.stop()
    return percentiles(late[rate // 2 :])


async def readback(brokers: str, kind: str, rate: int, seconds: float) -> str:
    """One batch of five records at a time; how long until its ack, and until its last record is back."""
    topic = new_topic(brokers)
    loop = asyncio.get_running_loop()
    back: dict[int, asyncio.Future[int]] = {}
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", enable_idempotence=True, linger_ms=0)
    await producer.start()

    def arrived(value: bytes | None) -> None:
        waiting = back.get(int(value or 0))
        if waiting is not None and not waiting.done():
            waiting.set_result(time.monotonic_ns())

    def deliver(chunks: list[Chunk]) -> None:
        for chunk in chunks:
            arrived(chunk.records[-1].value)
            lane.done(chunk)

    async def consume(consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            arrived(record.value)

    lane = Lane(brokers, name="back", group="bench", deliver=deliver, trouble=print, loop=loop)
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, enable_auto_commit=False, fetch_max_wait_ms=100)
    if kind == "lane":
        lane.start({(topic, 0): 0})
    else:
        await consumer.start()
        consumer.assign([AiokafkaPartition(topic, 0)])
        await consumer.seek_to_beginning()
        reading = asyncio.create_task(consume(consumer))
    acks: list[int] = []
    backs: list[int] = []
    begin = time.monotonic_ns() + 1_000_000_000
    for number in range(int(rate * seconds)):
        due = begin + number * 1_000_000_000 // rate
        await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
        batch = producer.create_batch()
        for _ in range(5):
            batch.append(key=b"customer\0row\0id", value=b"%d" % number + b" " * 200, timestamp=None)
        batch.close()
        back[number] = loop.create_future()
        started = time.monotonic_ns()
        await (await producer.send_batch(batch, topic, partition=0))
        acks.append(time.monotonic_ns() - started)
        backs.append(await back[number] - started)
        del back[number]
    if kind != "lane":
        reading.cancel()
        await consumer.stop()
    await asyncio.to_thread(lane.close)
    await producer.stop()
    return f"ack {percentiles(acks)}; read back {percentiles(backs)}"


def measure(work: Any, arguments: tuple[Any, ...], pipe: Any) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    pipe.send(uvloop.run(work(*arguments)))


def report(name: str, work: Any, *arguments: Any) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(work, arguments, theirs))
    process.start()
    theirs.close()
    result = ours.recv() if ours.poll(400) else "no result"
    process.join()
    print(json.dumps({"what": name, "result": result, "load_average": os.getloadavg()[0]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--seconds", type=float, default=10, help="of each latency measurement")
    parser.add_argument("what", nargs="*", default=["throughput", "latency", "readback"])
    options = parser.parse_args()
    brokers = options.brokers
    if "throughput" in options.what:
        for kind, count in (("chunked", 1_000_000), ("plain", 40_000)):
            topic = new_topic(brokers)
            fill(brokers, topic, count)
            report(f"throughput {kind}, {count} x 200 B", throughput, brokers, kind, topic, count)
    if "latency" in options.what:
        for rate in (200, 1000):
            for kind in ("chunked", "plain"):
                report(f"latency {kind}, {rate}/s", latency, brokers, kind, rate, options.seconds)
    if "readback" in options.what:
        for kind in ("lane", "aiokafka", "lane", "aiokafka"):
            report(f"readback by {kind}, 200/s", readback, brokers, kind, 200, options.seconds)


if __name__ == "__main__":
    main()
