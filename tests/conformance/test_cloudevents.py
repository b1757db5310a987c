"""Usage events as the CloudEvents SDK for Python writes them to Kafka, read by ours."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from tallygate.schemas.events import BATCH, UsageEvent, decode_events, encode_event
from tallygate.schemas.reasons import Refused

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def cloud_event(data: Any = None, **attributes: Any) -> CloudEvent:
    base = {"id": "call-7", "source": "/gateway/eu-1", "type": "llm.call", "subject": "acme", "time": NOON}
    return CloudEvent({**base, "specversion": "1.0", **attributes}, data)


def read(message: KafkaMessage) -> UsageEvent:
    (event,) = decode_events(message.value, message.headers)
    return event


DATA = {"input_tokens": 4808, "seconds": 1.25, "team": "research", "cached": False, "nothing": None}

EVENTS = [
    ("data", cloud_event(DATA)),
    ("no data", cloud_event()),
    ("a content type", cloud_event(DATA, datacontenttype="application/json")),
    ("a content type of its own", cloud_event(DATA, datacontenttype="application/vnd.acme.call+json; charset=utf-8")),
    ("data as bytes", cloud_event(json.dumps(DATA).encode(), datacontenttype="application/json")),
    ("a schema", cloud_event(DATA, dataschema="https://acme.example/call.json")),
    ("letters of any language", cloud_event({"team": "研究"}, subject="Ægir 株式会社", id="呼び出し-7")),
    ("an offset", cloud_event(DATA, time=NOON.astimezone(timezone(timedelta(hours=-3, minutes=-30))))),
    ("microseconds", cloud_event(DATA, time=NOON + timedelta(microseconds=1))),
    ("extensions", cloud_event(DATA, partitionkey="acme", traceparent="00-ab-cd-01", sequence="7", sampled=True)),
]


@pytest.mark.parametrize(("why", "event"), EVENTS, ids=[why for why, _ in EVENTS])
def test_both_modes_of_the_sdk_are_one_event_to_us(why: str, event: CloudEvent) -> None:
    structured, binary = read(to_structured_event(event)), read(to_binary_event(event))
    assert structured == binary
    assert (structured.id, structured.source, structured.type) == (event.get_id(), event.get_source(), "llm.call")
    assert structured.subject == event.get_subject()
    assert structured.time == event.get_time()
    assert structured.datacontenttype == (event.get_datacontenttype() or "application/json")


def test_data_comes_through_exactly() -> None:
    for message in (to_structured_event(cloud_event(DATA)), to_binary_event(cloud_event(DATA))):
        data = read(message).data
        assert data == {**DATA, "seconds": Decimal("1.25")}
        assert [type(value) for value in data.values()] == [int, Decimal, str, bool, type(None)]


def test_extensions_are_ignored() -> None:
    plain = read(to_structured_event(cloud_event(DATA)))
    extended = cloud_event(DATA, partitionkey="acme", traceparent="00-ab-cd-01", sampled=True, level=3)
    assert read(to_structured_event(extended)) == plain
    assert read(to_binary_event(extended)) == plain


def test_a_batch_is_its_events() -> None:
    events = [event for _, event in EVENTS]
    batch = b"[" + b",".join(JSONFormat().write(event) for event in events) + b"]"
    found = decode_events(batch, {"content-type": BATCH + b"; charset=UTF-8"})
    assert found == tuple(read(to_structured_event(event)) for event in events)


def test_an_empty_batch_is_no_event() -> None:
    assert decode_events(b"[]", {"content-type": BATCH}) == ()


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31T12:00:00+00:00", NOON),
        ("2026-01-31T12:00:00-00:00", NOON),
        ("2026-01-31T17:30:00+05:30", NOON),
        ("2026-01-30T12:01:00-23:59", NOON),
        ("2026-01-31T12:00:00.5Z", NOON + timedelta(milliseconds=500)),
        ("2026-01-31T12:00:00.123456Z", NOON + timedelta(microseconds=123456)),
        ("2026-01-31T12:00:00.000000000Z", NOON),
    ],
)
def test_the_time_forms_of_rfc_3339(text: str, instant: datetime) -> None:
    message = to_binary_event(cloud_event(DATA))
    headers = {**message.headers, "ce_time": text.encode()}
    structured = {**json.loads(to_structured_event(cloud_event(DATA)).value), "time": text}
    for event in (
        *decode_events(message.value, headers),
        *decode_events(json.dumps(structured).encode(), {}),
    ):
        assert event.time == instant
        assert event.at == int(instant.timestamp() * 1000)


@pytest.mark.parametrize("name", ["time", "subject", "datacontenttype", "data", "dataschema"])
def test_an_attribute_written_as_null_is_not_set(name: str) -> None:
    """Source: CloudEvents 1.0.2, JSON event format, section 2.2: unset attributes may be encoded as null."""
    written = json.loads(to_structured_event(cloud_event(DATA, dataschema="https://acme.example/call.json")).value)
    without = {key: value for key, value in written.items() if key != name}
    assert outcome(written | {name: None}) == outcome(without)


def outcome(document: dict[str, Any]) -> tuple[UsageEvent, ...] | str:
    try:
        return decode_events(json.dumps(document).encode(), {})
    except Refused as refused:
        return str(refused)


def test_the_sdk_reads_what_we_write() -> None:
    ours = UsageEvent(
        specversion="1.0",
        id="call-7",
        source="/gateway/eu-1",
        type="llm.call",
        subject="acme",
        time=NOON,
        data={"n": 1},
    )
    theirs = JSONFormat().read(None, encode_event(ours))
    assert read(to_structured_event(theirs)) == read(to_binary_event(theirs)) == ours
