"""Usage events: CloudEvents 1.0 on `tallygate.usage.v1`, keyed by customer.

Source: CloudEvents 1.0.2 with its Kafka protocol binding. Three forms are read:

* structured: the value is one JSON object (content type `application/cloudevents+json`, or none),
* binary: attributes in `ce_` headers, the value is the JSON data,
* batch: the value is a JSON array of events of one partition (`application/cloudevents-batch+json`).

`subject` is the customer, `type` chooses the meters, `data` holds the quantities and dimensions. Numbers in `data` are
read exactly. Attributes that are not named here are allowed and ignored.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallygate.schemas.instants import from_datetime
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.topics import EVENT_BYTES_MAX

STRUCTURED: Final = b"application/cloudevents+json"
BATCH: Final = b"application/cloudevents-batch+json"
BATCH_EVENTS_MAX: Final = 10_000
NAME_MAX: Final = 256
ID_MAX: Final = 512


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fact of consumption. `(source, id)` identifies it; `time` is when it happened (default: when it arrived)."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str = ""
    time: datetime | None = None
    datacontenttype: str = "application/json"
    data: dict[str, Any] = {}

    @property
    def at(self) -> int | None:
        """The event's own time in milliseconds, or None."""
        return None if self.time is None else from_datetime(self.time)


_decode_one = msgspec.json.Decoder(UsageEvent, float_hook=Decimal).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_data = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
_convert = msgspec.convert
encode_event = msgspec.json.Encoder().encode


def decode_events(value: bytes | None, headers: Mapping[str, bytes]) -> tuple[UsageEvent, ...]:
    """The events of one record; `Refused` says what is wrong with it."""
    if value is None:
        raise Refused(Reason.MALFORMED, "the record has no value")
    content_type = headers.get("content-type", b"").split(b";")[0].strip().lower()
    if content_type == BATCH:
        return _decode_batch(value)
    if len(value) > EVENT_BYTES_MAX:
        raise Refused(Reason.TOO_LARGE, f"the event has {len(value)} bytes: at most {EVENT_BYTES_MAX}")
    event = _decode_binary(value, headers) if "ce_specversion" in headers else _decode_structured(value)
    return (event,)


def _decode_batch(value: bytes) -> tuple[UsageEvent, ...]:
    try:
        parts = _decode_parts(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(Reason.MALFORMED, f"no JSON array of CloudEvents: {error}") from None
    if len(parts) > BATCH_EVENTS_MAX:
        raise Refused(Reason.TOO_LARGE, f"the batch has {len(parts)} events: at most {BATCH_EVENTS_MAX}")
    for number, part in enumerate(parts):
        if len(bytes(part)) > EVENT_BYTES_MAX:
            raise Refused(Reason.TOO_LARGE, f"event {number} of the batch has more than {EVENT_BYTES_MAX} bytes")
    return tuple(_decode_structured(bytes(part)) for part in parts)


def _decode_structured(value: bytes) -> UsageEvent:
    try:
        event = _decode_one(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(Reason.MALFORMED, f"no CloudEvent in JSON: {error}") from None
    return _checked(event)


def _decode_binary(value: bytes, headers: Mapping[str, bytes]) -> UsageEvent:
    try:
        attributes: dict[str, Any] = {k[3:]: v.decode() for k, v in headers.items() if k.startswith("ce_")}
        attributes["data"] = _decode_data(value) if value else {}
        event = _convert(attributes, UsageEvent, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(Reason.MALFORMED, f"no CloudEvent in ce_ headers with JSON data: {error}") from None
    return _checked(event)


def _checked(event: UsageEvent) -> UsageEvent:
    if event.specversion != "1.0":
        raise Refused(Reason.MALFORMED, f"specversion {event.specversion[:16]!r}: only 1.0 is known")
    if not event.subject:
        raise Refused(Reason.CUSTOMER_MISSING, "the event has no subject: set it to the customer")
    if not event.id or not event.source or not event.type:
        raise Refused(Reason.MALFORMED, "id, source and type must not be empty")
    if len(event.subject) > NAME_MAX or len(event.type) > NAME_MAX:
        raise Refused(Reason.MALFORMED, f"subject or type is longer than {NAME_MAX} characters")
    if len(event.id) > ID_MAX or len(event.source) > ID_MAX:
        raise Refused(Reason.MALFORMED, f"id or source is longer than {ID_MAX} characters")
    if not event.subject.isprintable():
        raise Refused(Reason.MALFORMED, "the subject holds control characters")
    if event.time is not None and event.time.tzinfo is None:
        raise Refused(Reason.MALFORMED, "time has no offset: write it in UTC, like 2026-01-31T00:00:00Z")
    return event
