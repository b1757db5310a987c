"""The generator of decisions: reserve and settle through the real client, open or closed."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import uvloop

from tallygate.connectors.client import NoAnswer, Tallygate, TallygateError
from tallygate.schemas.amounts import to_nanos
from tallygate.schemas.answers import Answer
from tallygate.topologies.bench.jobs import DecisionsDone, DecisionsJob, Spent
from tallygate.topologies.bench.usage_load import customer_name, dimensions

SERVICE: Final = "bench"
FEATURE: Final = "bench"
PLAN: Final = "bench"
POOR_PLAN: Final = "bench-poor"
CAPPED_AGENT: Final = "capped"
#: One customer, and one call, in so many meets a limit.
LIMITED_EVERY: Final = 20

_TOKENS_MAX: Final = 4_000
_TOKENS_LIMITED: Final = 75_000
_TIMEOUT_SECONDS: Final = 30.0
_TROUBLES_MAX: Final = 5
_SAY_SECONDS: Final = 0.25

Say = Callable[[dict[str, Any]], None]


def is_poor(number: int) -> bool:
    return number % LIMITED_EVERY == LIMITED_EVERY - 1


class _Load:
    def __init__(self, job: DecisionsJob, client: Tallygate) -> None:
        self.job = job
        self.sent = self.answered = self.allowed = self.denied = self.settled = 0
        self.reserve_ms: list[float] = []
        self.settle_ms: list[float] = []
        self.spent: dict[tuple[str, ...], list[int]] = {}
        self.troubles: list[str] = []
        self._client = client
        self._rng = random.Random(job.seed)
        self._measure_from_ns = 0

    def start(self) -> int:
        begin = time.monotonic_ns() + 50_000_000
        self._measure_from_ns = begin + int(self.job.warm_seconds * 1e9)
        return begin

    async def pair(self, due_ns: int, agent: str | None) -> None:
        """One call: reserve, then settle what it took; a denial ends it."""
        number = self._rng.randrange(self.job.customers)
        customer = customer_name(self.job.prefix, number)
        who = dimensions(self._rng)
        if agent is not None:
            who["agent"] = agent
        limited = is_poor(number)
        if self._rng.randrange(LIMITED_EVERY) == 0:
            who["agent"] = CAPPED_AGENT
            limited = True
        if limited:
            who["model"] = "large"
        tokens = _TOKENS_LIMITED if limited else self._rng.randrange(1, _TOKENS_MAX)
        took = tokens if limited else self._rng.randrange(1, tokens + 1)
        quantities = {"bench_calls": 1, "bench_tokens": tokens}
        hold = f"{self._rng.getrandbits(128):032x}"
        answer = await self._asked(
            self._client.reserve(
                customer, feature=FEATURE, quantities=quantities, dimensions=who, id=hold, timeout=_TIMEOUT_SECONDS
            ),
            due_ns,
            self.reserve_ms,
        )
        if answer is None:
            return
        if not answer.allowed:
            self.denied += 1
            return
        self.allowed += 1
        spent = self.spent.setdefault((customer, *sum(sorted(who.items()), ())), [0, 0, 0])
        spent[1] += (held := to_nanos(answer.credits))
        spent[2] += 1
        settling = self._client.settle(
            customer, hold, {"bench_calls": 1, "bench_tokens": took}, timeout=_TIMEOUT_SECONDS
        )
        settled = await self._asked(settling, time.monotonic_ns(), self.settle_ms)
        if settled is not None:
            self.settled += 1
            spent[0] += to_nanos(settled.credits)
            spent[1] -= held

    async def _asked(self, asking: Any, due_ns: int, latencies: list[float]) -> Answer | None:
        self.sent += 1
        try:
            answer: Answer = await asking
        except NoAnswer as trouble:
            self._note(str(trouble))
            return None
        except TallygateError as trouble:  # refused, or lost with the connection: told at the end, and counted
            self._note(str(trouble))
            return None
        self.answered += 1
        if due_ns >= self._measure_from_ns:
            latencies.append((time.monotonic_ns() - due_ns) / 1e6)
        return answer

    def _note(self, trouble: str) -> None:
        if len(self.troubles) < _TROUBLES_MAX:
            self.troubles.append(trouble)


def run(job: DecisionsJob, say: Say, stop: threading.Event) -> DecisionsDone:
    return uvloop.run(_run(job, say, stop))


async def _run(job: DecisionsJob, say: Say, stop: threading.Event) -> DecisionsDone:
    async with Tallygate(
        job.kafka["bootstrap.servers"], service=SERVICE, in_flight_max=100_000, kafka=_security(job.kafka)
    ) as client:
        load = _Load(job, client)
        cpu = time.process_time()
        begin = load.start()
        saying = asyncio.create_task(_say_on(load, say))
        await (_closed if job.clients else _open)(load, begin, stop)
        seconds = (time.monotonic_ns() - begin) / 1e9
        saying.cancel()
        return DecisionsDone(
            sent=load.sent,
            answered=load.answered,
            allowed=load.allowed,
            denied=load.denied,
            settled=load.settled,
            seconds=seconds,
            cpu_seconds=time.process_time() - cpu,
            reserve_ms=load.reserve_ms,
            settle_ms=load.settle_ms,
            spent=[
                Spent(customer, dict(zip(names[::2], names[1::2], strict=True)), *amounts)
                for (customer, *names), amounts in load.spent.items()
            ],
            troubles=load.troubles,
        )


async def _open(load: _Load, begin: int, stop: threading.Event) -> None:
    """Each pair begins when it is due, whatever became of those before."""
    job = load.job
    total = round(job.rate * (job.warm_seconds + job.seconds))
    async with asyncio.TaskGroup() as group:
        for number in range(total):
            due_ns = begin + number * 1_000_000_000 // job.rate
            if (wait_ns := due_ns - time.monotonic_ns()) > 0:
                await asyncio.sleep(wait_ns / 1e9)
            elif number % 100 == 0:
                await asyncio.sleep(0)  # behind: those under way go on, too
            if stop.is_set():
                return
            group.create_task(load.pair(due_ns, None))


async def _closed(load: _Load, begin: int, stop: threading.Event) -> None:
    """So many clients, each asking again as soon as it is answered."""
    job = load.job
    until = begin + int((job.warm_seconds + job.seconds) * 1e9)

    async def client(number: int) -> None:
        agent = f"agent-{number}" if job.hot else None
        while (now := time.monotonic_ns()) < until and not stop.is_set():
            await load.pair(now, agent)

    async with asyncio.TaskGroup() as group:
        for number in range(job.clients):
            group.create_task(client(number))


async def _say_on(load: _Load, say: Say) -> None:
    while True:
        say({"answered": load.answered})
        await asyncio.sleep(_SAY_SECONDS)


def _security(kafka: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in kafka.items() if name != "bootstrap.servers"}
