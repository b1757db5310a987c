"""Spans as usage events: names old and new, samplers, customers, what is refused."""

from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tallygate.connectors.gateway.otlp_spans import Reading, SpanRefused, events_of, kept_share
from tallygate.schemas.events import UsageEvent

READING = Reading("tallygate.customer", "", "llm.call")
TOKENS = {"gen_ai.usage.input_tokens": 800}
ACME = {"tallygate.customer": "acme"}


def attributes(values: dict[str, Any]) -> list[KeyValue]:
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
    return [KeyValue(key=key, value=AnyValue(**{kinds[type(value)]: value})) for key, value in values.items()]


def found(
    own: dict[str, Any], around: dict[str, Any] | None = None, reading: Reading = READING, **span: Any
) -> list[UsageEvent | SpanRefused]:
    made = {"trace_id": b"\x5b" * 16, "span_id": b"\xee" * 8, "end_time_unix_nano": 1_767_225_600_123_456_789, **span}
    resource = ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(attributes=attributes(own), **made)])])
    resource.resource.attributes.extend(attributes({"service.name": "chat"} if around is None else around))
    return list(events_of(resource, reading))


def event(own: dict[str, Any], around: dict[str, Any] | None = None, **more: Any) -> UsageEvent:
    [one] = found({**ACME, **own}, around, **more)
    assert isinstance(one, UsageEvent), one
    return one


def test_a_span_is_an_event() -> None:
    one = event({**TOKENS, "tallygate.team": "apps", "gen_ai.request.model": "m", "http.method": "POST"})
    assert (one.id, one.source, one.type, one.subject) == ("5b" * 16 + "/" + "ee" * 8, "chat", "llm.call", "acme")
    assert one.at == 1_767_225_600_123
    assert one.data == {"input_tokens": 800, "team": "apps", "model": "m"}


@pytest.mark.parametrize(
    ("own", "data"),
    [
        (
            {"gen_ai.usage.prompt_tokens": 8, "gen_ai.usage.completion_tokens": 2},
            {"input_tokens": 8, "output_tokens": 2},
        ),
        ({"gen_ai.usage.prompt_tokens": 8, "gen_ai.usage.input_tokens": 9}, {"input_tokens": 9}),
        ({**TOKENS, "gen_ai.system": "openai"}, {"input_tokens": 800, "provider": "openai"}),
        ({**TOKENS, "gen_ai.system": "a", "gen_ai.provider.name": "b"}, {"input_tokens": 800, "provider": "b"}),
        ({**TOKENS, "gen_ai.response.model": "r"}, {"input_tokens": 800, "model": "r"}),
        ({**TOKENS, "gen_ai.response.model": "r", "gen_ai.request.model": "q"}, {"input_tokens": 800, "model": "q"}),
        ({"gen_ai.usage.cache_read.input_tokens": 3, **TOKENS}, {"input_tokens": 800, "cache_read_input_tokens": 3}),
        ({"gen_ai.usage.output_tokens": 12.0}, {"output_tokens": 12}),
        ({**TOKENS, "tallygate.input_tokens": "1"}, {"input_tokens": 800}),
        ({**TOKENS, "gen_ai.operation.name": "chat"}, {"input_tokens": 800, "operation": "chat"}),
    ],
)
def test_names_old_and_new(own: dict[str, Any], data: dict[str, Any]) -> None:
    assert event(own).data == data


@pytest.mark.parametrize("operation", ["invoke_agent", "invoke_workflow", "execute_tool", "create_agent"])
def test_what_sums_up_calls_is_none(operation: str) -> None:
    assert found({**ACME, **TOKENS, "gen_ai.operation.name": operation}) == []


def test_a_span_without_usage_is_nothing() -> None:
    assert found({**ACME, "gen_ai.request.model": "m"}) == []


def test_where_the_customer_stands() -> None:
    assert event({**TOKENS, "tallygate.customer": "own"}, {"tallygate.customer": "around"}).subject == "own"
    for own, around, key, subject in (
        ({}, ACME, "", "acme"),
        ({}, {}, "globex", "globex"),
        ({}, ACME, "globex", "acme"),
    ):
        [one] = found({**TOKENS, **own}, around, READING._replace(customer=key))
        assert isinstance(one, UsageEvent)
        assert (one.subject, one.source) == (subject, "unknown_service")
    [one] = found({**TOKENS, "org.id": "acme"}, reading=READING._replace(customer_attribute="org.id"))
    assert isinstance(one, UsageEvent)
    assert one.subject == "acme"


@pytest.mark.parametrize(
    ("own", "span", "why"),
    [
        (TOKENS, {}, "no customer: set tallygate.customer"),
        ({**ACME, "gen_ai.usage.input_tokens": -1}, {}, "gen_ai.usage.input_tokens is no count"),
        ({**ACME, "gen_ai.usage.input_tokens": 1.5}, {}, "is no count"),
        ({**ACME, "gen_ai.usage.input_tokens": "8"}, {}, "is no count"),
        ({**ACME, "gen_ai.usage.input_tokens": True}, {}, "is no count"),
        ({**ACME, "gen_ai.usage.input_tokens": float("nan")}, {}, "is no count"),
        ({**ACME, **TOKENS}, {"span_id": b"\0" * 8}, "trace id"),
        ({**ACME, **TOKENS}, {"trace_id": b"\1"}, "trace id"),
    ],
)
def test_what_cannot_be_an_event_says_why(own: dict[str, Any], span: dict[str, Any], why: str) -> None:
    [refused] = found(own, **span)
    assert isinstance(refused, SpanRefused)
    assert why in str(refused)


@pytest.mark.parametrize(
    ("trace_state", "share"),
    [
        ("", None),
        ("vendor=th:8", None),
        ("ot=th:0", None),
        ("ot=rv:00000000000000", None),
        ("ot=th:8", "0.5"),
        ("vendor=x, ot=rv:80000000000000;th:c", "0.25"),
        ("ot=th:ffffffffffffff", "0"),
        ("ot=th:123456789abcdef", None),
        ("ot=th:G", None),
        ("ot=p:0", None),
        ("ot=p:2;r:3", "0.25"),
        ("ot=p:63", "0"),
        ("ot=p:64", None),
    ],
)
def test_what_samplers_leave_behind(trace_state: str, share: str | None) -> None:
    assert kept_share(trace_state) == (None if share is None else Decimal(share))
    one = event(TOKENS, trace_state=trace_state)
    if share is None:
        assert (one.type, one.data) == ("llm.call", {"input_tokens": 800})
    else:
        assert one.type == "llm.call.sampled"
        assert one.data == {"input_tokens": 800, "sampled": True, "sampling_probability": share}
