"""The demo's load: conversation calls, code calls as usage events, a runaway agent, paced reservations."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tallygate.connectors.client import Tallygate
from tallygate.schemas.answers import Answer
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import to_datetime
from tallygate.topologies.demo_trace import CUSTOMERS, ESTIMATED_OUTPUT_TOKENS, Call

FEATURE: Final = "llm"
#: So many conversation calls are under way at once.
CALLS_IN_FLIGHT: Final = 384
#: An answer may take so long while everything else on the machine is busy, too.
TIMEOUT_SECONDS: Final = 60.0

TRIAL_CREDITS: Final = 250
PAID_CREDITS: Final = 2_000

RUNAWAY_CUSTOMER: Final = CUSTOMERS[0]
RUNAWAY_AGENT: Final = "runaway"
RUNAWAY_BUDGET: Final = 500
RUNAWAY_ASKS: Final = 20
RUNAWAY_CREDITS: Final = 75

PROBES: Final = 300
PROBES_PER_SECOND: Final = 100


class CallDenied(Exception):
    """A call that had to be allowed was not."""


async def give_credits(client: Tallygate) -> None:
    """Two grants to each customer: a small promotional one that burns first, and a paid one."""
    for customer in CUSTOMERS:
        await client.grant(customer, TRIAL_CREDITS, id="welcome", priority=0, category="promotional")
        await client.grant(customer, PAID_CREDITS, id="paid", priority=1, category="paid", price="0.01")


async def replay(client: Tallygate, calls: Iterable[Call], on_done: Callable[[], None]) -> list[float]:
    """Reserves an estimate for each call and settles what it took; the reservations' latencies in ms.

    `CALLS_IN_FLIGHT` are under way at once, in the order of the trace. Raises CallDenied, TallygateError.
    """
    latencies: list[float] = []
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            started = time.perf_counter()
            answer = await client.reserve(
                call.customer,
                feature=FEATURE,
                quantities={"input_tokens": call.input_tokens, "output_tokens": ESTIMATED_OUTPUT_TOKENS},
                dimensions=call.dimensions,
                id=call.id,
            )
            latencies.append((time.perf_counter() - started) * 1000)
            if not answer.allowed:
                raise CallDenied(f"call {call.id} of {call.customer} was denied: {answer.reason}")
            took = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
            await client.settle(call.customer, call.id, took)
            on_done()

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLS_IN_FLIGHT):
            group.create_task(work())
    return latencies


def usage_events(calls: Iterable[Call]) -> Iterator[UsageEvent]:
    """Calls as CloudEvents, each with its own time."""
    for call in calls:
        tokens = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
        yield UsageEvent(
            specversion="1.0",
            id=call.id,
            source="/demo/azure-llm-trace",
            type="llm.call",
            subject=call.customer,
            time=to_datetime(call.at),
            data={**tokens, **call.dimensions},
        )


async def run_away(client: Tallygate) -> list[Answer]:
    """An agent with a budget asks for more than that, all at once."""
    dimensions = {"team": "research", "agent": RUNAWAY_AGENT}
    await client.set_budget(
        RUNAWAY_CUSTOMER, "runaway-agent", RUNAWAY_BUDGET, scope={"agent": RUNAWAY_AGENT}, period="lifetime"
    )

    async def ask() -> Answer:
        return await client.reserve(
            RUNAWAY_CUSTOMER, feature=FEATURE, credits=RUNAWAY_CREDITS, dimensions=dimensions, ttl_seconds=3600
        )

    return await asyncio.gather(*(ask() for _ in range(RUNAWAY_ASKS)))


async def probe(client: Tallygate, on_done: Callable[[], None]) -> list[float]:
    """Reservations at a steady pace, each released again: how long each took from call to answer, in ms."""
    latencies: list[float] = []

    async def ask(number: int) -> None:
        id = uuid.uuid4().hex
        customer = CUSTOMERS[number % len(CUSTOMERS)]
        started = time.perf_counter()
        answer = await client.reserve(customer, feature=FEATURE, credits=1, id=id)
        latencies.append((time.perf_counter() - started) * 1000)
        if not answer.allowed:
            raise CallDenied(f"a probe for {customer} was denied: {answer.reason}")
        await client.release(customer, id)
        on_done()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(PROBES):
            await asyncio.sleep(max(0.0, began + number / PROBES_PER_SECOND - time.perf_counter()))
            group.create_task(ask(number))
    return latencies
