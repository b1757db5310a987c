"""Which grants pay, when they pay, and what happens where none does."""

import pytest

from stories import Story

BURN_ORDER = [
    ("priority ascending", "grant b 100 p1; grant a 100 p0; use 120", "a 0, b 80"),
    ("priority beats expiry", "grant a 100 p1 for 1d; grant b 100 p0; use 120", "b 0, a 80"),
    ("priority 0 comes first", "grant a 100 p1; grant b 100 p255; grant c 100 p0; use 250", "c 0, a 0, b 50"),
    ("earlier expiry breaks a tie", "grant yearly 100 for 365d; grant weekly 100 for 7d; use 120",
     "weekly 0, yearly 80"),
    ("no expiry comes last", "grant ever 100; grant yearly 100 for 365d; use 120", "yearly 0, ever 80"),
    ("a second's difference counts", "grant a 9 for 61s; grant b 9 for 60s; use 10", "b 0, a 8"),
    ("within a second it does not", "grant b 9 for 60900ms; wait 1ms; grant a 9 for 60s; use 10", "b 0, a 8"),
    ("a second ends at its whole", "grant b 9 for 61s; wait 1ms; grant a 9 for 60998ms; use 10", "a 0, b 8"),
    ("then the older one", "grant b 9; wait 1ms; grant a 9; use 10", "b 0, a 8"),
    ("then the id", "grant b 9; grant a 9; use 10", "a 0, b 8"),
    ("ids are compared as texts", "grant g9 9; grant g10 9; use 10", "g10 0, g9 8"),
    ("given future grants keep their age", "grant b 9 in 1h; wait 1m; grant a 9; wait 2h; use 10", "b 0, a 8"),
    ("an empty one is passed over", "grant a 5 p0; use 5; grant b 5; use 3", "a 0, b 2"),
    ("fractions of a nano's grain", "grant a 0.000000001 p0; grant b 1; use 0.000000002", "a 0, b 0.999999999"),
    ("each pool for itself", "grant a 9 pool messages; grant b 9; use 4 message; use 3", "a 5, b 6"),
    ("another pool does not help out", "grant a 9 pool messages; grant b 2; use 3", "a 9, b 0, owed 1"),
]  # fmt: skip

TIME = [
    ("a future grant waits", "grant a 10 in 1h; use 4", "a 0, owed 4"),
    ("it pays from its instant on", "grant a 10 in 1h; wait 1h; use 4", "a 6"),
    ("not a millisecond before", "grant a 10 in 1h; wait 3599999ms; use 4", "a 0, owed 4"),
    ("what is owed is paid by what begins", "grant a 10 in 1h; use 4; wait 1h", "a 6"),
    ("also noticed by a tick", "grant a 10 in 1h; use 4; tick 2h", "a 6"),
    ("a new grant pays what is owed", "use 4; grant a 10", "a 6"),
    ("as far as it goes", "use 14; grant a 10", "a 0, owed 4"),
    ("those that begin together pay in burn order", "use 12; grant b 10 in 1h; grant a 10 p0 in 1h; wait 1h",
     "a 0, b 8"),
    ("not one after the other", "use 12; grant b 10 p0 in 1h; grant a 10 in 2h; wait 3h", "b 0, a 8"),
    ("an ended grant is gone", "grant a 10 for 1h; wait 1h", ""),
    ("it pays until then", "grant a 10 for 1h; wait 3599999ms; use 4", "a 6"),
    ("not at its end", "grant a 10 for 1h; wait 1h; use 4", "owed 4"),
    ("a grant may end unbegun for a reader", "grant a 10 in 1h for 2h; wait 3h", ""),
    ("one ends where the next begins", "grant a 10 for 1h; grant b 10 in 1h; wait 1h; use 4", "b 6"),
    ("skipped instants happen in their order", "use 5; grant a 9 in 1h for 2h; grant b 9 in 3h; wait 9h", "b 9"),
    ("nothing happens twice", "grant a 10 in 1h; use 4; tick 1h; tick 1s; restart; tick 1h", "a 6"),
    ("an event's own time moves no credit", "grant a 10 for 1h; wait 2h; use 4 ago 90m", "owed 4"),
]  # fmt: skip

OVERAGE = [
    ("usage has happened: it is owed", "grant a 10; use 14", "a 0, owed 4"),
    ("without any limit for unlimited", "use 1000 owing", "owed 1000"),
    ("a cap's rest is written off", "use 14 capped", "owed 10"),
    ("in all, not each time", "use 6 capped; use 6 capped; use 6 capped", "owed 10"),
    ("a cap begins anew when paid", "use 14 capped; grant a 10; use 3 capped", "a 0, owed 3"),
    ("a hold may owe, too", "grant a 5; reserve h 15 capped; settle h", "a 0, owed 10"),
    ("room held is not free", "grant a 5; reserve h 15 capped; use 3 capped", "a 0 held 5"),
]


@pytest.mark.parametrize(("law", "story", "purse"), [*BURN_ORDER, *TIME, *OVERAGE])
def test_credits(law: str, story: str, purse: str) -> None:
    assert Story(story).purse == purse


RESERVING = [
    ("none: only what grants cover", "grant a 10; reserve h 10; release h; reserve i 11",
     "yes yes yes credits_exhausted"),
    ("cap: that much more", "grant a 10; reserve h 21 capped; reserve i 20 capped", "yes credits_exhausted yes"),
    ("what may be owed is held", "reserve h 0 capped; grant a 1; reserve i 11 capped; reserve j 1 capped",
     "customer_unknown yes yes credits_exhausted"),
    ("and comes free", "grant a 1; reserve i 11 capped; release i; reserve j 11 capped", "yes yes yes yes"),
    ("unlimited: all", "grant a 1; reserve h 1000000 owing", "yes yes"),
    ("debts fill the cap", "grant a 1; use 8 capped; reserve h 3 capped; reserve i 4 capped",
     "yes yes credits_exhausted"),
    ("another feature's debts fill it, too", "grant a 1; use 12 owing; reserve i 1 capped", "yes credits_exhausted"),
    ("a free call needs no credits", "grant a 1; use 9; reserve h 0", "yes yes"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "said"), RESERVING)
def test_overage_policies_at_the_gate(law: str, story: str, said: str) -> None:
    assert Story(story).said == said


WATERFALL = [
    ("customer before feature", "check 5 never", "customer_unknown"),
    ("feature before budgets and credits", "budget b 1; check 5 never", "yes feature_unknown"),
    ("budgets before credits", "budget b 1; check 5", "yes budget_exhausted"),
    ("credits last", "budget b 5; check 5", "yes credits_exhausted"),
    ("the same for reservations", "reserve h 5 never; grant a 1; reserve i 5 never; budget b 1; reserve j 5",
     "customer_unknown yes feature_unknown yes budget_exhausted"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "said"), WATERFALL)
def test_the_first_that_says_no_gives_the_reason(law: str, story: str, said: str) -> None:
    assert Story(story).said == said


def test_twenty_parallel_reservations_of_75_against_500_admit_exactly_6() -> None:
    story = Story("grant a 500")
    answers = [story.partition.ask(story.request("reserve", [f"h{n}", "75"])) for n in range(20)]
    assert [a.allowed for a in answers] == [True] * 6 + [False] * 14
    assert story.purse == "a 50 held 450"


def test_also_in_one_chunk() -> None:
    story = Story("grant a 500")
    answers = story.partition.ask_all(*(story.request("reserve", [f"h{n}", "75"]) for n in range(20)))
    assert [a.allowed for a in answers] == [True] * 6 + [False] * 14
    assert [a.balance for a in answers[:6]] == ["425", "350", "275", "200", "125", "50"]
    assert story.purse == "a 50 held 450"


def test_also_against_a_budget() -> None:
    story = Story("grant a 10000; budget runaway 500 agent=*")
    requests = [story.request("reserve", [f"h{n}", "75", "work", "agent=drafter"]) for n in range(20)]
    answers = [*story.partition.ask_all(*requests[:7]), *story.partition.ask_all(*requests[7:])]
    assert [a.allowed for a in answers] == [True] * 6 + [False] * 14
    assert story.budgets == "runaway[agent=drafter] 0+450 of 500"


def test_a_credit_denial_says_what_is_left() -> None:
    story = Story("grant a 100; grant b 20 pool messages; use 30; reserve h 50; reserve i 21")
    [limit] = story.answers[-1].limits
    assert (limit.kind, limit.name, limit.unit, limit.ok) == ("credits", "credits", "credits", False)
    assert (limit.asked, limit.limit, limit.used, limit.held, limit.remaining) == ("21", "100", "30", "50", "20")
    assert story.answers[-1].balance == "20"
