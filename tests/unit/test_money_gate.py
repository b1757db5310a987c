"""The waterfall: its order, every limit that says no, the trace, all or nothing; estimates and `at_least`."""

from decimal import Decimal

import pytest

from money import Money, catalog
from tallygate.schemas.answers import Answer, LimitState
from tallygate.schemas.requests import Reserve

#: A customer whom every step can stop: a plan with an allowance, a rate limit and budgets, and ten credits.
FEATURES = {
    "work": {},
    "chat": {},
    "extra": {},
    "owing": {"overage": "20"},
    "watched": {"observe": True},
}
PLANS = {
    "pro": {
        "entitlements": {
            "work": "credits",
            "owing": "credits",
            "watched": "credits",
            "chat": {"meter": "chat_units", "limit": 5, "period": "day"},
        },
        "rate_limits": {"flow": {"limit": 100, "per": "second", "unit": "credits"}},
        "budgets": {"all": {"limit": 50}, "agents": {"limit": 30, "scope": {"agent": "*"}}},
    }
}
OF = catalog(features=FEATURES, plans=PLANS)
START = "subscribe pro; grant g 10; budget both 40 agent=* team=*"
WHO = {"agent": "a", "team": "t"}


def start(story: str = "") -> Money:
    return Money(f"{START}; {story}", OF)


ORDER = [  # what is asked, by whom; the first reason, and the limits that said no in their order
    ("an unknown customer first", "by zeta", "nothing", "500", "customer_unknown", ""),
    ("then a suspended one", "suspend", "nothing", "500", "customer_suspended", ""),
    ("then an unknown feature", "", "nothing", "500", "feature_unknown", ""),
    ("then one that is not in the plan", "", "extra", "500", "feature_not_entitled", ""),
    ("then rate limits", "", "work", "500", "rate_limited", "flow both agents all credits"),
    ("then budgets, narrowest first", "", "work", "60", "budget_exhausted", "both agents all credits"),
    ("the narrower of two", "", "work", "35", "budget_exhausted", "agents credits"),
    ("then the allowance", "", "chat", "9", "allowance_exhausted", "chat"),
    ("then credits", "", "work", "11", "credits_exhausted", "credits"),
    ("a debt is bounded by budgets, too", "", "owing", "31", "budget_exhausted", "agents credits"),
    (
        "then the overage policy",
        "reserve h 10 work; settle h; use 12 owing",
        "owing",
        "9",
        "credits_exhausted",
        "credits",
    ),
    ("up to its cap", "", "owing", "30", "allowed", ""),
    ("and yes", "", "work", "10", "allowed", ""),
    ("resumed", "suspend; resume", "work", "10", "allowed", ""),
]


def asked(told: Money, feature: str, amount: str, explain: bool = False) -> Answer:
    if feature == "chat":
        return told.ask("chat", "0", quantities={"chat_units": Decimal(amount)}, dimensions=WHO, explain=explain)
    return told.ask(feature, amount, dimensions=WHO, explain=explain)


@pytest.mark.parametrize(("law", "before", "feature", "amount", "reason", "limits"), ORDER)
def test_the_order(law: str, before: str, feature: str, amount: str, reason: str, limits: str) -> None:
    told = start(before)
    answer = asked(told, feature, amount)
    assert (answer.reason, answer.allowed) == (reason, reason == "allowed")
    assert " ".join(limit.name for limit in answer.limits) == limits
    assert not any(limit.ok for limit in answer.limits)


STEPS = ["customer", "feature", "rate_limits", "budgets", "allowance", "credits", "overage"]


@pytest.mark.parametrize(("law", "before", "feature", "amount", "reason", "limits"), ORDER)
def test_the_trace_is_the_whole_waterfall(
    law: str, before: str, feature: str, amount: str, reason: str, limits: str
) -> None:
    told = start(before)
    plain, explained = asked(told, feature, amount), asked(told, feature, amount, explain=True)
    assert (explained.reason, explained.credits, explained.balance) == (plain.reason, plain.credits, plain.balance)
    assert plain.trace == ()
    steps = [step.step for step in explained.trace]
    assert steps == STEPS[: len(steps)]
    first = next((step.reason for step in explained.trace if not step.ok), "allowed")
    if reason in ("customer_unknown", "customer_suspended", "feature_unknown", "feature_not_entitled"):
        assert explained.trace[-1].reason == reason  # the rest was not looked at
        assert first == reason
        return
    assert steps == STEPS
    assert [limit for step in explained.trace for limit in step.limits] == list(explained.limits)
    assert [limit for limit in explained.limits if not limit.ok] == list(plain.limits)
    if feature != "owing":
        assert first == reason
    assert {step.step: [limit.name for limit in step.limits] for step in explained.trace} == {
        **{step: list[str]() for step in STEPS},
        "rate_limits": ["flow"],
        "budgets": ["both", "agents", "all"],
        "allowance": ["chat"] if feature == "chat" else [],
        "credits": ["credits"],
    }


def test_every_limit_says_how_it_stands() -> None:
    told = start("reserve h 4 work agent=a team=t; settle h; reserve i 2 work agent=a team=t")
    answer = told.ask("work", "3", dimensions=WHO, explain=True)
    found = [(x.kind, x.name, x.unit, x.asked, x.limit, x.used, x.held, x.remaining, x.scope) for x in answer.limits]
    assert found == [
        ("rate", "flow", "credits", "3", "100", "6", "0", "94", {}),
        ("budget", "both", "credits", "3", "40", "4", "2", "34", WHO),
        ("budget", "agents", "credits", "3", "30", "4", "2", "24", {"agent": "a"}),
        ("budget", "all", "credits", "3", "50", "4", "2", "44", {}),
        ("credits", "credits", "credits", "3", "10", "4", "2", "4", {}),
    ]
    answer = told.ask("chat", quantities={"chat_units": Decimal(2)}, explain=True)
    [allowance] = [limit for limit in answer.limits if limit.kind == "allowance"]
    assert (allowance.name, allowance.unit, allowance.asked, allowance.limit) == ("chat", "chat_units", "2", "5")
    assert allowance.resets_at == "2026-01-02T00:00:00Z"


def test_overage_in_the_trace() -> None:
    answer = start().ask("owing", "25", explain=True)
    assert answer.allowed
    assert [(step.step, step.ok) for step in answer.trace[-2:]] == [("credits", False), ("overage", True)]
    answer = start().ask("watched", "11", explain=True)
    assert (answer.allowed, answer.would_deny) == (True, ("credits_exhausted",))
    assert answer.trace[-1].ok


ALL_OR_NOTHING = ["work 500", "work 60", "work 35", "work 11", "extra 1", "nothing 1"]


@pytest.mark.parametrize("asks", ALL_OR_NOTHING)
def test_a_denial_changes_nothing_anywhere(asks: str) -> None:
    told = start("reserve h 3 work agent=a team=t")
    feature, amount = asks.split()
    before = (told.statement(), told.ask("work", "1", dimensions=WHO, explain=True).limits)
    answer = told.hold("denied", feature, amount, dimensions=WHO)
    assert not answer.allowed
    assert answer.hold is None
    assert (told.statement(), told.ask("work", "1", dimensions=WHO, explain=True).limits) == before
    entry = told.partition.entries()[-1]
    assert (entry.postings, entry.usage, entry.alerts) == ((), (), ())
    assert [decision.reason for decision in entry.decisions] == [answer.reason]


def test_checks_and_estimates_leave_no_trace() -> None:
    told = start("reserve h 3 work agent=a team=t")
    rows, journal = told.partition.rows.items(), len(told.partition.journal)
    for amount in ("5", "11", "60", "500"):
        told.ask("work", amount, dimensions=WHO)
        told.estimate("work", "credits", credits=Decimal(amount), dimensions=WHO)
    told.statement()
    assert told.partition.rows.items() == rows
    assert len(told.partition.journal) == journal


def test_what_the_allowance_covers_costs_no_credits() -> None:
    told = start()
    answer = told.hold("h", "chat", quantities={"chat_units": Decimal(5)})
    assert (answer.allowed, answer.credits, answer.balance) == (True, "0", "10")
    assert told.ask("chat", quantities={"chat_units": Decimal(1)}).reason == "allowance_exhausted"


# ---- what is affordable ----

AFFORDABLE = [  # before, feature, of, the most
    ("credits", "", "work", "credits", "10"),
    ("to the last nano", "grant n 0.123456789", "work", "credits", "10.123456789"),
    ("what is held is not", "reserve h 4 work", "work", "credits", "6"),
    ("and what may be owed", "", "owing", "credits", "30"),
    ("a budget bounds it", "cap small 7.5", "work", "credits", "7.5"),
    ("the smallest of several does", "cap small 7; cap tiny 3", "work", "credits", "3"),
    ("an observing one does not", "cap small 7 observe", "work", "credits", "10"),
    ("nor a soft one", "cap small 7 soft", "work", "credits", "10"),
    ("a rate limit does", "rate slow 2 per 1 of credits", "work", "credits", "2"),
    ("nothing", "reserve h 10 work", "work", "credits", "0"),
    ("a meter's units", "", "work", "work_units", "10"),
    ("whole ones", "grant n 0.9", "work", "work_units", "10"),
    ("an allowance", "", "chat", "chat_units", "5"),
    ("what is left of it", "use 3 chat", "chat", "chat_units", "2"),
    ("a suspended customer's", "suspend", "work", "credits", "0"),
    ("of a feature that is not entitled", "", "extra", "credits", "0"),
    ("of one that only observes: a budget", "", "watched", "credits", "50"),
]


@pytest.mark.parametrize(("law", "before", "feature", "of", "most"), AFFORDABLE)
def test_an_estimate_agrees_with_reserving_that_and_one_more(
    law: str, before: str, feature: str, of: str, most: str
) -> None:
    told = start(before)
    answer = told.estimate(feature, of)
    assert answer.affordable == {of: most}

    def reserve(id: str, amount: Decimal) -> bool:
        if of == "credits":
            return told.hold(id, feature, str(amount)).allowed
        return told.hold(id, feature, quantities={of: amount}).allowed

    step = Decimal("0.000000001") if of == "credits" else Decimal(1)
    assert not reserve("more", Decimal(most) + step)
    if most != "0":
        assert reserve("most", Decimal(most))


def test_an_estimate_says_what_the_call_would_cost() -> None:
    told = start()
    for amount, reason in (("4", "allowed"), ("11", "credits_exhausted"), ("35", "budget_exhausted")):
        answer = told.estimate("work", "work_units", quantities={"work_units": Decimal(amount)}, dimensions=WHO)
        assert (answer.reason, answer.credits, answer.affordable) == (reason, amount, {"work_units": "10"})


def test_what_else_the_call_takes_counts() -> None:
    answer = start().estimate("work", "work_units", credits=Decimal("2.5"))
    assert (answer.credits, answer.affordable) == ("2.5", {"work_units": "7"})


def test_an_estimate_of_nothing_the_feature_has_is_refused() -> None:
    assert start().estimate("work", "chat_units").reason == "meter_unknown"
    assert start().estimate("nothing", "credits").reason == "feature_unknown"
    assert Money("", OF).estimate("nothing", "credits").reason == "customer_unknown"


AT_LEAST = [  # before, the unit, asked, at least, what is held ("" for a denial) and the reason
    ("all of it where there is room", "", "credits", "8", "1", "8"),
    ("what is affordable", "", "credits", "20", "1", "10"),
    ("to the last nano", "grant n 0.123456789", "credits", "20", "1", "10.123456789"),
    ("just the least", "", "credits", "20", "10", "10"),
    ("not less than that", "", "credits", "20", "10.000000001", ""),
    ("a meter's units", "", "work_units", "20", "1", "10"),
    ("parts of one where it is asked so", "grant n 0.7", "work_units", "20", "0.5", "10.5"),
    ("under a budget", "cap small 7 agent=*", "credits", "20", "1", "7"),
    ("under several", "cap small 7 agent=*; cap tiny 3 team=*; cap all 90", "credits", "20", "1", "3"),
    ("under a rate limit", "rate slow 2 per 1 of credits", "credits", "20", "1", "2"),
    ("none left under one", "rate slow 1 per 1; reserve x 0 work agent=a", "credits", "20", "1", ""),
    ("a suspended customer", "suspend", "credits", "20", "1", ""),
    ("at least nothing", "reserve x 10 work", "credits", "20", "0", "0"),
]


@pytest.mark.parametrize(("law", "before", "unit", "amount", "least", "held"), AT_LEAST)
def test_at_least(law: str, before: str, unit: str, amount: str, least: str, held: str) -> None:
    told = start(before)
    quantities = {} if unit == "credits" else {unit: Decimal(amount)}
    answer = told.hold(
        "h",
        credits=amount if unit == "credits" else "0",
        quantities=quantities,
        dimensions=WHO,
        at_least={unit: Decimal(least)},
    )
    assert answer.allowed == bool(held)
    if not held:
        assert answer.hold is None
        assert answer.credits in (amount, None)
        return
    assert answer.hold is not None
    assert answer.credits == answer.hold.credits == held
    if unit != "credits":
        assert answer.hold.quantities[unit] == held
    assert told.hold("i", "work", "0.000000001", dimensions=WHO).allowed == (law in ("all of it where there is room",
        "parts of one where it is asked so"))  # fmt: skip


def test_at_least_with_an_allowance() -> None:
    told = start("use 2 chat")
    answer = told.hold("h", "chat", quantities={"chat_units": Decimal(4096)}, at_least={"chat_units": Decimal(3)})
    assert answer.hold is not None
    assert (answer.hold.quantities, answer.credits) == ({"chat_units": "3"}, "0")
    answer = told.hold("i", "chat", quantities={"chat_units": Decimal(4096)}, at_least={"chat_units": Decimal(1)})
    assert (answer.allowed, answer.reason) == (False, "allowance_exhausted")


def test_the_first_denial_stands_where_even_the_least_is_too_much() -> None:
    told = start()
    plain = told.hold("h", "work", "60", dimensions=WHO)
    at_least = told.hold("i", "work", "60", dimensions=WHO, at_least={"credits": Decimal(11)})
    assert (at_least.reason, at_least.limits, at_least.credits) == (plain.reason, plain.limits, plain.credits)


WRONG = [
    ("two", {"credits": Decimal(1), "work_units": Decimal(1)}, "malformed"),
    ("more than asked", {"credits": Decimal(9)}, "malformed"),
    ("what is not asked", {"work_units": Decimal(1)}, "malformed"),
    ("less than nothing", {"credits": Decimal(-1)}, "quantity_invalid"),
]


@pytest.mark.parametrize("amount", ["8", "80"], ids=["with room", "without"])
@pytest.mark.parametrize(("law", "least", "reason"), WRONG)
def test_a_wrong_at_least_is_refused_with_and_without_room(
    law: str, least: dict[str, Decimal], reason: str, amount: str
) -> None:
    told = start()
    least = {unit: value * (10 if unit == "credits" and value > 1 else 1) for unit, value in least.items()}
    assert told.hold("h", "work", amount, at_least=least).reason == reason
    assert told.hold("h", "work", "8").allowed  # a refused id is free


def test_what_is_held_with_at_least_explains_itself() -> None:
    answer = start().hold("h", "work", "20", at_least={"credits": Decimal(1)}, explain=True)
    assert [step.step for step in answer.trace] == STEPS
    assert {limit.asked for limit in answer.limits if limit.kind == "credits"} == {"10"}
    assert all(step.ok for step in answer.trace)


def test_a_reduced_reservation_again_is_answered_the_same() -> None:
    told = start()
    first = Reserve(id="h", customer="acme", feature="work", credits=Decimal(20), at_least={"credits": Decimal(1)})
    answers = [told.partition.ask(first) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert told.statement().pools[0].held == "10"


def test_denials_in_the_ledger_name_their_limits() -> None:
    told = start()
    told.hold("h", "work", "60", dimensions=WHO)
    [decision] = told.partition.entries()[-1].decisions
    names: list[LimitState] = list(decision.limits)
    assert [limit.name for limit in names] == ["both", "agents", "all", "credits"]
