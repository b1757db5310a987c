"""LiteLLM's proxy behind the gate: the real proxy with the example's configuration, a real worker and gateway."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from fake_provider import Provider, fake_provider
from gateway_process import Reply
from gateway_stack import Stack, gateway_stack, wait_until
from kafka_fixture import Broker
from litellm_proxy import ROOT, Proxy, litellm_proxy
from tallygate.connectors.kafka_admin import declare_topics
from tallygate.schemas.topics import topic_specs

pytestmark = pytest.mark.timeout(300)

CATALOG = yaml.safe_load((ROOT / "examples/litellm/catalog.yaml").read_text())
_RATES = CATALOG["features"]["llm"]["rates"]
_RATES += [
    {**rate, "when": {"model": name}}
    for name in ("mock", "cut", "slow", "failing")
    for rate in _RATES
    if rate["when"] == {"model": "gpt-4o"}
]
ASKED = [{"role": "user", "content": "x" * 400}]  # is estimated at 100 tokens
#: What is held for it with at most 50 tokens of output, and what LiteLLM's mock says that it took: 10 and 20 tokens.
HELD, MOCKED = Decimal("0.075"), Decimal("0.0225")
#: The provider's usage, see fake_provider: 60 + 40 cached tokens of input, 20 of output; and 5 written to a cache.
OPENAI, ANTHROPIC = Decimal("0.040"), Decimal("0.051075")
GIVEN = 100


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("litellm")
    with gateway_stack(module_kafka.bootstrap, folder, catalog=CATALOG) as running:
        yield running


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with fake_provider() as running:
        yield running


def models(provider: Provider) -> dict[str, dict[str, Any]]:
    own = {"api_key": "none", "api_base": f"{provider.url}/v1"}
    anthropic = {"api_key": "none", "api_base": provider.url, "model": "anthropic/m"}
    found = {name: {"model": f"openai/{name}", **own} for name in ("cut", "slow", "failing")}
    mock = {"model": "openai/gpt-4o", "mock_response": "twenty tokens, it says"}
    return {"gpt-4o": {"model": "openai/m", **own}, "mock": mock, "claude-sonnet": anthropic, "unpriced": mock, **found}


@pytest.fixture(scope="module")
def proxy(stack: Stack, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    key = stack.gateway.key("decide", "ingest")
    folder = tmp_path_factory.mktemp("proxy")
    with litellm_proxy(folder, {}, models(provider), TALLYGATE_URL=stack.gateway.url, TALLYGATE_KEY=key) as running:
        yield running


@pytest.fixture
def customer(request: pytest.FixtureRequest, stack: Stack) -> str:
    """One with credits."""
    name = "".join(each if each.isalnum() else "-" for each in request.node.name)
    return given(stack, name, GIVEN)


def given(stack: Stack, customer: str, credits: int | str) -> str:
    assert stack.gateway.call("POST", f"/v1/customers/{customer}/grants", {"amount": str(credits)}).status == 200
    return customer


def spent(stack: Stack, customer: str, given: int | str = GIVEN) -> tuple[Decimal, Decimal]:
    """What is spent, and held."""
    [pool] = stack.gateway.call("GET", f"/v1/customers/{customer}/balance").json["pools"]
    held = Decimal(pool["held"])
    return Decimal(given) - Decimal(pool["balance"]) - held, held


def chat(proxy: Proxy, key: str, model: str = "mock", **more: Any) -> Reply:
    return proxy.call("/v1/chat/completions", key, {"model": model, "messages": ASKED, "max_tokens": 50, **more})


def error(reply: Reply) -> dict[str, Any]:
    found = reply.json["error"]
    assert isinstance(found, dict), reply
    return found


def test_allowed_allowed_then_denied(proxy: Proxy, stack: Stack) -> None:
    given(stack, "poor", "0.1")
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="poor") as client:
        for _ in range(2):
            reply = client.chat.completions.create(model="mock", messages=ASKED, max_tokens=50)  # type: ignore[arg-type]
            assert reply.choices[0].message.content
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="mock", messages=ASKED, max_tokens=50)  # type: ignore[arg-type]
    assert caught.value.status_code == 402
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert error(Reply(402, {}, caught.value.response.content)) == {
        "message": "reserve of customer 'poor' denied: credits_exhausted "
        "(credits 'credits' has 0.055 of 0.1 credits left, 0.075 asked)",
        "type": "credits_exhausted",
        "param": None,
        "code": "402",
    }
    assert spent(stack, "poor", "0.1") == (2 * MOCKED, 0)  # the denied call has taken nothing, and released nothing


def test_calls_at_once_do_not_pass_the_limit(proxy: Proxy, stack: Stack, provider: Provider) -> None:
    given(stack, "crowd", "0.2")  # 4 calls: for each 0.045 are held, and 0.04 taken
    before = len(provider.asked)
    with ThreadPoolExecutor(30) as pool:
        replies = list(pool.map(lambda _: chat(proxy, "crowd", "gpt-4o", max_tokens=20), range(30)))
    allowed = [reply.status for reply in replies].count(200)
    assert {reply.status for reply in replies} == {200, 402}
    assert spent(stack, "crowd", "0.2") == (allowed * OPENAI, 0)
    assert allowed == 4
    assert len(provider.asked) - before == allowed


def test_a_model_without_a_price_is_refused(proxy: Proxy, stack: Stack, customer: str) -> None:
    reply = chat(proxy, customer, "unpriced")
    assert (reply.status, error(reply)["type"]) == (422, "unpriced")
    assert "holds for model=unpriced" in error(reply)["message"]
    assert reply.headers["x-should-retry"] == "false"
    assert spent(stack, customer) == (0, 0)


def test_a_second_cap_ends_with_its_own_period(proxy: Proxy, stack: Stack, customer: str) -> None:
    """An hour that ends in a few seconds, within a month that does not."""
    seconds = 4
    while True:  # until the first hour is seen, longer ones where the machine is busy
        one = given(stack, f"{customer}-{seconds}", GIVEN)
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        monthly = {"name": "monthly", "limit": "0.115", "period": "month"}
        for budget in (monthly, {"name": "hourly", "limit": "0.08", "period": "hour", "anchor": ends.isoformat()}):
            assert stack.gateway.call("POST", f"/v1/customers/{one}/budgets", budget).status == 200
        assert chat(proxy, one).status == 200
        denied = chat(proxy, one)
        if denied.status != 200:
            break
        seconds *= 3
        assert seconds < 120
    assert denied.status == 402
    assert "budget 'hourly' has 0.0575 of 0.08 credits left, 0.075 asked" in error(denied)["message"]
    wait_until(lambda: chat(proxy, one).status == 200)
    assert datetime.now(UTC) >= ends
    both = error(chat(proxy, one))["message"]  # two calls in the month, one in the new hour
    assert "budget 'hourly' has 0.0575 of 0.08 credits left" in both
    assert "budget 'monthly' has 0.07 of 0.115 credits left" in both


def test_a_rate_limit_is_429_and_says_when(proxy: Proxy, stack: Stack, customer: str) -> None:
    limit = {"name": "calls", "limit": 1, "per_seconds": 3}
    assert stack.gateway.call("POST", f"/v1/customers/{customer}/rate-limits", limit).status == 200
    denied = next(reply for _ in range(20) if (reply := chat(proxy, customer)).status != 200)
    assert (denied.status, error(denied)["type"]) == (429, "rate_limited")
    assert "of 1 requests left, 1 asked" in error(denied)["message"]
    assert 1 <= int(denied.headers["retry-after"]) <= 3
    time.sleep(int(denied.headers["retry-after"]))
    wait_until(lambda: chat(proxy, customer).status == 200)


def test_a_limit_of_each_agent_and_of_a_team(proxy: Proxy, stack: Stack, customer: str) -> None:
    for name, scope in (("agents", {"agent": "*"}), ("teams", {"team": "research"})):
        budget = {"name": name, "limit": "0.08", "scope": scope}
        assert stack.gateway.call("POST", f"/v1/customers/{customer}/budgets", budget).status == 200
    assert chat(proxy, customer, metadata={"agent": "crawler"}).status == 200
    assert "agents" in error(chat(proxy, customer, metadata={"agent": "crawler"}))["message"]
    assert chat(proxy, f"{customer}/research", metadata={"agent": "writer"}).status == 200
    assert "teams" in error(chat(proxy, f"{customer}/research", metadata={"agent": "reader"}))["message"]


PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 50}),
    "messages": ("/v1/messages", {"messages": ASKED, "max_tokens": 50}),
    "responses": ("/v1/responses", {"input": "x" * 400, "max_output_tokens": 50}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("api", "model", "cost"),
    [
        ("chat", "gpt-4o", OPENAI),
        ("chat", "claude-sonnet", ANTHROPIC),
        ("responses", "gpt-4o", OPENAI),
        ("messages", "claude-sonnet", ANTHROPIC),
    ],
)
def test_a_call_is_settled_by_its_usage(
    api: str, model: str, cost: Decimal, stream: bool, proxy: Proxy, stack: Stack, customer: str
) -> None:
    path, body = PATHS[api]
    reply = proxy.call(path, customer, {"model": model, "stream": stream, **body})
    assert reply.status == 200, reply
    assert b"forty characters" in reply.body
    assert spent(stack, customer) == (cost, 0)


def test_completions_and_embeddings_are_metered(proxy: Proxy, stack: Stack, customer: str) -> None:
    assert proxy.call("/v1/embeddings", customer, {"model": "mock", "input": "x" * 400}).status == 200
    total, held = spent(stack, customer)
    assert (total, held) == (Decimal("0.0025"), 0)
    for stream in (False, True):
        body = {"model": "mock", "prompt": "x" * 400, "max_tokens": 50, "stream": stream}
        assert proxy.call("/v1/completions", customer, body).status == 200
        before, (total, held) = total, spent(stack, customer)
        assert held == 0
        assert total > before


def test_a_call_that_fails_gives_its_hold_back(proxy: Proxy, stack: Stack, customer: str) -> None:
    for stream in (False, True):
        assert chat(proxy, customer, "failing", stream=stream).status == 400
    assert spent(stack, customer) == (0, 0)


@pytest.mark.parametrize("left", [False, True])
def test_a_stream_that_breaks_or_is_left_is_settled_by_what_was_seen(
    left: bool, proxy: Proxy, stack: Stack, customer: str
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    body = {"model": "slow" if left else "cut", "messages": ASKED, "max_tokens": 3000, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": f"Bearer {customer}"})
    answer = connection.getresponse()
    assert answer.status == 200
    while b"forty characters" not in answer.readline():
        pass
    if not left:
        answer.read()
    answer.close()
    connection.close()
    wait_until(lambda: spent(stack, customer)[1] == 0)
    total, _ = spent(stack, customer)
    assert Decimal("0.035") <= total < Decimal("1.5"), (
        "100 tokens of input and 10 for each piece, of which there are 200"
    )


def test_who_cannot_be_told_and_what_is_not_metered_is_refused(proxy: Proxy, customer: str) -> None:
    reply = chat(proxy, "nobody", metadata={"customer": customer})
    assert (reply.status, error(reply)["type"]) == (403, "no_customer")
    assert "it has no metadata.customer or team_metadata.customer" in error(reply)["message"]
    reply = proxy.call("/v1/images/generations", customer, {"model": "mock", "prompt": "x"})
    assert reply.status == 403
    assert "calls of type image_generation are not metered" in error(reply)["message"]
    assert error(chat(proxy, "unheard-of"))["type"] == "customer_unknown"
    assert chat(proxy, customer, max_tokens=-5).status == 422


def test_over_kafka_with_a_worker_that_goes_away(
    proxy: Proxy, stack: Stack, provider: Provider, module_kafka: Broker, customer: str, tmp_path: Path
) -> None:
    """One proxy fails closed, the other open: then the work is counted once the worker is back."""
    given(stack, "short", "0.06")  # 100 tokens of input, and 35 of output
    settings = {
        "url": "",
        "key": "",
        "brokers": module_kafka.bootstrap,
        "fail_open": "llm.call",
        "timeout": 3,
        "at_least": 10,
    }
    with litellm_proxy(tmp_path, settings, models(provider), TALLYGATE_URL="", TALLYGATE_KEY="") as over_kafka:
        assert chat(over_kafka, customer, "gpt-4o").status == 200  # without a reply topic nobody can be asked
        wait_until(lambda: spent(stack, customer) == (OPENAI, 0))
        declare_topics({"bootstrap.servers": module_kafka.bootstrap}, topic_specs(4, ("cli", "gateway", "litellm")))
        assert chat(over_kafka, "short", "gpt-4o").status == 200
        assert provider.asked[-1]["max_tokens"] == 35
        assert chat(over_kafka, "short", "gpt-4o").status == 402
        assert spent(stack, "short", "0.06") == (OPENAI, 0)

        stack.worker.stop()
        refused = chat(proxy, customer, "gpt-4o")
        assert (refused.status, error(refused)["type"]) == (503, "undecided")
        assert refused.headers["retry-after"] == "1"
        for stream in (False, True):
            assert chat(over_kafka, customer, "gpt-4o", stream=stream).status == 200
        stack.worker.__enter__()
        wait_until(lambda: spent(stack, customer) == (3 * OPENAI, 0))  # what was refused or went ahead is not held
