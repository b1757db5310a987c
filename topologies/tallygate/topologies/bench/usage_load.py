"""The generator of usage: CloudEvents sent when they are due, whatever becomes of those before."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol

from confluent_kafka import KafkaError, Message, Producer

from tallygate.schemas.events import STRUCTURED
from tallygate.schemas.topics import USAGE
from tallygate.topologies.bench.jobs import Sample, UsageJob, UsageSent

EVENT_TYPE: Final = "tallygate.bench.call"
#: What calls are told apart by; a load carries the first few of them.
DIMENSIONS: Final = ("model", "team", "agent", "user")
TAIL: Final = 1.1
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
    "linger.ms": 50,  # its wait is in the lag; 5 ms make 1 600 requests a second, and the broker the bottleneck
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 128 * 1024,
    "log_level": 2,
}

Kind = tuple[bytes, bytes]


def customer_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number}"


def dimensions(rng: random.Random, kept: int = len(DIMENSIONS)) -> dict[str, str]:
    """Who makes a call, by the first `kept` dimensions; a user is of one team and works with one agent."""
    user = rng.randrange(USERS)
    found = {
        "model": rng.choice(MODELS),
        "team": f"team-{user % TEAMS}",
        "agent": f"agent-{user % AGENTS}",
        "user": f"user-{user}",
    }
    return {name: found[name] for name in DIMENSIONS[:kept]}


def weights(customers: int) -> list[float]:
    """How often each customer calls: as 1, 1/2^1.1, 1/3^1.1, … Of 1 000, the first makes an eighth of the calls."""
    return [1 / number**TAIL for number in range(1, customers + 1)]


def kinds(job: UsageJob, at: datetime) -> Iterator[Kind]:
    """Customers and what follows an event's id; the load goes round in them."""
    rng = random.Random(job.run)
    time_text = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    numbers = range(job.customers)
    for number in numbers if job.each else rng.choices(numbers, weights(job.customers), k=_KINDS):
        who = customer_name(job.prefix, number)
        data = "".join(f',"{name}":"{value}"' for name, value in dimensions(rng, job.dimensions).items())
        rest = (
            f'","type":"{EVENT_TYPE}","subject":"{who}","time":"{time_text}",'
            f'"data":{{"tokens":{rng.randrange(1, 4000)}{data}}}}}'
        )
        yield who.encode(), rest.encode()


class Load(Protocol):
    """What is sent: record number n, due at an instant, whose place is noted where it is `sampled`."""

    events_per_record: int
    samples: list[Sample]
    duplicates: int
    value_bytes: int

    def send(self, number: int, due_ns: int, sampled: bool) -> None: ...

    def poll(self) -> None: ...

    def finish(self) -> None: ...


class Sender:
    """A producer that waits for room, ends the process at the first record that is refused, and notes samples."""

    def __init__(self, job: UsageJob) -> None:
        self.samples: list[Sample] = []
        self.duplicates = 0
        self.value_bytes = 0
        self._producer = Producer({**_PRODUCER, **job.kafka, "error_cb": lambda error: None})
        self._failed: list[str] = []

    def poll(self) -> None:
        self._producer.poll(0)
        if self._failed:
            raise SystemExit(f"an event was not taken by the broker: {self._failed[0]}")

    def finish(self) -> None:
        self._producer.flush()
        self.poll()

    def produce(self, value: bytes, due_ns: int | None, **where: Any) -> None:
        if due_ns is not None:
            where["on_delivery"] = partial(self._delivered, due_ns)
        while True:
            try:
                self._producer.produce(USAGE, value, **where)
                return
            except BufferError:
                self._producer.poll(0.001)

    def _delivered(self, due_ns: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.samples.append((due_ns, message.partition(), message.offset()))
        else:
            self._failed.append(error.str())


class SingleEvents(Sender):
    """One CloudEvent in JSON a record."""

    events_per_record = 1

    def __init__(self, job: UsageJob) -> None:
        super().__init__(job)
        self._kinds = list(kinds(job, datetime.now(UTC)))
        self._head = f'{{"specversion":"1.0","source":"/tallygate/bench/{job.run}","id":"'.encode()
        self._duplicate_every = job.duplicate_every

    def send(self, number: int, due_ns: int, sampled: bool) -> None:
        customer, rest = self._kinds[number % len(self._kinds)]
        value = self._head + b"%d" % number + rest
        self.value_bytes += len(value)
        self.produce(value, due_ns if sampled else None, key=customer, headers=_HEADERS)
        if number % self._duplicate_every == self._duplicate_every - 1:
            self.produce(value, None, key=customer, headers=_HEADERS)
            self.duplicates += 1


def send(job: UsageJob, say: Callable[[dict[str, Any]], None], stop: threading.Event) -> UsageSent:
    load = _load(job)
    each = load.events_per_record
    rate = job.rate / each
    total = max(1, round(rate * job.seconds if rate else job.count / each))
    sample_every = max(1, total // _SAMPLES_MAX)
    cpu = time.process_time()
    begin = time.monotonic_ns() + 50_000_000

    def due_at(number: int) -> int:
        return begin + int(number * 1e9 / rate) if rate else begin

    number = 0
    late_ns = said_ns = 0
    while number < total and not stop.is_set():
        now = time.monotonic_ns()
        due = min(total, int((now - begin) * rate / 1e9) + 1) if rate else total
        if number >= due:
            time.sleep(max(due_at(number) - now, _NAP_NS) / 1e9)
            continue
        upto = min(due, number + _BURST)
        for one in range(number, upto):
            load.send(one, due_at(one), one % sample_every == 0)
        number = upto
        late_ns = max(late_ns, time.monotonic_ns() - due_at(number - 1))
        load.poll()
        if now - said_ns > _SAY_SECONDS * 1e9:
            said_ns = now
            say({"sent": number * each, "begin_ns": begin})
    load.finish()
    end = time.monotonic_ns()
    say({"sent": number * each, "begin_ns": begin, "end_ns": end})
    return UsageSent(
        begin_ns=begin,
        end_ns=end,
        events=number * each,
        duplicates=load.duplicates * each,
        records=number + load.duplicates,
        events_per_record=each,
        value_bytes=load.value_bytes,
        late_ms_max=late_ns / 1e6 if rate else 0.0,
        cpu_seconds=time.process_time() - cpu,
        samples=load.samples,
    )


def _load(job: UsageJob) -> Load:
    if job.shape == "batch":
        from tallygate.topologies.bench.batch_load import Batches  # needs pyarrow and numpy, which single events do not

        return Batches(job)
    return SingleEvents(job)
