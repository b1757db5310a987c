"""Events that void or correct others: who gets what back, and what the ledger, budgets and allowances say then."""

import msgspec
import pytest

from money import Money, catalog
from stories import movements
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.events import UsageEvent, encode_event
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.topics import USAGE

UNDONE = [
    ("the grant gets it back", "grant a 9; use 4 as e; undo e", "a 9"),
    ("both that paid", "grant a 3 p0; grant b 9; use 5 as e; undo e", "a 3, b 9"),
    ("both pools that paid", "grant t 3 pool trial; grant b 9; use 5 both as e; undo e", "b 9, t 3"),
    ("not another grant", "grant b 9; use 5 as e; grant a 3 p0; undo e", "a 3, b 9"),
    ("twice is once", "grant a 9; use 4 as e; undo e; undo e", "a 9"),
    ("the same undoing twice is once", "grant a 9; use 4 as e; undo e as u; undo e as u", "a 9"),
    ("the original again stays a duplicate", "grant a 9; use 4 as e; undo e; use 4 as e", "a 9"),
    ("what was owed is owed no more", "grant a 9; use 12 owing as e; undo e", "a 9"),
    ("what others owe stays", "use 12 owing as e; use 5 owing; undo e", "owed 5"),
    ("as far as it is still owed", "use 12 owing as e; grant a 20; undo e", "a 8, {overage} 12"),
    ("partly repaid", "use 12 owing as e; grant a 8; undo e", "a 0, {overage} 8"),
    ("what was written off comes back to nobody", "grant a 9; use 29 capped as e; undo e", "a 9"),
    ("what a reset has dropped, neither", "use 9 owing as e; grant a 1 p0; wait 1s; reset; undo e", "a 0"),
    ("nor is what is owed since forgiven", "use 9 owing as e; wait 1s; reset; use 5 owing; undo e", "owed 5"),
    ("a recurred grant is active", "grant a 9 every PT1H; use 4 as e; wait 1h; undo e", "a 13"),
    ("until it recurs again", "grant a 9 every PT1H; use 4 as e; wait 1h; undo e; wait 1h", "a 9"),
    ("a voided grant's comes back as another", "grant a 9 p3; use 4 as e; void a; undo e", "a 0, {a} 4"),
    ("an expired grant's does not", "grant a 9 for 1h; grant b 5; use 4 as e; wait 2h; undo e", "b 5"),
    ("one that ends under a hold neither", "grant a 9 for 1h; use 4 as e; reserve h 1 for 1d; wait 2h; undo e",
     "a 0 held 1"),
    ("what comes back anew repays debts", "grant a 9; use 4 as e; void a; use 3 owing; undo e", "a 0, {a} 1"),
    ("of a customer's own events only", "grant a 9; use 4 as e; by zeta; grant b 9; undo e; by acme", "a 5"),
    ("corrected to less", "grant a 9; use 4 as e; correct e 1", "a 8"),
    ("corrected to more", "grant a 9; use 4 as e; correct e 7", "a 2"),
    ("corrected to the same", "grant a 9; use 4 as e; correct e 4", "a 5"),
    ("corrected to more than there is", "grant a 9; use 4 as e; correct e 12", "a 0, owed 3"),
    ("corrected twice", "grant a 9; use 4 as e; correct e 1; correct e 3", "a 6"),
    ("corrected, then undone", "grant a 9; use 4 as e; correct e 1; undo e", "a 9"),
    ("undone, then corrected: it is gone", "grant a 9; use 4 as e; undo e; correct e 1", "a 9"),
    ("the same correction twice is once", "grant a 9; use 4 as e; correct e 1 as c; correct e 1 as c", "a 8"),
    ("corrected again and again when its grant is gone",
     "grant a 9; use 4 as e; void a; correct e 1 as c; correct e 2 as d", "a 0, {a} 2"),
]  # fmt: skip


@pytest.mark.parametrize("restart", ["", "restart; "], ids=["in memory", "after a restart"])
@pytest.mark.parametrize(("law", "story", "purse"), UNDONE)
def test_what_comes_back(law: str, story: str, purse: str, restart: str) -> None:
    told = Money(story.replace("undo", f"{restart}undo").replace("correct", f"{restart}correct"))
    found = told.purse
    for grant in told.statement().grants:
        if grant.id.startswith("adjustment:"):
            found = found.replace(grant.id, f"{{{grant.id.split(':')[-1]}}}")
    assert found == purse


def test_an_adjustment_is_like_the_grant_that_paid() -> None:
    told = Money("grant a 9 p3 category trial price 0.25 for 5d; use 4 as e; void a; undo e")
    [grant] = [grant for grant in told.statement().grants if grant.active]
    assert (grant.amount, grant.balance, grant.priority, grant.category) == ("4", "4", 3, "trial")
    assert grant.expires_at == "2026-01-06T00:00:00Z"
    told.tell("wait 5d; tick 1s")
    assert told.purse == ""
    assert told.postings[-1] == f"grant:{grant.id} > breakage:expired 4"
    leg = told.partition.entries()[-1].postings[-1]
    assert (leg.category, leg.price_nanos) == ("trial", 250_000_000)


def test_postings_are_opposite_and_in_reverse_order() -> None:
    told = Money("grant a 3 p0 price 1; grant b 4 price 2; use 10 owing as e; undo e")
    assert told.last_movements == [
        "consumed:owing > overage 3",
        "consumed:owing > grant:b 4",
        "consumed:owing > grant:a 3",
    ]
    legs = told.partition.entries()[-1].postings
    assert [leg.price_nanos // NANOS for leg in legs] == [0, 0, 2, 2, 1, 1]
    assert told.pool() == ("0", "0")


def test_a_gone_grants_postings_are_undone_too() -> None:
    told = Money("grant a 9 category trial price 0.5 for 1h; use 4 as e; wait 2h; undo e")
    assert told.last_movements[-1] == "consumed:work > breakage:expired 4"
    leg = told.partition.entries()[-1].postings[-1]
    assert (leg.grant, leg.category, leg.price_nanos) == ("a", "trial", 500_000_000)


def test_an_undone_write_off_is_undone_as_such() -> None:
    told = Money("grant a 9; use 29 capped as e; undo e")
    assert told.last_movements == [
        "consumed:capped > write_off 10",
        "consumed:capped > overage 10",
        "consumed:capped > grant:a 9",
    ]
    assert told.pool() == ("0", "0")


COUNTERS = [  # used in the pool's period, and by grants
    ("counted back", "grant a 9; use 2; use 4 as e; undo e", ("2", "2")),
    ("with what was owed", "grant a 3; use 7 owing as e; undo e", ("0", "0")),
    ("with what was owed and repaid", "use 7 owing as e; grant a 5; undo e", ("0", "0")),
    ("not in another period", "grant a 9 keep 9-9; use 4 as e; wait 1s; reset; use 3; undo e", ("3", "3")),
    ("corrected by the difference", "grant a 9; use 4 as e; correct e 6", ("6", "6")),
]


@pytest.mark.parametrize(("law", "story", "counters"), COUNTERS)
def test_the_pools_counters(law: str, story: str, counters: tuple[str, str]) -> None:
    assert Money(story).pool() == counters


BUDGETS = [
    ("counted back", "budget b 20; use 5; use 4 as e; undo e", "b[] 5+0 of 20"),
    ("in its scope", "budget b 20 team=*; use 4 as e team=x; use 4 team=y; undo e",
     "b[team=x] 0+0 of 20, b[team=y] 4+0 of 20"),
    ("not in another period", "budget b 20 per hour; use 4 as e; wait 1h; use 3; undo e", "b[] 3+0 of 20"),
    ("nor in one nobody has used yet", "budget b 20 per hour; use 4 as e; wait 1h; undo e", "b[] 0+0 of 20"),
    ("not in a budget made since", "use 4 as e; budget b 20; use 6; undo e", "b[] 6+0 of 20"),
    ("of a meter", "budget b 20 of work_units; use 4 as e; use 3; undo e", "b[] 3+0 of 20"),
    ("corrected by the difference", "budget b 20; use 4 as e; correct e 6", "b[] 6+0 of 20"),
    ("corrected into another scope", "budget b 20 team=*; use 4 as e team=x; correct e 3 team=y",
     "b[team=x] 0+0 of 20, b[team=y] 3+0 of 20"),
    ("makes room again", "budget b 20; use 20 as e; undo e; reserve h 20", "b[] 0+20 of 20"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "budgets"), BUDGETS)
def test_budgets_count_back(law: str, story: str, budgets: str) -> None:
    assert Money(f"grant g 1000; {story}").budgets == budgets


DEAD = [
    ("an unknown event", "undo e", ["event_unknown"]),
    ("an unknown event to correct", "correct e 4", ["event_unknown"]),
    ("another customer's", "use 4 as e; by zeta; undo e", ["event_unknown"]),
    ("forgotten", "use 4 as e; wait 24h; undo e", ["event_unknown"]),
    ("remembered until then", "use 4 as e; wait 23h; undo e", []),
    ("a correction is no event to correct", "use 4 as e; correct e 3 as c; correct c 2", ["event_unknown"]),
    ("nor is it undone", "grant a 9; use 4 as e; undo e as u; undo u", []),
    ("a correction that is wrong", "use 4 as e; correct e -1", ["quantity_invalid"]),
    ("a correction without data", "use 4 as e; correct e x", ["quantity_invalid"]),
]


@pytest.mark.parametrize(("law", "story", "dead"), DEAD)
def test_dead_letters(law: str, story: str, dead: list[str]) -> None:
    told = Money(story)
    assert told.dead == dead


def test_a_wrong_correction_changes_nothing() -> None:
    told = Money("grant a 9; budget b 9; use 4 as e; correct e -1")
    assert (told.purse, told.budgets) == ("a 5", "b[] 4+0 of 9")
    told.tell("correct e 2")
    assert (told.purse, told.budgets) == ("a 7", "b[] 2+0 of 9")


def batch(told: Money, *events: UsageEvent) -> None:
    value = msgspec.json.encode([msgspec.Raw(encode_event(event)) for event in events])
    headers = {"content-type": b"application/cloudevents-batch+json"}
    told.transitions.append(told.partition.apply(told.partition.record(USAGE, value, headers)))


def test_twice_in_one_record_is_once() -> None:
    told = Money("grant a 9; use 4 as e")
    batch(told, told.change("undo", ["e"]), told.change("undo", ["e"]), told.change("correct", ["e", "1"]))
    assert (told.purse, told.dead) == ("a 9", [])


def test_an_event_and_its_correction_in_one_record() -> None:
    told = Money("grant a 9")
    batch(told, told.event(["4", "as", "e"]), told.change("correct", ["e", "1"]), told.change("undo", ["e"]))
    assert (told.purse, told.dead) == ("a 9", [])
    batch(told, told.event(["4", "as", "f"]), told.change("correct", ["f", "1"]))
    assert (told.purse, told.dead) == ("a 8", [])


def test_a_correction_before_its_event_in_one_record_is_none() -> None:
    told = Money("grant a 9")
    batch(told, told.change("undo", ["e"]), told.event(["4", "as", "e"]))
    assert (told.purse, told.dead) == ("a 9", ["event_unknown"])


def usage_rows(told: Money) -> list[tuple[str, int, int, int]]:
    account = told.partition.state.account("acme")
    return sorted((r.meter, r.quantity_nanos // NANOS, r.events, r.late_events) for r in account.usage.values())


def test_hours_count_back() -> None:
    told = Money("grant a 9; use 4 as e; use 3; undo e")
    assert usage_rows(told) == [("work_units", 3, 1, 0)]
    [delta] = told.partition.entries()[-1].usage
    assert (delta.quantity_nanos, delta.events) == (-4 * NANOS, -1)


def test_late_ones_count_back_as_late_and_corrected_ones_stay_in_their_hour() -> None:
    told = Money("wait 3d; grant a 9; use 4 as e ago 30h; undo e")
    assert usage_rows(told) == [("work_units", 0, 0, 0)]
    told = Money("wait 3d; grant a 9; use 4 as e ago 23h; wait 5h; correct e 3")
    assert usage_rows(told) == [("work_units", 3, 1, 0)]  # it came in time, whenever it is corrected
    told = Money("wait 3d; grant a 9; use 4 as e ago 30h; wait 5h; correct e 3")
    assert usage_rows(told) == [("work_units", 3, 1, 1)]
    [row] = told.partition.state.account("acme").usage.values()
    assert row.hour == told.partition.now - 5 * HOUR_MS - 30 * HOUR_MS


def test_corrected_at_the_price_of_its_own_time() -> None:
    rates = [
        {"meter": "work_units", "credits": 1},
        {"meter": "work_units", "credits": 5, "since": "2026-01-01T12:00:00Z"},
    ]
    of = catalog(features={"work": {"rates": rates}})
    told = Money("grant a 100; until 2026-01-01T11:00; use 4 as e; until 2026-01-01T13:00; correct e 6; use 2", of)
    assert told.purse == "a 84"


def test_an_event_of_two_features_that_share_a_grant_comes_back_whole() -> None:
    features = {"one": {"meters": ["m1"], "rates": [{"meter": "m1", "credits": 1}]},
                "two": {"meters": ["m2"], "rates": [{"meter": "m2", "credits": 1}]}}  # fmt: skip
    meters = {name: {"event_type": "both", "value": name} for name in ("m1", "m2")}
    of = catalog(features=features, meters=meters)
    told = Money("grant a 9", of)

    def event(id: str) -> UsageEvent:
        data = {"m1": 2, "m2": 3}
        return UsageEvent(specversion="1.0", id=id, source="stories", type="both", subject="acme", data=data)

    told.partition.use(event("e"))
    assert told.purse == "a 4"
    told.tell("void a; undo e")
    [grant] = [grant for grant in told.statement().grants if grant.active]
    assert (grant.amount, grant.balance) == ("5", "5")
    assert told.last_movements == [f"consumed:two > grant:{grant.id} 3", f"consumed:one > grant:{grant.id} 2"]


def test_what_is_owed_by_two_features_comes_back_whole() -> None:
    told = Money("use 6 owing as e; use 5 bothowing as f; grant a 20; undo e; undo f")
    assert sum(int(grant.balance) for grant in told.statement().grants) == 20
    assert told.pool() == ("0", "0")


def test_entries_name_the_event_that_undid() -> None:
    told = Money("grant a 9; use 4 as e; undo e as u")
    entry = told.partition.entries()[-1]
    assert [cause.id for cause in entry.causes] == ["u"]
    assert movements(entry) == ["consumed:work > grant:a 4"]
    assert {leg.cause for leg in entry.postings} == {0}
