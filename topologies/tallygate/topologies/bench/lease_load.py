"""The generator of local decisions: takes from leases of the real client, in turns with a counter in the process."""

import asyncio
import random
import threading
import time
from typing import Any, Final

import uvloop

from tallygate.connectors.client import Lease, LeaseUnsettled, Tallygate
from tallygate.topologies.bench.decision_load import FEATURE, SERVICE, Say
from tallygate.topologies.bench.jobs import LeasesDone, LeasesJob

_FIRST: Final = {"bench_calls": 50, "bench_tokens": 2_000}
_TOKENS_MAX: Final = 80
_TIMEOUT_SECONDS: Final = 30.0
_SAY_SECONDS: Final = 0.25
_TURN_SECONDS: Final = 0.005


class Counter:
    """The peer: a limit in the program's own memory, behind a lock; nobody else knows of it, and nothing is kept."""

    def __init__(self, limit: int) -> None:
        self._left = dict.fromkeys(_FIRST, limit)
        self._lock = threading.Lock()

    def take(self, amounts: dict[str, int]) -> bool:
        with self._lock:
            if any(self._left[unit] < amount for unit, amount in amounts.items()):
                return False
            for unit, amount in amounts.items():
                self._left[unit] -= amount
            return True


class _Load:
    def __init__(self, job: LeasesJob) -> None:
        self.job = job
        self.sent = self.allowed = self.late = self.slices = 0
        self.take_us: list[float] = []
        self.peer_us: list[float] = []
        self.tokens: dict[str, int] = {}
        self.troubles: list[str] = []
        self._rng = random.Random(job.seed)
        self._counter = Counter(10**15)
        self._measure_from_ns = time.monotonic_ns() + int(job.warm_seconds * 1e9)

    def pair(self, customer: str, lease: Lease) -> None:
        """One decision by the lease and one by the counter, of the same amounts, in either order."""
        amounts = {"bench_calls": 1, "bench_tokens": self._rng.randrange(1, _TOKENS_MAX)}
        if self.sent % 2:
            peer_ns = self._peer(amounts)
        began = time.perf_counter_ns()
        decision = lease.take(amounts)
        took_ns = time.perf_counter_ns() - began
        if not self.sent % 2:
            peer_ns = self._peer(amounts)
        self.sent += 1
        if decision.allowed:
            self.allowed += 1
            self.tokens[customer] = self.tokens.get(customer, 0) + amounts["bench_tokens"]
        if time.monotonic_ns() >= self._measure_from_ns:
            self.take_us.append(took_ns / 1e3)
            self.peer_us.append(peer_ns / 1e3)

    def _peer(self, amounts: dict[str, int]) -> int:
        began = time.perf_counter_ns()
        self._counter.take(amounts)
        return time.perf_counter_ns() - began


def run(job: LeasesJob, say: Say, stop: threading.Event) -> LeasesDone:
    return uvloop.run(_run(job, say, stop))


async def _run(job: LeasesJob, say: Say, stop: threading.Event) -> LeasesDone:
    security = {name: value for name, value in job.kafka.items() if name != "bootstrap.servers"}
    async with Tallygate(
        job.kafka["bootstrap.servers"], service=SERVICE, timeout=_TIMEOUT_SECONDS, kafka=security
    ) as client:
        load = _Load(job)
        cpu = time.process_time()
        begin = time.monotonic()
        saying = asyncio.create_task(_say_on(load, say))
        async with asyncio.TaskGroup() as group:
            for number in range(job.clients):
                group.create_task(_client(load, client, job.customers[number % len(job.customers)], begin, stop))
        saying.cancel()
        return LeasesDone(
            sent=load.sent,
            allowed=load.allowed,
            slices=load.slices,
            late=load.late,
            seconds=time.monotonic() - begin,
            cpu_seconds=time.process_time() - cpu,
            take_us=load.take_us,
            peer_us=load.peer_us,
            tokens=load.tokens,
            troubles=load.troubles,
        )


async def _client(load: _Load, client: Tallygate, customer: str, begin: float, stop: threading.Event) -> None:
    """So many takes a second, in turns of a few milliseconds; a take that meets nothing in hand is a no."""
    job, done = load.job, 0
    lease = await client.lease(customer, feature=FEATURE, quantities=_FIRST)
    try:
        until = begin + job.warm_seconds + job.seconds
        while (now := time.monotonic()) < until and not stop.is_set():
            due = int((now - begin) * job.rate / job.clients)
            for _ in range(done, due):
                load.pair(customer, lease)
            done = max(done, due)
            await asyncio.sleep(_TURN_SECONDS)
    finally:
        try:
            await lease.close()
        except LeaseUnsettled as unsettled:
            load.troubles.append(str(unsettled))
        load.slices += lease.settled
        load.late += lease.late


async def _say_on(load: _Load, say: Say) -> None:
    while True:
        said: dict[str, Any] = {"answered": load.sent}
        say(said)
        await asyncio.sleep(_SAY_SECONDS)
