"""Every Python block of the README, run as it stands before a real worker, gateway and sink; models are on loopback.

A block has a case here: what names it takes for granted, and what is to be so after it.
"""

import ast
import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import openmeter
import pytest
import yaml
from openmeter.models import Event

from fake_provider import Provider, fake_provider
from gateway_stack import Stack, gateway_stack, wait_until
from kafka_fixture import Broker
from tallygate.connectors.client import Denied, Tallygate
from tallygate.topologies.demo_trace import data_path

pytestmark = pytest.mark.timeout(240)

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
MILLION = Decimal(1_000_000)
GIVEN = 1000


class World(NamedTuple):
    stack: Stack
    brokers: str
    provider: Provider

    def spent(self) -> tuple[Decimal, Decimal]:
        """Acme's credits: spent, and held."""
        [pool] = self.stack.gateway.call("GET", "/v1/customers/acme/balance").json["pools"]
        held = Decimal(pool["held"])
        return GIVEN - Decimal(pool["balance"]) - held, held


class Case(NamedTuple):
    """What a block needs and leaves. `after` is given its names; what it spends is looked at from outside."""

    names: Callable[[World, Any], dict[str, Any]]
    costs: Decimal
    after: Callable[[World, dict[str, Any]], Awaitable[None]] | None = None


async def _wrapped(world: World, names: dict[str, Any]) -> None:
    assert "forty characters" in names["reply"].choices[0].message.content
    assert await names["draw"](SimpleNamespace(org="acme"), "a cat") is None
    with pytest.raises(Denied):
        await names["draw"](SimpleNamespace(org="nobody"), "a cat")


async def _leased(world: World, names: dict[str, Any]) -> None:
    assert names["lease"] is not None


async def _queried(world: World, names: dict[str, Any]) -> None:
    def rows() -> list[Any]:
        found = names["client"].meters.query_json(
            "input_tokens", subject=["acme"], window_size="DAY", group_by=["model"]
        )
        return [row for row in found.data if row.value == 800]

    await asyncio.to_thread(wait_until, lambda: bool(rows()))
    names["client"].close()


MESSAGES = [{"role": "user", "content": "x" * 400}]
CALLS = [SimpleNamespace(input_tokens=number) for number in (300, 500)]
CASES = {
    "async def main": Case(lambda world, client: {"__name__": "__main__"}, (250 * 1200 + 1000 * 812) / MILLION),
    "client.lease(": Case(lambda world, client: {"client": client}, 1000 * 500 / MILLION, _leased),
    "wrap(AsyncOpenAI()": Case(
        lambda world, client: {"client": client, "messages": MESSAGES},
        (250 * 100 + 1000 * 20) / MILLION + 3,  # and an image
        _wrapped,
    ),
    "openmeter.Client(": Case(
        lambda world, client: {"openmeter": openmeter, "Event": Event, "key": world.stack.gateway.admin},
        250 * 800 / MILLION,
        _queried,
    ),
    "await client.flush()": Case(
        lambda world, client: {"Tallygate": Tallygate, "calls": CALLS},
        30 * 800 / MILLION,  # of the model `code`
    ),
}


@pytest.fixture(scope="module")
def world(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With the catalog of `tallygate up`, and images."""
    with data_path("catalog.yaml") as path:
        catalog = yaml.safe_load(path.read_text())
    catalog["meters"]["images"] = {"event_type": "image", "value": "images"}
    catalog["features"]["images"] = {"meters": ["images"], "rates": [{"meter": "images", "credits": 3}]}
    folder = tmp_path_factory.mktemp("readme")
    with (
        gateway_stack(module_kafka.bootstrap, folder, sink=True, catalog=catalog) as stack,
        fake_provider() as provider,
    ):
        assert stack.gateway.call("POST", "/v1/customers/acme/grants", {"amount": str(GIVEN)}).status == 200
        yield World(stack, module_kafka.bootstrap, provider)


def test_every_block_has_a_case() -> None:
    for block in BLOCKS:
        assert len([name for name in CASES if name in block]) == 1, block
    assert len(BLOCKS) == len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_block_does_what_it_says(case: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = [each for each in BLOCKS if case in each]
    monkeypatch.setenv("OPENAI_BASE_URL", f"{world.provider.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    text = block.replace("127.0.0.1:9092", world.brokers).replace("http://127.0.0.1:8086", world.stack.gateway.url)
    code = compile(text, f"README.md: {case}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    before, _ = world.spent()

    async def run() -> None:
        async with Tallygate(world.brokers, service="cli") as client:
            names = CASES[case].names(world, client)
            if code.co_flags & inspect.CO_COROUTINE:
                await eval(code, names)
            else:
                await asyncio.to_thread(exec, code, names)
            if (after := CASES[case].after) is not None:
                await after(world, names)

    asyncio.run(run())
    wait_until(lambda: world.spent() == (before + CASES[case].costs, 0))
