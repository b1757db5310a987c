"""Credits in full: several pools, recurrence, rollover, resets, voids, and what the ledger says of each."""

import pytest

from money import Money
from partition import T0

# T0 is 2026-01-01T00:00:00Z, a Thursday.

POOLS = [
    ("the first pool pays first, whatever the priorities", "use 30 both", "c 100, t 20"),
    ("then the next one", "use 80 both", "c 70, t 0"),
    ("within a pool its burn order", "grant u 40 p0 pool trial; use 30 both", "c 100, t 50, u 10"),
    ("a hold draws on both", "reserve h 80 both", "c 70, t 0"),
    ("and is consumed in that order", "reserve h 80 both; settle h 60", "c 90, t 0"),
    ("and given back to both", "reserve h 80 both; release h", "c 100, t 50"),
    ("settled above, it burns on in order", "reserve h 30 both; settle h 80", "c 70, t 0"),
    (
        "what the first gets meanwhile pays first",
        "reserve h 60 both; grant u 5 pool trial; settle h 70",
        "c 85, t 0, u 0",
    ),
    ("a feature of one pool leaves the other alone", "use 30 work", "c 70, t 50"),
]


@pytest.mark.parametrize(("law", "story", "balances"), POOLS)
def test_pools_in_their_order(law: str, story: str, balances: str) -> None:
    told = Money(f"grant c 100 p0; grant t 50 p9 pool trial; {story}")
    assert told.balances == balances


OWED = [  # owed in (trial, credits)
    ("in the last pool", "grant t 5 pool trial; use 20 bothowing", ("0", "15")),
    ("the last pool need not have a grant", "use 20 bothowing", ("0", "20")),
    ("and is repaid there", "use 20 bothowing; grant c 50", ("0", "0")),
    ("a grant of another pool repays nothing", "use 20 bothowing; grant t 50 pool trial", ("0", "20")),
    ("capped, the rest is written off", "grant t 5 pool trial; use 30 bothcapped", ("0", "10")),
    ("a hold may come to owe", "grant t 5 pool trial; reserve h 20 bothowing; settle h", ("0", "15")),
]


@pytest.mark.parametrize(("law", "story", "owed"), OWED)
def test_overage_is_owed_in_the_last_pool(law: str, story: str, owed: tuple[str, str]) -> None:
    told = Money(story)
    found = {pool.pool: pool.overage for pool in told.statement().pools}
    assert (found.get("trial", "0"), found.get("credits", "0")) == owed


def test_a_cap_counts_what_open_holds_may_come_to_owe() -> None:
    told = Money("grant c 1; reserve h 9 bothcapped; reserve i 3 bothcapped; reserve j 2 bothcapped; settle h 30")
    assert told.said == "yes yes credits_exhausted yes yes"
    [pool] = told.statement().pools
    assert pool.overage == "8"  # the cap of 10, less the 2 that j may come to owe
    assert "write_off > consumed:bothcapped 21" in told.postings


RECURRENCES = [  # (law, the grant, when to look, its balance)
    ("an hour", "every PT1H", "2026-01-01T01:00", "100"),
    ("not before", "every PT1H", "2026-01-01T00:59", "60"),
    ("15 minutes", "every PT15M", "2026-01-01T00:15", "100"),
    ("a day", "every P1D", "2026-01-02", "100"),
    ("a week", "every P1W", "2026-01-07T23:59", "60"),
    ("a week's end", "every P1W", "2026-01-08", "100"),
    ("two weeks", "every P2W", "2026-01-14T23:59", "60"),
    ("a month", "every P1M", "2026-01-31T23:59", "60"),
    ("a month's end", "every P1M", "2026-02-01", "100"),
    ("a quarter", "every P3M", "2026-03-31T23:59", "60"),
    ("a quarter's end", "every P3M", "2026-04-01", "100"),
    ("a year", "every P1Y", "2026-12-31T23:59", "60"),
    ("a year's end", "every P1Y", "2027-01-01", "100"),
    ("counted from an anchor before", "every P1M anchor 2025-11-15", "2026-01-15", "100"),
    ("an anchor before: not yet", "every P1M anchor 2025-11-15", "2026-01-14T23:59", "60"),
    ("counted from an anchor after, backwards, too", "every P1M anchor 2026-03-15", "2026-01-15", "100"),
    ("an anchor after: not yet", "every P1M anchor 2026-03-15", "2026-01-14T23:59", "60"),
    ("the anchor's time of day", "every P1D anchor 2025-12-31T12:30", "2026-01-01T12:29", "60"),
    ("the anchor's time of day, reached", "every P1D anchor 2025-12-31T12:30", "2026-01-01T12:30", "100"),
    ("clamped to February", "every P1M anchor 2025-12-31", "2026-02-27T23:59", "60 after 31 Jan"),
    ("clamped to February's last day", "every P1M anchor 2025-12-31", "2026-02-28", "100"),
    ("the 30th stays the 30th", "every P1M anchor 2025-11-30", "2026-01-30", "100"),
    ("a leap year's 29 February", "every P1Y anchor 2024-02-29", "2026-02-28", "100"),
    ("a leap year's 29 February: not before", "every P1Y anchor 2024-02-29", "2026-02-27T23:59", "60"),
]


@pytest.mark.parametrize(("law", "grant", "look", "balance"), RECURRENCES)
def test_recurrence(law: str, grant: str, look: str, balance: str) -> None:
    amount, _, after = balance.partition(" after ")
    spend = f"until 2026-01-{int(after.split()[0]):02d}T00:00; use 40; " if after else "use 40; "
    told = Money(f"grant g 100 {grant}; {spend}until {look}")
    assert told.balances == f"g {amount}"


def test_months_are_counted_from_the_anchor_not_from_the_last_time() -> None:
    told = Money("until 2026-01-31; grant g 100 every P1M")
    for day, balance in (
        ("2026-02-28", "100"),
        ("2026-03-30", "60"),
        ("2026-03-31", "100"),
        ("2026-04-29", "60"),
        ("2026-04-30", "100"),
        ("2026-05-30", "60"),
        ("2026-05-31", "100"),
    ):
        told.tell(f"until {day}")
        assert (day, told.balances) == (day, f"g {balance}")
        if balance == "100":
            told.tell("use 40")


def test_recurrence_does_not_accumulate_and_what_was_left_is_breakage() -> None:
    told = Money("grant g 100 every P1D; use 40; until 2026-01-04; check 1")
    assert told.balances == "g 100"
    told.tell("tick 1s")
    assert told.postings[-6:] == [
        "grant:g > breakage:forfeited 60",
        "issued:paid > grant:g 100",
        "grant:g > breakage:forfeited 100",
        "issued:paid > grant:g 100",
        "grant:g > breakage:forfeited 100",
        "issued:paid > grant:g 100",
    ]
    [*_, leg] = told.partition.entries()[-1].postings
    assert leg.at == T0 + 3 * 86_400_000  # each at its own instant, though noticed late
    assert leg.cause == -1


def test_a_recurrence_repays_overage_over_all_active_grants() -> None:
    told = Money("grant g 100 every P1D; grant z 10 p9 for 30d; use 190 owing; until 2026-01-02; tick 1s")
    assert told.purse == "g 20, z 0"
    assert told.postings[-1] == "grant:g > overage 80"


def test_a_recurrence_repays_once_when_several_recur() -> None:
    told = Money("grant g 100 p5 every P1D; grant a 30 p1 every P1D; use 230 owing; until 2026-01-02; tick 1s")
    assert told.purse == "a 0, g 30"
    assert told.postings[-2:] == ["grant:a > overage 30", "grant:g > overage 70"]


HELD_OVER = [
    ("the hold keeps what it holds", "reserve h 30; until 2026-01-02; tick 1s", "g 100 held 30"),
    ("and consumes it", "reserve h 30; until 2026-01-02; tick 1s; settle h", "g 100"),
    ("beyond it the new credits pay", "reserve h 30; until 2026-01-02; tick 1s; settle h 40", "g 90"),
    ("what it returns is not more than the amount", "reserve h 30; until 2026-01-02; tick 1s; release h", "g 100"),
]


@pytest.mark.parametrize(("law", "story", "purse"), HELD_OVER)
def test_a_recurrence_under_an_open_hold(law: str, story: str, purse: str) -> None:
    story = story.replace("reserve h 30", "reserve h 30 for 2d")
    assert Money(f"grant g 100 every P1D; {story}").purse == purse


ROLLOVERS = [
    ("nothing is kept by default", "0-0", "use 40", "0"),
    ("up to the maximum", "0-50", "use 40", "50"),
    ("all of it where it is less", "0-80", "use 40", "60"),
    ("at least the minimum", "20-50", "use 95", "20"),
    ("the minimum of an empty one", "20-50", "use 100", "20"),
    ("a minimum above the maximum does not count", "60-50", "use 95", "50"),
    ("more than the amount", "150-150", "use 1", "150"),
]


@pytest.mark.parametrize(("law", "keep", "story", "balance"), ROLLOVERS)
def test_rollover_at_a_reset(law: str, keep: str, story: str, balance: str) -> None:
    told = Money(f"grant g 100 keep {keep}; {story}; wait 1s; reset")
    assert told.balances == f"g {balance}"
    assert told.pool() == ("0", "0")


def test_only_what_is_forfeited_is_breakage() -> None:
    told = Money("grant g 100 keep 0-50; use 40; wait 1s; reset")
    assert told.last_movements == ["grant:g > breakage:forfeited 10"]
    told = Money("grant g 100 keep 20-50; use 95; wait 1s; reset")
    assert told.last_movements == ["issued:paid > grant:g 15"]
    told = Money("grant g 100 keep 0-100; use 40; wait 1s; reset")
    assert told.last_movements == []


RESETS = [
    ("overage is dropped", "grant g 10; use 30 owing; wait 1s; reset", "g 0"),
    ("unless it is preserved", "grant g 10; use 30 owing; wait 1s; reset preserve", "g 0, owed 20"),
    (
        "then it burns at once from what rolled over",
        "grant g 50 keep 15-15; use 70 owing; wait 1s; reset preserve",
        "g 0, owed 5",
    ),
    ("a dropped one is not repaid later", "grant g 9; use 30 owing; wait 1s; reset; grant n 100", "g 0, n 100"),
    ("a preserved one is", "grant g 9; use 30 owing; wait 1s; reset preserve; grant n 100", "g 0, n 79"),
    ("pending grants are not touched", "grant g 9; grant n 9 in 1h; wait 1s; reset; wait 1h", "g 0, n 9"),
    ("other pools are not touched", "grant g 9; grant m 9 pool messages; wait 1s; reset", "g 0, m 9"),
    ("of a pool by its name", "grant g 9; grant m 9 pool messages; wait 1s; reset messages", "g 9, m 0"),
    ("holds keep what they hold", "grant g 9; reserve h 5; wait 1s; reset", "g 0 held 5"),
    ("and are settled from it", "grant g 9; reserve h 5; wait 1s; reset; settle h", "g 0"),
    ("what they return is forfeited", "grant g 9; reserve h 5; wait 1s; reset; release h", "g 0"),
    ("but for what may roll over", "grant g 9 keep 0-3; reserve h 5; use 4; wait 1s; reset; release h", "g 3"),
    (
        "a recurrence later still sets the amount",
        "grant g 9 every P1D; use 4; wait 1s; reset; wait 1d; tick 1s",
        "g 9",
    ),
    ("twice at different instants", "grant g 9 keep 0-9; wait 1s; reset; use 2; wait 1s; reset", "g 7"),
]


@pytest.mark.parametrize(("law", "story", "purse"), RESETS)
def test_resets(law: str, story: str, purse: str) -> None:
    assert Money(story).purse == purse


REFUSED = [
    ("a second reset at the same instant", "grant g 9; wait 1s; reset; reset", "yes yes reset_refused"),
    ("a moment later it is one", "grant g 9; wait 1s; reset; wait 1ms; reset", "yes yes yes"),
    ("a pool that is not there", "grant g 9; reset nowhere", "yes reset_refused"),
    (
        "a grant before the current period",
        "grant g 9; wait 2h; reset; grant n 9 at 2026-01-01T01:00",
        "yes yes grant_backdated",
    ),
    ("one that begins with the period", "grant g 9; wait 1h; reset; grant n 9 at 2026-01-01T01:00", "yes yes yes"),
    ("another pool's period does not matter",
     "grant g 9; wait 2h; reset; grant n 9 pool messages at 2026-01-01T01:00", "yes yes yes"),
    ("a void of nothing", "grant g 9; void n", "yes grant_unknown"),
    ("a second void", "grant g 9; void g; void g", "yes yes grant_ended"),
    ("a second void while a hold keeps it", "grant g 9 for 1d; reserve h 5; void g; void g", "yes yes yes grant_ended"),
    ("a void after its end under a hold", "grant g 9 for 1m; reserve h 5; wait 2m; void g", "yes yes grant_ended"),
    ("another customer's", "grant g 9; by zeta; grant n 1; void g", "yes yes grant_unknown"),
    ("no interval", "grant g 9 every monthly", "malformed"),
    ("an interval of nothing", "grant g 9 every P0D", "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "said"), REFUSED)
def test_refusals(law: str, story: str, said: str) -> None:
    told = Money(story)
    assert told.said == said
    before = told.partition.rows.items()
    told.partition.restart()
    assert told.partition.rows.items() == before


def test_the_same_void_and_reset_twice_are_answered_as_before() -> None:
    told = Money("grant g 9; wait 1s; void g as v; void g as v; reset as r; reset as r; wait 1s; reset as r")
    assert told.said == "yes yes yes yes yes yes"


VOIDS = [
    ("what is left is breakage", "grant g 9; use 4; void g", "grant:g > breakage:voided 5"),
    ("under a hold only what is not held", "grant g 9; reserve h 5; void g", "grant:g > breakage:voided 4"),
    ("the hold settles from it", "grant g 9; reserve h 5; void g; settle h", "hold:h > consumed:work 5"),
    ("what it returns is voided, too", "grant g 9; reserve h 5; void g; release h", "hold:h > breakage:voided 5"),
    ("what an expired one returns is expired", "grant g 9 for 1m; reserve h 5; wait 2m; release h",
     "hold:h > breakage:expired 5"),
    ("a void of one that pays nothing more", "grant g 9; use 9; void g", "grant:g > consumed:work 9"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "movement"), VOIDS)
def test_voids(law: str, story: str, movement: str) -> None:
    told = Money(story)
    assert told.postings[-1] == movement
    assert all(not grant.active and grant.balance == "0" for grant in told.statement().grants)


def test_a_pending_grant_that_is_voided_never_begins() -> None:
    told = Money("grant a 1; grant g 9 in 1h; void g; wait 2h; tick 1s")
    assert (told.said, told.purse) == ("yes yes yes", "a 1")
    assert not [line for line in told.postings if "grant:g" in line]
    assert told.tell("void g").said.split()[-1] in ("grant_unknown", "grant_ended")


def test_a_recurring_grant_that_is_voided_recurs_no_more() -> None:
    told = Money("grant a 1; grant g 9 every P1D; void g; wait 2d; tick 1s; use 3")
    assert told.balances == "a 0"
    assert told.statement().pools[0].overage == "2"


AT_ONE_INSTANT = [
    (
        "a grant ends where another begins: no gap, no overlap",
        "grant a 9 for 1h; grant b 9 in 1h; wait 1h; use 4",
        "b 5",
    ),
    ("expiry comes before recurrence", "grant a 9 every PT1H for 1h; wait 1h; tick 1s", ""),
    ("recurrence exactly at the look has happened", "grant a 9 every PT1H; use 5; wait 1h", "a 9"),
    ("all begin, then debts burn once in order",
     "grant z 1; use 31 owing; grant b 20 p1 in 1h; grant a 20 p0 in 1h; wait 1h; tick 1s", "a 0, b 10, z 0"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "purse"), AT_ONE_INSTANT)
def test_at_one_instant(law: str, story: str, purse: str) -> None:
    assert Money(story).purse == purse


def test_a_recurrence_exactly_at_a_reset_belongs_to_the_new_period() -> None:
    told = Money("grant g 100 every P1D; use 40; until 2026-01-02; reset")
    assert told.balances == "g 100"
    told = Money("grant z 1; grant g 100 in 1d; use 1; until 2026-01-02; reset")
    assert told.balances == "g 100, z 0"
    assert told.pool() == ("0", "0")


LEGS = [
    ("a grant", "grant g 9 category trial price 0.5"),
    ("burnt", "grant g 9 category trial price 0.5; use 4"),
    ("held and settled", "grant g 9 category trial price 0.5; reserve h 4; settle h 3"),
    ("held and released", "grant g 9 category trial price 0.5; reserve h 4; release h"),
    ("expired", "grant g 9 category trial price 0.5 for 1h; wait 1h; tick 1s"),
    ("expired under a hold", "grant g 9 category trial price 0.5 for 1m; reserve h 4; wait 1h; tick 1s"),
    ("voided", "grant g 9 category trial price 0.5; void g"),
    ("reset", "grant g 9 category trial price 0.5 keep 0-3; wait 1s; reset"),
    ("recurring", "grant g 9 category trial price 0.5 every PT1H; wait 3h; tick 1s"),
    ("repaying", "use 5 owing; grant g 9 category trial price 0.5"),
    ("undone", "grant g 9 category trial price 0.5; use 4 as e; undo e"),
    ("undone when it has recurred", "grant g 9 category trial price 0.5 every PT1H; use 4 as e; wait 1h; undo e"),
    ("undone when it is voided", "grant g 9 category trial price 0.5; use 4 as e; void g; undo e"),
    ("undone when it has expired", "grant g 9 category trial price 0.5 for 1m; use 4 as e; wait 1h; undo e"),
]


@pytest.mark.parametrize(("what", "story"), LEGS)
def test_every_leg_of_a_grants_credits_carries_category_and_price(what: str, story: str) -> None:
    told = Money(story)
    legs = [leg for entry in told.partition.entries() for leg in entry.postings]
    assert legs
    for leg in legs:
        if leg.grant:
            assert (leg.category, leg.price_nanos) == ("trial", 500_000_000)
        else:
            assert leg.account in ("overage", "consumed:owing")
    feature = {"consumed", "hold"}
    assert all(leg.feature for leg in legs if leg.account.partition(":")[0] in feature)


def test_deferred_revenue_earned_and_breakage_can_be_read_off_the_postings() -> None:
    told = Money(
        "grant g 100 price 2 keep 0-50; use 30; wait 1s; reset; reserve h 20; settle h 10; use 5 as e; undo e; void g"
    )
    value: dict[str, int] = {}
    for entry in told.partition.entries():
        for leg in entry.postings:
            kind = leg.account.partition(":")[0]
            value[kind] = value.get(kind, 0) + leg.amount_nanos * leg.price_nanos // 10**18
    assert value == {"issued": -200, "grant": 0, "consumed": 80, "breakage": 120, "hold": 0}
