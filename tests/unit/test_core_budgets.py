"""Budgets: scopes, levels, periods, hard and soft; and what a denial says."""

from decimal import Decimal

import pytest
from msgspec.structs import replace

from partition import Partition
from stories import Story
from tallygate.schemas.requests import Balance, GiveGrant, Reserve, SetBudget

SCOPES = [
    ("the whole customer", "budget all 9", "reserve h 9; reserve i 1 team=x", "yes budget_exhausted"),
    ("one value", "budget b 9 team=x", "reserve h 9 team=x; reserve i 1 team=x; reserve j 1 team=y; reserve k 1",
     "yes budget_exhausted yes yes"),
    ("each value has its own", "budget b 9 team=*", "reserve h 9 team=x; reserve i 9 team=y; reserve j 1 team=x",
     "yes yes budget_exhausted"),
    ("no value, no limit", "budget b 9 team=*", "reserve h 10; reserve i 10 user=x", "yes yes"),
    ("an empty scope holds for every value", "budget b 9", "reserve h 5 team=x; reserve i 5 team=y",
     "yes budget_exhausted"),
    ("two dimensions must both match", "budget b 9 team=x user=*",
     "reserve h 10 team=x; reserve i 10 user=u; reserve j 10 team=y user=u; reserve k 10 team=x user=u",
     "yes yes yes budget_exhausted"),
    ("each pair has its own", "budget b 9 team=* user=*",
     "reserve h 9 team=x user=u; reserve i 9 team=x user=v; reserve j 9 team=y user=u; reserve k 1 user=u team=x",
     "yes yes yes budget_exhausted"),
    ("more dimensions than asked for", "budget b 9 team=x", "reserve h 10 team=x user=u", "budget_exhausted"),
    ("capitals are letters of their own", "budget b 9 team=x", "reserve h 10 team=X", "yes"),
    ("names that look like scopes stay apart", "budget b 9 team=*",
     "reserve h 9 team=x,user=u; reserve i 9 team=x user=u; reserve j 1 team=x%2Cuser=u", "yes yes yes"),
    ("three levels, the team's is full", "budget team 8 team=*; budget drafter 3 agent=*; budget reviewer 10 role=*",
     "reserve h 3 team=t agent=a role=r; reserve i 3 team=t agent=b role=r; reserve j 3 team=t agent=c role=r",
     "yes yes budget_exhausted"),
    ("the agent's is full", "budget team 8 team=*; budget drafter 3 agent=*; budget reviewer 10 role=*",
     "reserve h 3 team=t agent=a role=r; reserve i 1 team=t agent=a role=r; reserve j 1 team=t agent=b role=r",
     "yes budget_exhausted yes"),
    ("the reviewer's is full", "budget team 8 team=*; budget drafter 3 agent=*; budget reviewer 5 role=*",
     "reserve h 3 team=t agent=a role=r; reserve i 3 team=t agent=b role=r; reserve j 3 team=t agent=b role=s",
     "yes budget_exhausted yes"),
    ("usage counts, too", "budget b 9 team=*", "use 5 team=x; reserve h 5 team=x; reserve i 5 team=y",
     "budget_exhausted yes"),
    ("usage is never denied", "budget b 9", "use 500; reserve h 1", "budget_exhausted"),
    ("settled less gives room", "budget b 9", "reserve h 9; settle h 4; reserve i 6; reserve j 5",
     "yes yes budget_exhausted yes"),
    ("settled more takes it", "budget b 9", "reserve h 5; settle h 7; reserve i 3; reserve j 2",
     "yes yes budget_exhausted yes"),
    ("released gives it back", "budget b 9", "reserve h 9; release h; reserve i 9", "yes yes yes"),
    ("expired gives it back", "budget b 9", "reserve h 9 for 1m; wait 1m; reserve i 9", "yes yes"),
    ("settled as estimated does not", "budget b 9", "reserve h 9 estimate; wait 1m; reserve i 1",
     "yes budget_exhausted"),
    ("settled late counts", "budget b 9", "reserve h 9; release h; settle h 8; reserve i 2",
     "yes yes late budget_exhausted"),
    ("a denied one holds nothing anywhere", "budget a 5 team=x; budget b 9",
     "reserve h 6 team=x; reserve i 9; reserve j 1", "budget_exhausted yes budget_exhausted"),
    ("soft lets through", "budget b 9 soft", "reserve h 10; reserve i 1", "yes yes"),
    ("soft beside hard", "budget b 5 soft; budget c 9", "reserve h 9; reserve i 1", "yes budget_exhausted"),
    ("credits of every feature", "budget b 9", "reserve h 5; reserve i 5 message", "yes budget_exhausted"),
    ("a meter's units", "budget b 9 of work_units", "use 9; reserve h 1; check 1", "yes yes"),
    ("lowered below what is used", "budget b 9", "reserve h 6; budget b 5; reserve i 1; release h; reserve j 5",
     "yes yes budget_exhausted yes yes"),
    ("raised", "budget b 9", "reserve h 9; budget b 10; reserve i 1; reserve j 1", "yes yes yes budget_exhausted"),
    ("hard becomes soft", "budget b 9", "reserve h 9; budget b 9 soft; reserve i 1", "yes yes yes"),
    ("of nothing", "budget b 0", "reserve h 0; reserve i 0.000000001", "yes budget_exhausted"),
    ("budgets before credits", "budget b 9", "reserve h 5000", "budget_exhausted"),
    ("each customer's own", "budget b 9", "reserve h 9; by zeta; grant g 99; reserve h 99", "yes yes yes"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "budgets", "story", "said"), SCOPES)
def test_scopes(law: str, budgets: str, story: str, said: str) -> None:
    told = Story(f"grant g 1000; grant m 1000 pool messages; {budgets}")
    before = len(told.answers)
    told.tell(story)
    told.answers = told.answers[before:]
    assert told.said == said


PERIODS = [  # what was used and is held when the budget is looked at
    ("an hour", "budget b 9 per hour; use 5; reserve h 2 for 2h; wait 59m; wait 59s", "b[] 5+2 of 9"),
    ("an hour's end", "budget b 9 per hour; use 5; wait 1h", "b[] 0+0 of 9"),
    ("hours are the clock's", "wait 59m; budget b 9 per hour; use 5; wait 1m", "b[] 0+0 of 9"),
    ("a day", "wait 8h; budget b 9 per day; use 5; wait 15h; wait 59m", "b[] 5+0 of 9"),
    ("a day's end", "wait 8h; budget b 9 per day; use 5; wait 16h", "b[] 0+0 of 9"),
    ("a week, until Sunday", "budget b 9 per week; use 5; wait 3d; wait 23h", "b[] 5+0 of 9"),
    ("a week, from Monday on", "budget b 9 per week; use 5; wait 4d", "b[] 0+0 of 9"),
    ("a month", "budget b 9 per month; use 5; wait 30d", "b[] 5+0 of 9"),
    ("a month's end", "budget b 9 per month; use 5; wait 31d", "b[] 0+0 of 9"),
    ("a short month", "wait 31d; budget b 9 per month; use 5; wait 28d; use 1", "b[] 1+0 of 9"),
    ("a lifetime", "budget b 9; use 5; wait 365d", "b[] 5+0 of 9"),
    ("two periods at once", "budget b 9 per day; budget c 9; use 5; wait 1d; use 2", "b[] 2+0 of 9, c[] 7+0 of 9"),
    ("open holds go over", "wait 59m; budget b 9 per hour; use 5; reserve h 2; wait 1m", "b[] 0+2 of 9"),
    ("and are used where they are settled", "wait 59m; budget b 9 per hour; use 5; reserve h 2; wait 1m; settle h 3",
     "b[] 3+0 of 9"),
    ("or given back", "wait 59m; budget b 9 per hour; use 5; reserve h 2; wait 1m; release h", "b[] 0+0 of 9"),
    ("or end", "wait 59m; budget b 9 per hour; use 5; reserve h 2 for 90s; wait 90s", "b[] 0+0 of 9"),
    ("estimated into the period of their end", "wait 59m; budget b 9 per hour; use 5; reserve h 2 estimate; wait 90s",
     "b[] 2+0 of 9"),
    ("estimated before the turn, noticed after it",
     "wait 58m; budget b 9 per hour; use 5; reserve h 2 estimate; wait 1h", "b[] 0+0 of 9"),
    ("an event counts when it arrives", "wait 5m; budget b 9 per hour; use 5 ago 10m", "b[] 5+0 of 9"),
    ("a new limit keeps the use", "budget b 9; use 5; reserve h 2; budget b 6", "b[] 5+2 of 6"),
    ("a meter's units are counted", "budget b 9 of work_units team=*; use 5 team=x; use 4 owing team=x",
     "b[team=x] 5+0 of 9"),
    ("narrow scopes by name", "budget b 9 team=*; use 1 team=y; use 2 team=x",
     "b[team=x] 2+0 of 9, b[team=y] 1+0 of 9"),
]  # fmt: skip


@pytest.mark.parametrize("restart", ["", "restart"], ids=["in memory", "after a restart"])
@pytest.mark.parametrize(("law", "story", "budgets"), PERIODS)
def test_periods(law: str, story: str, budgets: str, restart: str) -> None:
    told = Story(f"grant g 1000; {story}; {restart}")
    assert told.budgets == budgets


def test_a_denial_lists_every_limit_that_said_no_narrowest_first() -> None:
    story = Story(
        "grant g 100; budget team 8 team=*; budget drafter 3 agent=drafter per day; budget reviewer 10 "
        "agent=reviewer; budget both 5 agent=drafter team=* per month; budget all 90 per hour"
    )
    story.tell("wait 90m; use 2 agent=drafter team=research; reserve h 1 agent=drafter team=research")
    story.tell("reserve i 99 agent=drafter team=research")
    answer = story.answers[-1]
    assert (answer.allowed, answer.reason) == (False, "budget_exhausted")
    assert [(x.kind, x.name, x.asked, x.limit, x.used, x.held, x.remaining, x.resets_at) for x in answer.limits] == [
        ("budget", "both", "99", "5", "2", "1", "2", "2026-02-01T00:00:00Z"),
        ("budget", "drafter", "99", "3", "2", "1", "0", "2026-01-02T00:00:00Z"),
        ("budget", "team", "99", "8", "2", "1", "5", None),
        ("budget", "all", "99", "90", "2", "1", "87", "2026-01-01T02:00:00Z"),
        ("credits", "credits", "99", "100", "2", "1", "97", None),
    ]
    assert [x.scope for x in answer.limits[:3]] == [
        {"agent": "drafter", "team": "research"},
        {"agent": "drafter"},
        {"team": "research"},
    ]
    assert not any(x.ok for x in answer.limits)


def test_limits_with_room_are_listed_only_on_request() -> None:
    story = Story("grant g 100; budget small 3; budget large 90")
    check = story.request("check", ["5"])
    plain = story.partition.ask(check)
    explained = story.partition.ask(replace(check, explain=True))
    assert [x.name for x in plain.limits] == ["small"]
    assert [(x.name, x.ok) for x in explained.limits] == [("large", True), ("small", False), ("credits", True)]


def test_a_limit_below_its_use_has_less_than_nothing_left() -> None:
    story = Story("grant g 100; budget b 9; use 7; budget b 5; reserve h 1")
    [limit] = story.answers[-1].limits
    assert (limit.limit, limit.used, limit.remaining) == ("5", "7", "-2")


def test_a_budget_of_units_that_no_meter_has_is_refused() -> None:
    story = Story("budget b 9 of gallons")
    assert (story.said, story.partition.rows.items()[0][0]) == ("meter_unknown", b"\0partition")


def test_a_quantity_is_held_in_a_meters_units_and_a_cost_in_credits() -> None:
    partition = Partition()
    partition.ask(GiveGrant(id="g", customer="acme", amount=Decimal(100)))
    for name, unit in (("tokens", "input_tokens"), ("money", "credits"), ("calls", "calls")):
        partition.ask(SetBudget(id=name, customer="acme", name=name, limit=Decimal(5000), unit=unit))
    asked = {"input_tokens": Decimal(4000)}
    partition.ask(Reserve(id="h", customer="acme", feature="llm", quantities=asked))
    statement = partition.ask(Balance(id="b", customer="acme")).statement
    assert statement is not None
    assert {x.name: x.held for x in statement.limits} == {"tokens": "4000", "money": "4", "calls": "1"}
    answer = partition.ask(Reserve(id="i", customer="acme", feature="llm", quantities=asked))
    assert [(x.name, x.unit, x.remaining) for x in answer.limits] == [("tokens", "input_tokens", "1000")]
