"""Owners of one partition from a seed: several at once, each stopped, killed and continued at any await.

A small forerunner of a full simulation: no broker, no thread, no clock but the world's. `SEED` picks the first seed.
"""

import logging
import os
import random
from collections import Counter
from decimal import Decimal

import pytest

from owner_world import Life, MemoryTable, Task, World
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas import topics
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import Catalog, Feature, Meter, Rate
from tallygate.schemas.journal import Entry, decode_record
from tallygate.schemas.requests import GiveGrant, Release, Request, Reserve, Settle
from tallygate.topologies.follower import term_of
from tallygate.topologies.owner import OwnerLimits
from tallygate.topologies.ports import Fenced

FIRST = int(os.environ.get("SEED", "1"))
SEEDS = 100
CUSTOMER = "acme"
GRANTED = 500


class Process:
    """A life and what it is doing now; its table may be another's after that one's end, as on the same disk."""

    def __init__(self, world: World, name: str, table: MemoryTable) -> None:
        self.life = Life(world, name, table, limits=OwnerLimits(batch_bytes_max=4000))
        self.task = Task(self.life.owner.open())
        self.open = False
        self.asleep = 0
        self.taken = {topics.USAGE: 0, topics.REQUESTS: 0}

    def go_on(self, chance: random.Random) -> bool:
        """One await further; False when it has ended."""
        try:
            self.task.once()
        except Fenced:
            return False
        if self.task.ended:
            if not self.open:
                self.open = True
                self.taken = {**self.taken, **self.task.result}
            self._take_in(chance)
            self.task = Task(self.life.owner.step())
        return True

    def _take_in(self, chance: random.Random) -> None:
        world = self.life.world
        for topic, begin in self.taken.items():
            held = world.inputs[topic]
            end = min(len(held), begin + chance.randint(0, 5))
            if end > begin:
                self.life.offer(type(_CHUNK)(topic, 0, held[begin:end], 0, 1))
                self.taken[topic] = end


#: Usage costs credits, so that the order in which two owners take the lanes decides who is allowed what.
PRICED = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",), (Rate("tokens", 10**9, 10**9),)),),
)
_CHUNK = World().use("x")


def ask(world: World, chance: random.Random, asked: list[Request]) -> None:
    number = len(asked)
    held = [a.hold.id for a in world.answers() if a.hold is not None]
    roll = chance.random()
    if asked and roll < 0.2:
        request = chance.choice(asked)  # a caller that has waited too long
    elif held and roll < 0.5:
        hold = chance.choice(held)
        request = (
            Settle(id=f"s{number}", customer=CUSTOMER, hold=hold, credits=Decimal(chance.randint(0, 60)))
            if roll < 0.35
            else Release(id=f"x{number}", customer=CUSTOMER, hold=hold)
        )
    else:
        request = Reserve(id=f"r{number}", customer=CUSTOMER, feature="llm", credits=Decimal(chance.randint(30, 200)))
    asked.append(request)
    world.ask(request)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("tallygate").setLevel(logging.ERROR)


def run_world(seed: int) -> tuple[World, list[Request]]:
    chance = random.Random(seed)
    world = World()
    world.newest = PRICED
    asked: list[Request] = [GiveGrant(id="g", customer=CUSTOMER, amount=Decimal(GRANTED))]
    world.ask(asked[0])
    tables = [MemoryTable()]
    processes = [Process(world, "0", tables[0])]
    born = 0
    for _ in range(chance.randint(300, 1000)):
        roll = chance.random()
        if roll < 0.05:
            ask(world, chance, asked)
        elif roll < 0.08:
            world.use(f"e{chance.randint(0, 60)}", tokens=40)
        elif roll < 0.10:
            world.now_ms += chance.choice((1, 400, 1500, 20_000))
        elif roll < 0.13 or not processes:
            born += 1
            # Its table is that of a process that has ended, or empty: folders are never shared.
            free = [t for t in tables if all(p.life.table is not t for p in processes)]
            table = chance.choice(free) if free and chance.random() < 0.7 else MemoryTable()
            tables.append(table)
            processes.append(Process(world, str(born), table))
        elif roll < 0.135:
            killed = chance.choice(processes)  # kill -9
            killed.task.kill()
            processes.remove(killed)
        elif roll < 0.17:
            chance.choice(processes).asleep = chance.randint(1, 100)
        else:
            awake = [p for p in processes if not p.asleep]
            for process in processes:
                process.asleep = max(0, process.asleep - 1)
            if awake:
                process = chance.choice(awake)
                if not process.go_on(chance):
                    processes.remove(process)
    for process in processes:
        process.task.kill()
    world.ask(*asked)  # every caller asks once more: whoever died may have died before it answered
    last = Life(world, "last").opened()
    last.offer(*(type(_CHUNK)(topic, 0, held, 0, 1) for topic, held in world.inputs.items() if held)).work()
    for _ in range(3):  # what lies stale in the log is written again by ticks
        world.now_ms += 1000
        last.step()
    assert last.table.rows == Life(world, "reader").opened().table.rows
    return world, asked


def accepted_entries(world: World) -> list[Entry]:
    fence, found = Fence(), []
    for record in world.log:
        key = record.key or b""
        if fence.judge(*term_of(record), key) is Verdict.ACCEPTED and b"\0entry\0" in key and record.value:
            entry = decode_record(record.value)
            assert isinstance(entry, Entry)
            found.append(entry)
    return found


def same(one: Answer, other: Answer) -> bool:
    return (one.op, one.allowed, one.reason, one.credits) == (other.op, other.allowed, other.reason, other.credits)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_nothing_is_lost_doubled_or_contradicted(seed: int) -> None:
    world, asked = run_world(seed)
    entries = accepted_entries(world)
    decisions = Counter(d.id for entry in entries for d in entry.decisions)
    first: dict[str, Answer] = {}
    for answer in world.answers():
        assert same(first.setdefault(answer.id, answer), answer), f"seed {seed}: {answer.id} was answered in two ways"
    assert set(first) == {request.id for request in asked}
    in_ledger = {d.id: d.allowed for entry in entries for d in entry.decisions}
    for id, answer in first.items():
        assert decisions[id] <= 1, f"seed {seed}: {id} is {decisions[id]} times in the ledger"
        if id[0] in "gr":
            assert in_ledger.get(id, False) == answer.allowed, f"seed {seed}: the ledger does not know {answer}"
    counted = sum(delta.events for entry in entries for delta in entry.usage)
    assert counted == len({record.value for record in world.inputs[topics.USAGE]})
    balances: Counter[str] = Counter()
    for entry in entries:
        for leg in entry.postings:
            balances[leg.account] += leg.amount_nanos
        assert min((v for k, v in balances.items() if k.startswith(("hold:", "grant:"))), default=0) >= 0
    assert sum(balances.values()) == 0

    # Compaction keeps the last record of each key, whatever its term: that must be the state.
    last = {record.key: record.value for record in world.log}
    rows = Life(world, "reader").opened().table.rows
    for key, value in last.items():
        if key and key[:1] != b"\0" and b"\0entry\0" not in key:
            assert rows.get(key) == value, f"seed {seed}: compaction would bring back {key!r}"
