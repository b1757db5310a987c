"""The physical limits beside a result: the same broker and the same records, with nothing of Tallygate in between."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, Producer, TopicPartition

from tallygate.connectors.consuming import consumer_config
from tallygate.schemas.events import decode_events
from tallygate.topologies.bench.jobs import Echoed, EchoJob, Limits, LimitsJob

_AT_ONCE: Final = 10_000
_POLL_SECONDS: Final = 0.1
_SILENCE_SECONDS_MAX: Final = 10.0
_DECODE_AT_ONCE: Final = 1_000
_QUICK: Final[dict[str, Any]] = {"acks": "all", "linger.ms": 0, "socket.nagle.disable": True, "log_level": 2}
_BULK: Final[dict[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 5,
    "queue.buffering.max.messages": 200_000,
    "log_level": 2,
}

Say = Callable[[dict[str, Any]], None]


def measure(job: LimitsJob, say: Say, stop: threading.Event) -> Limits:
    produced, seconds = _produce(job)
    say({"produced": produced})
    consumed, consume_seconds = _consume(job, produced)
    size = len(job.value)
    return Limits(
        record_bytes=size,
        produced_per_second=produced / seconds,
        produced_bytes_per_second=produced * size / seconds,
        consumed_per_second=consumed / consume_seconds,
        consumed_bytes_per_second=consumed * size / consume_seconds,
        decoded_per_cpu_second=_decode(job) if job.decode else None,
    )


def _produce(job: LimitsJob) -> tuple[int, float]:
    """Records confirmed, and in how many seconds."""
    producer = Producer({**_BULK, **job.kafka})
    begin = time.monotonic()
    count = 0
    while time.monotonic() - begin < job.seconds:
        for _ in range(500):
            try:
                producer.produce(job.topic, job.value, partition=count % job.partitions)
                count += 1
            except BufferError:
                producer.poll(0.001)
        producer.poll(0)
    producer.flush()
    return count, time.monotonic() - begin


def _consume(job: LimitsJob, produced: int) -> tuple[int, float]:
    """All of them read into Python, from the first record that came on."""
    consumer = Consumer({**consumer_config(job.kafka["bootstrap.servers"], "tallygate-bench"), **job.kafka})
    consumer.assign([TopicPartition(job.topic, number, 0) for number in range(job.partitions)])
    consumed = 0
    begin = heard = time.monotonic()
    while consumed < produced:
        first = consumer.poll(_POLL_SECONDS)
        now = time.monotonic()
        if first is None:
            assert now - heard < _SILENCE_SECONDS_MAX, "the records just produced do not come"
            continue
        if not consumed:
            begin = now
        heard = now
        consumed += 1 + len(consumer.consume(_AT_ONCE, 0))
    seconds = time.monotonic() - begin
    consumer.close()
    return consumed, seconds


def _decode(job: LimitsJob) -> float:
    count = 0
    begin = time.process_time()
    while time.process_time() - begin < job.seconds / 2:
        for _ in range(_DECODE_AT_ONCE):
            decode_events(job.value, {})
        count += _DECODE_AT_ONCE
    return count / (time.process_time() - begin)


def echo(job: EchoJob, say: Say, stop: threading.Event) -> Echoed:
    producer = Producer({**_QUICK, **job.kafka})
    consumer = Consumer({**consumer_config(job.kafka["bootstrap.servers"], "tallygate-bench"), **job.kafka})
    consumer.assign([TopicPartition(job.replies if job.ask else job.requests, 0, 0)])
    found = _ask(job, producer, consumer) if job.ask else _answer(job, producer, consumer, say, stop)
    consumer.close()
    return found


def _answer(job: EchoJob, producer: Producer, consumer: Consumer, say: Say, stop: threading.Event) -> Echoed:
    say({"ready": True})
    while not stop.is_set():
        first = consumer.poll(_POLL_SECONDS)
        if first is None:
            continue
        for message in (first, *consumer.consume(_AT_ONCE, 0)):
            producer.produce(job.replies, message.value(), partition=0)
        producer.poll(0)
    return Echoed(latencies_ms=[], answers_per_second=0)


def _ask(job: EchoJob, producer: Producer, consumer: Consumer) -> Echoed:
    """Open at a rate, or closed with so many under way; the first half is not measured."""
    latencies: list[float] = []
    begin = time.monotonic_ns() + 50_000_000
    measured = begin + int(job.seconds * 5e8)
    end = begin + int(job.seconds * 1e9)
    total = round(job.rate * job.seconds) if job.rate else None
    due = (begin + n * 1_000_000_000 // job.rate for n in range(total)) if total else itertools.repeat(0)
    waiting: deque[int] = deque()
    upcoming = next(due, None)
    heard = time.monotonic_ns()
    while upcoming is not None or waiting:
        now = time.monotonic_ns()
        while upcoming is not None and (upcoming <= now if job.rate else len(waiting) < job.clients):
            started = upcoming or now
            producer.produce(job.requests, b"%d" % started, partition=0)
            waiting.append(started)
            upcoming = next(due, None) if job.rate or now < end else None
        producer.poll(0)
        pause = 0.05 if upcoming is None or not job.rate else max(0.0, (upcoming - time.monotonic_ns()) / 1e9)
        first = consumer.poll(min(pause, 0.05))
        if first is None:
            assert time.monotonic_ns() - heard < _SILENCE_SECONDS_MAX * 1e9, "the echo does not answer"
            continue
        heard = time.monotonic_ns()
        for message in (first, *consumer.consume(_AT_ONCE, 0)):
            started = int(message.value())
            waiting.popleft()
            if started >= measured:
                latencies.append((heard - started) / 1e6)
    seconds = max(1e-9, (time.monotonic_ns() - measured) / 1e9)
    return Echoed(latencies_ms=latencies, answers_per_second=len(latencies) / seconds)
