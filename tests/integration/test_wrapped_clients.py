"""Functions and model clients behind the gate: the real SDKs, a provider on loopback, a real worker and gateway."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from fake_provider import TEXT, Provider, fake_provider
from gateway_stack import Stack, gateway_stack
from kafka_fixture import Broker
from tallygate.connectors.client import (
    Denied,
    NoAnswer,
    Tallygate,
    TallygateClient,
    TallygateClientSync,
    TallygateHTTP,
    TallygateHTTPSync,
    TallygateSync,
    Unsettled,
    wrap,
)

pytestmark = pytest.mark.timeout(240)

METERS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens")
#: A cached token costs 1 credit, one read anew 10, one written to the cache 12, one of output 100.
CATALOG: dict[str, Any] = {
    "meters": {name: {"event_type": "llm.call", "value": name, "dimensions": ["agent", "model"]} for name in METERS},
    "features": {
        "llm": {
            "meters": list(METERS),
            "rates": [
                {"meter": name, "credits": credits} for name, credits in zip(METERS, (10, 1, 12, 100), strict=True)
            ],
        }
    },
}
OPENAI_COST = 60 * 10 + 40 * 1 + 20 * 100
ANTHROPIC_COST = OPENAI_COST + 5 * 12
GIVEN = 1_000_000
HELLO = [{"role": "user", "content": "x" * 400}]  # is estimated at 100 tokens
SEEN = 100 * 10 + 20 * 100  # of a broken stream: input as estimated, twice the text
APIS = ("chat", "responses", "messages")


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(module_kafka.bootstrap, tmp_path_factory.mktemp("wrapped"), catalog=CATALOG) as running:
        yield running


@pytest.fixture
def provider() -> Iterator[Provider]:
    with fake_provider() as running:
        yield running


KINDS = ("http", "kafka")


def made(kind: str, stack: Stack, brokers: str, timeout: float = 15.0) -> TallygateClient:
    if kind == "http":
        return TallygateHTTP(stack.gateway.url, key=stack.gateway.admin, timeout=timeout)
    return Tallygate(brokers, service="cli", timeout=timeout)


@pytest.fixture(params=KINDS)
async def gate(request: pytest.FixtureRequest, stack: Stack, module_kafka: Broker) -> AsyncIterator[TallygateClient]:
    async with made(request.param, stack, module_kafka.bootstrap) as client:
        yield client


@pytest.fixture
def gate_sync(gate: TallygateClient, stack: Stack, module_kafka: Broker) -> Iterator[TallygateClientSync]:
    """The same way as `gate`."""
    over_http = TallygateHTTPSync(stack.gateway.url, key=stack.gateway.admin)
    over_kafka = TallygateSync(module_kafka.bootstrap, service="cli", timeout=15)
    with over_http if isinstance(gate, TallygateHTTP) else over_kafka as client:
        yield client


@pytest.fixture
async def customer(request: pytest.FixtureRequest, gate: TallygateClient) -> str:
    await gate.grant(request.node.name, GIVEN)
    return str(request.node.name)


async def spent(gate: TallygateClient, customer: str) -> tuple[int, int]:
    """What is spent, and held."""
    [pool] = (await gate.balance(customer)).pools
    return GIVEN - int(pool.balance) - int(pool.held), int(pool.held)


def sdk(api: str, url: str, kind: str = "Async") -> Any:
    if api == "messages":
        return getattr(anthropic, f"{kind}Anthropic")(base_url=url, api_key="none", max_retries=0)
    return getattr(openai, f"{kind}OpenAI")(base_url=f"{url}/v1", api_key="none", max_retries=0)


def create(api: str, client: Any, **more: Any) -> Any:
    """Asks for at most 50 tokens."""
    match api:
        case "chat":
            return client.chat.completions.create(**{"model": "m", "messages": HELLO, "max_tokens": 50, **more})
        case "responses":
            return client.responses.create(**{"model": "m", "input": "x" * 400, "max_output_tokens": 50, **more})
        case _:
            return client.messages.create(**{"model": "m", "messages": HELLO, "max_tokens": 50, **more})


def cost(api: str) -> int:
    return ANTHROPIC_COST if api == "messages" else OPENAI_COST


def limit_of(asked: dict[str, Any]) -> int:
    found = asked.get("max_tokens") or asked.get("max_output_tokens")
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
async def test_a_call_is_settled_by_its_usage(
    api: str, stream: bool, gate: TallygateClient, customer: str, provider: Provider
) -> None:
    async with wrap(sdk(api, provider.url), gate, customer=customer, dimensions={"agent": "crawler"}) as client:
        reply = await create(api, client, stream=stream)
        if stream:
            assert await spent(gate, customer) == (0, 100 * 10 + 50 * 100)
            pieces = [piece async for piece in reply]
            assert all(piece.choices for piece in pieces) if api == "chat" else pieces
        assert await spent(gate, customer) == (cost(api), 0)


@pytest.mark.parametrize("api", APIS)
async def test_without_asyncio(
    api: str, gate: TallygateClient, gate_sync: TallygateClientSync, customer: str, provider: Provider
) -> None:
    def work() -> None:
        with wrap(sdk(api, provider.url, ""), gate_sync, customer=lambda arguments: customer) as client:
            create(api, client)
            for _ in create(api, client, stream=True):
                pass
            stream = create(api, client, stream=True)
            next(stream)
            stream.close()
            with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)):
                create(api, client, model="failing")

    await asyncio.to_thread(work)
    total, held = await spent(gate, customer)
    assert held == 0
    assert 2 * cost(api) < total < 3 * cost(api)


@pytest.mark.parametrize("api", APIS)
async def test_what_is_denied_never_reaches_the_provider(
    api: str, gate: TallygateClient, provider: Provider, request: pytest.FixtureRequest
) -> None:
    await gate.grant(request.node.name, 3000)
    async with wrap(sdk(api, provider.url), gate, customer=request.node.name) as client:
        with pytest.raises(Denied, match="credits_exhausted"):
            await create(api, client)
        assert provider.asked == []


@pytest.mark.parametrize("api", APIS)
async def test_the_limit_is_lowered_to_what_is_affordable(
    api: str, gate: TallygateClient, provider: Provider, request: pytest.FixtureRequest
) -> None:
    await gate.grant(request.node.name, 4000)  # 100 tokens of input, and 30 of output
    async with wrap(sdk(api, provider.url), gate, customer=request.node.name, at_least=25) as client:
        await create(api, client)
        assert [limit_of(asked) for asked in provider.asked] == [30]
        with pytest.raises(Denied):
            await create(api, client)
        assert len(provider.asked) == 1


@pytest.mark.parametrize("api", APIS)
async def test_a_call_that_fails_releases(api: str, gate: TallygateClient, customer: str, provider: Provider) -> None:
    async with wrap(sdk(api, provider.url), gate, customer=customer) as client:
        with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)):
            await create(api, client, model="failing")
    assert await spent(gate, customer) == (0, 0)


@pytest.mark.parametrize("api", APIS)
async def test_a_stream_that_breaks_is_settled_by_what_was_seen(
    api: str, gate: TallygateClient, customer: str, provider: Provider
) -> None:
    async with wrap(sdk(api, provider.url), gate, customer=customer) as client:
        stream = await create(api, client, model="cut", stream=True)
        with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
            async for _ in stream:
                pass
    assert await spent(gate, customer) == (cost(api) if api == "messages" else SEEN, 0)


@pytest.mark.parametrize("api", APIS)
async def test_a_stream_that_is_left_early_is_settled_by_what_was_seen(
    api: str, gate: TallygateClient, customer: str, provider: Provider
) -> None:
    client = wrap(sdk(api, provider.url), gate, customer=customer)
    async with client, await create(api, client, stream=True) as stream:
        async for piece in stream:
            if TEXT in str(piece):
                break
    once = cost(api) - 10 * 100 if api == "messages" else SEEN - 10 * 100
    assert await spent(gate, customer) == (once, 0)


@contextlib.contextmanager
def paused_by_the_model(stack: Stack, stream: bool) -> Iterator[Any]:
    """A client whose model answers when the worker has just stopped to do so; at the end the worker goes on."""
    reply = SimpleNamespace(
        choices=[SimpleNamespace(delta={"content": TEXT})],
        usage={"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 40}},
    )

    async def pieces() -> AsyncIterator[Any]:
        yield reply

    async def create(**arguments: Any) -> Any:
        stack.worker.signal(signal.SIGSTOP)
        return pieces() if stream else reply

    try:
        yield SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    finally:
        stack.worker.signal(signal.SIGCONT)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_has_answered_is_not_lost_where_tallygate_does_not(
    stream: bool, gate: TallygateClient, customer: str, stack: Stack, module_kafka: Broker
) -> None:
    kind = "http" if isinstance(gate, TallygateHTTP) else "kafka"
    hasty = made(kind, stack, module_kafka.bootstrap, timeout=2)
    async with hasty:
        with (
            paused_by_the_model(stack, stream) as model,
            pytest.raises(Unsettled, match=r"the model has answered, but hold '.*' could not be settled") as caught,
        ):
            async for _ in await create("chat", wrap(model, hasty, customer=customer), stream=stream):
                pass
    assert isinstance(caught.value.__cause__, NoAnswer)
    assert caught.value.response is None if stream else hasattr(caught.value.response, "usage")
    for _ in range(200):  # what was sent is recorded once the worker goes on
        if (now := await spent(gate, customer)) == (OPENAI_COST, 0):
            break
        await asyncio.sleep(0.05)
    assert now == (OPENAI_COST, 0)


async def test_cached_tokens_without_a_meter_are_input(
    gate: TallygateClient, customer: str, provider: Provider
) -> None:
    meters = ("input_tokens", "output_tokens")
    async with wrap(sdk("chat", provider.url), gate, customer=customer, meters=meters) as client:
        await create("chat", client)
    assert await spent(gate, customer) == (100 * 10 + 20 * 100, 0)


async def test_ways_around_the_gate_are_refused(gate: TallygateClient, gate_sync: TallygateClientSync) -> None:
    client = wrap(openai.AsyncOpenAI(api_key="none"), gate, customer="acme")
    with pytest.raises(AttributeError, match=r"chat.completions.parse is not metered: use chat.completions.create"):
        _ = client.chat.completions.parse
    with pytest.raises(AttributeError, match="not metered"):
        _ = client.with_raw_response
    again: Any = client.with_options(timeout=1)
    with pytest.raises(AttributeError, match="not metered"):
        _ = again.responses.stream
    assert client.api_key == "none"
    with pytest.raises(ValueError, match="meters are input_tokens"):
        wrap(client, gate, customer="acme", meters=("tokens",))


async def test_a_function_is_metered(gate: TallygateClient, customer: str) -> None:
    @gate.metered(
        "llm",
        customer=lambda who, tokens: who,
        quantities=lambda who, tokens: {"output_tokens": tokens},
        took=lambda result: {"output_tokens": result},
    )
    async def work(who: str, tokens: int) -> int:
        """Works."""
        if tokens == 7:
            raise ZeroDivisionError
        assert await spent(gate, who) == (0, tokens * 100)
        return tokens // 2

    assert work.__doc__ == "Works."
    with pytest.raises(ZeroDivisionError):
        await work(customer, 7)
    assert await spent(gate, customer) == (0, 0)
    assert await work(customer, 40) == 20
    assert await spent(gate, customer) == (2000, 0)
    with pytest.raises(Denied):
        await work(customer, 1_000_000)
    with pytest.raises(TypeError, match="no coroutine function"):
        gate.metered("llm", customer=customer)(len)


async def test_a_function_without_asyncio_is_settled_by_the_usage_in_its_result(
    gate: TallygateClient, gate_sync: TallygateClientSync, customer: str
) -> None:
    asked = dict.fromkeys(METERS, 50)

    @gate_sync.metered("llm", customer=customer, quantities=asked)
    def said() -> Any:
        usage = SimpleNamespace(input_tokens=60, output_tokens=20, cache_read_input_tokens=40)
        return SimpleNamespace(usage=usage)

    @gate_sync.metered("llm", customer=customer, quantities={"output_tokens": 5})
    def silent() -> str:
        return "nothing of usage"

    await asyncio.to_thread(said)
    assert await spent(gate, customer) == (OPENAI_COST, 0)
    await asyncio.to_thread(silent)
    assert await spent(gate, customer) == (OPENAI_COST + 500, 0)
