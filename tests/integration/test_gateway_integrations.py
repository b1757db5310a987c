"""What others' libraries send: MCP's client, OpenTelemetry's exporter, CloudEvents' binding for Kafka."""

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Consumer, Producer, TopicPartition
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace._sampling_experimental import composable_traceid_ratio_based, composite_sampler
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from gateway_stack import Stack, gateway_stack, wait_until
from kafka_fixture import Broker
from tallygate.schemas.keys import SCOPES
from tallygate.schemas.topics import DEAD_LETTERS, USAGE

pytestmark = pytest.mark.timeout(240)

CATALOG: dict[str, Any] = {
    "meters": {"tokens": {"event_type": "llm.call", "value": "input_tokens", "dimensions": ["agent", "model"]}},
    "features": {"llm": {"meters": ["tokens"], "rates": [{"meter": "tokens", "credits": 1}]}, "open": {"fail": "open"}},
    "plans": {"pro": {"entitlements": {"llm": "credits"}}},
    "default_plan": "pro",
}
CRAWLER = {"agent": "crawler", "model": "m"}
TOOLS = {
    *("check", "estimate", "reserve", "settle", "release", "extend"),
    *("report_usage", "balance", "limits", "explain_denial"),
}


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(module_kafka.bootstrap, tmp_path_factory.mktemp("agents"), catalog=CATALOG) as running:
        yield running


def customer(stack: Stack, amount: str = "1000") -> str:
    """A new one, with credits and a budget of 100 a day for each agent."""
    name = f"customer-{uuid.uuid4().hex[:8]}"
    path = f"/v1/customers/{name}"
    assert stack.gateway.call("POST", f"{path}/grants", {"amount": amount}).status == 200
    budget = {"name": "agents", "limit": "100", "scope": {"agent": "*"}, "period": "day"}
    assert stack.gateway.call("POST", f"{path}/budgets", budget).status == 200
    return name


def pool(stack: Stack, name: str) -> dict[str, str]:
    found: dict[str, str] = stack.gateway.call("GET", f"/v1/customers/{name}/balance").json["pools"][0]
    return found


@asynccontextmanager
async def over_http(stack: Stack, key: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30) as http,
        Client(streamable_http_client(f"{stack.gateway.url}/mcp", http_client=http)) as client,
    ):
        yield client


@asynccontextmanager
async def over_stdio(stack: Stack, name: str, folder: Path) -> AsyncIterator[Client]:
    arguments = ["mcp", "--customer", name, "--brokers", stack.gateway.settings.kafka_brokers]
    server = StdioServerParameters(
        command=str(Path(sys.executable).with_name("tallygate")), args=[*arguments, "--data-dir", str(folder)]
    )
    async with Client(stdio_client(server)) as client:
        yield client


@asynccontextmanager
async def agent(way: str, stack: Stack, name: str, folder: Path) -> AsyncIterator[Client]:
    """Not a fixture: the client must end in the task that it began in."""
    if way == "http":
        async with over_http(stack, stack.gateway.key("decide", "read", "ingest", customers=(name,))) as client:
            yield client
    else:
        async with over_stdio(stack, name, folder) as client:
            yield client


WAYS = pytest.mark.parametrize("way", ["http", "stdio"])


async def use(client: Client, tool: str, **arguments: Any) -> Any:
    """The structured result of a tool, which its own schema allows (the client checks that)."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def error(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    [text] = result.content
    assert text.type == "text"
    return text.text


@WAYS
async def test_an_agent_at_work(way: str, stack: Stack, tmp_path: Path) -> None:
    name = customer(stack)
    async with agent(way, stack, name, tmp_path) as client:
        await the_tools_are_typed(client)
        await it_estimates_and_extends(stack, client, name)
        await it_reserves_and_settles(stack, client, name)
        await it_reports(stack, client, name)
        await whatever_cannot_be_decided_is_an_error(client)


async def the_tools_are_typed(client: Client) -> None:
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(listed) == TOOLS
    assert all(tool.output_schema and tool.description for tool in listed.values())
    assert "allowed" in (listed["reserve"].output_schema or {})["required"]


async def it_reserves_and_settles(stack: Stack, client: Client, name: str) -> None:
    assert (await use(client, "check", feature="llm", quantities={"tokens": 75}, dimensions=CRAWLER))["allowed"]
    held = await use(client, "reserve", feature="llm", quantities={"tokens": 75}, dimensions=CRAWLER, id="h1")
    assert (held["allowed"], held["hold"], held["customer"], held["credits"]) == (True, "h1", name, "75")
    assert pool(stack, name) == {"pool": "credits", "balance": "925", "held": "75", "overage": "0"}
    open_holds = (await use(client, "balance"))["holds"]
    assert [(each["hold"], each["credits"]) for each in open_holds] == [("h1", "75")]

    denied = await use(client, "reserve", feature="llm", quantities={"tokens": 75}, dimensions=CRAWLER, id="h2")
    assert (denied["allowed"], denied["reason"], denied["hold"]) == (False, "budget_exhausted", None)
    assert (denied["limits"][0]["name"], denied["limits"][0]["remaining"]) == ("agents", "25")
    why = await use(client, "explain_denial", feature="llm", quantities={"tokens": 75}, dimensions=CRAWLER)
    assert "'agents' of agent crawler has 25 of 100 credits left" in why["explanation"]
    assert [step["step"] for step in why["steps"] if not step["ok"]] == ["budgets"]
    assert pool(stack, name)["held"] == "75"
    assert "'h2'" in await error(client, "settle", hold="h2")

    settled = await use(client, "settle", hold="h1", quantities={"tokens": "60"})
    assert (settled["credits"], settled["balance"]) == ("60", "940")
    assert await use(client, "settle", hold="h1", quantities={"tokens": 60}) == settled
    second = await use(client, "reserve", feature="llm", quantities={"tokens": 10}, dimensions=CRAWLER)
    assert (await use(client, "release", hold=second["hold"]))["balance"] == "940"


async def it_estimates_and_extends(stack: Stack, client: Client, name: str) -> None:
    found = await use(client, "estimate", feature="llm", of="tokens", quantities={"tokens": 30}, dimensions=CRAWLER)
    assert (found["allowed"], found["credits"], found["affordable"]) == (True, "30", {"tokens": "100"})
    none = await use(client, "estimate", feature="llm", of="credits", quantities={"tokens": 130}, dimensions=CRAWLER)
    assert (none["allowed"], none["limits"][0]["name"], none["affordable"]) == (False, "agents", {"credits": "0"})
    assert "'pages'" in await error(client, "estimate", feature="llm", of="pages")

    held = await use(client, "reserve", feature="llm", credits=1, ttl_seconds=60, id="long")
    longer = await use(client, "extend", hold="long", ttl_seconds=3600)
    assert (longer["hold"], longer["expires_at"] > held["expires_at"]) == ("long", True)
    assert await use(client, "extend", hold="long", ttl_seconds=5) == longer
    await use(client, "release", hold="long")
    assert pool(stack, name)["held"] == "0"
    assert "'long'" in await error(client, "extend", hold="long", ttl_seconds=60)


async def it_reports(stack: Stack, client: Client, name: str) -> None:
    data = {"input_tokens": 5, "agent": "crawler", "model": "m"}
    reported = await use(client, "report_usage", type="llm.call", data=data, id="u1")
    assert await use(client, "report_usage", type="llm.call", data=data, id="u1") == reported
    wait_until(lambda: pool(stack, name)["balance"] == "935")
    found = (await use(client, "limits", feature="llm", dimensions=CRAWLER))["limits"]
    assert (found[0]["kind"], found[0]["used"]) == ("budget", "65")


async def whatever_cannot_be_decided_is_an_error(client: Client) -> None:
    assert "customer" in await error(client, "reserve", feature="llm", credits=1, customer="somebody-else")
    assert "no argument 'quantites'" in await error(client, "reserve", feature="llm", quantites={"tokens": 1})
    assert "tokens" in await error(client, "reserve", feature="llm", quantities={"tokens": "-1"})
    assert "undo" in await error(client, "report_usage", type="tallygate.usage.voided", data={"id": "u1"})
    assert "'nothing'" in await error(client, "release", hold="nothing")


async def test_parallel_agents_do_not_pass_the_budget(stack: Stack) -> None:
    name = customer(stack, amount="500")
    async with over_http(stack, stack.gateway.key("decide", customers=(name,))) as client:
        asked = [use(client, "reserve", feature="llm", quantities={"tokens": 75}) for _ in range(20)]
        decided = await asyncio.gather(*asked)
    assert sum(each["allowed"] for each in decided) == 6
    assert sum(each["hold"] is not None for each in decided) == 6
    assert pool(stack, name) == {"pool": "credits", "balance": "50", "held": "450", "overage": "0"}


async def test_an_agent_without_budget_gets_no_hold(stack: Stack) -> None:
    name = customer(stack, amount="10")
    async with over_http(stack, stack.gateway.key("decide", customers=(name,))) as client:
        denied = await use(client, "reserve", feature="llm", credits="11")
        assert (denied["allowed"], denied["reason"], denied["hold"]) == (False, "credits_exhausted", None)
        assert denied["message"].startswith("Denied: there are too few credits. The pool 'credits' has 10")
        assert pool(stack, name)["held"] == "0"
        assert "scope 'read'" in await error(client, "balance")
        assert "scope 'ingest'" in await error(client, "report_usage", type="llm.call", data={"input_tokens": 1})


async def test_a_key_for_everyone_names_the_customer(stack: Stack) -> None:
    name = customer(stack)
    async with over_http(stack, stack.gateway.key(*SCOPES)) as client:
        assert "which customer" in await error(client, "check", feature="llm")
        assert (await use(client, "check", feature="llm", customer=name))["customer"] == name


def test_there_are_no_sessions(stack: Stack) -> None:
    for method in ("GET", "DELETE"):
        assert stack.gateway.call(method, "/mcp").status == 405


class Exporter(SpanExporter):
    """OpenTelemetry's, and what came of each export."""

    def __init__(self, stack: Stack, key: str, compression: Compression) -> None:
        self._to = OTLPSpanExporter(
            f"{stack.gateway.url}/v1/traces", headers={"authorization": f"Bearer {key}"}, compression=compression
        )
        self.results: list[SpanExportResult] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.results.append(self._to.export(spans))
        return self.results[-1]

    def shutdown(self) -> None:
        self._to.shutdown()


def export(
    stack: Stack, key: str, spans: list[dict[str, Any]], *, sampler: Sampler = ALWAYS_ON, **resource: str
) -> list[SpanExportResult]:
    exporter = Exporter(stack, key, Compression.Gzip)
    provider = TracerProvider(sampler=sampler, resource=Resource({"service.name": "chat", **resource}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for attributes in spans:
        with provider.get_tracer("test").start_as_current_span("chat m", attributes=attributes):
            pass
    provider.shutdown()
    return exporter.results


def test_spans_of_the_sdk_are_usage(stack: Stack) -> None:
    acme, globex = customer(stack), customer(stack)
    spans: list[dict[str, Any]] = [
        {"gen_ai.usage.input_tokens": 5, "gen_ai.request.model": "m", "tallygate.agent": "crawler"},
        {"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 2, "gen_ai.system": "openai"},
        {"gen_ai.usage.input_tokens": 12, "gen_ai.operation.name": "invoke_agent"},
        {"http.request.method": "GET"},
    ]
    whole = stack.gateway.key("ingest")
    assert export(stack, whole, spans, **{"tallygate.customer": acme}) == [SpanExportResult.SUCCESS] * 4
    assert export(stack, stack.gateway.key("ingest", customers=(globex,)), spans[:1]) == [SpanExportResult.SUCCESS]
    wait_until(lambda: pool(stack, acme)["balance"] == "988" and pool(stack, globex)["balance"] == "995")
    foreign = export(stack, stack.gateway.key("ingest", customers=(globex,)), spans[:1], **{"tallygate.customer": acme})
    assert foreign == [SpanExportResult.FAILURE]


def test_sampled_spans_are_no_bill(stack: Stack) -> None:
    name = customer(stack)
    usage: list[dict[str, Any]] = [{"gen_ai.usage.input_tokens": 5}] * 40
    half = composite_sampler(composable_traceid_ratio_based(0.5))
    assert SpanExportResult.FAILURE not in export(
        stack, stack.gateway.key("ingest"), usage, sampler=half, **{"tallygate.customer": name}
    )
    export(stack, stack.gateway.key("ingest"), usage[:1], **{"tallygate.customer": name})
    wait_until(lambda: pool(stack, name)["balance"] == "995")  # of the last one alone
    assert dead_letters(stack) == 0


def dead_letters(stack: Stack) -> int:
    consumer = Consumer({"bootstrap.servers": stack.gateway.settings.kafka_brokers, "group.id": "ends"})
    try:
        partitions = consumer.list_topics(DEAD_LETTERS, timeout=10).topics[DEAD_LETTERS].partitions
        found = [consumer.get_watermark_offsets(TopicPartition(DEAD_LETTERS, p), timeout=10) for p in partitions]
        return sum(high - low for low, high in found)
    finally:
        consumer.close()


def test_partial_success_in_json(stack: Stack) -> None:
    name = customer(stack)

    def span(id: str, tokens: Any, **more: Any) -> dict[str, Any]:
        attributes = [{"key": "gen_ai.usage.input_tokens", "value": tokens}]
        return {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": id, "attributes": attributes, **more}

    spans = [
        span("eee19b7ec3c1b174", {"intValue": "5"}),
        span("eee19b7ec3c1b174", {"intValue": "5"}),  # the same: counted once
        span("eee19b7ec3c1b175", {"intValue": -5}),
        span("eee19b7ec3c1b176", {"intValue": 5}, traceState="ot=th:8"),
    ]
    resource = {"attributes": [{"key": "tallygate.customer", "value": {"stringValue": name}}]}
    body = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}], "later": "ignored"}
    said = stack.gateway.call("POST", "/v1/traces", body)
    assert said.status == 200
    partial = said.json["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "eee19b7ec3c1b175" in partial["errorMessage"]
    assert "1 sampled spans are not billed" in partial["errorMessage"]
    wait_until(lambda: pool(stack, name)["balance"] == "995")


@pytest.mark.parametrize("media", ["application/x-protobuf", "application/json"])
def test_what_is_no_trace_is_refused(stack: Stack, media: str) -> None:
    call = stack.gateway.call
    headers = {"content-type": media}
    for broken in (b"\xff\xff", b'{"resourceSpans": 7}', b'{"resourceSpans": [{"scopeSpans": [7]}]}', b"[" * 2000):
        said = call("POST", "/v1/traces", broken, headers=headers)
        assert said.status == 400
        if media == "application/x-protobuf":
            assert (said.headers["content-type"], said.body[:1]) == (media, b"\x12")
        else:
            assert json.loads(said.body)["type"] == "urn:tallygate:problem:malformed"
    assert call("POST", "/v1/traces", b"x" * ((1 << 20) + 1), headers=headers).status == 413
    assert call("POST", "/v1/traces", b"", headers={"content-type": "text/plain"}).status == 415


def test_both_modes_of_cloudevents_on_kafka_are_counted(stack: Stack) -> None:
    name = customer(stack)
    producer = Producer({"bootstrap.servers": stack.gateway.settings.kafka_brokers, "partitioner": "murmur2_random"})
    for id, mode in (("c1", to_structured_event), ("c2", to_binary_event), ("c2", to_structured_event)):
        event = CloudEvent(
            {"specversion": "1.0", "id": id, "source": "/cloudevents", "type": "llm.call", "subject": name},
            {"input_tokens": 5},
        )
        message: KafkaMessage = mode(event, key_mapper=lambda event: event.get_subject())
        producer.produce(USAGE, message.value, message.key, headers=dict(message.headers))
    assert producer.flush(30) == 0
    wait_until(lambda: pool(stack, name)["balance"] == "990")
