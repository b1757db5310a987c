"""What the relay publishes of an entry, and what the settings let it publish."""

import json
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator

from sink_world import Story
from tallygate.connectors.clickhouse_tables import ALERTS as ALERTS_TABLE
from tallygate.schemas import export
from tallygate.schemas.amounts import to_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.journal import Alert, Cause, DecisionRecord, Entry, ShownEntry, encode_record, entry_key
from tallygate.schemas.ledger import Posting
from tallygate.schemas.published import Published, PublishedPosting, encode_published
from tallygate.schemas.reasons import Reason
from tallygate.schemas.topics import ALERTS, DECISIONS, POSTINGS, topic_specs
from tallygate.topologies.relay_records import TOPICS, Relayed
from tallygate.topologies.settings import RELAYED, SettingsError, load_settings
from tallygate.topologies.sink_rows import Batch

AT = 1_767_268_800_250
LIMIT = LimitState("budget", "agents", False, "credits", "12.5", "500", "480", "10", "10", {"agent": "drafter"})

ENTRY = Entry(
    customer="acme",
    at=AT,
    catalog=3,
    causes=(Cause("tallygate.requests.v1", 2, 90, "call-7"), Cause("tallygate.requests.v1", 2, 91, "call-8")),
    postings=(
        Posting("credits", "grant:g", -12_500_000_001, AT, 1, "g", "paid", 10_000_000, "llm"),
        Posting("credits", "hold:call-8", 12_500_000_001, AT, -1, "g", "paid", 10_000_000, "llm"),
    ),
    decisions=(
        DecisionRecord(
            id="call-7",
            op="reserve",
            allowed=False,
            reason=Reason.BUDGET_EXHAUSTED,
            at=AT,
            cause=0,
            feature="llm",
            credits_nanos=12_500_000_001,
            dimensions={"agent": "drafter"},
            limits=(LIMIT,),
            quantities={"input_tokens": 4808 * 10**9},
            at_least={"input_tokens": 5 * 10**8},
            ttl_seconds=60,
        ),
    ),
    alerts=(
        Alert("agents", {"agent": "drafter"}, "credits", 80, 500 * 10**9, 400 * 10**9, AT - 250, AT, 1),
        Alert("all", {}, "credits", 100, 500 * 10**9, 500 * 10**9, 0, AT, -1),
    ),
)
PLACE = (2, 1207, 4, 311)


def published(kind: str, entry: Entry = ENTRY) -> list[Published]:
    return list(Relayed(entry, *PLACE).of(kind))


def as_json(record: Published) -> object:
    return json.loads(encode_published(record))


def test_a_decision() -> None:
    [record] = published("decisions")
    assert as_json(record) == {
        "type": "tallygate.decision.v1",
        "customer": "acme",
        "at": "2026-01-01T12:00:00.250Z",
        "catalog": 3,
        "entry": {"partition": 2, "offset": 1207, "term": 4, "seq": 311, "number": 0},
        "cause": {"topic": "tallygate.requests.v1", "partition": 2, "offset": 90, "id": "call-7"},
        "id": "call-7",
        "op": "reserve",
        "allowed": False,
        "reason": "budget_exhausted",
        "feature": "llm",
        "credits": "12.500000001",
        "overage": "0",
        "asked": "0",
        "dimensions": {"agent": "drafter"},
        "limits": [json.loads(msgspec.json.encode(LIMIT))],
        "quantities": {"input_tokens": "4808"},
        "at_least": {"input_tokens": "0.5"},
        "ttl_seconds": 60,
    }


def test_postings() -> None:
    first, second = published("postings")
    assert as_json(first) == {
        "type": "tallygate.posting.v1",
        "customer": "acme",
        "at": "2026-01-01T12:00:00.250Z",
        "catalog": 3,
        "entry": {"partition": 2, "offset": 1207, "term": 4, "seq": 311, "number": 0},
        "cause": {"topic": "tallygate.requests.v1", "partition": 2, "offset": 91, "id": "call-8"},
        "pool": "credits",
        "account": "grant:g",
        "amount": "-12.500000001",
        "grant": "g",
        "category": "paid",
        "price": "0.01",
        "feature": "llm",
    }
    assert (second.cause, second.entry.number) == (None, 1)


def test_alerts() -> None:
    first, second = published("alerts")
    assert as_json(first) == {
        "type": "tallygate.alert.v1",
        "customer": "acme",
        "at": "2026-01-01T12:00:00.250Z",
        "catalog": 3,
        "entry": {"partition": 2, "offset": 1207, "term": 4, "seq": 311, "number": 0},
        "cause": {"topic": "tallygate.requests.v1", "partition": 2, "offset": 91, "id": "call-8"},
        "budget": "agents",
        "scope": {"agent": "drafter"},
        "unit": "credits",
        "threshold": 80,
        "limit": "500",
        "used": "400",
        "period_at": "2026-01-01T12:00:00Z",
    }
    # A lifetime began at no instant that means anything, and stream time is no input.
    assert "period_at" not in msgspec.json.decode(encode_published(second))
    assert "cause" not in msgspec.json.decode(encode_published(second))


def test_alerts_are_rows_too() -> None:
    batch = Batch()
    partition, offset, term, seq = PLACE
    shown = batch.add(partition, offset, term, seq, entry_key("acme"), encode_record(ENTRY))
    assert shown == ShownEntry(**{name: getattr(ENTRY, name) for name in ShownEntry.__struct_fields__})
    [rows] = [zip(*columns, strict=True) for table, columns in batch.filled() if table is ALERTS_TABLE]
    first, second = (dict(zip(ALERTS_TABLE.columns, row, strict=True)) for row in rows)
    assert first == {
        "customer": "acme",
        "budget": "agents",
        "scope": {"agent": "drafter"},
        "unit": "credits",
        "threshold": 80,
        "budget_limit": 500 * 10**9,
        "used": 400 * 10**9,
        "period_at": AT - 250,
        "at": AT,
        "cause_topic": "tallygate.requests.v1",
        "cause_partition": 2,
        "cause_offset": 91,
        "cause_id": "call-8",
        "catalog": 3,
        "partition": 2,
        "term": 4,
        "seq": 311,
        "offset": 1207,
        "number": 0,
    }
    assert (second["budget"], second["number"], second["cause_topic"]) == ("all", 1, "")


def test_ids_tell_records_apart_and_bytes_stay() -> None:
    """Everything a story publishes: valid by the schema, in the ledger's amounts, the same each time."""
    schema = Draft202012Validator(json.loads(export.SCHEMA_FOLDER.joinpath("published.schema.json").read_bytes()))
    entries = Story("acme", rounds=1).entries
    for kind in RELAYED:
        found = [[*Relayed(entry, 0, offset, 1, offset).of(kind)] for offset, entry in enumerate(entries)]
        again = [[*Relayed(entry, 0, offset, 1, offset).of(kind)] for offset, entry in enumerate(entries)]
        records = [record for each in found for record in each]
        assert len({record.entry.record_id for record in records}) == len(records)
        assert [*map(encode_published, records)] == [encode_published(record) for each in again for record in each]
        for record in records:
            schema.validate(as_json(record))
        for entry, each in zip(entries, found, strict=True):
            amounts = [to_nanos(record.amount) for record in each if isinstance(record, PublishedPosting)]
            assert amounts == ([leg.amount_nanos for leg in entry.postings] if kind == "postings" else [])
    assert [*Relayed(entries[0], 0, 7, 1, 2).of("postings")][1].entry.record_id == "0/7/1"


def test_everything_relayed_has_a_topic() -> None:
    assert tuple(TOPICS) == RELAYED
    assert set(TOPICS.values()) == {DECISIONS, POSTINGS, ALERTS} <= {spec.name for spec in topic_specs()}


@pytest.mark.parametrize(
    ("given", "relayed"),
    [(None, {*RELAYED}), ("alerts", {"alerts"}), (" alerts , postings ", {"alerts", "postings"}), ("", set())],
)
def test_what_is_relayed_is_set(
    given: str | None, relayed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("TALLYGATE_RELAY", given)
    assert load_settings(data_dir=tmp_path).relay == relayed


def test_what_is_not_relayed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(data_dir=tmp_path, relay="alerts,usage")
    assert str(refused.value) == ("TALLYGATE_RELAY: 'usage' is not relayed: choose among decisions, postings, alerts")
