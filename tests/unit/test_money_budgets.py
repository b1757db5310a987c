"""Budgets in full: anchored periods, thresholds and their alerts, soft and observing limits, a plan's and one's own."""

import pytest

from money import Money, catalog

ANCHORED = [  # T0 is 2026-01-01; when the budget is looked at after a use at `use`
    ("a month from the 15th", "per month anchor 2025-11-15", "2026-01-10", "2026-01-14T23:59", "5"),
    ("its end", "per month anchor 2025-11-15", "2026-01-10", "2026-01-15", "0"),
    ("an anchor yet to come", "per month anchor 2026-06-15", "2026-01-10", "2026-01-14T23:59", "5"),
    ("its end, too", "per month anchor 2026-06-15", "2026-01-10", "2026-01-15", "0"),
    ("the 31st in February", "per month anchor 2025-12-31", "2026-02-10", "2026-02-27T23:59", "5"),
    ("the 31st in February ends on the 28th", "per month anchor 2025-12-31", "2026-02-10", "2026-02-28", "0"),
    ("and the next one on the 31st", "per month anchor 2025-12-31", "2026-03-01", "2026-03-30T23:59", "5"),
    ("a week from Thursday", "per week anchor 2026-01-01", "2026-01-02", "2026-01-07T23:59", "5"),
    ("its end", "per week anchor 2026-01-01", "2026-01-02", "2026-01-08", "0"),
    ("a day from noon", "per day anchor 2026-01-01T12:00", "2026-01-02T11:00", "2026-01-02T11:59", "5"),
    ("its end", "per day anchor 2026-01-01T12:00", "2026-01-02T11:00", "2026-01-02T12:00", "0"),
    ("an hour from half past", "per hour anchor 2026-01-01T00:30", "2026-01-02T10:40", "2026-01-02T11:29", "5"),
    ("its end", "per hour anchor 2026-01-01T00:30", "2026-01-02T10:40", "2026-01-02T11:30", "0"),
    ("a lifetime has no anchor", "anchor 2026-01-05", "2026-01-10", "2027-01-10", "5"),
]


@pytest.mark.parametrize(("law", "budget", "use", "look", "used"), ANCHORED)
def test_periods_count_from_an_anchor(law: str, budget: str, use: str, look: str, used: str) -> None:
    told = Money(f"grant g 1000; cap b 9 {budget}; until {use}; use 5; until {look}")
    assert told.budgets == f"b[] {used}+0 of 9"


def test_a_budget_says_when_it_resets() -> None:
    told = Money("grant g 1000; cap b 9 per month anchor 2025-12-31; until 2026-02-10; use 5")
    [limit] = told.statement().limits
    assert limit.resets_at == "2026-02-28T00:00:00Z"
    [limit] = told.ask("work", "5").limits
    assert (limit.resets_at, limit.used, limit.remaining) == ("2026-02-28T00:00:00Z", "5", "4")


ALERTS = [
    ("at the threshold", "cap b 100 at 80,100", "use 79; use 1", ["b[] 80 at 80 of 100"]),
    ("once", "cap b 100 at 80", "use 80; use 5; use 5", ["b[] 80 at 80 of 100"]),
    ("each one", "cap b 100 at 50,80,100", "use 60; use 25; use 20",
     ["b[] 50 at 60 of 100", "b[] 80 at 85 of 100", "b[] 100 at 105 of 100"]),
    ("each one, though reached at once", "cap b 100 at 100,50,80", "use 120",
     ["b[] 50 at 120 of 100", "b[] 80 at 120 of 100", "b[] 100 at 120 of 100"]),
    ("beyond the limit", "cap b 100 at 150", "use 120; use 30", ["b[] 150 at 150 of 100"]),
    ("again in the next period", "cap b 100 at 80 per hour", "use 80; wait 1h; use 79; use 1",
     ["b[] 80 at 80 of 100", "b[] 80 at 80 of 100"]),
    ("in each scope", "cap b 100 team=* at 80", "use 80 team=x; use 80 team=y; use 1 team=x",
     ["b[team=x] 80 at 80 of 100", "b[team=y] 80 at 80 of 100"]),
    ("holds do not reach it", "cap b 100 at 80", "reserve h 90; settle h 70", []),
    ("settled work does", "cap b 100 at 80", "reserve h 90; settle h", ["b[] 80 at 90 of 100"]),
    ("estimated work does", "cap b 100 at 80", "reserve h 90 estimate; wait 1m; tick 1s", ["b[] 80 at 90 of 100"]),
    ("a raised limit: not again at once", "cap b 100 at 80", "use 80; cap b 200 at 80; use 1", ["b[] 80 at 80 of 100"]),
    ("a raised limit: again when it is reached", "cap b 100 at 80", "use 80; cap b 200 at 80; use 80; use 1",
     ["b[] 80 at 80 of 100", "b[] 80 at 160 of 200"]),
    ("raised, still reached: no news", "cap b 100 at 50", "use 80; cap b 120 at 50; use 1", ["b[] 50 at 80 of 100"]),
    ("raised before it was ever reached", "cap b 100 at 80", "use 70; cap b 200 at 80; use 80; use 10",
     ["b[] 80 at 160 of 200"]),
    ("a lowered limit is reached with the next use", "cap b 100 at 80", "use 70; cap b 80 at 80; use 1",
     ["b[] 80 at 71 of 80"]),
    ("lowered, reached before: no news", "cap b 100 at 80", "use 80; cap b 90 at 80; use 1", ["b[] 80 at 80 of 100"]),
    ("a new threshold", "cap b 100 at 80", "use 85; cap b 100 at 80,90; use 5",
     ["b[] 80 at 85 of 100", "b[] 90 at 90 of 100"]),
    ("counted back and reached again: once a period", "cap b 100 at 80", "use 80; use 5 as e; undo e; use 5; use 1",
     ["b[] 80 at 80 of 100"]),
    ("a soft one reports its limit", "cap b 100 soft", "use 99; use 1; use 1", ["b[] 100 at 100 of 100"]),
    ("an observing one, too", "cap b 100 observe", "use 100", ["b[] 100 at 100 of 100"]),
    ("a hard one only what it is told to", "cap b 100", "use 100", []),
    ("a limit of nothing", "cap b 0 soft", "use 1; use 1", ["b[] 100 at 1 of 0"]),
    ("a meter's units", "cap b 100 at 80 of work_units", "use 80", ["b[] 80 at 80 of 100"]),
    ("two budgets", "cap b 100 at 80; cap a 50 at 100", "use 80", ["a[] 100 at 80 of 50", "b[] 80 at 80 of 100"]),
]  # fmt: skip


@pytest.mark.parametrize("restart", ["", "restart"], ids=["in memory", "after restarts"])
@pytest.mark.parametrize(("law", "budgets", "story", "alerts"), ALERTS)
def test_thresholds_alert_once_a_period(law: str, budgets: str, story: str, alerts: list[str], restart: str) -> None:
    story = story.replace("; ", f"; {restart}; ") if restart else story
    assert Money(f"grant g 1000; {budgets}; {story}").alerts == alerts


def test_alerts_come_with_the_input_that_reached_them() -> None:
    told = Money("grant g 1000; cap b 100 at 80; use 80 as e")
    entry = told.partition.entries()[-1]
    [alert] = entry.alerts
    assert entry.causes[alert.cause].id == "e"
    assert alert.at == told.partition.now


ROOM = [
    ("soft lets through and says nothing", "cap b 9 soft", "reserve h 10", "yes", ()),
    ("observing lets through and tells", "cap b 9 observe", "reserve h 10", "yes", ("budget_exhausted",)),
    ("observing with room has nothing to tell", "cap b 9 observe", "reserve h 9", "yes", ()),
    ("beside an enforcing one", "cap a 5; cap b 9 observe", "reserve h 10", "budget_exhausted", ("budget_exhausted",)),
    ("what asks nothing is not stopped", "cap b 9; use 12", "reserve h 0", "yes", ()),
    ("nor of another unit", "cap b 9 of message_units; use 12 message", "reserve h 10", "yes", ()),
    ("an observing feature lets credits miss", "", "reserve h 2000 watched", "yes", ("credits_exhausted",)),
]


@pytest.mark.parametrize(("law", "budgets", "asks", "said", "would_deny"), ROOM)
def test_soft_and_observing_limits(law: str, budgets: str, asks: str, said: str, would_deny: tuple[str, ...]) -> None:
    told = Money(f"grant g 1000; {budgets}")
    told.answers.clear()
    told.tell(asks)
    assert told.said == said
    assert told.answers[0].would_deny == would_deny


def test_an_observed_call_is_counted_like_any_other() -> None:
    told = Money("grant g 1000; cap b 9 observe; reserve h 10; settle h 12; reserve i 3")
    assert told.budgets == "b[] 12+3 of 9"
    assert told.answers[-1].would_deny == ("budget_exhausted",)
    [limit] = told.answers[-1].limits
    assert (limit.observe, limit.ok) == (True, False)


PLANS = {
    "pro": {
        "entitlements": {"work": "credits"},
        "budgets": {
            "all": {"limit": 100, "period": "month"},
            "teams": {"limit": 9, "scope": {"team": "*"}, "period": "day", "thresholds": [50, 100]},
        },
    }
}


def test_a_plans_budgets_hold_for_everyone_on_it() -> None:
    told = Money("subscribe pro; grant g 1000; reserve h 9 team=x; reserve i 1 team=x; reserve j 9 team=y",
                 catalog(plans=PLANS))  # fmt: skip
    assert told.said == "yes yes yes budget_exhausted yes"
    assert told.budgets == "all[] 0+18 of 100, teams[team=x] 0+9 of 9, teams[team=y] 0+9 of 9"


def test_ones_own_budget_of_the_same_name_stands_in_for_the_plans() -> None:
    of = catalog(plans=PLANS)
    told = Money("subscribe pro; grant g 1000; use 5 team=x; cap teams 20 team=* per day; reserve h 15 team=x", of)
    assert told.said.split()[-1] == "yes"
    assert told.budgets == "all[] 5+15 of 100, teams[team=x] 5+15 of 20"
    told.tell("reserve i 1 team=x")
    assert told.said.split()[-1] == "budget_exhausted"


def test_a_plans_periods_count_from_the_subscriptions_anchor() -> None:
    of = catalog(plans=PLANS)
    told = Money("until 2026-01-20; subscribe pro anchor 2026-01-15; grant g 1000; use 90; until 2026-02-14; use 5", of)
    assert told.budgets == "all[] 95+0 of 100"
    told.tell("until 2026-02-15; use 1")
    assert told.budgets == "all[] 1+0 of 100"
    assert told.statement().limits[0].resets_at == "2026-03-15T00:00:00Z"


def test_a_plans_limit_raised_by_a_new_catalog_alerts_anew() -> None:
    told = Money("subscribe pro; grant g 1000; use 9 team=x", catalog(plans=PLANS))
    assert told.alerts == ["teams[team=x] 50 at 9 of 9", "teams[team=x] 100 at 9 of 9"]
    plans = {"pro": {**PLANS["pro"], "budgets": {"teams": {**PLANS["pro"]["budgets"]["teams"], "limit": 30}}}}
    told.partition.catalog = catalog(2, plans=plans)
    told.tell("use 1 team=x; use 10 team=x; use 10 team=x")
    assert told.alerts[2:] == ["teams[team=x] 50 at 20 of 30", "teams[team=x] 100 at 30 of 30"]


def test_no_plan_no_plan_budgets() -> None:
    told = Money("grant g 1000", catalog(plans={**PLANS, "free": {"entitlements": {"work": "credits"}}}))
    told.tell("subscribe free; reserve h 500 team=x; subscribe pro; reserve i 10 team=x")
    assert told.said == "yes yes yes yes budget_exhausted"
