"""Holds: credits set aside, then settled, released or expired; and the same request twice."""

from decimal import Decimal

import pytest

from partition import T0, Partition
from stories import WORDS, Story
from tallygate.pipeline.rules import Rules
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.requests import GiveGrant, Reserve, Settle

LIVES = [
    ("set aside in burn order", "grant b 100 p1; grant a 50 p0; reserve h 80", "a 0 held 50, b 70 held 30"),
    ("settled below: the rest comes back", "grant b 100 p1; grant a 50 p0; reserve h 80; settle h 60", "a 0, b 90"),
    ("consumed in burn order, too", "grant b 100 p1; grant a 50 p0; reserve h 80; settle h 30", "a 20, b 100"),
    ("settled as held", "grant b 100 p1; grant a 50 p0; reserve h 80; settle h 80", "a 0, b 70"),
    ("no amount means what was held", "grant a 100; reserve h 80; settle h", "a 20"),
    ("settled above: burns on like usage", "grant a 100; reserve h 30; settle h 45", "a 55"),
    ("by what burns first now", "grant b 100; reserve h 30; grant a 9 p0; settle h 45", "a 0, b 64"),
    ("what nobody covers is owed", "grant a 40; reserve h 30; settle h 45", "a 0, owed 5"),
    ("above a cap it is written off", "grant a 40; reserve h 30 capped; settle h 60", "a 0, owed 10"),
    ("settled as nothing", "grant a 100; reserve h 30; settle h 0", "a 100"),
    ("released", "grant b 100 p1; grant a 50 p0; reserve h 80; release h", "a 50, b 100"),
    ("released twice is released once", "grant a 100; reserve h 80; release h; release h", "a 100"),
    ("expired at its instant", "grant a 100; reserve h 80 for 60s; wait 60s", "a 100"),
    ("not before", "grant a 100; reserve h 80 for 60s; wait 59999ms", "a 20 held 80"),
    ("expired by a tick", "grant a 100; reserve h 80 for 60s; tick 60s", "a 100"),
    ("the feature's own time to live", "grant a 100; reserve h 80; wait 299s; settle h", "a 20"),
    ("at_end settle: taken as estimated", "grant a 100; reserve h 80 estimate; wait 60s", "a 20"),
    ("not before its end, either", "grant a 100; reserve h 80 estimate; wait 59s; release h", "a 100"),
    ("what is held cannot be spent", "grant a 100; reserve h 80; use 30", "a 0 held 80, owed 10"),
    ("nor expire under the hold", "grant a 100 for 1m; reserve h 80; wait 2m; settle h", ""),
    ("an ended grant lives on for its hold", "grant a 100 for 1m; reserve h 80; wait 2m", "a 0 held 80"),
    ("what it returns is lost", "grant a 100 for 1m; grant b 9; reserve h 80; wait 2m; release h", "b 9"),
    ("also the rest of a settle", "grant a 100 for 1m; grant b 9; reserve h 80; wait 2m; settle h 70", "b 9"),
    ("more than held goes to others", "grant a 100 for 1m; grant b 9; reserve h 80; wait 2m; settle h 85", "b 4"),
    ("hold and grant end at one instant", "grant a 100 for 60s; reserve h 80 for 60s; wait 60s", ""),
    ("hold first, grant a second later", "grant a 100 for 61s; reserve h 80 for 60s; wait 60s; use 10", "a 90"),
    ("in order though noticed late", "grant a 100 for 61s; reserve h 80 for 60s; wait 1h; use 10", "owed 10"),
    ("at_end settle with its grant's end", "grant a 100 for 60s; reserve h 80 estimate; wait 60s", ""),
    ("an ending grant does not pay at its end", "grant a 10; reserve h 30 lending; grant b 99 for 60s; wait 60s",
     "a 0, owed 20"),
    ("one that begins then does", "grant a 10; reserve h 30 lending; grant b 99 in 60s; wait 60s", "a 0, b 79"),
    ("holds of two pools", "grant a 9; grant b 9 pool messages; reserve h 4; reserve i 5 message",
     "a 5 held 4, b 4 held 5"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "purse"), LIVES)
def test_a_holds_life(law: str, story: str, purse: str) -> None:
    assert Story(story).purse == purse


ENDED = [
    ("settled late after expiry", "grant a 100; reserve h 80 for 60s; wait 61s; settle h 30", "yes yes late", "a 70"),
    ("settled late after release", "grant a 100; reserve h 80; release h; settle h 30", "yes yes yes late", "a 70"),
    ("late without an amount: as held", "grant a 100; reserve h 80; release h; settle h", "yes yes yes late", "a 20"),
    ("late beyond what is there", "grant a 50; reserve h 50; release h; use 40; settle h", "yes yes yes late",
     "a 0, owed 40"),
    ("late when the grant has ended", "grant a 50 for 1m; reserve h 9; wait 6m; settle h", "yes yes late", "owed 9"),
    ("late by the tick at its end", "grant a 9; reserve h 9 for 1m; tick 1m; settle h", "yes yes late", "a 0"),
    ("late twice is late once", "grant a 99; reserve h 9; release h; settle h; settle h", "yes yes yes late late",
     "a 90"),
    ("settled twice the same", "grant a 100; reserve h 80; settle h 30; settle h 30", "yes yes yes yes", "a 70"),
    ("settled twice otherwise", "grant a 100; reserve h 80; settle h 30; settle h 31", "yes yes yes id_conflict",
     "a 70"),
    ("settled again without an amount", "grant a 100; reserve h 80; settle h 30; settle h", "yes yes yes id_conflict",
     "a 70"),
    ("late and again otherwise", "grant a 99; reserve h 9; release h; settle h 5; settle h 6",
     "yes yes yes late id_conflict", "a 94"),
    ("released after settled", "grant a 100; reserve h 80; settle h 30; release h", "yes yes yes yes", "a 70"),
    ("released after expired", "grant a 9; reserve h 8 for 1m; wait 1m; release h", "yes yes yes", "a 9"),
    ("unknown to settle", "grant a 100; settle h 30", "yes hold_unknown", "a 100"),
    ("unknown to release", "grant a 100; release h", "yes hold_unknown", "a 100"),
    ("another customer's", "grant a 9; reserve h 5; by zeta; grant b 9; settle h; release h",
     "yes yes yes hold_unknown hold_unknown", "b 9"),
    ("each customer has its own h", "grant a 9; reserve h 5; by zeta; grant b 9; reserve h 6; settle h",
     "yes yes yes yes yes", "b 3"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "story", "said", "purse"), ENDED)
def test_after_the_end(law: str, story: str, said: str, purse: str) -> None:
    told = Story(story)
    assert (told.said, told.purse) == (said, purse)


TWICE = [
    ("reserve, the same", "grant a 9", "reserve h 5", "reserve h 5", "yes", "a 4 held 5"),
    ("reserve, another amount", "grant a 9", "reserve h 5", "reserve h 4", "id_conflict", "a 4 held 5"),
    ("reserve, another feature", "grant a 9", "reserve h 5", "reserve h 5 owing", "id_conflict", "a 4 held 5"),
    ("reserve, another scope", "grant a 9", "reserve h 5", "reserve h 5 team=x", "id_conflict", "a 4 held 5"),
    ("reserve, another time to live", "grant a 9", "reserve h 5", "reserve h 5 for 1m", "id_conflict", "a 4 held 5"),
    ("reserve, denied, is denied again", "grant a 9", "reserve h 10; grant b 9", "reserve h 10", "credits_exhausted",
     "a 9, b 9"),
    ("reserve, after settling", "grant a 9", "reserve h 5; settle h", "reserve h 5", "yes", "a 4"),
    ("settle, the same", "grant a 9; reserve h 5", "settle h 3 as s", "settle h 3 as s", "yes", "a 6"),
    ("settle, another amount", "grant a 9; reserve h 5", "settle h 3 as s", "settle h 4 as s", "id_conflict", "a 6"),
    ("settle, another hold", "grant a 9; reserve h 5; reserve i 1", "settle h as s", "settle i as s", "id_conflict",
     "a 3 held 1"),
    ("settle, late, the same", "grant a 9; reserve h 5; release h", "settle h as s", "settle h as s", "late", "a 4"),
    ("release, the same", "grant a 9; reserve h 5", "release h as r", "release h as r", "yes", "a 9"),
    ("release, another hold", "grant a 9; reserve h 5; reserve i 1", "release h as r", "release i as r", "id_conflict",
     "a 8 held 1"),
    ("release, of nothing, the same", "grant a 9; reserve h 5; settle h", "release h as r", "release h as r", "yes",
     "a 4"),
    ("release, of nothing, another", "grant a 9; reserve h 5; settle h; reserve i 1", "release h as r",
     "release i as r", "id_conflict", "a 3 held 1"),
    ("grant, the same", "", "grant a 9", "grant a 9", "yes", "a 9"),
    ("grant, another amount", "", "grant a 9", "grant a 8", "id_conflict", "a 9"),
    ("grant, the same when it has ended", "", "grant a 9 as x for 1m; wait 2m; use 1", "grant a 9 as x", "id_conflict",
     "owed 1"),
    ("budget, the same", "", "budget b 9 as x", "budget b 9 as x", "yes", ""),
    ("budget, another limit", "", "budget b 9 as x", "budget b 8 as x", "id_conflict", ""),
]  # fmt: skip


@pytest.mark.parametrize("restart", ["", "restart; "], ids=["in memory", "after a restart"])
@pytest.mark.parametrize(("what", "before", "first", "again", "said", "purse"), TWICE)
def test_the_same_id_again(what: str, before: str, first: str, again: str, said: str, purse: str, restart: str) -> None:
    story = Story(before).tell(first)
    of_first = {a.id: a for a in story.answers}
    story.tell(f"wait 1s; {restart}{again}")
    answer = story.answers[-1]
    assert story.said.split()[-1] == said
    assert story.purse == purse
    if said != "id_conflict":
        assert answer == of_first[answer.id]


def test_ids_are_each_operations_own() -> None:
    story = Story("grant x 9; budget b 9 as x; reserve x 5; settle x 4 as x")
    assert (story.said, story.purse) == ("yes yes yes yes", "x 5")


def test_the_order_of_members_is_no_other_content() -> None:
    partition = Partition()
    first = {"input_tokens": Decimal(1), "output_tokens": Decimal(2)}
    for quantities in (first, dict(reversed(first.items()))):
        answer = partition.ask(Reserve(id="h", customer="acme", feature="llm", quantities=quantities))
        assert answer.reason == "customer_unknown"


FORGETTING = [
    ("remembered for an hour", "grant a 9; reserve h 5; release h; wait 59m; reserve h 5", "a 9"),
    ("then it is another reservation", "grant a 9; reserve h 5; release h; wait 1h; reserve h 5", "a 4 held 5"),
    ("an event is counted once", "grant a 9; use 2 as e; wait 59m; use 2 as e", "a 7"),
    ("within the window", "grant a 9; use 2 as e; wait 1h; use 2 as e", "a 5"),
    ("the newest time counts", "grant a 9; use 2 as e; wait 1h; use 2 as e; wait 59m; use 2 as e", "a 5"),
    ("midnight is no border", "wait 23h; wait 30m; grant a 9; use 2 as e; wait 59m; use 2 as e", "a 7"),
    ("a grant that is still there is never doubled", "grant a 9; wait 2h; grant a 9", "a 9"),
]


@pytest.mark.parametrize(("law", "story", "purse"), FORGETTING)
def test_ids_are_forgotten_after_the_window(law: str, story: str, purse: str) -> None:
    assert Story(story, Rules(remember_ms=HOUR_MS)).purse == purse


def test_an_open_holds_id_is_taken_longer_than_it_is_remembered() -> None:
    story = Story("grant a 9; reserve h 5 for 5h; wait 2h; reserve h 5 for 5h; settle h", Rules(remember_ms=HOUR_MS))
    assert (story.said, story.purse) == ("yes yes id_conflict yes", "a 4")


def test_a_hold_past_remembering_cannot_be_settled() -> None:
    story = Story("grant a 9; reserve h 5; release h; wait 1h; settle h", Rules(remember_ms=HOUR_MS))
    assert (story.said, story.purse) == ("yes yes yes hold_unknown", "a 9")


def test_answers_say_what_was_held_and_who_paid() -> None:
    story = Story("grant b 100 p1; grant a 50 p0; reserve h 80 for 60s; settle h 160")
    _, _, reserved, settled = story.answers
    assert reserved.hold is not None
    assert [(s.grant, s.amount) for s in reserved.hold.shares] == [("a", "50"), ("b", "30")]
    assert (reserved.hold.id, reserved.hold.credits, reserved.hold.expires_at) == ("h", "80", "2026-01-01T00:01:00Z")
    assert (reserved.credits, reserved.balance) == ("80", "70")
    assert [(s.grant, s.amount) for s in settled.paid] == [("a", "50"), ("b", "100")]
    assert (settled.credits, settled.overage, settled.balance, settled.late) == ("160", "10", "0", False)


def test_a_hold_is_priced_by_its_quantities_and_settled_by_the_actual_ones() -> None:
    partition = Partition()
    partition.ask(GiveGrant(id="a", customer="acme", amount=Decimal(100)))
    estimate = {"input_tokens": Decimal(3000), "output_tokens": Decimal(1500)}
    assert partition.ask(Reserve(id="h", customer="acme", feature="llm", quantities=estimate)).credits == "6"
    actual = {"output_tokens": Decimal(500)}
    answer = partition.ask(Settle(id="s", customer="acme", hold="h", quantities=actual))
    assert (answer.credits, answer.balance) == ("1", "99")
    [usage] = [entry.usage for entry in partition.entries() if entry.usage]
    assert {(u.meter, u.quantity_nanos // NANOS) for u in usage} == {("output_tokens", 500), ("calls", 1)}


def test_what_is_settled_as_estimated_is_usage_of_its_end() -> None:
    partition = Partition(WORDS)
    partition.ask(GiveGrant(id="a", customer="acme", amount=Decimal(9)))
    quantities = {"estimate_units": Decimal(5)}
    partition.ask(Reserve(id="h", customer="acme", feature="estimate", quantities=quantities, dimensions={"team": "x"}))
    partition.tick(3600)
    [delta] = partition.entries()[-1].usage
    assert (delta.meter, delta.hour - T0, delta.dimensions) == ("estimate_units", 0, {"team": "x"})
    assert (delta.quantity_nanos, delta.events, delta.late_events, delta.cause) == (5 * NANOS, 1, 0, -1)


def test_open_holds_are_listed_by_their_end() -> None:
    story = Story("grant a 9; reserve a 1 for 60s; reserve c 1 for 30s; reserve b 1 for 30s")
    assert [hold.id for hold in story.statement().holds] == ["b", "c", "a"]
