"""`tallygate backtest`: recorded calls decided again under another catalog, beside what was decided then.

Where a customer stands at `since`: everything that those who run the books had asked for (grants, plans, budgets, rate
limits, suspensions) is asked for again at its own time, under the new catalog; then the balances that the ledger had
just before `since` are set. So a grant that only the new catalog gives is full, and one that it does not give is gone.
With a plan given, recorded subscriptions do not count, and everyone subscribes to it at `since`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tallygate.pipeline.past import GRAIN, Again, Past, PastDecision
from tallygate.pipeline.simulation import Simulation, Step
from tallygate.pipeline.tally import Line, Tally
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.instants import format_instant, to_datetime
from tallygate.schemas.requests import SetCustomer, Subscribe
from tallygate.topologies.past_usage import Record

#: Later than any record (ms).
OPEN_END: Final = 10_413_791_999_999


class Window(msgspec.Struct, frozen=True):
    """`since <= at < until`, in ms."""

    since: int
    until: int = OPEN_END


class Compared(msgspec.Struct, frozen=True):
    """One customer and feature: as recorded, and as it would have been."""

    customer: str
    feature: str
    recorded: Line
    replayed: Line

    def as_json(self) -> dict[str, Any]:
        return {
            "customer": self.customer,
            "feature": self.feature,
            "recorded": self.recorded.as_json(),
            "replayed": self.replayed.as_json(),
        }


class Report(msgspec.Struct, frozen=True):
    """`assumptions` hold for the whole; `calls` were decided again."""

    window: Window
    lines: list[Compared]
    calls: int
    assumptions: list[str]

    def features(self) -> list[Compared]:
        """All customers together."""
        total: dict[str, Compared] = {}
        for line in self.lines:
            known = total.setdefault(line.feature, Compared("", line.feature, Line(), Line()))
            known.recorded.add(line.recorded)
            known.replayed.add(line.replayed)
        return list(total.values())

    def as_json(self) -> dict[str, Any]:
        until = None if self.window.until == OPEN_END else format_instant(self.window.until)
        return {
            "since": format_instant(self.window.since),
            "until": until,
            "grain": GRAIN,
            "calls": self.calls,
            "assumptions": self.assumptions,
            "lines": [line.as_json() for line in self.lines],
        }


def backtest(
    record: Record,
    catalog: Catalog,
    window: Window,
    customers: list[str],
    plan: str = "",
    on_customer: Callable[[], None] = lambda: None,
) -> Report:
    """What the calls of these customers would have come to under a catalog. Raises `QuestionError`."""
    lines: list[Compared] = []
    notes: Counter[str] = Counter()
    calls = 0
    for customer in customers:
        one = _Customer(record, catalog, window, customer, plan)
        one.play()
        lines += one.compared()
        notes += one.notes
        calls += one.calls
        on_customer()
    return Report(
        window, lines, calls, [*_premises(window, plan), *(f"{text} ({n})" for text, n in sorted(notes.items()))]
    )


def _premises(window: Window, plan: str) -> list[str]:
    since = format_instant(window.since)
    start = f"balances at {since} are the recorded ones; grants that only the new catalog gives are full then"
    if plan:
        start = f"everyone subscribes to plan {plan!r} at {since}; balances of other grants are the recorded ones"
    return [
        f"grain: {GRAIN}",
        start,
        f"budgets, allowances and rate limits begin at {since} with nothing used",
        "checks and estimates are not recorded, and so not decided again",
    ]


class _Customer:
    """One customer's calls, decided again in a partition of its own."""

    def __init__(self, record: Record, catalog: Catalog, window: Window, customer: str, plan: str) -> None:
        self._record = record
        self._window = window
        self._customer = customer
        self._plan = plan
        self._past = Past(customer, catalog)
        self._simulation = Simulation(catalog)
        self._again = Again(self._simulation, self._past.notes)
        self._recorded = Tally()
        self.calls = 0

    @property
    def notes(self) -> Counter[str]:
        refused = Counter({f"refused under the new catalog: {text}": n for text, n in self._again.refused.items()})
        return self._again.notes + refused

    def play(self) -> None:
        since, until, customer = self._window.since, self._window.until, self._customer
        decisions = self._record.decisions(customer, since, until)
        self._stand_at_start()
        for each in decisions:
            self._recorded.decided(customer, each.record)
        for feature, line in self._record.charges(customer, since, until).items():
            self._recorded.line(customer, feature).add(line)
        calls = self._past.calls(self._ours(decisions), self._record.usage(customer, since, until))
        for call in calls:
            self._again.play(call)
        self.calls = len(calls)
        if until != OPEN_END:
            self._simulation.advance(until - 1)

    def _stand_at_start(self) -> None:
        """Where the customer stands when the window begins."""
        since, customer, simulation = self._window.since, self._customer, self._simulation
        before = self._past.calls(self._ours(self._record.administration(customer, since)), ())
        for call in before:
            self._again.play(call)
        if not before and self._record.has_used(customer, since):
            simulation.take(Step(since - 1, SetCustomer(id="backtest", customer=customer)))
        simulation.advance(since - 1)
        balances = self._record.balances(customer, since)
        known = simulation.put(customer, balances, self._record.owed(customer, since), {})
        lost = {grant: nanos for grant, nanos in balances.items() if nanos and grant not in known}
        if lost:
            left = from_nanos(sum(lost.values()))
            self._past.notes[f"{customer}: {left} recorded credits of grants that the new catalog does not give"] += 1
        for call in self._past.calls(self._record.open_holds(customer, since, self._window.until), ()):
            self._again.play(msgspec.structs.replace(call, step=Step(since - 1, call.step.input)))
        simulation.count_from_here()
        simulation.advance(since)
        if self._plan:
            anchor = to_datetime(since)
            simulation.take(Step(since, Subscribe(id="backtest", customer=customer, plan=self._plan, anchor=anchor)))

    def _ours(self, decisions: list[PastDecision]) -> list[PastDecision]:
        return [each for each in decisions if not (self._plan and each.record.op == "subscribe")]

    def compared(self) -> list[Compared]:
        keys = sorted({*self._recorded.lines, *self._simulation.tally.lines})
        return [
            Compared(*key, self._recorded.lines.get(key, Line()), self._simulation.tally.lines.get(key, Line()))
            for key in keys
        ]
