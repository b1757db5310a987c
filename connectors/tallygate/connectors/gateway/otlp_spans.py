"""Calls of language models as OpenTelemetry sees them, as usage events.

A span that carries `gen_ai.usage.*` is one event: its trace's and its own id name it, so that a span that is exported
twice counts once; `service.name` is the source, the end of the span its time. Spans of agents and workflows add up what
the calls within them report themselves, so they are left out.

Source: OpenTelemetry's semantic conventions for GenAI, with the names that they had before 1.27 and 1.37; its
specification of probability sampling in `tracestate` (`ot=th:…`, and `ot=p:…` as it was before).
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import EPOCH, to_datetime

#: What is counted, and where it stands; the first name that is there holds.
QUANTITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    "cache_read_input_tokens": ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"),
    "cache_creation_input_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
    ),
    "reasoning_output_tokens": ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens"),
}
PROPERTIES: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("gen_ai.request.model", "gen_ai.response.model"),
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "operation": ("gen_ai.operation.name",),
    "agent": ("gen_ai.agent.name",),
}
#: Further dimensions stand in attributes of their own: `tallygate.team` is `team`.
OWN: Final = "tallygate."
#: Operations whose usage is that of the calls within them.
SUMS: Final = frozenset({"create_agent", "invoke_agent", "invoke_workflow", "execute_tool"})
SAMPLED_SUFFIX: Final = ".sampled"

_UNKNOWN_SERVICE: Final = "unknown_service"
_NS_PER_MS: Final = 1_000_000
_THRESHOLD: Final = re.compile(r"th:([0-9a-f]{1,14})")
_POWER: Final = re.compile(r"p:([0-9]|[1-5][0-9]|6[0-3])")
_THRESHOLDS: Final = 1 << 56
_POWER_OF_NONE: Final = 63
_DIGITS: Final = Decimal("1e-9")


class SpanRefused(Exception):
    """A span with usage that cannot be an event; one line says why."""


class Reading(NamedTuple):
    """How spans are read: where the customer stands, whose it is otherwise, and which type their events have."""

    customer_attribute: str
    customer: str
    event_type: str


def events_of(resource: ResourceSpans, reading: Reading) -> "Iterable[UsageEvent | SpanRefused]":
    """One for each span with usage, in order."""
    around = _attributes(resource.resource.attributes)
    for scope in resource.scope_spans:
        for span in scope.spans:
            try:
                event = _event(span, around, reading)
            except SpanRefused as refused:
                yield SpanRefused(f"span {span.span_id.hex() or 'without an id'}: {refused}")
            else:
                if event is not None:
                    yield event


def _event(span: Span, around: Mapping[str, Any], reading: Reading) -> UsageEvent | None:
    own = _attributes(span.attributes)
    if own.get("gen_ai.operation.name") in SUMS:
        return None
    counts = {name: value for name, names in QUANTITIES.items() if (value := _count(own, names)) is not None}
    if not counts:
        return None
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.trace_id) or not any(span.span_id):
        raise SpanRefused("its trace id has 16 bytes, its own 8, and neither is all zeros")
    customer = _text(own.get(reading.customer_attribute)) or _text(around.get(reading.customer_attribute))
    data: dict[str, Any] = {
        name.removeprefix(OWN): text
        for name, value in {**around, **own}.items()
        if name.startswith(OWN) and name != reading.customer_attribute and (text := _text(value))
    }
    for name, names in PROPERTIES.items():
        found = [text for each in names if (text := _text(own.get(each)))]
        data |= {name: found[0]} if found else {}
    data |= counts
    kept = kept_share(span.trace_state)
    if kept is not None:
        data |= {"sampled": True, "sampling_probability": f"{kept:f}"}
    if not (customer or reading.customer):
        raise SpanRefused(
            f"no customer: set {reading.customer_attribute} on the span or its resource, or use a customer's key"
        )
    at = to_datetime((span.end_time_unix_nano or span.start_time_unix_nano) // _NS_PER_MS)
    return UsageEvent(
        specversion="1.0",
        id=f"{span.trace_id.hex()}/{span.span_id.hex()}",
        source=_text(around.get("service.name")) or _UNKNOWN_SERVICE,
        type=reading.event_type + (SAMPLED_SUFFIX if kept is not None else ""),
        subject=customer or reading.customer,
        time=at if at > EPOCH else None,
        data=data,
    )


def kept_share(trace_state: str) -> Decimal | None:
    """Which share of spans like this one was kept; None: all of them, or nobody says otherwise."""
    members = dict(member.strip().partition("=")[::2] for member in trace_state.split(","))
    for field in members.get("ot", "").split(";"):
        if found := _THRESHOLD.fullmatch(field):
            dropped = int(found[1].ljust(14, "0"), 16)
            return (Decimal(_THRESHOLDS - dropped) / _THRESHOLDS).quantize(_DIGITS).normalize() if dropped else None
        if found := _POWER.fullmatch(field):
            power = int(found[1])
            if power == _POWER_OF_NONE:
                return Decimal(0)
            return (Decimal(1) / (1 << power)).quantize(_DIGITS).normalize() if power else None
    return None


def _count(attributes: Mapping[str, Any], names: Iterable[str]) -> int | None:
    for name in names:
        value = attributes.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SpanRefused(f"{name} is no count of tokens")
        return value
    return None


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> str | int | float | bool | None:
    """A plain value; None for lists, maps and bytes, which name nothing here."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
        case _:
            return ""
