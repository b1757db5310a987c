"""From journal records to the local table."""

import msgspec
import pytest

from tallygate.pipeline import replay
from tallygate.pipeline.replay import due_customer, due_key, due_range, forgotten_range, seen_key, table_writes
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.journal import (
    OPEN_KEY,
    PARTITION_KEY,
    AccountRow,
    Entry,
    OpenRow,
    PartitionRow,
    Seen,
    encode_record,
    entry_key,
    row_key,
    usage_id,
)

T = 1_767_268_800_000
DIGEST = bytes(range(16))
NULL = msgspec.Raw(b"null")
ACCOUNT = row_key("acme", "account")


def written(key: bytes, value: bytes | None) -> list[replay.Write]:
    return list(table_writes(key, value))


def account(due_at: int = 0, was_due_at: int = 0) -> bytes:
    return encode_record(AccountRow(customer="acme", created_at=T, due_at=due_at, was_due_at=was_due_at))


@pytest.mark.parametrize("kind", ["budget", "grant", "hold", "pool", "scope"])
def test_a_row_goes_in_as_it_is_and_a_tombstone_takes_it_out(kind: str) -> None:
    key = row_key("acme", kind, "x\0y")
    assert written(key, b"any bytes") == [(key, b"any bytes")]
    assert written(key, None) == [(key, None)]


@pytest.mark.parametrize("hour", [0, T - T % 3_600_000, -7_200_000])
@pytest.mark.parametrize(("kind", "more"), [("usage", ""), ("value", "\0f00d")])
def test_what_belongs_to_an_hour_is_filed_under_it(hour: int, kind: str, more: str) -> None:
    key = row_key("acme", kind, usage_id("tokens", hour, {"team": "x"}) + more)
    [row, filed] = written(key, b"any bytes")
    assert (row, filed[1]) == ((key, b"any bytes"), b"")
    assert replay.of_hour(filed[0]) == key
    begin, end = replay.hour_range(max(0, hour) + 1)
    assert begin < filed[0] < end
    assert hour <= 0 or not filed[0] < replay.hour_range(hour)[1]
    assert written(key, None) == [(key, None), (filed[0], None)]


def test_the_partition_row_is_kept_and_the_open_record_is_not() -> None:
    row = encode_record(PartitionRow(applied={"t": 1}, stream_at=T, catalog=1))
    assert written(PARTITION_KEY, row) == [(PARTITION_KEY, row)]
    assert written(OPEN_KEY, encode_record(OpenRow(owner="o", at=T))) == []
    assert written(OPEN_KEY, None) == []


def test_of_an_entry_only_the_ids_seen_are_kept() -> None:
    seen = (Seen(DIGEST.hex(), NULL), Seen(DIGEST[::-1].hex(), msgspec.Raw(b'{"allowed":true}')))
    entry = encode_record(Entry(customer="acme", at=T, catalog=1, causes=(), seen=seen))
    assert written(entry_key("acme"), entry) == [
        (seen_key(T // DAY_MS, DIGEST), b"%d null" % T),
        (seen_key(T // DAY_MS, DIGEST[::-1]), b'%d {"allowed":true}' % T),
    ]
    assert written(entry_key("acme"), None) == []


@pytest.mark.parametrize(
    ("was_due_at", "due_at", "moves"),
    [
        pytest.param(0, 0, [], id="never due"),
        pytest.param(0, T, [(due_key(T, "acme"), b"")], id="due for the first time"),
        pytest.param(T, 0, [(due_key(T, "acme"), None)], id="no more due"),
        pytest.param(T, T, [(due_key(T, "acme"), b"")], id="due as before"),
        pytest.param(T, T + 1, [(due_key(T, "acme"), None), (due_key(T + 1, "acme"), b"")], id="due later"),
        pytest.param(T, T - 1, [(due_key(T, "acme"), None), (due_key(T - 1, "acme"), b"")], id="due sooner"),
    ],
)
def test_the_due_index_moves_with_the_account(was_due_at: int, due_at: int, moves: list[replay.Write]) -> None:
    row = account(due_at, was_due_at)
    assert written(ACCOUNT, row) == [(ACCOUNT, row), *moves]


def test_an_account_that_ends_leaves_by_its_tombstone() -> None:
    assert written(ACCOUNT, None) == [(ACCOUNT, None)]


def test_a_record_written_twice_leaves_the_table_as_once() -> None:
    """A batch appended again at once is accepted again."""
    story = [
        (ACCOUNT, account(due_at=T)),
        (ACCOUNT, account(due_at=T + 5, was_due_at=T)),
        (
            entry_key("acme"),
            encode_record(Entry(customer="acme", at=T, catalog=1, causes=(), seen=(Seen(DIGEST.hex(), NULL),))),
        ),
        (ACCOUNT, account(was_due_at=T + 5)),
    ]
    once: dict[bytes, bytes | None] = {}
    twice: dict[bytes, bytes | None] = {}
    for key, value in story:
        once.update(table_writes(key, value))
        for _ in range(2):
            twice.update(table_writes(key, value))
        assert twice == once
    assert {key for key, value in once.items() if value is not None and key.startswith(b"\0due")} == set()


def within(bounds: tuple[bytes, bytes], key: bytes) -> bool:
    return bounds[0] <= key < bounds[1]


@pytest.mark.parametrize(
    ("at", "due"), [(0, True), (T - 1, True), (T, True), (T + 1, False), (T + 256, False), (2**63, False)]
)
def test_the_due_range_ends_with_its_instant(at: int, due: bool) -> None:
    assert within(due_range(T), due_key(at, "acme")) is due
    assert due_customer(due_key(at, "Ægir\u00a0␀")) == "Ægir\u00a0␀"


def test_due_customers_come_in_order_of_time() -> None:
    keys = [
        due_key(at, customer) for at, customer in [(9, "z"), (10, "a"), (255, "a"), (256, "a"), (256, "b"), (T, "a")]
    ]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("days_ago", "forgotten"), [(0, False), (1, False), (2, True), (3, True), (400, True), (-1, False)]
)
def test_ids_are_forgotten_from_the_day_before_yesterday_on(days_ago: int, forgotten: bool) -> None:
    """An id of yesterday's first instant may be remembered until today's last one."""
    today = T // DAY_MS
    for stream_at in (today * DAY_MS, today * DAY_MS + DAY_MS - 1):
        assert within(forgotten_range(stream_at), seen_key(today - days_ago, DIGEST)) is forgotten


def test_forgetting_touches_ids_only() -> None:
    bounds = forgotten_range(T)
    for key in (PARTITION_KEY, OPEN_KEY, ACCOUNT, due_key(0, "acme"), due_key(T, "acme")):
        assert not within(bounds, key)


def test_the_due_range_touches_the_due_index_only() -> None:
    bounds = due_range(T)
    for key in (PARTITION_KEY, OPEN_KEY, ACCOUNT, seen_key(0, DIGEST), seen_key(T // DAY_MS, DIGEST)):
        assert not within(bounds, key)
