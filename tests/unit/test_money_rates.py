"""Rate limits: the generic cell rate algorithm in stream time, exact to the millisecond, and in nobody's journal."""

from decimal import Decimal

import pytest

from money import Money, catalog
from tallygate.schemas.requests import SetRateLimit

N, Y = "rate_limited", "yes"


def burst(times: int, verb: str = "reserve") -> str:
    return "; ".join(f"{verb} {chr(97 + n)} 0" for n in range(times))


FLOWS = [
    ("a burst of the limit, by default", "rate r 3 per 1", burst(4), f"{Y} {Y} {Y} {N}"),
    ("a third of a second is exact", "rate r 3 per 1", f"{burst(3)}; wait 334ms; reserve x 0", f"{Y} {Y} {Y} {Y}"),
    ("sevenths neither", "rate r 7 per 1", burst(8), " ".join([Y] * 7 + [N])),
    ("nor does a longer second", "rate r 7 per 3600", burst(8), " ".join([Y] * 7 + [N])),
    ("a smaller burst", "rate r 3 per 1 burst 1", burst(2), f"{Y} {N}"),
    ("a larger burst", "rate r 1 per 60 burst 5", burst(6), " ".join([Y] * 5 + [N])),
    ("an even flow for ever", "rate r 1 per 1", "; wait 1s; ".join(f"reserve h{n} 0" for n in range(9)),
     " ".join([Y] * 9)),
    ("one moment too early", "rate r 1 per 1", "reserve h 0; wait 999ms; reserve i 0", f"{Y} {N}"),
    ("just in time", "rate r 1 per 1", "reserve h 0; wait 1s; reserve i 0", f"{Y} {Y}"),
    ("idle time is not saved beyond the burst", "rate r 1 per 1 burst 2", f"wait 1h; {burst(3)}", f"{Y} {Y} {N}"),
    ("what is denied does not count", "rate r 1 per 1",
     "reserve h 0; wait 500ms; reserve i 0; wait 500ms; reserve j 0", f"{Y} {N} {Y}"),
    ("nor what a budget denies", "rate r 1 per 1; budget b 5", "reserve h 9; reserve i 1", f"budget_exhausted {Y}"),
    ("nor what the credits deny", "rate r 1 per 1", "reserve h 5000; reserve i 1", f"credits_exhausted {Y}"),
    ("checks do not count", "rate r 1 per 1", "check 0; check 0; reserve h 0; check 0", f"{Y} {Y} {Y} {N}"),
    ("the same request again does not, either", "rate r 1 per 1", "reserve h 0; reserve h 0; check 0", f"{Y} {Y} {N}"),
    ("usage does not: it has happened", "rate r 1 per 1", "use 5; use 5; reserve h 0", Y),
    ("nor is it limited", "rate r 1 per 1", "reserve h 0; use 5; check 0", f"{Y} {N}"),
    ("nor are settles and releases", "rate r 1 per 1", "reserve h 5; settle h 3; settle h 3", f"{Y} {Y} {Y}"),
    ("credits flow", "rate r 10 per 1 of credits", "reserve h 6; reserve i 5; reserve j 4", f"{Y} {N} {Y}"),
    ("free calls of them are not limited", "rate r 10 per 1 of credits", "reserve h 10; reserve i 0", f"{Y} {Y}"),
    ("a meter's units are", "rate r 10 per 1 of work_units", "reserve h 50; reserve i 50", f"{Y} {Y}"),
    ("on a scope", "rate r 1 per 1 agent=*",
     "reserve h 0 agent=a; reserve i 0 agent=b; reserve j 0 agent=a; reserve k 0", f"{Y} {Y} {N} {Y}"),
    ("on one value", "rate r 1 per 1 agent=a",
     "reserve h 0 agent=b; reserve i 0 agent=b; reserve j 0 agent=a; reserve k 0 agent=a", f"{Y} {Y} {Y} {N}"),
    ("two limits: both must let it through", "rate r 5 per 60; rate s 1 per 1", burst(2), f"{Y} {N}"),
    ("what one of them stops takes nothing of the other", "rate r 2 per 60; rate s 1 per 1",
     f"{burst(1)}; reserve x 0; wait 1s; reserve y 0; wait 1s; reserve z 0", f"{Y} {N} {Y} {N}"),
    ("a raised limit counts at once", "rate r 1 per 60", "reserve h 0; rate r 10 per 60; reserve i 0", f"{Y} {Y} {Y}"),
    ("a lowered one, too", "rate r 10 per 60", f"{burst(5)}; rate r 1 per 60; reserve i 0", f"{' '.join([Y] * 6)} {N}"),
    ("a takeover forgets", "rate r 1 per 60", "reserve h 0; reserve i 0; restart; reserve j 0", f"{Y} {N} {Y}"),
    ("but not the limit", "rate r 1 per 60", "restart; reserve h 0; reserve i 0", f"{Y} {N}"),
    ("observed", "rate r 1 per 1 observe", burst(3), f"{Y} {Y} {Y}"),
    ("each customer's own", "rate r 1 per 1", "reserve h 0; by zeta; grant z 1; reserve h 0", f"{Y} {Y} {Y}"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "limits", "story", "said"), FLOWS)
def test_flows(law: str, limits: str, story: str, said: str) -> None:
    told = Money(f"grant g 1000; {limits}")
    told.answers.clear()
    assert told.tell(story).said == said


WAITS = [  # limits, what came before, what is asked
    ("one a second", "rate r 1 per 1", "reserve h 0", "0"),
    ("three a second", "rate r 3 per 1", burst(3), "0"),
    ("seven an hour", "rate r 7 per 3600 burst 2", burst(2), "0"),
    ("some time has gone by", "rate r 1 per 1", "reserve h 0; wait 123ms", "0"),
    ("credits", "rate r 10 per 7 of credits", "reserve h 9.999999999; wait 1ms", "3.000000001"),
    ("the longer of two", "rate r 1 per 1; rate s 1 per 10", "reserve h 0", "0"),
    ("of a scope", "rate r 1 per 3 agent=*", "reserve h 0 agent=a", "0"),
]


@pytest.mark.parametrize(("law", "limits", "before", "asks"), WAITS)
def test_retry_after_is_exact(law: str, limits: str, before: str, asks: str) -> None:
    told = Money(f"grant g 1000; {limits}; {before}")
    who = {"agent": "a"} if "agent" in limits else {}
    denied = told.ask("work", asks, dimensions=who)
    assert (denied.allowed, denied.reason) == (False, "rate_limited")
    wait = denied.retry_after_ms
    assert wait is not None
    told.tell(f"wait {wait - 1}ms")
    again = told.ask("work", asks, dimensions=who)
    assert (again.allowed, again.retry_after_ms) == (False, 1)
    told.tell("wait 1ms")
    assert told.ask("work", asks, dimensions=who).allowed


NO_WAIT = [
    ("more than the burst is never let through", "rate r 10 per 1 of credits", "11"),
    ("also when a second limit would", "rate r 10 per 1 of credits; rate s 1 per 1", "11"),
    ("waiting does not refill a budget", "rate r 1 per 1; budget b 5", "6"),
    ("nor credits", "rate r 1 per 1", "5000"),
    ("what is allowed waits for nothing", "rate r 2 per 1", "0"),
]


@pytest.mark.parametrize(("law", "limits", "asks"), NO_WAIT)
def test_where_waiting_does_not_help_no_wait_is_told(law: str, limits: str, asks: str) -> None:
    told = Money(f"grant g 1000; {limits}; reserve h 0")
    assert told.ask("work", asks).retry_after_ms is None


def test_a_denial_says_how_the_limit_stands() -> None:
    told = Money("grant g 1000; rate r 3 per 1 agent=*; reserve a 0 agent=x; reserve b 0 agent=x; reserve c 0 agent=x")
    [limit] = told.ask("work", dimensions={"agent": "x"}).limits
    assert (limit.kind, limit.name, limit.unit, limit.scope) == ("rate", "r", "requests", {"agent": "x"})
    assert (limit.asked, limit.limit, limit.used, limit.remaining, limit.ok) == ("1", "3", "3", "0", False)
    assert limit.resets_at == "2026-01-01T00:00:01Z"
    told.tell("wait 334ms")
    answer = told.ask("work", dimensions={"agent": "x"}, explain=True)
    [limit] = [each for each in answer.limits if each.kind == "rate"]
    assert (limit.used, limit.remaining, limit.ok) == ("1.998", "1.002", True)


def test_an_observed_limit_tells_what_it_would_have_denied_and_drains_as_if_it_had() -> None:
    told = Money("grant g 1000; rate r 1 per 1 observe")
    answers = [told.hold(f"h{n}") for n in range(5)]
    assert [answer.would_deny for answer in answers] == [(), *[("rate_limited",)] * 4]
    assert all(answer.allowed for answer in answers)
    told.tell("wait 1s")
    assert told.hold("later").would_deny == ()


def test_what_flows_is_not_journaled() -> None:
    told = Money("grant g 1000; rate r 5 per 60; reserve h 0")
    keys = {key for key, _ in told.partition.journal}
    told.tell("reserve i 0; reserve j 0")
    assert {key for key, _ in told.partition.journal} - keys == {b"acme\0hold\0i", b"acme\0hold\0j"}
    rows = dict(told.partition.journal)
    limit = rows[b"acme\0rate_limit\0r"]
    told.tell("check 0; wait 1m; check 0")
    assert dict(told.partition.journal)[b"acme\0rate_limit\0r"] == limit


REFUSED = [
    ("nothing", {"limit": Decimal(0)}),
    ("less than nothing", {"limit": Decimal(-1)}),
    ("no burst", {"burst": Decimal(0)}),
    ("a burst that lets no request through", {"burst": Decimal("0.5")}),
    ("less than one request, and no burst", {"limit": Decimal("0.5")}),
]


@pytest.mark.parametrize(("law", "fields"), REFUSED)
def test_limits_that_let_nothing_through_are_refused(law: str, fields: dict[str, Decimal]) -> None:
    told = Money("grant g 9")
    given = {"limit": Decimal(5), **fields}
    answer = told.partition.ask(SetRateLimit(id="r", customer="acme", name="r", per_seconds=1, **given))  # type: ignore[arg-type]
    assert (answer.allowed, answer.reason) == (False, "quantity_invalid")


def test_less_than_one_of_a_meter_is_a_limit() -> None:
    told = Money("grant g 9; rate r 0.5 per 1 of credits; reserve h 0.5; reserve i 0.1; wait 200ms; reserve j 0.1")
    assert told.said == "yes yes yes rate_limited yes"


PLANS = {
    "pro": {
        "entitlements": {"work": "credits"},
        "rate_limits": {
            "calls": {"limit": 2, "per": "second"},
            "each": {"limit": 1, "per": "second", "scope": {"agent": "*"}},
        },
    }
}


def test_a_plans_limits_hold_and_the_customers_own_of_the_same_name_stands_in() -> None:
    of = catalog(plans=PLANS)
    told = Money("subscribe pro; grant g 9; reserve a 0; reserve b 0; reserve c 0", of)
    assert told.said == "yes yes yes yes rate_limited"
    told = Money("subscribe pro; grant g 9; rate calls 3 per 1; reserve a 0; reserve b 0; reserve c 0; reserve d 0", of)
    assert told.said == "yes yes yes yes yes yes rate_limited"
    told = Money("subscribe pro; grant g 9; reserve a 0 agent=x; reserve b 0 agent=x; reserve c 0 agent=y", of)
    assert told.said == "yes yes yes rate_limited yes"


def test_a_flow_far_beyond_the_calendar_is_no_trouble() -> None:
    told = Money("grant g 1000; rate r 0.000000001 per 2592000 burst 1000 of credits; reserve h 999; reserve i 999")
    assert told.said == "yes yes yes rate_limited"
    assert told.answers[-1].limits[0].resets_at is None
