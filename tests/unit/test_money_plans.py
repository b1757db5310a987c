"""Entitlements, allowances, subscriptions, and catalogs that change under way."""

from decimal import Decimal
from typing import Any

import pytest

from money import MORE, Money, catalog
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.requests import Override, Subscribe

FEATURES: dict[str, dict[str, Any]] = {
    "work": {},
    "chat": {},
    "support": {},
    "export": {"pools": ["trial", "credits"]},
    "mail": {"hold": {"at_end": "settle", "ttl_seconds": 60}},
}
PLANS: dict[str, dict[str, Any]] = {
    "free": {"entitlements": {"chat": {"meter": "chat_units", "limit": 5, "period": "day"}}},
    "pro": {
        "entitlements": {
            "work": "credits",
            "chat": {"meter": "chat_units", "limit": 20, "period": "day", "beyond": "credits"},
            "mail": {"meter": "mail_units", "limit": 10, "period": "month", "beyond": "credits"},
            "support": {"value": "gold"},
            "export": True,
        },
        "grants": {
            "monthly": {"amount": 100, "every": "P1M", "priority": 5, "price": 0.01},
            "welcome": {"amount": 7, "pool": "trial", "category": "trial", "expires_after": "P2W"},
        },
        "resets": {"credits": "P1M"},
    },
    "max": {
        "entitlements": {
            "work": "credits",
            "export": False,
            "chat": {"meter": "chat_units", "limit": 5, "beyond": "allow"},
        },
        "grants": {"monthly": {"amount": 500, "every": "P1M", "rollover_max": 50}},
        "resets": {"credits": {"every": "P1M", "preserve_overage": True}},
    },
}
ADD_ONS = {
    "more": {"entitlements": {"chat": {"meter": "chat_units", "limit": 30, "period": "day", "beyond": "credits"}}},
    "exports": {"entitlements": {"export": True}},
    "metered-exports": {"entitlements": {"export": {"meter": "export_units", "limit": 3}}},
    "pack": {"grants": {"pack": {"amount": 40, "priority": 9}}},
}
OF = catalog(features=FEATURES, plans=PLANS, add_ons=ADD_ONS)


def told(story: str, of: Catalog = OF) -> Money:
    return Money(story, of)


def units(feature: str, amount: str) -> dict[str, Decimal]:
    return {f"{feature}_units": Decimal(amount)}


ACCESS = [
    ("credit", "subscribe pro", "work", "allowed", None),
    ("boolean", "subscribe pro", "export", "allowed", None),
    ("static: its value is told", "subscribe pro", "support", "allowed", "gold"),
    ("metered", "subscribe pro", "chat", "allowed", None),
    ("not in the plan", "subscribe free", "work", "feature_not_entitled", None),
    ("boolean no", "subscribe max", "export", "feature_not_entitled", None),
    ("no plan, and none by default", "grant g 9", "work", "feature_not_entitled", None),
    ("an add-on turns it on", "subscribe max exports", "export", "allowed", None),
    ("also by another kind", "subscribe max metered-exports", "export", "allowed", None),
    ("after a change of the plan", "subscribe pro; subscribe free", "work", "feature_not_entitled", None),
    ("after another one", "subscribe free; subscribe pro", "work", "allowed", None),
]


@pytest.mark.parametrize("restart", ["", "; restart"], ids=["in memory", "after a restart"])
@pytest.mark.parametrize(("law", "story", "feature", "reason", "value"), ACCESS)
def test_access(law: str, story: str, feature: str, reason: str, value: str | None, restart: str) -> None:
    answer = told(story + restart).ask(feature)
    assert (answer.reason, answer.value) == (reason, value)


def test_the_default_plan_is_that_of_those_who_have_none() -> None:
    of = catalog(features=FEATURES, plans=PLANS, default_plan="free")
    story = told("grant g 9", of)
    assert story.ask("chat", quantities=units("chat", "5")).allowed
    assert story.ask("chat", quantities=units("chat", "6")).reason == "allowance_exhausted"
    assert story.ask("work").reason == "feature_not_entitled"
    assert story.tell("subscribe pro").ask("work").allowed


OVERRIDES = [
    ("given what the plan has not", "free", "work", Override("credit"), "allowed", None),
    ("taken away", "pro", "work", Override("boolean", "false"), "feature_not_entitled", None),
    ("given", "free", "export", Override("boolean", "true"), "allowed", None),
    ("given, unsaid", "free", "export", Override("boolean"), "allowed", None),
    ("another value", "pro", "support", Override("static", "platinum"), "allowed", "platinum"),
]


@pytest.mark.parametrize(("law", "plan", "feature", "override", "reason", "value"), OVERRIDES)
def test_overrides(law: str, plan: str, feature: str, override: Override, reason: str, value: str | None) -> None:
    story = told("")
    story.partition.ask(Subscribe(id="s", customer="acme", plan=plan, overrides={feature: override}))
    answer = story.ask(feature)
    assert (answer.reason, answer.value) == (reason, value)


def test_an_override_stands_in_for_the_plans_allowance() -> None:
    story = told("")
    override = Override("metered", meter="chat_units", limit=Decimal(3), period="hour")
    story.partition.ask(Subscribe(id="s", customer="acme", plan="pro", overrides={"chat": override}))
    assert story.ask("chat", quantities=units("chat", "3")).allowed
    assert story.ask("chat", quantities=units("chat", "4")).reason == "allowance_exhausted"


WRONG = [
    ("no such feature", {"chess": Override("credit")}, "feature_unknown"),
    ("a meter that is not the feature's", {"chat": Override("metered", meter="work_units")}, "meter_unknown"),
    ("less than nothing", {"chat": Override("metered", meter="chat_units", limit=Decimal(-1))}, "quantity_invalid"),
    ("neither true nor false", {"chat": Override("boolean", "no")}, "malformed"),
]


@pytest.mark.parametrize(("law", "overrides", "reason"), WRONG)
def test_wrong_overrides_are_refused(law: str, overrides: dict[str, Override], reason: str) -> None:
    story = told("subscribe pro; use 3 work")
    before = story.partition.rows.items()
    answer = story.partition.ask(Subscribe(id="s", customer="acme", plan="free", overrides=overrides))
    assert answer.reason == reason
    after = {key: value for key, value in story.partition.rows.items() if not key.startswith(b"\0")}
    assert after == {key: value for key, value in before if not key.startswith(b"\0")}


# ---- allowances ----

ALLOWANCES = [  # plan, story, what is left in the purse, used + held of the allowance
    ("within it no credits", "pro", "use 20 chat", "107", "20+0"),
    ("beyond it credits", "pro", "use 25 chat", "102", "20+0"),
    ("partly", "pro", "use 15 chat; use 15 chat", "97", "20+0"),
    ("a hold takes of it", "pro", "reserve-units h 15 chat", "107", "0+15"),
    ("and of the credits beyond", "pro", "reserve-units h 25 chat", "102", "0+20"),
    ("settled below", "pro", "reserve-units h 25 chat; settle-units h 10 chat", "107", "10+0"),
    ("settled at", "pro", "reserve-units h 25 chat; settle-units h 25 chat", "102", "20+0"),
    ("settled above", "pro", "reserve-units h 15 chat; settle-units h 30 chat", "97", "20+0"),
    ("settled as held", "pro", "reserve-units h 25 chat; settle h", "102", "20+0"),
    ("settled as held, whatever has come free since", "pro",
     "reserve-units a 15 chat; reserve-units h 10 chat; release a; settle h", "102", "5+0"),
    ("settled late as held", "pro",
     "reserve-units a 15 chat; reserve-units h 10 chat; release a; release h; settle h", "102", "5+0"),
    ("settled late by units", "pro", "reserve-units h 10 chat; release h; settle-units h 12 chat", "107", "12+0"),
    ("settled as estimated", "pro", "reserve-units h 12 mail; wait 1m; tick 1s", "105", "10+0"),
    ("released", "pro", "reserve-units h 25 chat; release h", "107", "0+0"),
    ("expired", "pro", "reserve-units h 25 chat; wait 6m; tick 1s", "107", "0+0"),
    ("a new period", "pro", "use 25 chat; wait 24h; use 5 chat", "102", "5+0"),
    ("holds go over", "pro", "wait 23h; wait 58m; reserve-units h 15 chat; wait 3m; use 10 chat", "102", "5+15"),
    ("beyond it allowed", "max", "use 9 chat", "500", "9+0"),
    ("usage beyond it is counted though it denies", "free", "use 9 chat", "", "9+0"),
    ("an add-on's is added", "pro more", "use 55 chat", "102", "50+0"),
    ("undone", "pro", "use 25 chat as e; undo e", "107", "0+0"),
    ("undone in the next period", "pro",
     "wait 1h; use 25 chat as e; wait 22h; wait 59m; use 1 chat; wait 1m; use 2 chat; undo e", "106", "2+0"),
]  # fmt: skip


def by_units(story: Money, text: str) -> Money:
    """Tell a story in which `reserve-units` and `settle-units` name a meter's units."""
    for step in text.split(";"):
        words = step.split()
        if words and words[0] == "reserve-units":
            story.answers.append(story.hold(words[1], words[3], quantities=units(words[3], words[2])))
        elif words and words[0] == "settle-units":
            story.answers.append(story.settle(words[1], units(words[3], words[2])))
        else:
            story.tell(step)
    return story


@pytest.mark.parametrize(("law", "plan", "text", "left", "allowance"), ALLOWANCES)
def test_allowances(law: str, plan: str, text: str, left: str, allowance: str) -> None:
    story = by_units(told(f"subscribe {plan}"), text)
    assert all(answer.allowed for answer in story.answers)
    pools = [Decimal(pool.balance) for pool in story.statement().pools if pool.balance]
    assert f"{sum(pools, Decimal()):f}" == (left or "0")
    feature = "mail" if "mail" in text else "chat"
    row = story.partition.state.account("acme").scopes[f"allowance:{feature}\0{feature}_units"]
    assert f"{row.used_nanos // NANOS}+{row.held_nanos // NANOS}" == allowance


DENIED = [
    ("up to the limit", "reserve-units h 5 chat", "yes"),
    ("not more", "reserve-units h 6 chat", "allowance_exhausted"),
    ("what is held counts", "reserve-units h 3 chat; reserve-units i 3 chat", "yes allowance_exhausted"),
    ("what was used counts", "use 3 chat; reserve-units i 3 chat", "allowance_exhausted"),
    ("what is released does not", "reserve-units h 3 chat; release h; reserve-units i 5 chat", "yes yes yes"),
    ("a new day", "use 5 chat; wait 24h; reserve-units i 5 chat", "yes"),
    ("overdrawn, what asks nothing goes through", "use 9 chat; reserve-units i 0 chat", "yes"),
    ("settled above", "reserve-units h 3 chat; settle-units h 9 chat; reserve-units i 1 chat",
     "yes yes allowance_exhausted"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "text", "said"), DENIED)
def test_allowances_that_deny(law: str, text: str, said: str) -> None:
    story = told("subscribe free")
    story.answers.clear()
    assert by_units(story, text).said == said


def test_twenty_callers_share_an_allowance_exactly() -> None:
    story = told("subscribe free")
    answers = [story.hold(f"h{n}", "chat", quantities=units("chat", "0.75")) for n in range(20)]
    assert [answer.allowed for answer in answers] == [True] * 6 + [False] * 14


def test_an_allowances_period_counts_from_the_subscriptions_anchor() -> None:
    story = told("until 2026-01-20; subscribe pro anchor 2026-01-15; use 10 mail; until 2026-02-14T23:59")
    assert story.ask("mail", quantities=units("mail", "1")).credits == "1"
    story.tell("until 2026-02-15")
    assert story.ask("mail", quantities=units("mail", "1")).credits == "0"


# ---- subscriptions ----


def test_a_subscription_gives_its_grants() -> None:
    story = told("until 2026-01-31; subscribe pro as s")
    found = [(g.id, g.pool, g.amount, g.priority, g.category, g.expires_at) for g in story.statement().grants]
    assert found == [
        ("pro:s:welcome", "trial", "7", 1, "trial", "2026-02-14T00:00:00Z"),
        ("pro:s:monthly", "credits", "100", 5, "paid", None),
    ]
    assert story.postings == ["issued:paid > grant:pro:s:monthly 100", "issued:trial > grant:pro:s:welcome 7"]


LIVES = [
    ("they recur from the anchor", "subscribe pro as s; use 30; until 2026-02-01; check 1", "pro:s:monthly 100"),
    ("or another one", "subscribe pro as s anchor 2026-01-15; use 30; until 2026-01-15", "pro:s:monthly 100"),
    ("and not before", "subscribe pro as s anchor 2026-01-15; use 30; until 2026-01-14", "pro:s:monthly 70"),
    ("what a reset keeps", "subscribe max as s; use 30; until 2026-02-01; check 1", "max:s:monthly 500"),
    ("a former plan's end", "subscribe pro as s; use 30; subscribe max as t", "max:t:monthly 500"),
    ("grants of one's own stay", "grant g 3 p200; subscribe pro as s; subscribe free as t", "g 3"),
    ("an add-on's are given", "subscribe pro pack as s", "pack:s:pack 40, pro:s:monthly 100"),
    ("and end with it, the plan's stay", "subscribe pro pack as s; subscribe pro as t", "pro:s:monthly 100"),
    ("the same plan anew gives nothing twice", "subscribe pro as s; use 30; subscribe pro as t", "pro:s:monthly 70"),
    ("an add-on later", "subscribe pro as s; use 30; subscribe pro pack as t", "pack:t:pack 40, pro:s:monthly 70"),
    ("away and back", "subscribe pro as s; use 30; subscribe free as t; subscribe pro as u", "pro:u:monthly 100"),
    ("the same request again", "subscribe pro as s; use 30; subscribe pro as s", "pro:s:monthly 70"),
]


@pytest.mark.parametrize(("law", "text", "balances"), LIVES)
def test_the_life_of_its_grants(law: str, text: str, balances: str) -> None:
    story = told(text)
    found = [part for part in story.balances.split(", ") if "welcome" not in part]
    assert ", ".join(found) == balances


def test_holds_on_a_former_plans_grants_are_settled_from_them() -> None:
    story = told("subscribe pro as s; reserve h 30 work; subscribe max as t; settle h 20")
    assert "hold:h > consumed:work 20" in story.postings
    assert story.postings[-1] == "hold:h > breakage:voided 10"
    assert story.balances == "max:t:monthly 500"


def test_debts_are_repaid_once_over_all_that_a_plan_gives() -> None:
    features = {**FEATURES, "owing": {"overage": "unlimited"}}
    plans = {"two": {"grants": {"z": {"amount": 50, "priority": 9}, "a": {"amount": 50, "priority": 1}}}}
    plans |= {"back": {"grants": {"a": {"amount": 50, "priority": 9}, "z": {"amount": 50, "priority": 1}}}}
    for plan, balances in (("two", "two:s:a 0, two:s:z 40"), ("back", "back:s:a 40, back:s:z 0")):
        story = told(f"use 60 owing; subscribe {plan} as s", catalog(features=features, plans=plans))
        assert story.balances == balances


def test_a_pools_reset_follows_the_plan() -> None:
    story = told("subscribe pro as s; use 30; until 2026-02-01; tick 1s")
    assert story.pool() == ("0", "0")
    assert story.partition.state.account("acme").pools["credits"].period_at == story.partition.now - 1000
    story.tell("use 5; subscribe free; until 2026-03-05; tick 1s")
    assert story.pool() == ("5", "5")  # nothing resets it any more


def test_overage_is_preserved_where_the_plan_says_so() -> None:
    features = {**FEATURES, "owing": {"overage": "unlimited"}}
    plans = {"max": PLANS["max"], "pro": PLANS["pro"]}
    of = catalog(features=features, plans=plans)
    story = told("subscribe max as s; use 700 owing; until 2026-02-01; tick 1s", of)
    assert story.balances == "max:s:monthly 300"
    story = told("subscribe pro as s; use 700 owing; until 2026-02-01; tick 1s", of)
    assert story.balances == "pro:s:monthly 100"  # dropped


def test_recurrence_and_reset_at_one_instant_belong_to_the_new_period() -> None:
    story = told("subscribe max as s; use 30; until 2026-02-01; tick 1s")
    assert story.postings[-3:] == [
        "grant:max:s:monthly > breakage:forfeited 420",  # 470 left, of which 50 roll over
        "grant:max:s:monthly > breakage:forfeited 50",
        "issued:paid > grant:max:s:monthly 500",
    ]


REFUSED = [
    ("no such plan", "subscribe gold", "plan_unknown"),
    ("no such add-on", "subscribe pro gold", "plan_unknown"),
    ("a plan is no add-on", "subscribe pro max", "plan_unknown"),
    ("an add-on is no plan", "subscribe pack", "plan_unknown"),
    ("an add-on twice", "subscribe pro pack pack", "malformed"),
    ("a grant of that name is there", "grant pro:s:monthly 5; subscribe pro as s", "yes id_conflict"),
    ("an id used long ago gives nothing twice", "subscribe pro as s; wait 25h; subscribe pro as s", "yes yes"),
    ("also when a hold still draws on it",
     "subscribe pro as s; reserve h 5 work for 3d; subscribe free; wait 25h; subscribe pro as s; settle h",
     "yes yes yes id_conflict yes"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "text", "said"), REFUSED)
def test_refused_subscriptions(law: str, text: str, said: str) -> None:
    assert told(text).said == said


def test_what_a_suspended_customer_may() -> None:
    story = told("subscribe pro as s; reserve h 5 work; suspend; reserve i 1 work; check 1 work; settle h 4; use 3")
    assert story.said == "yes yes yes customer_suspended customer_suspended yes"
    assert story.balances == "pro:s:monthly 93, pro:s:welcome 7"
    assert story.tell("grant g 5; resume; reserve j 1 work").said.split()[-3:] == ["yes", "yes", "yes"]
    assert story.tell("suspend; restart; reserve k 1 work").said.split()[-1] == "customer_suspended"


# ---- catalogs that change ----


def without(feature: str, version: int = 2) -> Catalog:
    return catalog(version, features={name: more for name, more in MORE.items() if name != feature})


DROPPED = [
    ("settled as held", "settle h", "93"),
    ("settled by credits", "settle h 3", "97"),
    ("settled above", "settle h 9", "91"),
    ("released", "release h", "100"),
    ("expired", "wait 6m; tick 1s", "100"),
    ("settled late", "release h; settle h 3", "97"),
    ("no new one", "reserve i 1 work; settle h 3", "97"),
]


@pytest.mark.parametrize(("law", "text", "left"), DROPPED)
def test_open_holds_of_a_dropped_feature_settle(law: str, text: str, left: str) -> None:
    story = Money("grant g 100; reserve h 7 work")
    story.partition.catalog = without("work")
    story.tell(text)
    assert story.balances == f"g {left}"
    assert all(answer.allowed or answer.reason == "feature_unknown" for answer in story.answers)


def test_open_holds_of_dropped_meters_settle_at_what_was_held() -> None:
    story = Money("grant g 100")
    story.hold("h", "work", quantities=units("work", "7"))
    story.partition.catalog = without("work")
    answer = story.settle("h", units("work", "9"))
    assert (answer.allowed, answer.credits, story.balances) == (True, "7", "g 93")  # it has no price any more
    [row] = story.partition.state.account("acme").usage.values()
    assert (row.meter, row.quantity_nanos) == ("work_units", 9 * NANOS)


def test_no_work_under_a_dropped_meter_costs_nothing() -> None:
    story = Money("grant g 100")
    story.hold("h", "work", quantities=units("work", "7"))
    story.partition.catalog = without("work")
    assert story.settle("h", units("work", "0")).credits == "0"


def test_a_meter_of_another_feature_is_refused_as_ever() -> None:
    story = Money("grant g 100")
    story.hold("h", "work", quantities=units("work", "7"))
    story.partition.catalog = without("both")
    assert story.settle("h", units("message", "7")).reason == "meter_unknown"


def test_a_price_that_no_longer_holds_does_not_lose_the_work() -> None:
    rate = {"meter": "work_units", "credits": 2, "when": {"model": "old"}}
    story = Money("grant g 100", catalog(features={"work": {"rates": [rate]}}))
    story.hold("h", "work", quantities=units("work", "7"), dimensions={"model": "old"})
    rate = {"meter": "work_units", "credits": 3, "when": {"model": "new"}}
    story.partition.catalog = catalog(2, features={"work": {"rates": [rate]}})
    answer = story.settle("h", units("work", "9"))
    assert (answer.allowed, answer.credits) == (True, "14")


def test_a_settle_is_priced_by_the_catalog_of_its_time() -> None:
    story = Money("grant g 100")
    story.hold("h", "work", quantities=units("work", "7"))
    rates = [{"meter": "work_units", "credits": 2}]
    story.partition.catalog = catalog(2, features={**MORE, "work": {"rates": rates}})
    answer = story.settle("h", units("work", "7"))
    assert (answer.credits, answer.catalog) == ("14", 2)
    assert [entry.catalog for entry in story.partition.entries()] == [1, 1, 2]


def test_an_event_of_a_dropped_meter_is_undone_all_the_same() -> None:
    story = Money("grant g 100; budget b 100; use 7 as e")
    story.partition.catalog = without("work")
    story.tell("undo e")
    assert (story.balances, story.budgets, story.dead) == ("g 100", "b[] 0+0 of 100", [])


def test_a_dropped_plan_entitles_to_nothing_and_comes_back() -> None:
    story = told("subscribe pro as s")
    story.partition.catalog = catalog(2, features=FEATURES, plans={"free": PLANS["free"]})
    assert story.ask("work").reason == "feature_not_entitled"
    assert story.balances == "pro:s:monthly 100, pro:s:welcome 7"
    story.partition.catalog = catalog(3, features=FEATURES, plans=PLANS)
    assert story.ask("work").allowed


ESTIMATED = [  # a hold of 12 units, 10 of them included, was settled as it was held; then the real number comes
    ("as it was held", None, "105", "10+0"),
    ("the same", "12", "105", "10+0"),
    ("less", "3", "105", "10+0"),
    ("more", "16", "101", "10+0"),
]


@pytest.mark.parametrize(("law", "amount", "left", "allowance"), ESTIMATED)
def test_work_settled_after_its_estimate_takes_what_is_beyond(
    law: str, amount: str | None, left: str, allowance: str
) -> None:
    story = by_units(told("subscribe pro"), "reserve-units h 12 mail; wait 1m; tick 1s")
    by_units(story, "settle h" if amount is None else f"settle-units h {amount} mail")
    assert f"{sum((Decimal(pool.balance) for pool in story.statement().pools), Decimal()):f}" == left
    row = story.partition.state.account("acme").scopes["allowance:mail\0mail_units"]
    assert f"{row.used_nanos // NANOS}+{row.held_nanos // NANOS}" == allowance


def test_what_is_beyond_an_estimate_falls_to_the_allowance_first() -> None:
    story = by_units(told("subscribe pro"), "reserve-units h 6 mail; wait 1m; tick 1s; settle-units h 12 mail")
    assert story.answers[-1].credits == "2"
    row = story.partition.state.account("acme").scopes["allowance:mail\0mail_units"]
    assert row.used_nanos == 10 * NANOS
