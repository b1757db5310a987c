"""Journal records as rows of tables: what each kind becomes, and what leaves nothing."""

from collections import Counter
from typing import Any

import pytest

from sink_world import Story, ledger_sums
from tallygate.connectors.clickhouse_tables import BALANCES, DECISIONS, POSTINGS, USAGE, Table
from tallygate.schemas.answers import LimitState
from tallygate.schemas.journal import (
    OPEN_KEY,
    PARTITION_KEY,
    AccountRow,
    Cause,
    DecisionRecord,
    Entry,
    GrantRow,
    OpenRow,
    PartitionRow,
    PoolRow,
    ScopeRow,
    UsageRow,
    encode_record,
    entry_key,
    row_key,
    scope_text,
    usage_id,
)
from tallygate.schemas.ledger import Posting
from tallygate.schemas.reasons import Reason
from tallygate.topologies.sink_rows import INSTANT_MAX, Batch, UnreadableRecord

PARTITION, OFFSET, TERM, SEQ = 3, 70, 5, 9

Found = list[dict[str, Any]]


def rows_of(*records: tuple[bytes, bytes | None]) -> dict[str, Found]:
    """Rows by table, of records one offset after the other."""
    batch = Batch()
    for number, (key, value) in enumerate(records):
        batch.add(PARTITION, OFFSET + number, TERM, SEQ, key, value)
    return {table.name: named(table, columns) for table, columns in batch.filled()}


def named(table: Table, columns: list[list[Any]]) -> Found:
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def row(customer: str, kind: str, id: str, content: Any) -> tuple[bytes, bytes]:
    return row_key(customer, kind, id), encode_record(content)


def grant(**fields: Any) -> GrantRow:
    given = {"id": "g", "pool": "credits", "amount_nanos": 100, "balance_nanos": 60, "held_nanos": 10, "priority": 1}
    return GrantRow(**{**given, "created_at": 1, "effective_at": 2, **fields})


def test_a_posting_is_a_row_with_its_cause_and_its_place() -> None:
    entry = Entry(
        customer="acme",
        at=1000,
        catalog=4,
        causes=(Cause("tallygate.usage.v1", 3, 11, "e1"), Cause("tallygate.requests.v1", 3, 12, "s1")),
        postings=(
            Posting("credits", "grant:g", -25, 990, 1, "g", "paid", 7, "llm"),
            Posting("credits", "consumed:llm", 25, 990, -1),
        ),
    )
    found = rows_of((entry_key("acme"), encode_record(entry)))
    assert set(found) == {POSTINGS.name}
    place = {"catalog": 4, "partition": PARTITION, "term": TERM, "seq": SEQ, "offset": OFFSET}
    assert found[POSTINGS.name] == [
        {
            "customer": "acme",
            "asset": "credits",
            "account": "grant:g",
            "amount": -25,
            "at": 990,
            "grant": "g",
            "category": "paid",
            "price": 7,
            "feature": "llm",
            "cause_topic": "tallygate.requests.v1",
            "cause_partition": 3,
            "cause_offset": 12,
            "cause_id": "s1",
            **place,
            "leg": 0,
        },
        {
            "customer": "acme",
            "asset": "credits",
            "account": "consumed:llm",
            "amount": 25,
            "at": 990,
            "grant": "",
            "category": "",
            "price": 0,
            "feature": "",
            "cause_topic": "",
            "cause_partition": -1,
            "cause_offset": -1,
            "cause_id": "",
            **place,
            "leg": 1,
        },
    ]


def test_a_decision_is_a_row_with_the_limits_that_said_no() -> None:
    limit = LimitState("budget", "agents", False, "credits", "75", "500", "450", "0", "50", {"agent": "a"})
    decision = DecisionRecord(
        id="r1",
        op="reserve",
        allowed=False,
        reason=Reason.BUDGET_EXHAUSTED,
        at=990,
        cause=0,
        feature="llm",
        credits_nanos=75,
        dimensions={"agent": "a"},
        limits=(limit,),
    )
    entry = Entry(customer="acme", at=1000, catalog=4, causes=(Cause("t", 3, 11, "r1"),), decisions=(decision,) * 2)
    first, second = rows_of((entry_key("acme"), encode_record(entry)))[DECISIONS.name]
    assert first["limits"] == (
        '[{"kind":"budget","name":"agents","ok":false,"unit":"credits","asked":"75","limit":"500","used":"450",'
        '"held":"0","remaining":"50","scope":{"agent":"a"}}]'
    )
    shown = {
        key: first[key]
        for key in ("customer", "id", "op", "allowed", "reason", "credits", "dimensions", "cause_offset")
    }
    assert shown == {
        "customer": "acme",
        "id": "r1",
        "op": "reserve",
        "allowed": False,
        "reason": "budget_exhausted",
        "credits": 75,
        "dimensions": {"agent": "a"},
        "cause_offset": 11,
    }
    assert (first["number"], second["number"]) == (0, 1)


def test_usage_is_an_absolute_row_under_its_offset() -> None:
    dimensions = {"team": "r,d", "agent": "a"}
    usage = UsageRow("tokens", 3_600_000 * 5, dimensions, 42, 3, 1)
    [found] = rows_of(row("acme", "usage", usage_id("tokens", usage.hour, dimensions), usage))[USAGE.name]
    assert found == {
        "customer": "acme",
        "meter": "tokens",
        "dimensions": dimensions,
        "hour": 18_000,
        "quantity": 42,
        "events": 3,
        "late_events": 1,
        "scope": scope_text(dimensions),
        "version": OFFSET,
        "since": 0,
        "aggregation": "",
        "latest_at": 0,
    }


def test_balances_add_up_by_pool() -> None:
    found = rows_of(
        row("acme", "grant", "g", grant(active=True, expires_at=5)),
        row("acme", "pool", "credits", PoolRow("credits", overage_nanos=8)),
    )[BALANCES.name]
    assert [(r["kind"], r["id"], r["pool"], r["balance"], r["held"], r["overage"], r["version"]) for r in found] == [
        ("grant", "g", "credits", 60, 10, 0, OFFSET),
        ("pool", "credits", "credits", 0, 0, 8, OFFSET + 1),
    ]
    assert (found[0]["effective_at"], found[0]["expires_at"], found[0]["active"]) == (2, 5, True)


def test_an_expiry_beyond_what_clickhouse_shows_is_its_last_instant() -> None:
    [found] = rows_of(row("acme", "grant", "g", grant(expires_at=253_402_300_799_000)))[BALANCES.name]
    assert found["expires_at"] == INSTANT_MAX


@pytest.mark.parametrize(("kind", "id"), [("grant", "g"), ("pool", "credits")])
def test_a_tombstone_removes_the_balance_under_the_same_key(kind: str, id: str) -> None:
    [found] = rows_of((row_key("acme", kind, id), None))[BALANCES.name]
    assert (found["customer"], found["kind"], found["id"]) == ("acme", kind, id)
    assert (found["version"], found["removed"]) == (OFFSET, 1)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        (PARTITION_KEY, PartitionRow({"tallygate.usage.v1": 1}, 1, 1)),
        (OPEN_KEY, OpenRow("me", 1)),
        (row_key("acme", "account"), AccountRow("acme", 1)),
        (row_key("acme", "scope", "s"), ScopeRow("s", "b", {}, 0)),
        (row_key("acme", "hold", "h"), None),
        (row_key("acme", "usage", "tokens\0000\000"), None),
        (entry_key("acme"), None),
    ],
)
def test_what_leaves_nothing(key: bytes, content: Any) -> None:
    assert rows_of((key, None if content is None else encode_record(content))) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"acme\0entry\0", b"{"),
        (b"acme\0entry\0", b'{"row":"entry.v2"}'),
        (b"acme\0grant\0g", encode_record(PoolRow("credits"))[:-1]),
        (b"acme\0usage\0u", encode_record(AccountRow("acme", 1))),
        (b"acme", b"{}"),
        (b"\xff\0entry\0", b"{}"),
    ],
)
def test_what_cannot_be_read_is_said(key: bytes, value: bytes) -> None:
    with pytest.raises(UnreadableRecord):
        rows_of((key, value))


def test_a_whole_story_adds_up_to_its_ledger() -> None:
    story = Story("acme")
    found = rows_of(*(record for records in story.transitions for record in records))
    sums: Counter[tuple[str, str, str]] = Counter()
    for leg in found[POSTINGS.name]:
        sums[leg["customer"], leg["asset"], leg["account"]] += leg["amount"]
    assert dict(sums) == ledger_sums([story])
    assert len(found[DECISIONS.name]) == sum(len(entry.decisions) for entry in story.entries)
    for name, columns in found.items():
        assert columns, name
