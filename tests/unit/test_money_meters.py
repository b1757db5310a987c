"""Meters: the six aggregations, filters, hours by the events' own time, late ones; and what each adds to the bill."""

from typing import Any

import pytest

from metered import AGGREGATIONS, Metered
from tallygate.schemas.amounts import NANOS

SERIES = [(5, "a"), (2, "b"), (9, "a"), (9, "c"), (4, "b")]
EXPECTED = {  # the hour's quantity, the bill
    "sum": ("29", "29"),
    "count": ("5", "5"),
    "min": ("2", "0"),
    "max": ("9", "9"),
    "latest": ("4", "0"),
    "unique": ("3", "3"),
}


@pytest.mark.parametrize("restart", [False, True], ids=["in memory", "after restarts"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations(aggregation: str, restart: bool) -> None:
    told = Metered()
    for n, who in SERIES:
        told.send(n=n, who=who)
        if restart:
            told.partition.restart()
    if not restart:
        assert told.hours(aggregation) == [f"0[] {EXPECTED[aggregation][0]} of 5"]
    statement = told.statement()
    owed = {pool.pool: pool.overage for pool in statement.pools}
    assert owed.get(aggregation, "0") == EXPECTED[aggregation][1]


def test_the_hours_rows_survive_restarts() -> None:
    told = Metered()
    for n, who in SERIES:
        told.send(n=n, who=who)
        told.partition.restart()
    told.send(n=1, who="z")
    assert {a: told.hours(a) for a in AGGREGATIONS} == {
        "sum": ["0[] 30 of 6"],
        "count": ["0[] 6 of 6"],
        "min": ["0[] 1 of 6"],
        "max": ["0[] 9 of 6"],
        "latest": ["0[] 1 of 6"],
        "unique": ["0[] 4 of 6"],
    }


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_each_hour_and_each_team_by_itself(aggregation: str) -> None:
    told = Metered("until 2026-01-01T05:30; grant g 1")
    told.send(at="2026-01-01T03:10", n=5, who="a", team="x")
    told.send(at="2026-01-01T03:50", n=2, who="a", team="x")
    told.send(at="2026-01-01T03:59", n=7, who="b", team="y")
    told.send(at="2026-01-01T04:00", n=1, who="a", team="x")
    expected = {
        "sum": "7 7 1",
        "count": "2 1 1",
        "min": "2 7 1",
        "max": "5 7 1",
        "latest": "2 7 1",
        "unique": "1 1 1",
    }[aggregation].split()
    assert told.hours(aggregation) == [
        f"3[x] {expected[0]} of 2",
        f"3[y] {expected[1]} of 1",
        f"4[x] {expected[2]} of 1",
    ]


def test_the_latest_is_the_one_with_the_latest_time() -> None:
    told = Metered("until 2026-01-01T05:30; grant g 1")
    told.send(at="2026-01-01T05:20", n=5)
    told.send(at="2026-01-01T05:10", n=7)
    assert told.hours("latest") == ["5[] 5 of 2"]
    told.send(at="2026-01-01T05:20", n=8)  # of two at one instant the later one
    assert told.hours("latest") == ["5[] 8 of 3"]
    told.partition.restart()
    told.send(at="2026-01-01T05:15", n=9)
    assert told.hours("latest") == ["5[] 8 of 4"]


def test_a_new_least_of_nothing_is_the_least() -> None:
    told = Metered()
    told.send(n=0)
    told.send(n=3)
    assert (told.hours("min"), told.hours("max")) == (["0[] 0 of 2"], ["0[] 3 of 2"])


BILLS = [  # an hour's greatest value is paid as far as it rises, a distinct value once an hour
    ("max", [("03:10", 5), ("03:20", 3), ("03:30", 8)], "8"),
    ("max", [("03:10", 5), ("04:10", 5)], "10"),
    ("unique", [("03:10", 5), ("03:20", 5), ("04:30", 5)], "2"),
    ("min", [("03:10", 5), ("03:20", 3)], "0"),
]


@pytest.mark.parametrize(("meter", "series", "bill"), BILLS)
def test_what_is_paid(meter: str, series: list[tuple[str, int]], bill: str) -> None:
    told = Metered("until 2026-01-01T05:30; grant g 1")
    for at, n in series:
        told.send(at=f"2026-01-01T{at}", n=n, who=f"w{n}")
    assert told.bill(meter) == bill


FILTERED = [
    ("one of the values", {"status": "ok", "test": False}, True),
    ("another one", {"status": "partial", "test": False}, True),
    ("none of them", {"status": "failed", "test": False}, False),
    ("one property only", {"status": "ok"}, False),
    ("a boolean as in JSON", {"status": "ok", "test": "false"}, True),
    ("another boolean", {"status": "ok", "test": True}, False),
    ("capitals are letters of their own", {"status": "OK", "test": False}, False),
    ("no text", {"status": None, "test": False}, False),
]


@pytest.mark.parametrize(("law", "data", "counts"), FILTERED)
def test_filters(law: str, data: dict[str, Any], counts: bool) -> None:
    told = Metered()
    told.send("y", n=5, **data)
    assert told.hours("tries") == ["0[] 1 of 1"]  # another meter of the type counts it
    assert told.hours("good") == (["0[] 5 of 1"] if counts else [])
    assert told.dead == []


def test_what_a_filter_leaves_out_need_not_have_the_value() -> None:
    told = Metered()
    told.send("y", status="failed")
    assert (told.hours("tries"), told.dead) == (["0[] 1 of 1"], [])


def test_late_events_count_in_their_own_hour_and_are_marked() -> None:
    told = Metered("until 2026-01-03T12:00; grant g 1")
    told.send(at="2026-01-02T11:59", n=5, who="a")
    told.send(at="2026-01-02T12:00", n=3, who="a")  # just within the grace of 24 h
    assert told.hours("sum") == ["11[] 5 of 1 late 1", "12[] 3 of 1"]
    assert told.bill("sum") == "8"


FUTURE = [("5 minutes ahead", "2026-01-01T12:05", []), ("more", "2026-01-01T12:05:00.001Z", ["time_in_future"])]


@pytest.mark.parametrize(("law", "at", "dead"), FUTURE)
def test_events_from_the_future(law: str, at: str, dead: list[str]) -> None:
    told = Metered("until 2026-01-01T12:00; grant g 1")
    told.send(at=at, n=5, who="a")
    assert told.dead == dead
    assert told.hours("sum") == ([] if dead else ["12[] 5 of 1"])


UNDONE = [
    ("sum", "0[] 4 of 1", "4"),
    ("count", "0[] 1 of 1", "1"),
    ("max", "0[] 9 of 2", "4"),  # an hour's greatest value cannot be taken back, what it cost can
    ("min", "0[] 4 of 2", "0"),
    ("latest", "0[] 9 of 2", "0"),
    ("unique", "0[] 2 of 2", "1"),
]


@pytest.mark.parametrize(("meter", "hour", "bill"), UNDONE)
def test_undone(meter: str, hour: str, bill: str) -> None:
    told = Metered()
    told.send(n=4, who="a")
    told.tell(f"undo {told.send(n=9, who='b')}")
    assert told.hours(meter) == [hour]
    assert told.statement().pools
    assert {pool.pool: pool.overage for pool in told.statement().pools}.get(meter, "0") == bill


def test_quantities_are_exact() -> None:
    told = Metered()
    for _ in range(10):
        told.send(n="0.1")
    told.send(n="0.000000001")
    [row] = [row for row in told.partition.state.account("acme").usage.values() if row.meter == "sum"]
    assert row.quantity_nanos == NANOS + 1
    assert told.bill("sum") == "1.000000001"
