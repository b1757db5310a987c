"""A scenario with a catalog run: the answer to each event, the statements asked for, and what it all comes to."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from tallygate.pipeline.catalog_scenario import CatalogScenario, Query
from tallygate.pipeline.past import GRAIN, Again, Call
from tallygate.pipeline.scenario_fields import ScenarioError
from tallygate.pipeline.simulation import Simulation, Step
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import Statement
from tallygate.schemas.instants import format_instant
from tallygate.schemas.ledger import Posting
from tallygate.schemas.reasons import DENIALS

_ENDS, _QUERY, _INPUT = 0, 1, 2


class PastCalls(msgspec.Struct, frozen=True):
    """Recorded calls to be taken beside a scenario's own events, and what had to be assumed in reading them."""

    calls: tuple[Call, ...] = ()
    notes: Counter[str] = msgspec.field(default_factory=Counter)


def run_catalog_scenario(scenario: CatalogScenario, past: PastCalls | None = None) -> dict[str, Any]:
    """`ops`, `queries`, `summary`, and `postings` where they are asked for; of the past, `past`."""
    simulation = _begin(scenario)
    again = Again(simulation, Counter(past.notes) if past else Counter())
    steps: list[tuple[int, int, int, Step | Query | Call]] = []
    steps += [(each.at, _ENDS, n, each) for n, each in enumerate(scenario.voids)]
    steps += [(each.at, _QUERY, n, each) for n, each in enumerate(scenario.queries)]
    steps += [(each.at, _INPUT, n, each) for n, each in enumerate(scenario.events)]
    later = len(scenario.events)
    steps += [(each.step.at, _INPUT, later + n, each) for n, each in enumerate(past.calls if past else ())]
    ops: dict[int, dict[str, Any]] = {}
    queries: dict[int, dict[str, Any]] = {}
    recorded: list[dict[str, Any]] = []
    for _, kind, number, each in sorted(steps, key=lambda step: step[:3]):
        match each:
            case Call():
                recorded += again.play(each)
            case Query():
                queries[number] = _query(simulation, each)
            case Step() if kind == _INPUT:
                ops[number] = simulation.take(each)
            case Step():
                simulation.take(each)
    result: dict[str, Any] = {"ops": [ops[n] for n in sorted(ops)], "queries": [queries[n] for n in sorted(queries)]}
    end = max((at for at, *_ in steps), default=scenario.start_at)
    result["summary"] = _summary(simulation, [*result["ops"], *recorded], end)
    if scenario.postings:
        result["postings"] = [_posting(*each) for each in simulation.postings]
    if past:
        result["past"] = {"grain": GRAIN, "assumptions": noted(again), "ops": recorded}
    return result


def _begin(scenario: CatalogScenario) -> Simulation:
    simulation = Simulation(scenario.catalog, scenario.postings)
    simulation.advance(scenario.start_at)
    for step in scenario.set_up:
        answer = simulation.take(step)
        if not answer["allowed"]:
            raise ScenarioError(f"{step.place}: {answer['message']}")
    for customer in sorted({*scenario.balances, *scenario.created_at}):
        balances = scenario.balances.get(customer, {})
        known = simulation.put(customer, balances, {}, scenario.created_at.get(customer, {}))
        for grant in balances:
            if grant not in known:
                raise ScenarioError(f"start.balances.{grant}: customer {customer!r} has no such grant")
    return simulation


def noted(again: Again) -> list[str]:
    """What was assumed, and what was refused, a line each with how often."""
    lines = [f"{text} ({count} times)" for text, count in sorted(again.notes.items())]
    return lines + [
        f"refused under this catalog: {text} ({count} times)" for text, count in sorted(again.refused.items())
    ]


# ---- results ----


def _query(simulation: Simulation, query: Query) -> dict[str, Any]:
    simulation.advance(query.at)
    names = [query.customer] if query.customer else simulation.customers
    return {
        "at": format_instant(query.at),
        "customers": {name: _statement(simulation.statement(name, query.at)) for name in names},
    }


def _statement(statement: Statement) -> dict[str, Any]:
    """A statement with its parts by name."""
    found = msgspec.to_builtins(statement)
    return {
        "pools": {each.pop("pool"): each for each in found["pools"]},
        "grants": {each.pop("id"): each for each in found["grants"]},
        "holds": {each.pop("id"): each for each in found["holds"]},
        "limits": found["limits"],
    }


def _summary(simulation: Simulation, answers: Sequence[dict[str, Any]], end: int) -> dict[str, Any]:
    decisions: dict[str, dict[str, Any]] = {}
    for answer in answers:
        counts = decisions.setdefault(answer["op"], {"allowed": 0, "denied": {}, "refused": {}, "would_deny": {}})
        if answer["allowed"]:
            counts["allowed"] += 1
            for reason in answer.get("would_deny", ()):
                counts["would_deny"][reason] = counts["would_deny"].get(reason, 0) + 1
        else:
            kind = "denied" if answer["reason"] in DENIALS else "refused"
            counts[kind][answer["reason"]] = counts[kind].get(answer["reason"], 0) + 1
    features = simulation.tally.features()
    return {
        "decisions": decisions,
        "charged": {name: from_nanos(line.charged_nanos) for name, line in features.items() if line.charged_nanos},
        "overage": {name: from_nanos(line.overage_nanos) for name, line in features.items() if line.overage_nanos},
        "written_off": {
            name: from_nanos(line.written_off_nanos) for name, line in features.items() if line.written_off_nanos
        },
        "budgets": {
            name: msgspec.to_builtins(simulation.statement(name, end).limits) for name in list(simulation.customers)
        },
    }


def _posting(customer: str, cause: str, leg: Posting) -> dict[str, Any]:
    return {
        "customer": customer,
        "at": format_instant(leg.at),
        "asset": leg.asset,
        "account": leg.account,
        "amount": from_nanos(leg.amount_nanos),
        "grant": leg.grant,
        "category": leg.category,
        "price": from_nanos(leg.price_nanos),
        "feature": leg.feature,
        "cause": cause,
    }
