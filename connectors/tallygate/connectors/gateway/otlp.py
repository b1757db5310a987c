"""OpenTelemetry's traces over OTLP/HTTP, protobuf and JSON: spans of calls to language models become usage events.

Answered when Kafka has the events. What cannot be one is rejected by number, as OTLP's partial success says, and the
rest is taken; a span that names somebody else's customer refuses the call whole, as everywhere. Spans that a sampler
kept for others stand for more than themselves, so they are no bill: they are marked, with the share that was kept, and
have a type of their own, which counts only where a meter of the catalog asks for it.

Source: OTLP 1.10, its section on OTLP/HTTP.
"""

from base64 import b64encode
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.responses import Response

from tallygate.connectors.gateway import bodies
from tallygate.connectors.gateway.confirmed import Outgoing
from tallygate.connectors.gateway.limits import check_customers
from tallygate.connectors.gateway.operations import JSON, Call, Operation, json_response
from tallygate.connectors.gateway.otlp_spans import SAMPLED_SUFFIX, Reading, SpanRefused, events_of
from tallygate.connectors.gateway.problems import Problem
from tallygate.connectors.gateway.usage import BATCH_EVENTS_MAX
from tallygate.schemas.events import STRUCTURED, UsageEvent, decode_events, encode_event
from tallygate.schemas.reasons import Refused
from tallygate.schemas.topics import USAGE

PROTOBUF: Final = "application/x-protobuf"
_HEADERS: Final = [("content-type", STRUCTURED)]
_ERRORS_SHOWN: Final = 5


async def _post(call: Call) -> Response:
    kind = bodies.content_type(call.request, (PROTOBUF, JSON))
    try:
        rejected, message = await _take(call, kind)
    except Problem as problem:
        if kind == JSON:
            raise
        return Response(_status(problem.detail), problem.status, problem.headers, PROTOBUF)
    if kind == JSON:
        partial = {"rejectedSpans": str(rejected), "errorMessage": message}
        return json_response({"partialSuccess": partial} if message else {})
    answer = ExportTraceServiceResponse()
    if message:
        answer.partial_success.rejected_spans = rejected
        answer.partial_success.error_message = message
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


async def _take(call: Call, kind: str) -> tuple[int, str]:
    """Sends the events of a call; how many spans were rejected, and what there is to say."""
    config, key = call.gateway.config, call.key
    reading = Reading(
        config.otlp_customer_attribute,
        key.customers[0] if len(key.customers) == 1 else "",
        config.otlp_event_type,
    )
    request = _parsed(await bodies.read_body(call.request), kind)
    events: list[UsageEvent] = []
    refused: list[str] = []
    for resource in request.resource_spans:
        for found in events_of(resource, reading):
            if isinstance(found, SpanRefused):
                refused.append(str(found))
            else:
                events.append(found)
    if len(events) > BATCH_EVENTS_MAX:
        raise Problem(
            413, "batch-too-large", f"a call may have {BATCH_EVENTS_MAX} spans with usage: this has {len(events)}"
        )
    check_customers(key, {event.subject for event in events})
    counted, sampled = _counted(call, events)
    outgoing = list(_outgoing(counted, refused))
    await call.gateway.producer.send(outgoing, config.timeout_seconds)
    call.gateway.figures.events.inc(len(outgoing))
    return len(refused), _message(refused, sampled, reading.event_type)


def _counted(call: Call, events: list[UsageEvent]) -> tuple[list[UsageEvent], int]:
    """Without sampled ones, unless a meter asks for them; and how many of those there were."""
    sampled_type = call.gateway.config.otlp_event_type + SAMPLED_SUFFIX
    if any(meter.event_type == sampled_type for meter in call.gateway.newest.catalog.meters):
        return events, 0
    counted = [event for event in events if event.type != sampled_type]
    return counted, len(events) - len(counted)


def _outgoing(events: Iterable[UsageEvent], refused: list[str]) -> Iterable[Outgoing]:
    """The records of events; those that are none after all join the refused."""
    for event in events:
        value = encode_event(event)
        try:
            decode_events(value, {})
        except Refused as error:
            refused.append(f"span {event.id.partition('/')[2]}: {error.message}")
        else:
            yield Outgoing(USAGE, event.subject.encode(), value, _HEADERS)


def _message(refused: list[str], sampled: int, event_type: str) -> str:
    said = refused[:_ERRORS_SHOWN]
    if len(refused) > _ERRORS_SHOWN:
        said.append(f"and {len(refused) - _ERRORS_SHOWN} more")
    if sampled:
        said.append(
            f"{sampled} sampled spans are not billed; a meter of type {event_type + SAMPLED_SUFFIX!r} would count them"
        )
    return "; ".join(said)


def _parsed(body: bytes, kind: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    try:
        if kind == PROTOBUF:
            request.ParseFromString(body)
        else:
            ParseDict(_with_base64(msgspec.json.decode(body)), request, ignore_unknown_fields=True)
    except (DecodeError, ParseError, msgspec.MsgspecError, AttributeError, TypeError, ValueError, RecursionError):
        raise Problem(400, "malformed", f"the body is no OTLP trace request in {kind}", reason="malformed") from None
    return request


def _with_base64(document: Any) -> Any:
    """Ids as protobuf's JSON writes bytes: OTLP writes them in hexadecimal."""
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                span.pop("links", None)
                span.pop("events", None)
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = b64encode(bytes.fromhex(span[name])).decode()
    return document


def _status(message: str) -> bytes:
    """A google.rpc.Status that holds a message alone (its field 2), which is how OTLP says errors."""
    text = message.encode()
    length, left = b"", len(text)
    while left > 0x7F:
        length += bytes((left & 0x7F | 0x80,))
        left >>= 7
    return b"\x12" + length + bytes((left,)) + text


_EXAMPLE: Final = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "tallygate.customer", "value": {"stringValue": "acme"}}]},
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": "5b8efff798038103d269b633813fc60c",
                            "spanId": "eee19b7ec3c1b174",
                            "attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "800"}}],
                        }
                    ]
                }
            ],
        }
    ]
}

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/traces",
        name="traces",
        summary="Report usage as OpenTelemetry's spans",
        scope="ingest",
        handler=_post,
        body={JSON: ({"type": "object"}, _EXAMPLE)},
        described=False,  # OTLP is described by OpenTelemetry
    ),
)
