"""Reservations in full: receipts over pools, lengthening, work settled late, written off, or twice."""

from decimal import Decimal

import pytest

from money import Money
from stories import span_ms
from tallygate.schemas.instants import SECOND_MS, format_instant
from tallygate.schemas.requests import Extend, Settle

EXTENDED = [
    ("it lives so long from now", "reserve h 5 for 60s; wait 30s; extend h 60s", 90),
    ("never shorter", "reserve h 5 for 60s; extend h 30s", 60),
    ("the same end is no change", "reserve h 5 for 60s; extend h 60s", 60),
    ("again and again", "reserve h 5 for 60s; extend h 90s; wait 80s; extend h 90s", 170),
    ("at its last moment", "reserve h 5 for 60s; wait 59999ms; extend h 60s", 119.999),
    (
        "the same request again lengthens once",
        "reserve h 5 for 60s; extend h 90s as x; wait 30s; extend h 90s as x",
        90,
    ),
    ("over a restart", "reserve h 5 for 60s; extend h 90s; restart; wait 80s; extend h 20s", 100),
]


@pytest.mark.parametrize(("law", "story", "seconds"), EXTENDED)
def test_extend_lengthens(law: str, story: str, seconds: float) -> None:
    told = Money(f"grant g 9; {story}")
    start = told.partition.now - sum(span_ms(step.split()[1]) for step in story.split("; ") if step.startswith("wait"))
    [hold] = told.statement().holds
    ends = start + int(seconds * SECOND_MS)
    assert hold.expires_at == format_instant(ends)
    told.partition.now = ends - 1
    assert told.purse == "g 4 held 5"
    told.partition.now = ends
    assert told.purse == "g 9"


def test_the_answer_names_the_new_end() -> None:
    told = Money("grant g 9; reserve h 5 for 60s; extend h 90s")
    assert told.answers[-1].hold is not None
    assert told.answers[-1].hold.expires_at == "2026-01-01T00:01:30Z"
    [decision] = told.partition.entries()[-1].decisions
    assert (decision.op, decision.hold) == ("extend", "h")


def test_an_estimated_hold_is_settled_at_its_new_end() -> None:
    told = Money("grant g 9; reserve h 5 estimate; extend h 90s; wait 60s; tick 1s")
    assert told.purse == "g 4 held 5"
    assert told.tell("wait 28999ms; tick 1ms").purse == "g 4"


NOT_EXTENDED = [
    ("settled", "reserve h 5; settle h; extend h 60s", "yes yes hold_ended"),
    ("released", "reserve h 5; release h; extend h 60s", "yes yes hold_ended"),
    ("expired", "reserve h 5 for 60s; wait 60s; extend h 60s", "yes hold_ended"),
    ("never there", "extend h 60s", "hold_unknown"),
    ("another customer's", "reserve h 5; by zeta; grant z 1; extend h 60s", "yes yes hold_unknown"),
    ("another span under the same id", "reserve h 5; extend h 60s as x; extend h 61s as x", "yes yes id_conflict"),
]


@pytest.mark.parametrize(("law", "story", "said"), NOT_EXTENDED)
def test_what_has_ended_is_not_extended(law: str, story: str, said: str) -> None:
    told = Money(f"grant g 9; {story}")
    assert told.said.split()[1:] == said.split()


@pytest.mark.parametrize("seconds", [0, -5, 30 * 24 * 3600 + 1])
def test_a_span_out_of_bounds_is_refused(seconds: int) -> None:
    told = Money("grant g 9; reserve h 5")
    answer = told.partition.ask(Extend(id="x", customer="acme", hold="h", ttl_seconds=seconds))
    assert answer.reason == "malformed"


CAPPED = [  # what is owed, what was written off
    ("settled above, within the cap", "grant g 9; reserve h 9 capped; settle h 15", "6", ""),
    ("up to the cap", "grant g 9; reserve h 9 capped; settle h 19", "10", ""),
    ("beyond it", "grant g 9; reserve h 9 capped; settle h 25", "10", "6"),
    ("late", "grant g 9; reserve h 9 capped; release h; settle h 25", "10", "6"),
    ("usage", "grant g 9; use 25 capped", "10", "6"),
    ("usage where all is owed already", "use 12 owing; use 5 capped", "12", "5"),
    ("usage under a hold that may owe", "grant g 1; reserve h 8 capped; use 9 capped", "3", "6"),
    ("no cap, no write-off", "grant g 9; use 25 owing", "16", ""),
    ("of a feature that may not owe", "grant g 9; reserve h 9; settle h 25", "16", ""),
]


@pytest.mark.parametrize(("law", "story", "owed", "written_off"), CAPPED)
def test_what_no_grant_covers(law: str, story: str, owed: str, written_off: str) -> None:
    told = Money(story)
    assert told.statement().pools[0].overage == owed
    lines = [line.split()[-1] for line in told.postings if line.startswith("write_off")]
    assert lines == ([written_off] if written_off else [])


LATE = [
    ("as usage, priced and paid now", "grant g 9; reserve h 5; release h; grant a 3 p0; settle h 4", "a 0, g 8"),
    ("in the budgets of now", "grant g 9; budget b 9 per hour; wait 59m; reserve h 5; release h; wait 1m; settle h 4",
     "g 5"),
    ("from grants that are active now", "grant g 9 for 1h; reserve h 5 for 30m; wait 2h; grant a 9; settle h 4", "a 5"),
    ("a suspended customer's", "grant g 9; reserve h 5; release h; suspend; settle h 4", "g 5"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "purse"), LATE)
def test_work_settled_late_is_recorded(law: str, story: str, purse: str) -> None:
    told = Money(story)
    assert told.purse == purse
    assert told.answers[-1].late
    [decision] = told.partition.entries()[-1].decisions
    assert (decision.late, decision.op) == (True, "settle")


def test_late_work_by_units_is_marked_late_in_its_hour() -> None:
    told = Money("grant g 9")
    told.hold("h", quantities={"work_units": Decimal(5)})
    told.tell("release h")
    answer = told.settle("h", {"work_units": Decimal(3)})
    assert (answer.late, answer.credits) == (True, "3")
    [row] = told.partition.state.account("acme").usage.values()
    assert (row.quantity_nanos, row.events, row.late_events) == (3 * 10**9, 1, 1)


BY_UNITS = [  # held and settled in units and credits: what it costs
    ("units", {"work_units": "5"}, "0", {"work_units": "3"}, None, "3"),
    ("credits", {}, "5", None, "3", "3"),
    ("both", {"work_units": "2"}, "3", {"work_units": "1"}, "1", "2"),
    ("units instead of credits", {}, "5", {"work_units": "4"}, None, "4"),
    ("credits instead of units", {"work_units": "5"}, "0", None, "4", "4"),
    ("as held", {"work_units": "2"}, "3", None, None, "5"),
    ("nothing", {"work_units": "2"}, "3", {}, None, "0"),
    ("no units", {"work_units": "5"}, "0", {"work_units": "0"}, None, "0"),
]


@pytest.mark.parametrize(("law", "held", "credits", "units", "settled", "cost"), BY_UNITS)
def test_units_and_credits(
    law: str, held: dict[str, str], credits: str, units: dict[str, str] | None, settled: str | None, cost: str
) -> None:
    told = Money("grant g 9")
    told.hold("h", credits=credits, quantities={name: Decimal(value) for name, value in held.items()})
    answer = told.partition.ask(
        Settle(
            id="s",
            customer="acme",
            hold="h",
            quantities=None if units is None else {name: Decimal(value) for name, value in units.items()},
            credits=None if settled is None else Decimal(settled),
        )
    )
    assert (answer.credits, told.balances) == (cost, f"g {9 - int(cost)}")


NEGATIVE = [
    ("a reservation", "reserve h -1"),
    ("a settle", "reserve h 1; settle h -1"),
    ("usage", "use -1"),
    ("a grant", "grant n -1"),
    ("a budget", "budget b -1"),
]


@pytest.mark.parametrize(("what", "story"), NEGATIVE)
def test_negative_amounts_are_refused(what: str, story: str) -> None:
    told = Money(f"grant g 9; {story}")
    assert [*told.said.split(), *told.dead][-1] == "quantity_invalid"
    assert told.balances in ("g 9", "g 8")


def test_receipts_over_pools_and_grants_in_burn_order() -> None:
    told = Money("grant c 9 p0; grant t 2 p5 pool trial; grant u 2 p4 pool trial; reserve h 10 both")
    hold = told.answers[-1].hold
    assert hold is not None
    assert [(share.grant, share.amount) for share in hold.shares] == [("u", "2"), ("t", "2"), ("c", "6")]
    told.tell("settle h 3")
    assert told.last_movements == [
        "hold:h > consumed:both 2",
        "hold:h > consumed:both 1",
        "hold:h > grant:t 1",
        "hold:h > grant:c 6",
    ]
    assert (told.pool("trial"), told.pool("credits")) == (("3", "3"), ("0", "0"))
