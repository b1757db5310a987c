"""The load of the decision peers: the same open and closed shapes as `tallygate bench decisions`, one line of JSON.

A call is a reservation and its settlement. Latency is that of the reservation, from when it was due.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable

Reserve = Callable[[int, str, int], Awaitable[bool]]
Settle = Callable[[int, str, int, int], Awaitable[None]]

WARM_PART = 0.25
WARM_SECONDS_MAX = 3.0


class Load:
    def __init__(self, reserve: Reserve, settle: Settle, customers: int, seconds: float) -> None:
        self._reserve, self._settle = reserve, settle
        self._customers = customers
        self._random = random.Random(7)
        self._warm_seconds = min(WARM_SECONDS_MAX, seconds * WARM_PART)
        self._seconds = self._warm_seconds + seconds
        self._latencies: list[float] = []
        self._sent = self._answered = self._allowed = 0

    async def run(self, rate: int, clients: int) -> None:
        cpu = time.process_time()
        begin = time.monotonic() + 0.05
        self._measure_from = begin + self._warm_seconds
        await (self._closed(clients, begin) if clients else self._open(rate, begin))
        seconds = time.monotonic() - begin
        found = {
            "sent": self._sent,
            "answered": self._answered,
            "allowed": self._allowed,
            **{f"{name}_ms": self._rank(part) for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
            "p999_ms": self._rank(0.999),
            "max_ms": self._rank(1.0),
            "answers_per_second": self._answered / seconds,
            "generator_cpu_seconds": time.process_time() - cpu,
        }
        print(json.dumps(found), flush=True)

    async def _open(self, rate: int, begin: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * self._seconds)):
                due = begin + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._call(due))

    async def _closed(self, clients: int, begin: float) -> None:
        async def client() -> None:
            while (now := time.monotonic()) < begin + self._seconds:
                await self._call(now)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    async def _call(self, due: float) -> None:
        customer = self._random.randrange(self._customers)
        hold = f"{self._random.getrandbits(128):032x}"
        amount = self._random.randrange(1, 4000)
        self._sent += 1
        allowed = await self._reserve(customer, hold, amount)
        self._answered += 1
        if due >= self._measure_from:
            self._latencies.append((time.monotonic() - due) * 1000)
        if allowed:
            self._allowed += 1
            self._sent += 1
            await self._settle(customer, hold, amount, self._random.randrange(1, amount + 1))
            self._answered += 1

    def _rank(self, part: float) -> float:
        self._latencies.sort()
        return round(self._latencies[math.ceil(round(len(self._latencies) * part, 6)) - 1], 3)
