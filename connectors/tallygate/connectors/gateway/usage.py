"""Usage events into Kafka: all of a call's events or none, each checked first, acknowledged when Kafka has them."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tallygate.connectors.gateway import bodies
from tallygate.connectors.gateway.confirmed import Outgoing
from tallygate.connectors.gateway.limits import check_customers
from tallygate.connectors.gateway.operations import JSON, Call, Operation, Parameter, Shown, json_response
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.events import BATCH, STRUCTURED, decode_events
from tallygate.schemas.reasons import Refused
from tallygate.schemas.samples import EVENT
from tallygate.schemas.topics import EVENT_BYTES_MAX, USAGE

BATCH_EVENTS_MAX: Final = 1_000
_ERRORS_SHOWN: Final = 20

EVENT_JSON: Final = STRUCTURED.decode()
BATCH_JSON: Final = BATCH.decode()
JSON_LINES: Final = ("application/x-ndjson", "application/jsonl")
CONTENT_TYPES: Final = (EVENT_JSON, BATCH_JSON, JSON, *JSON_LINES)

_STRUCTURED: Final = [("content-type", STRUCTURED)]
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode

#: A record that is ready to be sent, and whose it is.
Checked = tuple[str, bytes, list[tuple[str, bytes]]]


class Accepted(msgspec.Struct, frozen=True):
    """`accepted` events are in Kafka. One with the same source and id as another counts once in 24 hours."""

    accepted: int


async def take(call: Call) -> int:
    """Reads a call's events and sends them; how many. Raises Problem: then none of them was sent, unless it is 503."""
    checked = await _read(call.request)
    check_customers(call.key, {customer for customer, _, _ in checked})
    await call.gateway.producer.send(
        [Outgoing(USAGE, customer.encode(), value, headers) for customer, value, headers in checked],
        call.gateway.config.timeout_seconds,
    )
    call.gateway.figures.events.inc(len(checked))
    return len(checked)


async def _read(request: Request) -> Sequence[Checked]:
    if "ce-specversion" in request.headers:  # the binary mode of CloudEvents' HTTP binding
        bodies.content_type(request, (JSON,), default=JSON)
        return [_binary(request, await bodies.read_body(request, EVENT_BYTES_MAX))]
    kind = bodies.content_type(request, CONTENT_TYPES)
    body = await bodies.read_body(request)
    return check_events(list(_parts(kind, body)))


def _parts(kind: str, body: bytes) -> Iterator[bytes]:
    """The events of a body, each as it was written."""
    if kind in JSON_LINES:
        yield from (line for line in map(bytes.strip, body.split(b"\n")) if line)
    elif kind == BATCH_JSON or (kind == JSON and body.lstrip()[:1] == b"["):
        try:
            yield from map(bytes, _decode_parts(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, "malformed", f"no JSON array of CloudEvents: {error}", reason="malformed") from None
    else:
        yield body


def check_events(values: Sequence[bytes]) -> list[Checked]:
    """Every event, checked. Raises Problem 400, naming each wrong one by its number from 1, or 413."""
    if not values:
        raise Problem(400, "malformed", "there is no event in the body", reason="malformed")
    if len(values) > BATCH_EVENTS_MAX:
        raise Problem(413, "batch-too-large", f"a batch may have {BATCH_EVENTS_MAX} events: this has {len(values)}")
    checked: list[Checked] = []
    wrong: list[str] = []
    first: Refused | None = None
    for number, value in enumerate(values, 1):
        if len(value) > EVENT_BYTES_MAX:
            raise Problem(413, "event-too-large", f"event {number} has more than {EVENT_BYTES_MAX} bytes")
        try:
            [event] = decode_events(value, {})
        except Refused as refused:
            first = first or refused
            if len(wrong) < _ERRORS_SHOWN:
                wrong.append(f"event {number}: {refused.message}")
        else:
            checked.append((event.subject, value, _STRUCTURED))
    if first is not None:
        raise Problem(400, "malformed", f"nothing was sent: {wrong[0]}", reason=first.reason.value, errors=tuple(wrong))
    return checked


def _binary(request: Request, body: bytes) -> Checked:
    """An event whose attributes are `ce-` headers; it goes to Kafka in Kafka's binary mode."""
    attributes = {
        f"ce_{name[3:]}": value.encode("latin-1") for name, value in request.headers.items() if name.startswith("ce-")
    }
    headers = {"content-type": JSON.encode(), **attributes}
    try:
        [event] = decode_events(body, headers)
    except Refused as refused:
        raise Problem(400, "malformed", refused.message, reason=refused.reason.value) from None
    return event.subject, body, list(headers.items())


async def _post(call: Call) -> Response:
    return json_response(Accepted(await take(call)), 202)


def _example() -> Any:
    return msgspec.json.decode(msgspec.json.encode(EVENT.full))


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/usage",
        name="usage",
        summary="Report usage",
        text=(
            f"One CloudEvent 1.0, an array of up to {BATCH_EVENTS_MAX}, or one a line; gzip and zstd are unpacked. All "
            "of them are checked before the first is sent. 202 means that Kafka has them. `subject` is the customer; "
            "an event with the same `source` and `id` counts once in 24 hours, so sending again is safe."
        ),
        group="Usage",
        scope="ingest",
        handler=_post,
        parameters=(
            Parameter(
                "Content-Encoding",
                "How the body is packed.",
                {"type": "string", "enum": list(bodies.ENCODINGS)},
                place="header",
            ),
        ),
        body={
            EVENT_JSON: ("usage-event", _example()),
            BATCH_JSON: ("usage-events", [_example()]),
            JSON: ("usage-event-or-events", _example()),
            "application/x-ndjson": ("usage-lines", msgspec.json.encode(EVENT.minimal).decode() + "\n"),
        },
        answers={202: Shown("Kafka has them.", Accepted, Accepted(1))},
        problems=(400, 408, 413, 415),
    ),
)
