"""The past again: what is recorded of calls is enough to decide them anew, and what is not known is said."""

import random
from collections import Counter
from decimal import Decimal as D
from typing import Any

import pytest

from partition import CATALOG, T0, Partition, event
from tallygate.pipeline.past import Again, Past, PastDecision, PastUsage
from tallygate.pipeline.simulation import Simulation, Step
from tallygate.pipeline.tally import Line, Tally
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import HOUR_MS, to_datetime
from tallygate.schemas.journal import DecisionRecord
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import (
    Extend,
    GiveGrant,
    Release,
    Request,
    Reserve,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Settle,
    VoidGrant,
)

WHO = {"team": "red", "model": "large"}


def recorded(world: Partition, customer: str = "acme") -> tuple[list[PastDecision], list[PastUsage], Tally]:
    """What ClickHouse would hold of a customer, with the entries' numbers for offsets; and the recorded tally."""
    decisions, usage, tally = [], [], Tally()
    for offset, entry in enumerate(world.entries()):
        if entry.customer != customer:
            continue
        decisions += [PastDecision(offset, number, each) for number, each in enumerate(entry.decisions)]
        usage += [
            PastUsage(offset, n, d.cause, entry.at, d.meter, d.hour, d.dimensions, d.quantity_nanos, d.events)
            for n, d in enumerate(entry.usage)
            if d.cause >= 0 and entry.causes[d.cause].topic == topics.USAGE
        ]
        for each in entry.decisions:
            tally.decided(customer, each)
        tally.posted(customer, entry.postings)
    return decisions, usage, tally


def again(world: Partition, catalog: Catalog) -> tuple[Simulation, Again]:
    """Everything recorded, decided anew."""
    past = Past("acme", catalog)
    simulation = Simulation(catalog)
    player = Again(simulation, past.notes)
    decisions, usage, _ = recorded(world)
    for call in past.calls(decisions, usage):
        player.play(call)
    simulation.advance(world.now)
    return simulation, player


# ---- the same catalog, the same world ----


class Teller:
    """A random story of one customer; the seed tells it again."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = Partition()
        self.holds: list[str] = []
        self.events: list[str] = []
        self.count = 0

    def tell(self, steps: int) -> Partition:
        self.ask(GiveGrant(id="first", customer="acme", amount=D(200)))
        for _ in range(steps):
            self.count += 1
            self.chance.choice(
                (self.reserve, self.reserve, self.end, self.end, self.use, self.use, self.amend, self.run_books)
            )()
            if self.chance.random() < 0.4:
                self.world.tick(self.chance.choice((1, 20, 90, 400, 4000)))
        return self.world

    def ask(self, request: Request) -> None:
        self.world.ask(request)

    def name(self, kind: str) -> str:
        return f"{kind}{self.count}"

    def quantities(self) -> dict[str, D]:
        return {
            meter: D(self.chance.randrange(0, 30_000)) / self.chance.choice((1, 7))
            for meter in ("input_tokens", "output_tokens")
            if self.chance.random() < 0.8
        }

    def rounded(self) -> dict[str, D]:
        return {meter: value.quantize(D("0.000001")) for meter, value in self.quantities().items()}

    def reserve(self) -> None:
        id, quantities = self.name("h"), self.rounded()
        least = {"input_tokens": D(1)} if quantities.get("input_tokens", 0) > 1 and self.chance.random() < 0.3 else {}
        self.ask(
            Reserve(
                id=id,
                customer="acme",
                feature=self.chance.choice(("llm", "llm", "owing", "capped", "estimate", "nowhere"))
                if not quantities
                else "llm",
                quantities=quantities,
                credits=D(self.chance.choice((0, 0, 3, 40))),
                dimensions=self.chance.choice(({}, WHO, {"team": "blue"})),
                at_least=least,
                ttl_seconds=self.chance.choice((None, 30, 600)),
            )
        )
        self.holds.append(id)

    def end(self) -> None:
        if not self.holds:
            return
        hold = self.chance.choice(self.holds)
        match self.chance.randrange(5):
            case 0:
                self.ask(Release(id=self.name("r"), customer="acme", hold=hold))
            case 1:
                self.ask(Extend(id=self.name("x"), customer="acme", hold=hold, ttl_seconds=900))
            case 2:
                self.ask(Settle(id=self.name("s"), customer="acme", hold=hold))
            case 3:
                self.ask(Settle(id=self.name("s"), customer="acme", hold=hold, credits=D(self.chance.randrange(9))))
            case _:
                account = self.world.state.account("acme")
                known = account.holds.get(hold)
                if known is not None and known.feature == "llm":
                    self.ask(Settle(id=self.name("s"), customer="acme", hold=hold, quantities=self.rounded()))

    def use(self) -> None:
        quantities = {meter: str(value) for meter, value in self.rounded().items()}
        if quantities:
            id = self.name("e")
            self.world.use(event(id, "acme", **quantities, **self.chance.choice(({}, WHO))))
            self.events.append(id)

    def amend(self) -> None:
        if not self.events:
            return
        named: dict[str, Any] = {"source": "test", "id": self.events.pop(self.chance.randrange(len(self.events)))}
        how = self.chance.choice(("voided", "corrected"))
        if how == "corrected":
            named["data"] = {"input_tokens": self.chance.randrange(9000), **WHO}
        self.world.use(
            UsageEvent(
                specversion="1.0",
                id=self.name("a"),
                source="test",
                type=f"tallygate.usage.{how}",
                subject="acme",
                data=named,
            )
        )

    def run_books(self) -> None:
        id, chance = self.name("b"), self.chance
        self.ask(
            chance.choice(
                (
                    GiveGrant(id=id, customer="acme", amount=D(chance.randrange(1, 80)), priority=chance.randrange(3)),
                    VoidGrant(id=id, customer="acme", grant="first"),
                    ResetPool(id=id, customer="acme", preserve_overage=chance.random() < 0.5),
                    SetBudget(
                        id=id,
                        customer="acme",
                        name="teams",
                        limit=D(chance.randrange(200)),
                        scope={"team": "*"},
                        period="hour",
                        observe=chance.random() < 0.5,
                    ),
                    SetRateLimit(
                        id=id,
                        customer="acme",
                        name="calls",
                        limit=D(2),
                        per_seconds=60,
                        observe=chance.random() < 0.7,
                    ),
                    SetCustomer(id=id, customer="acme", suspended=chance.random() < 0.1),
                )
            )
        )


@pytest.mark.parametrize("seed", range(25))
def test_under_the_same_catalog_the_past_is_as_it_was(seed: int) -> None:
    world = Teller(seed).tell(80)
    simulation, player = again(world, CATALOG)
    _, _, tally = recorded(world)
    assert simulation.tally.lines == tally.lines, f"seed {seed}"
    statement = simulation.statement("acme", world.now)
    assert sorted(int(D(grant.balance).scaleb(9)) for grant in statement.grants) == sorted(
        row.balance_nanos for row in world.state.account("acme").grants.values()
    )
    assert not player.refused
    assert not [note for note in player.notes if "unknown feature" not in note]


# ---- another catalog ----

TWO_TYPES = {
    "meters": {
        "input_tokens": {"event_type": "in", "value": "n", "dimensions": ["team"]},
        "output_tokens": {"event_type": "out", "value": "n", "where": {"tier": ["batch"]}},
        "calls": {"event_type": "in", "aggregation": "count"},
    },
    "features": {
        "llm": {
            "meters": ["input_tokens", "output_tokens", "calls"],
            "rates": [
                {"meter": "input_tokens", "credits": 1, "per": 1000},
                {"meter": "output_tokens", "credits": 1, "per": 100},
                {"meter": "calls", "credits": 5},
            ],
        }
    },
}


def compiled(document: dict[str, Any]) -> Catalog:
    return read_catalog(document, "tests").compile(2)


def test_an_event_is_told_in_the_new_catalogs_words() -> None:
    """One event of 3000 and 200 becomes two, of types with one property each; 3 + 2 + 5 for the call."""
    world = Partition()
    world.ask(GiveGrant(id="g", customer="acme", amount=D(100)))
    world.use(event("e", "acme", input_tokens=3000, output_tokens=200, team="red"))
    simulation, player = again(world, compiled(TWO_TYPES))
    assert simulation.tally.lines == {("acme", "llm"): Line(charged_nanos=10 * 10**9)}
    assert player.notes == Counter({"events are taken to pass the `where` of meter 'output_tokens'": 1})


def test_an_events_own_hour_prices_it() -> None:
    """It happened an hour before it came: the price of then holds."""
    rates = [{"meter": "calls", "credits": 1}, {"meter": "calls", "credits": 7, "since": "2026-01-01T01:00:00Z"}]
    later = compiled({**TWO_TYPES, "features": {"llm": {"meters": ["calls"], "rates": rates}}})
    world = Partition()
    world.tick(3600 + 60)
    old = UsageEvent(
        specversion="1.0",
        id="old",
        source="test",
        type="llm.call",
        subject="acme",
        time=to_datetime(T0 + HOUR_MS - 1),
        data={"input_tokens": 1},
    )
    world.use(old, event("new", "acme", input_tokens=1))
    simulation, _ = again(world, later)
    assert simulation.tally.lines["acme", "llm"].charged_nanos == 8 * 10**9


def decision(op: str, id: str, at: int, allowed: bool = True, **more: Any) -> PastDecision:
    reason = Reason.ALLOWED if allowed else Reason.CREDITS_EXHAUSTED
    record = DecisionRecord(id, op, allowed, reason, at, 0, "llm", hold=more.pop("hold", ""), **more)
    return PastDecision(at - T0, 0, record)


def played(grant: int, *decisions: PastDecision) -> tuple[Simulation, Again]:
    simulation, past = Simulation(CATALOG), Past("acme", CATALOG)
    simulation.take(Step(T0, GiveGrant(id="g", customer="acme", amount=D(grant))))
    player = Again(simulation, past.notes)
    for call in past.calls(decisions, ()):
        player.play(call)
    return simulation, player


TEN = {"input_tokens": 10_000 * 10**9}


def test_denied_then_and_allowed_now() -> None:
    """It is settled at once at what it asked, so that it is not had for nothing."""
    simulation, player = played(15, decision("reserve", "a", T0 + 1, False, quantities=TEN, ttl_seconds=60))
    assert simulation.tally.lines["acme", "llm"] == Line(allowed=1, charged_nanos=10 * 10**9)
    assert player.notes == Counter({"calls denied then and allowed now are settled at once, at what they asked": 1})


def test_allowed_then_and_denied_now() -> None:
    """Its settle, extension and release are left out; what another hold does is not."""
    simulation, player = played(
        15,
        decision("reserve", "a", T0 + 1, quantities=TEN, hold="a"),
        decision("reserve", "b", T0 + 2, quantities=TEN, hold="b"),
        decision("extend", "x", T0 + 3, hold="b", ttl_seconds=60),
        decision("settle", "s", T0 + 4, hold="b", quantities=TEN),
        decision("settle", "t", T0 + 5, hold="a", quantities={"input_tokens": 10**12}),
    )
    line = simulation.tally.lines["acme", "llm"]
    assert line == Line(allowed=1, denied=Counter({"credits_exhausted": 1}), charged_nanos=10**9)
    [(note, times)] = player.notes.items()
    assert (note.startswith("calls denied now have done no work"), times) == (True, 2)


def test_credits_held_beside_quantities_are_settled_as_they_were_held() -> None:
    """10 of tokens and 3 beside them, settled without saying what."""
    world = Partition()
    world.ask(GiveGrant(id="g", customer="acme", amount=D(100)))
    both = {"input_tokens": D(10_000)}
    world.ask(Reserve(id="a", customer="acme", feature="llm", quantities=both, credits=D(3)))
    world.ask(Settle(id="s", customer="acme", hold="a"))
    simulation, _ = again(world, CATALOG)
    assert simulation.tally.lines["acme", "llm"] == Line(allowed=1, charged_nanos=13 * 10**9)


def test_what_the_record_does_not_say_is_noted() -> None:
    catalog = compiled(
        {
            "meters": {"users": {"event_type": "login", "value": "user", "aggregation": "unique"}},
            "features": {"seats": {"meters": ["users"], "rates": [{"meter": "users", "credits": 1}]}},
        }
    )
    past = Past("acme", catalog)
    hour = T0 - T0 % HOUR_MS
    usage = [
        PastUsage(1, 0, 0, T0, "users", hour, {}, 10**9, 1),
        PastUsage(1, 1, 0, T0, "gone", hour, {}, 10**9, 1),
        PastUsage(2, 0, 0, T0, "users", hour, {}, -5 * 10**9, -1),
    ]
    grant = DecisionRecord("g", "grant", True, Reason.ALLOWED, T0, 0)
    calls = past.calls([PastDecision(0, 0, grant)], usage)
    assert len(calls) == 1
    assert past.notes == Counter(
        {
            "each value of meter 'users' is taken for a new one": 1,
            "meter 'gone' is not in the catalog: its quantities are left out": 1,
            "voids of events from before are left out": 1,
            "grant requests that older records do not hold are left out": 1,
        }
    )


def test_decisions_record_what_was_asked_and_what_would_have_been_denied() -> None:
    world = Partition()
    world.ask(GiveGrant(id="g", customer="acme", amount=D(9), price=D("0.5")))
    world.ask(SetBudget(id="b", customer="acme", name="watch", limit=D(1), observe=True))
    asked = {"input_tokens": D(12_000)}
    answer = world.ask(
        Reserve(
            id="a",
            customer="acme",
            feature="llm",
            quantities=asked,
            credits=D("0.25"),
            at_least={"input_tokens": D(2000)},
            ttl_seconds=90,
        )
    )
    assert answer.hold is not None
    assert answer.hold.quantities["input_tokens"] == "8750"
    assert answer.would_deny == (Reason.BUDGET_EXHAUSTED,)
    world.ask(Reserve(id="z", customer="acme", feature="llm", quantities=asked))
    given, _, allowed, denied = [each for entry in world.entries() for each in entry.decisions]
    assert '"price":"0.5"' in given.request
    assert (allowed.quantities["input_tokens"], allowed.asked_nanos) == (12_000 * 10**9, 250_000_000)
    assert (allowed.at_least, allowed.ttl_seconds, allowed.request) == ({"input_tokens": 2000 * 10**9}, 90, "")
    assert [(limit.name, limit.observe, limit.ok) for limit in allowed.limits] == [("watch", True, False)]
    assert (denied.allowed, denied.quantities["input_tokens"]) == (False, 12_000 * 10**9)


def test_at_least_that_is_no_amount_holds_nothing() -> None:
    world = Partition()
    world.ask(GiveGrant(id="g", customer="acme", amount=D(9)))
    least = {"input_tokens": D("0.0000000001")}
    answer = world.ask(
        Reserve(id="a", customer="acme", feature="llm", quantities={"input_tokens": D(1)}, at_least=least)
    )
    assert (answer.reason, answer.message) == (
        Reason.QUANTITY_INVALID,
        "at_least.input_tokens: 1E-10 has more than 9 decimal places",
    )
    assert not world.state.account("acme").holds
