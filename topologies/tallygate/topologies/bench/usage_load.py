"""The generator of usage: CloudEvents sent when they are due, whatever becomes of those before."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer

from tallygate.schemas.events import STRUCTURED
from tallygate.schemas.topics import USAGE
from tallygate.topologies.bench.jobs import Sample, UsageJob, UsageSent

EVENT_TYPE: Final = "tallygate.bench.call"
MODELS: Final = ("large", "medium", "small")
TEAMS: Final = 4
USERS: Final = 16
AGENTS: Final = 8

#: Enough for p99.9 to rest on fifty of them; a callback for every event would cost the generator more than sending.
_SAMPLES_MAX: Final = 50_000
_KINDS: Final = 1 << 16
_SAY_SECONDS: Final = 0.25
_NAP_NS: Final = 1_000_000
_BURST: Final = 500
_HEADERS: Final = [("content-type", STRUCTURED)]
_PRODUCER: Final[dict[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "linger.ms": 5,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 128 * 1024,
    "log_level": 2,
}

Kind = tuple[bytes, bytes]


def customer_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number}"


def dimensions(rng: random.Random) -> dict[str, str]:
    """Who makes a call: a user belongs to one team and works with one agent of eight, on any model."""
    user = rng.randrange(USERS)
    return {
        "agent": f"agent-{user % AGENTS}",
        "model": rng.choice(MODELS),
        "team": f"team-{user % TEAMS}",
        "user": f"user-{user}",
    }


def heavy_tail(rng: random.Random, customers: int) -> int:
    """A customer's number: of 1 000, the first makes a tenth of the calls, the first hundred almost half."""
    return int(customers * rng.random() ** 3)


def kinds(job: UsageJob, at: datetime) -> Iterator[Kind]:
    """Customers and what follows an event's id; the load goes round in them."""
    rng = random.Random(job.run)
    time_text = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for number in range(job.customers if job.each else _KINDS):
        who = customer_name(job.prefix, number if job.each else heavy_tail(rng, job.customers))
        data = ",".join(f'"{name}":"{value}"' for name, value in dimensions(rng).items())
        rest = (
            f'","type":"{EVENT_TYPE}","subject":"{who}","time":"{time_text}",'
            f'"data":{{"tokens":{rng.randrange(1, 4000)},{data}}}}}'
        )
        yield who.encode(), rest.encode()


class _Load:
    def __init__(self, job: UsageJob) -> None:
        self._producer = Producer({**_PRODUCER, **job.kafka, "error_cb": lambda error: None})
        self._kinds = list(kinds(job, datetime.now(UTC)))
        self._head = f'{{"specversion":"1.0","source":"/tallygate/bench/{job.run}","id":"'.encode()
        self._duplicate_every = job.duplicate_every
        self._failed: list[str] = []
        self.samples: list[Sample] = []
        self.duplicates = 0
        self.value_bytes = 0

    def send(self, number: int, due_ns: int, sampled: bool) -> None:
        customer, rest = self._kinds[number % len(self._kinds)]
        value = self._head + b"%d" % number + rest
        self.value_bytes += len(value)
        self._produce(customer, value, partial(self._delivered, due_ns) if sampled else None)
        if number % self._duplicate_every == self._duplicate_every - 1:
            self._produce(customer, value, None)
            self.duplicates += 1

    def poll(self) -> None:
        self._producer.poll(0)
        if self._failed:
            raise SystemExit(f"an event was not taken by the broker: {self._failed[0]}")

    def finish(self) -> None:
        self._producer.flush()
        self.poll()

    def _produce(self, customer: bytes, value: bytes, delivered: Callable[..., None] | None) -> None:
        while True:
            try:
                if delivered is None:
                    self._producer.produce(USAGE, value, customer, headers=_HEADERS)
                else:
                    self._producer.produce(USAGE, value, customer, headers=_HEADERS, on_delivery=delivered)
                return
            except BufferError:
                self._producer.poll(0.001)

    def _delivered(self, due_ns: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.samples.append((due_ns, message.partition(), message.offset()))
        else:
            self._failed.append(error.str())


def send(job: UsageJob, say: Callable[[dict[str, Any]], None], stop: threading.Event) -> UsageSent:
    load = _Load(job)
    total = round(job.rate * job.seconds) if job.rate else job.count
    sample_every = max(1, total // _SAMPLES_MAX)
    cpu = time.process_time()
    begin = time.monotonic_ns() + 50_000_000
    number = 0
    late_ns = said_ns = 0
    while number < total and not stop.is_set():
        now = time.monotonic_ns()
        due = min(total, (now - begin) * job.rate // 1_000_000_000 + 1) if job.rate else total
        if number >= due:
            next_ns = begin + number * 1_000_000_000 // job.rate
            time.sleep(max(next_ns - now, _NAP_NS if next_ns > now else 0) / 1e9)
            continue
        upto = min(due, number + _BURST)
        for each in range(number, upto):
            due_ns = begin + each * 1_000_000_000 // job.rate if job.rate else now
            load.send(each, due_ns, each % sample_every == 0)
        number = upto
        late_ns = max(late_ns, time.monotonic_ns() - due_ns)
        load.poll()
        if now - said_ns > _SAY_SECONDS * 1e9:
            said_ns = now
            say({"sent": number, "begin_ns": begin})
    load.finish()
    end = time.monotonic_ns()
    say({"sent": number, "begin_ns": begin, "end_ns": end})
    return UsageSent(
        begin_ns=begin,
        end_ns=end,
        events=number,
        duplicates=load.duplicates,
        records=number + load.duplicates,
        value_bytes=load.value_bytes,
        late_ms_max=late_ns / 1e6,
        cpu_seconds=time.process_time() - cpu,
        samples=load.samples,
    )
