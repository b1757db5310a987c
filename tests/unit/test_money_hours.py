"""Closed hours: their rows end, in portions; what comes even later still counts, in a row beside."""

import pytest

from metered import Metered
from money import instant_ms
from tallygate.pipeline.replay import hour_range
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Tick
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.events import UsageEvent, encode_event
from tallygate.schemas.instants import DAY_MS, HOUR_MS, to_datetime
from tallygate.schemas.journal import UsageRow, decode_record, split_key

OPEN_MS = HOUR_MS + 8 * DAY_MS
FIRST = instant_ms("2026-01-01T00:00")


class Closing(Metered):
    """An hour with some events, and then time."""

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__()
        if rules is not None:
            self.partition.rules = rules

    def stored(self, kind: str = "usage") -> int:
        """Rows of a kind in the local table."""
        return sum(key[:1] != b"\0" and split_key(key)[1] == kind for key, _ in self.partition.rows.items())

    def filed(self) -> int:
        return len(self.partition.rows.scan(*hour_range(1 << 61)))

    def pass_to(self, at: int) -> None:
        self.partition.now = at
        self.partition.apply(Tick(at))

    def totals(self, meter: str) -> str:
        """The hour as ClickHouse adds it up from all that was ever journaled: `quantity of events late late_events`."""
        newest: dict[tuple[str, int], UsageRow] = {}
        for key, value in self.partition.journal:
            if key[:1] != b"\0" and split_key(key)[1] == "usage" and value is not None:
                row = decode_record(value)
                assert isinstance(row, UsageRow)
                if row.meter == meter:
                    newest[split_key(key)[2], row.since] = row
        rows = list(newest.values())
        quantities = [row.quantity_nanos for row in rows]
        match max(row.aggregation for row in rows):
            case "min":
                total = min(quantities)
            case "max":
                total = max(quantities)
            case "latest":
                total = max(rows, key=lambda row: row.latest_at).quantity_nanos
            case _:
                total = sum(quantities)
        return f"{from_nanos(total)} of {sum(r.events for r in rows)} late {sum(r.late_events for r in rows)}"


def test_rows_end_when_their_hour_is_closed_and_a_replay_agrees() -> None:
    told = Closing()
    told.send(n=5, who="a")
    told.send(n=2, who="b")
    told.pass_to(FIRST + OPEN_MS - 1)
    assert (told.stored(), told.stored("value")) == (6, 2)
    told.pass_to(FIRST + OPEN_MS)
    assert (told.stored(), told.stored("value"), told.filed()) == (0, 0, 0)
    assert told.partition.replayed().items() == told.partition.rows.items()


def test_a_tick_ends_only_so_many_rows() -> None:
    told = Closing(Rules(closed_per_tick_max=3))
    for n in range(4):
        told.send(n=n, who=f"{n}")
    left = []
    for n in range(5):
        told.pass_to(FIRST + OPEN_MS + n)
        left.append(told.stored() + told.stored("value"))
    assert left == [7, 4, 1, 0, 0]


@pytest.mark.parametrize("ended", [False, True], ids=["not ended yet", "ended"])
@pytest.mark.parametrize(
    ("aggregation", "total", "billed"),
    [
        ("sum", "24 of 4 late 2", "24"),
        ("count", "4 of 4 late 2", "4"),
        ("min", "1 of 4 late 2", "0"),
        ("max", "16 of 4 late 2", "5"),  # by how much 16 is above what there was, nobody can tell
        ("latest", "16 of 4 late 2", "0"),
        ("unique", "2 of 4 late 2", "2"),  # "c" may have been there
    ],
)
def test_what_comes_after_the_end_still_counts(aggregation: str, total: str, billed: str, ended: bool) -> None:
    told = Closing()
    told.send(n=5, who="a")
    told.send(n=2, who="b")
    if ended:
        told.pass_to(FIRST + OPEN_MS)
    told.partition.now = FIRST + OPEN_MS + HOUR_MS
    told.send(at="2026-01-01T00:59", n=16, who="c")
    told.pass_to(FIRST + OPEN_MS + 2 * HOUR_MS)
    assert told.stored() == 0
    told.send(at="2026-01-01T00:30", n=1, who="a")
    assert (told.totals(aggregation), told.bill(aggregation)) == (total, billed)


@pytest.mark.parametrize("restart", [False, True])
def test_rows_of_one_instant_do_not_take_each_others_place(restart: bool) -> None:
    """An event, a tick and another event, at the same instant: in one step, or in three."""
    told = Closing()
    told.send(n=5, who="a")
    told.pass_to(FIRST + OPEN_MS)
    late = [encode_event(_late(f"late{n}", 10**n)) for n in (1, 2)]
    told.partition.now = now = FIRST + OPEN_MS + HOUR_MS
    first, second = (told.partition.record("tallygate.usage.v1", value) for value in late)
    for step in ([first], [Tick(now)], [second]) if restart else ([first, Tick(now), second],):
        told.partition.apply(*step)
        if restart:
            told.partition.restart()
    assert told.totals("sum") == "115 of 3 late 2"
    told.pass_to(now + 1)
    assert told.stored() == 0


@pytest.mark.parametrize("aggregation", ["sum", "count"])
def test_what_is_voided_after_the_end_is_taken_back(aggregation: str) -> None:
    told = Closing()
    told.send(n=5, who="a")
    told.partition.now = FIRST + OPEN_MS - 1000
    told.send(at="2026-01-01T00:10", n=7, who="b")
    told.pass_to(FIRST + OPEN_MS)
    told.tell("undo e2")
    assert told.totals(aggregation) == {"sum": "5 of 1 late 0", "count": "1 of 1 late 0"}[aggregation]


def test_memory_forgets_what_has_ended() -> None:
    told = Closing()
    told.send(n=5, who="a")
    told.pass_to(FIRST + OPEN_MS)
    account = told.partition.state.account("acme")
    assert (account.usage, account.values) == ({}, {})


def _late(id: str, n: int) -> UsageEvent:
    time = to_datetime(FIRST + 1)
    return UsageEvent(
        specversion="1.0", id=id, source="s", type="x", subject="acme", time=time, data={"n": n, "who": id}
    )
