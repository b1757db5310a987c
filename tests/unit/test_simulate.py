"""`tallygate simulate`: what a scenario means, and how a wrong one is refused."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallygate.pipeline.recurrence import next_after, parse_interval
from tallygate.pipeline.scenario import read_scenario
from tallygate.pipeline.scenario_fields import ScenarioError
from tallygate.pipeline.simulate import check_scenarios, run_scenarios
from tallygate.schemas.instants import format_instant, parse_instant
from tallygate.schemas.journal import Recurrence

START = "2024-01-01T00:00:00Z"


def at(text: str) -> str:
    """`02`, `02T09` or `02T09:30` of January 2024, or a whole instant."""
    if len(text) == 20:
        return text
    day, _, clock = text.partition("T")
    hour, _, minute = clock.partition(":")
    return f"2024-01-{day}T{hour or '00'}:{minute or '00'}:00Z"


def scenario(text: str) -> dict[str, Any]:
    """A scenario in words: `grant a 100 p0 from 02 until 05 every P1D keep 10..50; use 5 02T09; reset 03; ask 04`.

    Ops are `reserve h 8 02 [ttl]`, `settle h [5] 02`, `release h 02`, `void a 02`, `spend 5 02`; also `owed 5`,
    `preserve`, `balances a=5,b=6`, `void_at 03` and `age 2023-…` of a grant.
    """
    found: dict[str, Any] = {"start": {"at": START}, "grants": [], "usage": [], "resets": [], "ops": [], "queries": []}
    for step in filter(None, (part.split() for part in text.split(";"))):
        _step(found, step[0], step[1:])
    return found


def _step(found: dict[str, Any], verb: str, words: list[str]) -> None:
    match verb:
        case "grant":
            found["grants"].append(_grant(words))
        case "use":
            found["usage"].append({"amount": words[0], "at": at(words[1])})
        case "reset":
            found["resets"].append(at(words[0]))
        case "ask":
            found["queries"].append({"at": at(words[0])})
        case "owed":
            found["start"]["overage"] = words[0]
        case "balances":
            found["start"]["balances"] = dict(pair.split("=") for pair in words[0].split(","))
        case "preserve":
            found["preserve_overage"] = True
        case "reserve":
            op = {"op": verb, "id": words[0], "amount": words[1], "at": at(words[2])}
            found["ops"].append(op | ({"ttl_seconds": int(words[3])} if words[3:] else {}))
        case "settle":
            of = {"amount": words[1]} if len(words) > 2 else {}
            found["ops"].append({"op": verb, "id": words[0], "at": at(words[-1])} | of)
        case "release" | "void":
            name = {"release": "release", "void": "void_grant"}[verb]
            found["ops"].append({"op": name, "id": words[0], "at": at(words[1])})
        case "spend":
            found["ops"].append({"op": "usage", "amount": words[0], "at": at(words[1])})
        case _:
            raise AssertionError(verb)


def _grant(words: list[str]) -> dict[str, Any]:
    grant: dict[str, Any] = {"id": words[0], "amount": words[1], "effective_at": START}
    rest = iter(words[2:])
    for word in rest:
        match word:
            case "from":
                grant["effective_at"] = at(next(rest))
            case "until":
                grant["expires_at"] = at(next(rest))
            case "void_at":
                grant["voided_at"] = at(next(rest))
            case "age":
                grant["created_at"] = at(next(rest))
            case "every":
                grant["recurrence"] = {"interval": next(rest), "anchor": grant["effective_at"]}
            case "anchor":
                grant["recurrence"]["anchor"] = at(next(rest))
            case "keep":
                least, _, most = next(rest).partition("..")
                grant |= {"reset_min_rollover": least, "reset_max_rollover": most}
            case _:
                grant["priority"] = int(word.removeprefix("p"))
    return grant


def told(text: str) -> str:
    """Each query: what active grants hold, then held, owed and used in the period where there is any."""
    lines = []
    for query in run_scenarios(scenario(text))["queries"]:
        parts = [f"{grant} {amount}" for grant, amount in query["balances"].items()]
        more = {"held": query["held"], "owed": query["overage"]}
        parts += [f"{word} {amount}" for word, amount in more.items() if amount != "0"]
        lines.append(", ".join(parts))
    return " | ".join(lines)


TIME = [
    ("a query sees what was before it", "grant a 9; use 2 02; ask 02; ask 02T00:01", "a 9 | a 7"),
    ("but beginnings at its instant", "grant a 9 from 02; ask 01; ask 02", " | a 9"),
    ("and ends", "grant a 9 until 02; ask 01T23:59; ask 02", "a 9 | "),
    ("ends before usage at one instant", "grant a 9 until 02; use 2 02; ask 03", "owed 2"),
    ("beginnings before usage at one instant", "grant a 9 from 02; use 2 02; ask 03", "a 7"),
    ("usage before ops, each in the file's order", "grant a 9; reserve h 5 02; release h 02; use 5 02; ask 02T00:01",
     "a 4"),
    ("file order does not matter otherwise", "use 2 03; use 3 02; grant a 4 until 02T12; ask 04; ask 02",
     "owed 2 | a 4"),
    ("balances at the start", "grant a 9; grant b 9; balances a=5; ask 01", "a 5, b 0"),
    ("null: all that are active are full", "grant a 9; grant b 9 from 02; ask 01; ask 02", "a 9 | a 9, b 9"),
    ("what is owed at the start is paid at once", "owed 5; grant a 9; grant b 9 p0; ask 01", "b 4, a 9"),
    ("as far as it goes", "owed 15; grant a 9; grant b 9 from 02; ask 01; ask 02", "a 0, owed 6 | a 0, b 3"),
    ("a grant that has ended at the start", "grant a 9 until 01; ask 01", ""),
    ("voided", "grant a 9 void_at 02; use 2 01T12; use 2 02; ask 02; ask 03", " | owed 2"),
    ("voided before its end", "grant a 9 until 05 void_at 03; ask 02; ask 03", "a 9 | "),
    ("never begun", "grant a 9 from 03 void_at 02; ask 01; ask 04", " | "),
    ("burns by priority, expiry, age, id",
     "grant e 1; grant d 1; grant c 1 age 2023-01-01T00:00:00Z; grant b 1 until 09; grant a 1 p0; use 4 02; ask 03",
     "a 0, b 0, c 0, d 0, e 1"),
]  # fmt: skip

RECURRENCE = [
    ("sets to the amount, never adds", "grant a 9 every P1D; use 2 01T12; ask 02; ask 09", "a 9 | a 9"),
    ("not before", "grant a 9 every P1D; use 2 01T12; ask 01T23:59", "a 7"),
    ("pays what is owed", "grant a 9 every P1D; use 15 01T12; ask 01T13; ask 02; ask 03", "a 0, owed 6 | a 3 | a 9"),
    ("each grant, then the debt in burn order", "grant b 9 every P1D; grant a 4 p0 every P1D; use 20 01T12; ask 02",
     "a 0, b 6"),
    ("recurs together with a beginning", "grant b 9 p0 every P1D; grant a 9 from 02; use 12 01T12; ask 02", "b 6, a 9"),
    ("from its anchor", "grant a 9 every P1D anchor 01T06; use 2 01T01; ask 01T05:59; ask 01T06", "a 7 | a 9"),
    ("an anchor to come counts back", "grant a 9 every P1D anchor 05T06; use 2 01T01; ask 01T05:59; ask 01T06",
     "a 7 | a 9"),
    ("with its end", "grant a 9 until 03 every P1D; use 2 02T12; ask 02T13; ask 03", "a 7 | "),
    ("held credits stay held", "grant a 9 every P1D; reserve h 5 01T23:59 900; ask 02; ask 02T01", "a 9, held 5 | a 9"),
    ("and are consumed", "grant a 9 every P1D; reserve h 5 01T23:59; settle h 02T00:01; ask 02T01", "a 9"),
    ("hours, too", "grant a 9 every PT6H; use 9 01T05; use 1 01T06; ask 01T07", "a 8"),
]  # fmt: skip

RESETS = [
    ("forfeit by default", "grant a 9; use 2 01T12; reset 02; ask 01T13; ask 02", "a 7 | a 0"),
    ("keep at most", "grant a 9 keep 0..5; use 2 01T12; reset 02; ask 02", "a 5"),
    ("keep what is there", "grant a 9 keep 0..5; use 6 01T12; reset 02; ask 02", "a 3"),
    ("give at least", "grant a 9 keep 4..8; use 8 01T12; reset 02; ask 02", "a 4"),
    ("the most wins over the least", "grant a 9 keep 8..4; use 9 01T12; reset 02; ask 02", "a 4"),
    ("drop what is owed", "grant a 9; use 12 01T12; reset 02; ask 01T13; ask 02", "a 0, owed 3 | a 0"),
    ("or burn it at once", "preserve; grant a 9 keep 5..9; use 12 01T12; reset 02; ask 02", "a 2"),
    ("as far as it rolls over", "preserve; grant a 9; use 12 01T12; reset 02; ask 02", "a 0, owed 3"),
    ("a recurrence then belongs to the new period", "grant a 9 every P1D; use 12 01T12; reset 02; ask 02", "a 9"),
    ("and pays what was preserved", "preserve; grant a 9 every P1D; use 12 01T12; reset 02; ask 02", "a 6"),
    ("a grant that ends there is not kept", "grant a 9 until 02 keep 9..9; reset 02; ask 02", ""),
    ("a grant that begins there is whole", "grant a 9 from 02; reset 02; ask 02", "a 9"),
    ("usage there is of the new period", "grant a 9 keep 0..9; use 2 02; reset 02; ask 02; ask 02T01", "a 9 | a 7"),
    ("what is held is not forfeited",
     "grant a 9; reserve h 5 01T23:59; reset 02; ask 02; settle h 3 02T00:01; ask 02T01", "a 0, held 5 | a 0"),
]  # fmt: skip

OPS = [
    ("set aside in burn order", "grant b 9; grant a 5 p0; reserve h 8 02; ask 02T00:01", "a 0, b 6, held 8"),
    ("its time to live", "grant a 9; reserve h 5 02 60; ask 02T00:01", "a 9"),
    ("300 s, if not said", "grant a 9; reserve h 5 02; ask 02T00:04; ask 02T00:05", "a 4, held 5 | a 9"),
    ("settle without an amount", "grant a 9; reserve h 5 02; settle h 02T00:01; ask 03", "a 4"),
    ("settle late", "grant a 9; reserve h 5 02; settle h 4 02T01; ask 03", "a 5"),
    ("settle late without an amount", "grant a 9; reserve h 5 02; settle h 02T01; ask 03", "a 4"),
    ("usage is never denied", "grant a 9; spend 12 02; ask 03", "a 0, owed 3"),
    ("a void ends a grant", "grant a 9; use 2 01T12; void a 02; use 1 03; ask 04", "owed 1"),
    ("not what is held of it", "grant a 9; reserve h 5 02; void a 02; ask 02T00:01; settle h 4 02T00:02; ask 03",
     "held 5 | "),
]  # fmt: skip


@pytest.mark.parametrize(("law", "text", "expected"), [*TIME, *RECURRENCE, *RESETS, *OPS])
def test_scenarios(law: str, text: str, expected: str) -> None:
    assert told(text) == expected


OUTCOMES = [
    ("allowed", "grant a 9; reserve h 9 02", "allowed a 9"),
    ("one too many", "grant a 9; reserve h 10 02", "credits_exhausted"),
    ("the same id again", "grant a 9; reserve h 1 02; reserve h 1 02", "allowed a 1, id_conflict"),
    ("also when it is over", "grant a 9; reserve h 1 02; release h 02; reserve h 1 02",
     "allowed a 1, allowed a 1, id_conflict"),
    ("settled", "grant a 9; grant b 9; reserve h 12 02; settle h 15 02", "allowed a 9 b 3, allowed a 9 b 6"),
    ("settled twice", "grant a 9; reserve h 5 02; settle h 4 02; settle h 4 02",
     "allowed a 5, allowed a 4, allowed a 4"),
    ("settled otherwise", "grant a 9; reserve h 5 02; settle h 4 02; settle h 5 02",
     "allowed a 5, allowed a 4, id_conflict"),
    ("settled as held, then so again", "grant a 9; reserve h 5 02; settle h 4 02; settle h 02",
     "allowed a 5, allowed a 4, id_conflict"),
    ("settled late", "grant a 9; reserve h 5 02; settle h 4 03", "allowed a 5, allowed a 4"),
    ("of an unknown hold", "grant a 9; settle h 4 02; release i 02", "hold_unknown, hold_unknown"),
    ("released twice", "grant a 9; reserve h 5 02; release h 02; release h 02", "allowed a 5, allowed a 5, allowed"),
    ("voided twice", "grant a 9; void a 02; void a 02", "allowed, grant_ended"),
    ("voided after its end", "grant a 9 until 02; void a 02", "grant_ended"),
    ("voided after its end, under a hold", "grant a 9 until 02; reserve h 5 01T23:59; void a 02",
     "allowed a 5, grant_ended"),
    ("voiding what was never given", "void a 02", "grant_ended"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "text", "expected"), OUTCOMES)
def test_outcomes_of_ops(law: str, text: str, expected: str) -> None:
    ops = run_scenarios(scenario(text))["ops"]
    found = [" ".join([op["reason"], *(f"{k} {v}" for k, v in op["amounts"].items())]) for op in ops]
    assert ", ".join(found) == expected
    assert all(op["allowed"] == (op["reason"] == "allowed") for op in ops)


def test_twenty_reservations_of_75_against_500() -> None:
    text = "grant a 500; " + "; ".join(f"reserve h{n} 75 02" for n in range(20))
    assert [op["allowed"] for op in run_scenarios(scenario(text))["ops"]] == [True] * 6 + [False] * 14


def test_counters_of_a_period() -> None:
    text = "grant a 9 keep 0..9; use 12 02; grant b 5 from 03; reset 05; use 2 06; ask 04; ask 05; ask 07"
    queries = run_scenarios(scenario(text))["queries"]
    assert [(q["usage_in_period"], q["total_grant_usage"]) for q in queries] == [("12", "12"), ("0", "0"), ("2", "0")]


def test_what_holds_consume_counts_as_usage_of_grants() -> None:
    text = (
        "grant a 9; reserve h 5 02; settle h 4 02; reserve i 5 02; settle i 7 02; reserve j 1 02; release j 02; ask 03"
    )
    [query] = run_scenarios(scenario(text))["queries"]
    assert (query["usage_in_period"], query["total_grant_usage"], query["overage"]) == ("11", "9", "2")


def test_numbers_may_be_json_numbers_or_strings() -> None:
    one = scenario("grant a 0.3; use 0.1 02; ask 03")
    other = json.loads(json.dumps(one).replace('"0.3"', "0.3").replace('"0.1"', "0.1"), parse_float=Decimal)
    assert run_scenarios(one) == run_scenarios(other)
    assert run_scenarios(one)["queries"][0]["balance"] == "0.2"


# ---- recurring instants ----

CALENDAR = [
    ("31 January, February, March", "P1M", "2023-01-31", ["2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31"]),
    ("in a leap year", "P1M", "2024-01-31", ["2024-02-29", "2024-03-31"]),
    ("29 February, each year", "P1Y", "2024-02-29", ["2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
    ("two months", "P2M", "2023-12-31", ["2024-02-29", "2024-04-30"]),
    ("fourteen months", "P14M", "2023-12-31", ["2025-02-28", "2026-04-30"]),
    ("weeks", "P2W", "2024-02-20", ["2024-03-05", "2024-03-19"]),
    ("days", "P1D", "2024-02-28", ["2024-02-29", "2024-03-01"]),
    ("hours", "PT36H", "2024-01-01", ["2024-01-02T12:00:00Z", "2024-01-04"]),
    ("minutes", "PT15M", "2024-01-01", ["2024-01-01T00:15:00Z", "2024-01-01T00:30:00Z"]),
    ("to the end of the calendar", "P1Y", "9997-05-01", ["9998-05-01", "9999-05-01", None]),
    ("beyond it", "P9999Y", "2024-01-01", [None]),
    ("weeks beyond it", "P9999W", "9900-01-01", [None]),
]


@pytest.mark.parametrize(("law", "interval", "anchor", "instants"), CALENDAR)
def test_recurring_instants(law: str, interval: str, anchor: str, instants: list[str | None]) -> None:
    recurrence = Recurrence(interval, parse_instant(f"{anchor}T00:00:00Z"))
    here = recurrence.anchor
    for expected in instants:
        found = next_after(recurrence, here)
        if expected is None:
            assert found is None
            return
        assert found is not None
        assert format_instant(found).removesuffix("T00:00:00Z") == expected
        assert next_after(recurrence, found - 1) == found
        here = found


@given(
    interval=st.sampled_from(["P1M", "P3M", "P1Y", "P9999Y", "P1D", "P2W", "PT7H", "PT1M"]),
    anchor=st.integers(0, 1 << 42),
    here=st.integers(0, 1 << 42),
)
def test_the_next_instant_is_later_and_none_lies_between(interval: str, anchor: int, here: int) -> None:
    recurrence = Recurrence(interval, anchor)
    found = next_after(recurrence, here)
    if found is not None:
        assert found > here
        assert next_after(recurrence, found - 1) == found
        assert next_after(recurrence, (here + found) // 2) in (found, next_after(recurrence, found))


@pytest.mark.parametrize(
    "text", ["", "P", "P0D", "P1", "1D", "PT", "P1H", "PT1D", "P1M1D", "P-1D", "p1d", "P1D ", "P٣D"]
)
def test_no_interval(text: str) -> None:
    with pytest.raises(ValueError, match="is no interval"):
        parse_interval(text)


# ---- wrong scenarios ----

GOOD = "grant a 9 every P1D; reserve h 5 02; use 1 02; reset 03; ask 04; balances a=5"
WRONG: list[tuple[str, Any, str]] = [
    ("start", ..., "start: is missing"),
    ("start", [], "start: wants an object"),
    ("start.at", ..., "start.at: is missing"),
    ("start.at", "yesterday", "start.at: 'yesterday' is no instant"),
    ("start.at", "2024-01-01T00:00:00", "start.at: '2024-01-01T00:00:00' has no offset"),
    ("start.at", 5, "start.at: 5 is no instant"),
    ("start.at", "0001-01-01T00:00:00Z", "start.at: '0001-01-01T00:00:00Z' lies outside the years"),
    ("start.overage", "-1", "start.overage: -1 is negative"),
    ("start.overage", Decimal("NaN"), "start.overage: NaN is not finite"),
    ("start.balances", [], "start.balances: wants an object"),
    ("start.balances.a", "x", "start.balances.a: x is no decimal number"),
    ("start.balances.b", "1", "start.balances.b: there is no such grant"),
    ("start.balance", 1, "start.balance: unknown field; known: at, "),
    ("usages", [], "usages: unknown field; known: name, start"),
    ("aggregation", "median", "aggregation: "),
    ("preserve_overage", "yes", "preserve_overage: wants true or false"),
    ("grants", {}, "grants: wants a list"),
    ("grants.0", "a", "grants[0]: wants an object"),
    ("grants.0.id", ..., "grants[0].id: is missing"),
    ("grants.0.id", "", "grants[0].id: wants a text"),
    ("grants.1", {"id": "a", "amount": 1}, "grants[1].id: 'a' is there twice"),
    ("grants.0.amount", ..., "grants[0].amount: is missing"),
    ("grants.0.amount", -5, "grants[0].amount: -5 is negative"),
    ("grants.0.amount", "0.0000000001", "grants[0].amount: 1E-10 has more than 9 decimal places"),
    ("grants.0.amount", 10**16, "grants[0].amount: 10000000000000000 is absurdly large"),
    ("grants.0.amount", True, "grants[0].amount: True is no number"),
    ("grants.0.priority", 256, "grants[0].priority: wants a whole number from 0 to 255"),
    ("grants.0.priority", Decimal("0.5"), "grants[0].priority: wants a whole number"),
    ("grants.0.expires_at", "never", "grants[0].expires_at: 'never' is no instant"),
    ("grants.0.recurrence", "P1D", "grants[0].recurrence: wants an object"),
    ("grants.0.recurrence.interval", ..., "grants[0].recurrence.interval: is missing"),
    ("grants.0.recurrence.interval", "1 day", "grants[0].recurrence.interval: '1 day' is no interval"),
    ("grants.0.recurrence.every", "P1D", "grants[0].recurrence.every: unknown field; known: interval, anchor"),
    ("grants.0.rollover", 1, "grants[0].rollover: unknown field"),
    ("usage.0.at", ..., "usage[0].at: is missing"),
    ("usage.0.at", "2023-12-31T23:59:59Z", "usage[0].at: before the start"),
    ("usage.0.amount", "-1", "usage[0].amount: -1 is negative"),
    ("usage.0.quantity", "1", "usage[0].quantity: unknown field; known: at, amount"),
    ("resets.0", "2024-01-01T00:00:00Z", "resets[0]: a reset must come after the start"),
    ("resets.1", "2024-01-03T00:00:00Z", "resets[1]: a reset at the same instant"),
    ("resets.1", "2024-01-02T00:00:00Z", "resets[1]: a reset before the one before it"),
    ("resets.0", None, "resets[0]: None is no instant"),
    ("ops.0.op", "refund", "ops[0].op: unknown op 'refund'; known: reserve, "),
    ("ops.0.op", ["reserve"], "ops[0].op: unknown op"),
    ("ops.0.id", ..., "ops[0].id: is missing"),
    ("ops.0.amount", ..., "ops[0].amount: is missing"),
    ("ops.0.amount", "-8", "ops[0].amount: -8 is negative"),
    ("ops.0.ttl_seconds", 0, "ops[0].ttl_seconds: wants a whole number of seconds above 0"),
    ("ops.0.at", "2023-01-01T00:00:00Z", "ops[0].at: before the start"),
    ("queries.0", "2024-01-01T00:00:00Z", "queries[0]: wants an object"),
    ("queries.0.at", "2023-01-01T00:00:00Z", "queries[0].at: before the start"),
]


def put(document: Any, path: str, value: Any) -> None:
    """Set what a dotted path names; `...` takes it away."""
    *way, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in way:
        document = document[part]
    if value is ...:
        del document[last]
    elif isinstance(document, list) and last == len(document):
        document.append(value)
    else:
        document[last] = value


@pytest.mark.parametrize(("path", "value", "says"), WRONG)
def test_a_wrong_scenario_is_refused_in_one_line_that_names_the_field(path: str, value: Any, says: str) -> None:
    wrong = scenario(GOOD)
    put(wrong, path, value)
    with pytest.raises(ScenarioError) as refused:
        read_scenario(wrong)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)
    assert run_scenarios({"scenarios": [scenario(GOOD), wrong]})["results"][1] == {"error": str(refused.value)}


@pytest.mark.parametrize("run", [run_scenarios, check_scenarios])
@pytest.mark.parametrize(("document", "says"), [(5, "wants an object"), ({"scenarios": {}}, "scenarios: wants a list")])
def test_a_document_that_is_none(document: object, says: str, run: Callable[[object], object]) -> None:
    with pytest.raises(ScenarioError, match=says):
        run(document)


WRONG_EXPECTATIONS = [
    (5, "s: expect: wants a list, or an object of the lists queries and ops"),
    ([5], "s: expect[0]: wants an object"),
    ([{}, {"balances": 5}], "s: expect[1].balances: wants an object"),
    ({"ops": 5}, "s: expect: wants a list, or an object of the lists queries and ops"),
    ({"ops": [{"amounts": []}]}, "s: expect.ops[0].amounts: wants an object"),
    ({"query": []}, "s: expect.query: unknown field; known: queries, ops, summary, error"),
]


@pytest.mark.parametrize(("expect", "says"), WRONG_EXPECTATIONS)
def test_a_wrong_expectation_is_refused_too(expect: object, says: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        check_scenarios({**scenario(GOOD), "name": "s", "expect": expect})
    assert str(refused.value) == says


def test_what_is_expected_is_looked_for() -> None:
    good = {**scenario("grant a 9; use 2 02; ask 03"), "name": "s"}
    assert check_scenarios(good) == []
    assert check_scenarios({**good, "expect": [{"balance": "7.0", "balances": {"a": 7}}]}) == []
    assert check_scenarios({**good, "expect": [{"balance": 8, "colour": "red"}]}) == [
        "s: queries[0] at 2024-01-03T00:00:00Z: balance: expected 8, found 7",
        "s: queries[0] at 2024-01-03T00:00:00Z: colour: expected red, found None",
    ]


PATHS = [path for path, _, _ in WRONG]
ANYTHING = st.sampled_from(
    [None, True, 0, -1, 10**20, Decimal("1E+400"), Decimal("NaN"), "", "x", "1", START, "9999-12-31T23:59:59Z",
     "0001-01-01T00:00:00+23:59", "P9999Y", [], {}, [1], {"a": 1}, {"interval": "P9999Y"}]
)  # fmt: skip


@settings(max_examples=300, deadline=None, print_blob=True)
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), ANYTHING), min_size=1, max_size=3))
def test_whatever_is_written_gives_a_result_or_one_line(changes: list[tuple[str, Any]]) -> None:
    document = {**scenario(GOOD.replace("P1D", "P1Y")), "expect": []}
    for path, value in changes:
        try:
            put(document, path, value)
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change has taken the place away
    assert all("\n" not in line for line in refusals(document))


def refusals(document: Any) -> Iterator[str]:
    for run in run_scenarios, check_scenarios:
        try:
            run(document)
        except ScenarioError as error:
            yield str(error)
