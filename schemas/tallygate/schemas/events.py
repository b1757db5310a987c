"""Usage events: CloudEvents 1.0 on `tallygate.usage.v1`, keyed by customer.

Source: CloudEvents 1.0.2 with its Kafka protocol binding. Three forms are read:

* structured: the value is one JSON object (content type `application/cloudevents+json`, or none),
* binary: attributes in `ce_` headers, the value is the JSON data,
* batch: the value is a JSON array of events of one partition (`application/cloudevents-batch+json`).

`subject` is the customer, `type` chooses the meters, `data` holds the quantities and dimensions. Numbers in `data` are
read exactly; `data_base64` is read where it holds a JSON object. A null attribute is one that is not set (JSON format,
section 2.2). Attributes that are not named here are allowed and ignored.
"""

from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from tallygate.schemas.instants import EPOCH, LATEST, from_datetime
from tallygate.schemas.names import NAME_MAX as NAME_MAX
from tallygate.schemas.names import has_control
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.topics import EVENT_BYTES_MAX

STRUCTURED: Final = b"application/cloudevents+json"
BATCH: Final = b"application/cloudevents-batch+json"
BATCH_EVENTS_MAX: Final = 10_000
ID_MAX: Final = 512

#: Types of events that undo another, which they name by its source and id.
VOIDED: Final = "tallygate.usage.voided"
CORRECTED: Final = "tallygate.usage.corrected"
CORRECTIONS: Final = (VOIDED, CORRECTED)


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
    data_base64: str | None = None

    @property
    def at(self) -> int | None:
        """The event's own time in milliseconds, or None."""
        return None if self.time is None else from_datetime(self.time)


_decode_one = msgspec.json.Decoder(UsageEvent, float_hook=Decimal).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_data = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
_convert = msgspec.convert
encode_event = msgspec.json.Encoder().encode

#: What a decoder raises at bytes it cannot read: InvalidOperation is an exponent beyond what Decimal holds.
_Undecodable: Final = (msgspec.MsgspecError, UnicodeDecodeError, InvalidOperation, RecursionError)


def decode_events(value: bytes | None, headers: Mapping[str, bytes]) -> tuple[UsageEvent, ...]:
    """The events of one record; `Refused` says what is wrong with it."""
    if value is None:
        raise Refused(Reason.MALFORMED, "the record has no value")
    content_type = headers.get("content-type", b"").split(b";")[0].strip().lower()
    if content_type == BATCH:
        return _decode_batch(value)
    if len(value) > EVENT_BYTES_MAX:
        raise Refused(Reason.TOO_LARGE, f"the event has {len(value)} bytes: at most {EVENT_BYTES_MAX}")
    # The binding lets a structured event carry the ce_ headers too.
    binary = "ce_specversion" in headers and content_type != STRUCTURED
    return (_decode_binary(value, headers) if binary else _decode_structured(value),)


def _decode_batch(value: bytes) -> tuple[UsageEvent, ...]:
    try:
        parts = _decode_parts(value)
    except _Undecodable as error:
        raise Refused(Reason.MALFORMED, f"no JSON array of CloudEvents: {_why(error)}") from None
    if len(parts) > BATCH_EVENTS_MAX:
        raise Refused(Reason.TOO_LARGE, f"the batch has {len(parts)} events: at most {BATCH_EVENTS_MAX}")
    events = []
    for number, part in enumerate(map(bytes, parts)):
        if len(part) > EVENT_BYTES_MAX:
            raise Refused(Reason.TOO_LARGE, f"event {number} of the batch has more than {EVENT_BYTES_MAX} bytes")
        try:
            events.append(_decode_structured(part))
        except Refused as refused:
            raise Refused(refused.reason, f"event {number} of the batch: {refused.message}") from None
    return tuple(events)


def _decode_structured(value: bytes) -> UsageEvent:
    try:
        event = _decode_one(value)
    except msgspec.ValidationError as error:
        event = _without_nulls(value, error)
    except _Undecodable as error:
        raise Refused(Reason.MALFORMED, f"no CloudEvent in JSON: {_why(error)}") from None
    return _checked(event)


def _without_nulls(value: bytes, first: msgspec.ValidationError) -> UsageEvent:
    """A second reading for the rare event that writes attributes it does not set as null."""
    try:
        attributes = _decode_data(value)
        return _convert({k: v for k, v in attributes.items() if v is not None}, UsageEvent)
    except _Undecodable:
        raise Refused(Reason.MALFORMED, f"no CloudEvent in JSON: {first}") from None


def _decode_binary(value: bytes, headers: Mapping[str, bytes]) -> UsageEvent:
    try:
        attributes: dict[str, Any] = {k[3:]: v.decode() for k, v in headers.items() if k.startswith("ce_")}
        if content_type := headers.get("content-type"):
            attributes["datacontenttype"] = content_type.decode()
        attributes["data"] = _decode_data(value) if value else {}
        attributes.pop("data_base64", None)
        event = _convert(attributes, UsageEvent)
    except _Undecodable as error:
        raise Refused(Reason.MALFORMED, f"no CloudEvent in ce_ headers with JSON data: {_why(error)}") from None
    return _checked(event)


def _why(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case InvalidOperation():
            return "a number's exponent is out of range"
        case _:
            return str(error)


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
    if has_control(f"{event.subject}{event.id}{event.source}{event.type}"):
        raise Refused(Reason.MALFORMED, "subject, id, source or type holds control characters")
    if event.time is not None:
        if event.time.tzinfo is None:
            raise Refused(Reason.MALFORMED, "time has no offset: write it in UTC, like 2026-01-31T00:00:00Z")
        if not EPOCH <= event.time <= LATEST:
            raise Refused(Reason.MALFORMED, "time lies outside the years 1970 to 9999 in UTC")
    return event if event.data_base64 is None else _with_data(event, event.data_base64)


def _with_data(event: UsageEvent, encoded: str) -> UsageEvent:
    try:
        data = _decode_data(b64decode(encoded, validate=True))
    except (ValueError, *_Undecodable):
        raise Refused(Reason.MALFORMED, "data_base64 holds no JSON object") from None
    return msgspec.structs.replace(event, data=data, data_base64=None)
