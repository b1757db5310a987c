"""The load: flows of reservations through the real client, usage events through the real producer, poison by hand.

All that was asked, every answer, every event that a broker confirmed and every poison record's place are kept: they are
what the oracles start from.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Producer

from tallygate.connectors.client import NoAnswer, RefusedRequest, Tallygate
from tallygate.connectors.usage_producer import PublishFailed, publish_events
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import Catalog, Entitlement, Feature, Meter, Plan, PlanBudget, Rate
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.topics import HEADER_CORRELATION, HEADER_REPLY_TO, REQUESTS, USAGE, reply_topic

CREDITS: Final = 10**9
AGENT_LIMIT: Final = 300
SEARCHES_LIMIT: Final = 150
SERVICE: Final = "cli"

#: `llm` is paid from `credits` and never owes anything; usage events are paid from another pool and may owe; `search`
#: has an allowance; each agent has a budget.
CATALOG: Final = Catalog(
    version=1,
    meters=(
        Meter("tokens", "llm.call", "sum", "tokens", ("team",)),
        Meter("searches", "search.done", "sum", "searches"),
    ),
    features=(
        Feature("llm", ("credits",)),
        Feature(
            "metered", ("usage",), ("tokens",), (Rate("tokens", CREDITS // 1000, CREDITS),), overage_nanos_max=None
        ),
        Feature("search", ("credits",), ("searches",)),
    ),
    plans=(
        Plan(
            "all",
            entitlements=(
                Entitlement("llm", "credit"),
                Entitlement("metered", "credit"),
                Entitlement(
                    "search", "metered", meter="searches", limit_nanos=SEARCHES_LIMIT * CREDITS, period="lifetime"
                ),
            ),
            budgets=(PlanBudget("agents", AGENT_LIMIT * CREDITS, {"agent": "*"}),),
        ),
    ),
    default_plan="all",
)

Call = Callable[[Tallygate], Awaitable[Answer]]


@dataclass
class Asked:
    """One request, under one id: every answer to it, of which there must be one at least, and all alike."""

    op: str
    id: str
    customer: str
    answers: list[Answer] = field(default_factory=list)
    tries: int = 0


@dataclass(frozen=True)
class Event:
    customer: str
    tokens: int


@dataclass
class Record:
    """What the load knows. `poison`: by topic, partition and offset."""

    asked: list[Asked] = field(default_factory=list)
    events: dict[str, Event] = field(default_factory=dict)
    poison: dict[tuple[str, int, int], bytes | None] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def customers_of(partitions: int, each: int) -> list[str]:
    """So many customers in every partition."""
    found: dict[int, list[str]] = {number: [] for number in range(partitions)}
    for number in range(1000 * partitions):
        name = f"customer-{number}"
        home = found[partition_of(name, partitions)]
        if len(home) < each:
            home.append(name)
    return [name for names in found.values() for name in names]


class Load:
    """Runs in threads of its own from `start` to `finish`."""

    def __init__(self, brokers: str, customers: list[str], partitions: int, seed: int, pause_seconds: float) -> None:
        self.record = Record()
        self._brokers = brokers
        self._customers = customers
        self.partitions = partitions
        self._seed = seed
        self._pause_seconds = pause_seconds
        self._ending = threading.Event()
        self._asked_at = dict.fromkeys(range(partitions), 0.0)  # of the newest question that was answered, by partition
        self._give_up_at = float("inf")
        self._threads = [threading.Thread(target=self._guarded, args=(run,), daemon=True) for run in self._runs()]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> None:
        """Begins nothing new, and waits until all that was asked is answered; gives up after so many seconds."""
        self._give_up_at = time.monotonic() + seconds
        self._ending.set()
        for thread in self._threads:
            thread.join(seconds + 30)
            if thread.is_alive():
                self.record.troubles.append(f"the load's thread {thread.name} does not end")

    @property
    def given_up(self) -> bool:
        return time.monotonic() > self._give_up_at

    def silent(self, since: float) -> list[int]:
        """The partitions that have answered nothing of what was asked since then (`time.monotonic`)."""
        return [number for number, at in self._asked_at.items() if at < since]

    def note_answered(self, customer: str, asked_at: float) -> None:
        home = partition_of(customer, self.partitions)
        self._asked_at[home] = max(self._asked_at[home], asked_at)

    def _runs(self) -> list[Callable[[], None]]:
        return [lambda: asyncio.run(self._ask_all()), self._use, self._poison]

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self.record.troubles.append(f"the load broke: {error!r}")
            raise

    # Requests

    async def _ask_all(self) -> None:
        async with (
            Tallygate(self._brokers, service=SERVICE, timeout=5) as one,
            Tallygate(self._brokers, service=SERVICE, timeout=5) as other,
            asyncio.TaskGroup() as group,
        ):
            for number, customer in enumerate(self._customers):
                for lane in range(2):
                    name = f"{number}.{lane}"
                    group.create_task(Caller(self, (one, other), customer, name, f"{self._seed} {name}").run())

    # Usage events

    def _use(self) -> None:
        chance = random.Random(f"{self._seed} usage")
        number = 0
        before: list[UsageEvent] = []
        while not self._ending.is_set():
            batch = []
            for _ in range(chance.randint(5, 25)):
                number += 1
                customer, tokens = chance.choice(self._customers), chance.randint(1, 500)
                data = {"tokens": tokens, "team": chance.choice(("red", "blue"))}
                batch.append(
                    UsageEvent(
                        specversion="1.0",
                        id=f"e{number}",
                        source="/chaos",
                        type="llm.call",
                        subject=customer,
                        data=data,
                    )
                )
            again = before if chance.random() < 0.2 else []  # a producer that repeats itself
            self._publish([*batch, *again])
            for event in batch:
                self.record.events[event.id] = Event(event.subject, event.data["tokens"])
            before = batch
            self._ending.wait(self._pause_seconds * chance.uniform(0.5, 1.5))

    def _publish(self, batch: list[UsageEvent]) -> None:
        """Until all of it is confirmed, as the producer's own message advises."""
        while True:
            try:
                publish_events({"bootstrap.servers": self._brokers}, batch)
                return
            except PublishFailed as failed:
                if self.given_up:
                    self.record.troubles.append(str(failed))
                    return

    # Poison

    def _poison(self) -> None:
        chance = random.Random(f"{self._seed} poison")
        producer = Producer(
            {
                "bootstrap.servers": self._brokers,
                "enable.idempotence": True,
                "message.timeout.ms": 300_000,
                "log_level": 0,
            }
        )
        back = [(HEADER_REPLY_TO, reply_topic(SERVICE).encode()), (HEADER_CORRELATION, b"poison")]

        def arrived(error: Any, message: Any) -> None:
            if error is not None:
                self.record.troubles.append(f"a poison record's fate is not known: {error}")
            else:
                place = (message.topic(), message.partition(), message.offset())
                self.record.poison[place] = message.value()

        for topic, value, partition in self._poisonous(chance):
            headers = back if topic == REQUESTS else []
            producer.produce(topic, value, "k", partition, headers=headers, on_delivery=arrived)
            producer.poll(0)
            if self._ending.wait(2 * self._pause_seconds * chance.uniform(0.5, 1.5)):
                break
        if left := producer.flush(60):
            self.record.troubles.append(f"{left} poison records were not delivered")

    def _poisonous(self, chance: random.Random) -> Iterator[tuple[str, bytes | None, int]]:
        event = '{"specversion":"1.0","id":"%s","source":"t","type":"llm.call","subject":"%s","data":{"tokens":%s}}'
        for number in range(10**9):
            customer = chance.choice(self._customers)
            home = partition_of(customer, self.partitions)
            here = chance.randrange(self.partitions)
            kinds: tuple[tuple[str, bytes | None, int], ...] = (
                (USAGE, b"{", here),
                (USAGE, None, here),
                (USAGE, chance.randbytes(40), here),
                (USAGE, (event % (f"p{number}", customer, -1)).encode(), home),
                (USAGE, (event % (f"p{number}", customer, '"NaN"')).encode(), home),
                (USAGE, (event % (f"p{number}", customer, 1)).encode(), (home + 1) % self.partitions),
                (USAGE, (event % (f"p{number}", "", 1)).encode(), here),
                (REQUESTS, b"[]", here),
                (REQUESTS, b'{"type":"tallygate.fly.v1","id":"p%d","customer":"x"}' % number, here),
                (REQUESTS, chance.randbytes(40), here),
            )
            yield chance.choice(kinds)


class Caller:
    """One who works: reserves, works a little, settles or gives back; sometimes many at once, against a budget."""

    def __init__(self, load: Load, clients: tuple[Tallygate, Tallygate], customer: str, name: str, seed: str) -> None:
        self._load = load
        self._clients = clients
        self._customer = customer
        self._name = name
        self._chance = random.Random(seed)
        self._count = 0

    async def run(self) -> None:
        for pool, amount in (("credits", 500), ("usage", 20)):
            await self._give(pool, amount)
        while not self._load._ending.is_set():
            roll = self._chance.random()
            if roll < 0.08:
                await self._give(self._chance.choice(("credits", "usage")), self._chance.randint(50, 600))
            elif roll < 0.13:
                await self._crowd()
            elif roll < 0.20:
                with contextlib.suppress(NoAnswer):  # asks only: nothing follows from no answer
                    await self._clients[0].check(self._customer, feature="llm", credits=5)
            elif roll < 0.35:
                await self._search()
            else:
                await self._work()
            await asyncio.sleep(self._load._pause_seconds * self._chance.uniform(0.3, 1.7))

    def _id(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self._name}-{self._count}"

    async def _give(self, pool: str, amount: int) -> None:
        id = self._id("g")
        await self._ask("grant", id, lambda client: client.grant(self._customer, amount, id=id, pool=pool))

    async def _work(self) -> None:
        agent = f"agent-{self._name}-{self._count // 40}"
        credits = self._chance.randint(1, 40)
        hold = await self._reserve(agent, credits)
        if hold is None:
            return
        await asyncio.sleep(self._chance.uniform(0, 0.1))
        await self._end(hold, credits)

    async def _reserve(self, agent: str, credits: int, ttl: int = 3600) -> str | None:
        id = self._id("r")
        answer = await self._ask(
            "reserve",
            id,
            lambda client: client.reserve(
                self._customer, feature="llm", credits=credits, dimensions={"agent": agent}, id=id, ttl_seconds=ttl
            ),
        )
        return id if answer is not None and answer.allowed else None

    async def _end(self, hold: str, credits: int) -> None:
        roll = self._chance.random()
        if roll < 0.6:
            took = self._chance.randint(0, credits)
            id = f"s-{hold}"
            await self._ask("settle", id, lambda c: c.settle(self._customer, hold, credits=took, id=id))
        elif roll < 0.85:
            id = f"x-{hold}"
            await self._ask("release", id, lambda c: c.release(self._customer, hold, id=id))
        # else it is left as it is: held for as long as this lasts

    async def _crowd(self) -> None:
        """Twenty at once against one budget, of which it covers four; some are left until their time is over."""
        agent = self._id("crowd")
        holds = await asyncio.gather(*(self._reserve(agent, 75, self._chance.choice((5, 3600))) for _ in range(20)))
        del holds

    async def _search(self) -> None:
        id = self._id("q")
        number = self._chance.randint(1, 5)
        answer = await self._ask(
            "reserve",
            id,
            lambda client: client.reserve(
                self._customer, feature="search", quantities={"searches": number}, id=id, ttl_seconds=3600
            ),
        )
        if answer is not None and answer.allowed and self._chance.random() < 0.7:
            took = self._chance.randint(0, number)
            end = f"s-{id}"
            await self._ask("settle", end, lambda c: c.settle(self._customer, id, {"searches": took}, id=end))

    async def _ask(self, op: str, id: str, call: Call) -> Answer | None:
        """Until it is answered, always under the same id; now and then by two clients at once."""
        asked = Asked(op, id, self._customer)
        self._load.record.asked.append(asked)
        clients = self._clients if self._chance.random() < 0.1 else self._clients[:1]
        await asyncio.gather(*(self._insist(asked, call, client) for client in clients))
        return asked.answers[0] if asked.answers else None

    async def _insist(self, asked: Asked, call: Call, client: Tallygate) -> None:
        while not self._load.given_up:
            asked.tries += 1
            at = time.monotonic()
            try:
                asked.answers.append(await call(client))
            except RefusedRequest as refused:
                if refused.answer is None:
                    raise
                asked.answers.append(refused.answer)
            except NoAnswer:
                continue
            self._load.note_answered(asked.customer, at)
            return
