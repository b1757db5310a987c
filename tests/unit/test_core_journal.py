"""What a transition writes: postings, entries with their causes and balances, wake-ups; and when it writes nothing."""

import pytest

from partition import T0
from stories import Story, movements
from tallygate.pipeline.replay import due_customer, due_range
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Transition
from tallygate.schemas import topics
from tallygate.schemas.events import encode_event
from tallygate.schemas.instants import DAY_MS, MINUTE_MS, SECOND_MS
from tallygate.schemas.journal import Cause, Entry, PoolBalance, decode_record, split_key
from tallygate.schemas.ledger import Posting
from tallygate.schemas.requests import encode_request

POSTINGS = [  # the last step's
    ("a grant", "grant a 9", ["issued:paid > grant:a 9"]),
    ("by category", "grant a 9 category trial", ["issued:trial > grant:a 9"]),
    ("of nothing", "grant a 0", []),
    ("a future grant", "grant a 9 in 1h", []),
    ("that begins", "grant a 9 in 1h; tick 1h", ["issued:paid > grant:a 9"]),
    ("usage", "grant b 9; grant a 5 p0; use 7", ["grant:a > consumed:work 5", "grant:b > consumed:work 2"]),
    ("usage beyond", "grant a 5; use 7", ["grant:a > consumed:work 5", "overage > consumed:work 2"]),
    ("usage beyond a cap", "grant a 5; use 17 capped",
     ["grant:a > consumed:capped 5", "overage > consumed:capped 10", "write_off > consumed:capped 2"]),
    ("free usage", "grant a 5; use 0", []),
    ("debts paid by a new grant", "use 4; grant a 9", ["issued:paid > grant:a 9", "grant:a > overage 4"]),
    ("debts paid by grants that begin", "use 9; grant b 5 in 1h; grant a 5 p0 in 1h; tick 2h",
     ["issued:paid > grant:a 5", "issued:paid > grant:b 5", "grant:a > overage 5", "grant:b > overage 4"]),
    ("a hold", "grant b 9; grant a 5 p0; reserve h 7", ["grant:a > hold:h 5", "grant:b > hold:h 2"]),
    ("a hold that owes", "grant a 5; reserve h 7 owing", ["grant:a > hold:h 5"]),
    ("a denied one", "grant a 5; reserve h 7", []),
    ("settled below", "grant b 9; grant a 5 p0; reserve h 7; settle h 3",
     ["hold:h > consumed:work 3", "hold:h > grant:a 2", "hold:h > grant:b 2"]),
    ("settled as held", "grant a 5; reserve h 4; settle h 4", ["hold:h > consumed:work 4"]),
    ("settled above", "grant b 9; grant a 5 p0; reserve h 4; settle h 7",
     ["hold:h > consumed:work 4", "grant:a > consumed:work 1", "grant:b > consumed:work 2"]),
    ("settled beyond all", "grant a 5; reserve h 4; settle h 7",
     ["hold:h > consumed:work 4", "grant:a > consumed:work 1", "overage > consumed:work 2"]),
    ("settled late", "grant a 5; reserve h 4; release h; settle h", ["grant:a > consumed:work 4"]),
    ("released", "grant b 9; grant a 5 p0; reserve h 7; release h", ["hold:h > grant:a 5", "hold:h > grant:b 2"]),
    ("released twice", "grant a 5; reserve h 4; release h; release h", []),
    ("expired", "grant a 5; reserve h 4 for 60s; tick 60s", ["hold:h > grant:a 4"]),
    ("settled as estimated", "grant a 5; reserve h 4 estimate; tick 60s", ["hold:h > consumed:estimate 4"]),
    ("a grant's end", "grant a 5 for 60s; use 2; tick 60s", ["grant:a > breakage:expired 3"]),
    ("an empty grant's end", "grant a 5 for 60s; use 5; tick 60s", []),
    ("under a hold", "grant a 5 for 60s; reserve h 4; tick 60s", ["grant:a > breakage:expired 1"]),
    ("which then returns", "grant a 5 for 60s; reserve h 4; tick 60s; release h", ["hold:h > breakage:expired 4"]),
    ("or is settled below", "grant a 5 for 60s; reserve h 4; tick 60s; settle h 3",
     ["hold:h > consumed:work 3", "hold:h > breakage:expired 1"]),
    ("a budget", "budget b 9", []),
]  # fmt: skip


@pytest.mark.parametrize(("what", "story", "expected"), POSTINGS)
def test_postings(what: str, story: str, expected: list[str]) -> None:
    entries = entries_of(Story(story).transitions[-1])
    assert [line for entry in entries for line in movements(entry)] == expected


def entries_of(transition: Transition) -> list[Entry]:
    found = [decode_record(value) for _, value in transition.records if value is not None]
    return [record for record in found if isinstance(record, Entry)]


def test_a_posting_carries_what_revenue_is_read_off() -> None:
    story = Story("grant a 5 category promotional price 0.25; wait 3s; reserve h 4; wait 1s; settle h 7")
    at = T0 + 4 * SECOND_MS
    nanos = 10**9
    bought = ("a", "promotional", nanos // 4, "work")
    assert list(story.partition.entries()[-1].postings) == [
        Posting("credits", "hold:h", -4 * nanos, at, 0, *bought),
        Posting("credits", "consumed:work", 4 * nanos, at, 0, *bought),
        Posting("credits", "grant:a", -1 * nanos, at, 0, *bought),
        Posting("credits", "consumed:work", 1 * nanos, at, 0, *bought),
        Posting("credits", "overage", -2 * nanos, at, 0, "", "", 0, "work"),
        Posting("credits", "consumed:work", 2 * nanos, at, 0, "", "", 0, "work"),
    ]


def test_pools_are_assets_of_their_own() -> None:
    story = Story("grant a 5 pool messages; use 7 message")
    assert {leg.asset for entry in story.partition.entries() for leg in entry.postings} == {"messages"}
    assert story.partition.entries()[-1].balances == (PoolBalance("messages", 0, 0, 2 * 10**9),)


def test_what_time_brings_is_posted_at_its_instant_and_caused_by_no_input() -> None:
    story = Story("grant a 5 for 2m; reserve h 4 for 60s; wait 1h; use 1")
    [entry] = story.partition.entries()[2:]
    nanos = 10**9
    assert [(leg.account, leg.amount_nanos // nanos, leg.at - T0, leg.cause) for leg in entry.postings[1::2]] == [
        ("grant:a", 4, MINUTE_MS, -1),
        ("breakage:expired", 5, 2 * MINUTE_MS, -1),
        ("consumed:work", 1, 60 * MINUTE_MS, 0),
    ]
    assert entry.at == T0 + 60 * MINUTE_MS


def test_an_entry_names_its_causes_decisions_and_balances() -> None:
    story = Story("grant a 9; by zeta; grant b 9; by acme")
    partition = story.partition
    inputs = [
        partition.record(topics.USAGE, encode(story, "use 2 as e1")),
        partition.record(topics.REQUESTS, encode(story, "reserve h 5 team=x")),
        partition.record(topics.REQUESTS, encode(story, "reserve i 3")),
        partition.record(topics.REQUESTS, encode(story.tell("by zeta"), "reserve h 1")),
        partition.record(topics.USAGE, encode(story.tell("by acme"), "use 1 as e2")),
    ]
    partition.apply(*inputs)
    acme, zeta = partition.entries()[-2:]
    assert (acme.customer, zeta.customer, acme.catalog, acme.at) == ("acme", "zeta", 1, T0)
    assert acme.causes == (
        Cause(topics.USAGE, 0, 0, "e1"),
        Cause(topics.REQUESTS, 0, 2, "h"),
        Cause(topics.REQUESTS, 0, 3, "i"),
        Cause(topics.USAGE, 0, 1, "e2"),
    )
    assert zeta.causes == (Cause(topics.REQUESTS, 0, 4, "h"),)
    assert [(d.id, d.op, d.allowed, d.reason, d.cause, d.hold) for d in acme.decisions] == [
        ("h", "reserve", True, "allowed", 1, "h"),
        ("i", "reserve", False, "credits_exhausted", 2, ""),
    ]
    assert acme.decisions[0].dimensions == {"team": "x"}
    assert [(limit.name, limit.asked, limit.remaining) for limit in acme.decisions[1].limits] == [("credits", "3", "2")]
    nanos = 10**9
    assert [leg.cause for leg in acme.postings] == [0, 0, 1, 1, 3, 3]
    assert acme.balances == (PoolBalance("credits", 1 * nanos, 5 * nanos, 0),)
    assert zeta.balances == (PoolBalance("credits", 8 * nanos, 1 * nanos, 0),)
    assert [(delta.meter, delta.cause) for delta in acme.usage] == [("work_units", 0), ("work_units", 3)]


def encode(story: Story, step: str) -> bytes:
    verb, *words = step.split()
    return encode_event(story.event(words)) if verb == "use" else encode_request(story.request(verb, words))


def test_a_batch_is_the_customers_rows_then_its_entry_and_the_partitions_row_last() -> None:
    transition = Story("grant a 9; budget b 9; use 5 team=x").transitions[-1]
    kinds = [split_key(key)[1] if key[:1] != b"\0" else key.decode() for key, _ in transition.records]
    assert kinds == ["grant", "pool", "scope", "usage", "entry", "\0partition"]
    assert all(value is not None for _, value in transition.records)


def test_rows_that_end_are_tombstones_and_those_that_never_were_are_not_written() -> None:
    story = Story("grant a 9; reserve h 5; release h")
    assert [key for key, value in story.transitions[-1].records if value is None] == [b"acme\0hold\0h"]
    inputs = [story.partition.record(topics.REQUESTS, encode(story, step)) for step in ("reserve i 5", "release i")]
    keys = [key for key, _ in story.partition.apply(*inputs).records]
    assert b"acme\0hold\0i" not in keys


# ---- what changes nothing is not written ----

READS = ["check 5", "check 500", "check 5 never", "by zeta; check 5", "wait 1h; check 5", "check 5; restart; check 5"]


@pytest.mark.parametrize("story", READS)
def test_checks_write_nothing(story: str) -> None:
    told = Story("grant a 9; reserve h 2 for 5h; budget b 5")
    rows = told.partition.rows.items()
    before = len(told.transitions)
    told.tell(story)
    assert all(is_silent(each) for each in told.transitions[before:])
    assert told.partition.rows.items() == rows


def test_balances_write_nothing() -> None:
    story = Story("grant a 9; reserve h 2 for 5h; budget b 5; wait 1h")
    story.statement()
    assert is_silent(story.partition.transitions[-1])


def is_silent(transition: Transition) -> bool:
    return not transition.records and transition.row is None and len(transition.replies) == 1


def test_a_check_after_which_time_has_moved_on_writes_what_time_has_brought() -> None:
    story = Story("grant a 9; reserve h 5 for 60s; wait 60s; check 9")
    assert story.said == "yes yes yes"
    assert movements(story.partition.entries()[-1]) == ["hold:h > grant:a 5"]
    story.tell("check 9")
    assert is_silent(story.transitions[-1])


def test_a_repeated_request_writes_the_partitions_row_alone() -> None:
    story = Story("grant a 9; reserve h 5; reserve h 5")
    assert [key for key, _ in story.transitions[-1].records] == [b"\0partition"]


def test_a_tick_for_nobody_writes_the_partitions_row_alone() -> None:
    story = Story("grant a 9 for 1h; reserve h 5; tick 59s")
    assert [key for key, _ in story.transitions[-1].records] == [b"\0partition"]
    assert story.partition.state.row.stream_at == T0 + 59 * SECOND_MS


# ---- wake-ups of idle customers ----


def due(story: Story) -> list[tuple[str, int]]:
    """Who waits for an instant, and for which (seconds after T0)."""
    rows = story.partition.rows.scan(*due_range(1 << 62))
    return [(due_customer(key), (int.from_bytes(key[5:13], "big") - T0) // SECOND_MS) for key, _ in rows]


WAITING = [
    ("nobody for nothing", "grant a 9; use 5", []),
    ("a grant's end", "grant a 9 for 1h", [("acme", 3600)]),
    ("a grant's beginning", "grant a 9 in 30m for 1h", [("acme", 1800)]),
    ("then its end", "grant a 9 in 30m for 1h; tick 30m", [("acme", 3600)]),
    ("a hold's end", "grant a 9; reserve h 5", [("acme", 300)]),
    ("the earlier of two", "grant a 9 for 60s; reserve h 5", [("acme", 60)]),
    ("then the later", "grant a 9 for 60s; reserve h 5; tick 60s", [("acme", 300)]),
    ("a later one moves nothing", "grant a 9; reserve h 5; reserve i 1 for 1h", [("acme", 300)]),
    ("an earlier one does", "grant a 9; reserve h 5; reserve i 1 for 9s", [("acme", 9)]),
    ("what is over is waited for once more", "grant a 9; reserve h 5; release h", [("acme", 300)]),
    ("and then no longer", "grant a 9; reserve h 5; release h; tick 300s", []),
    ("everybody for himself", "grant a 9 for 2m; by zeta; grant a 9 for 1m", [("zeta", 60), ("acme", 120)]),
    ("only those whose time has come", "grant a 9 for 2m; by zeta; grant a 9 for 1m; tick 90s", [("acme", 120)]),
]


@pytest.mark.parametrize("restart", ["", "restart"], ids=["in memory", "after a restart"])
@pytest.mark.parametrize(("law", "story", "expected"), WAITING)
def test_who_waits_for_what(law: str, story: str, expected: list[tuple[str, int]], restart: str) -> None:
    told = Story(f"{story}; {restart}")
    assert due(told) == expected
    told.partition.tick(400 * 24 * 3600)
    assert due(told) == []


def test_a_tick_ends_holds_of_customers_from_whom_nothing_comes() -> None:
    story = Story("grant a 9; reserve h 5; by zeta; grant b 9; reserve h 5; restart; tick 5m")
    assert [movements(entry) for entry in story.partition.entries()[-2:]] == [
        ["hold:h > grant:a 5"],
        ["hold:h > grant:b 5"],
    ]


def test_a_tick_takes_on_only_so_many_and_the_next_one_the_rest() -> None:
    story = Story("", Rules(due_per_tick_max=2))
    for customer in "abcde":
        story.tell(f"by {customer}; grant g 9 for 1m")
    left = []
    for _ in range(3):
        story.tell("tick 1m")
        left.append(len(due(story)))
    assert left == [3, 1, 0]


def test_a_tick_never_goes_back() -> None:
    story = Story("grant a 9; tick 10s")
    story.partition.now -= 5 * SECOND_MS
    story.tell("tick 1s; use 1")
    assert story.partition.state.row.stream_at == T0 + 10 * SECOND_MS
    assert story.partition.entries()[-1].at == T0 + 10 * SECOND_MS


def test_stream_time_and_offsets_are_in_the_partitions_row() -> None:
    story = Story("grant a 9; use 1; use 1; wait 1d; reserve h 5")
    row = story.partition.state.row
    assert row.applied == {topics.REQUESTS: 1, topics.USAGE: 1}
    assert (row.stream_at, row.catalog) == (T0 + DAY_MS, 1)
