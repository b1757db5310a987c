"""All four clients, the same story: over Kafka and over HTTP, with asyncio and without, before a real worker."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway_stack import Stack, gateway_stack
from kafka_fixture import Broker
from tallygate.connectors.client import (
    ClientClosed,
    Denied,
    NoAnswer,
    NotAllowed,
    NotConnected,
    NotHeld,
    RefusedRequest,
    Tallygate,
    TallygateClient,
    TallygateClientSync,
    TallygateError,
    TallygateHTTP,
    TallygateHTTPSync,
    TallygateSync,
    UsageLost,
)
from tallygate.schemas.answers import Answer, encode_answer
from tallygate.schemas.reasons import Reason

pytestmark = pytest.mark.timeout(240)
TIMEOUT = 30.0


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(module_kafka.bootstrap, tmp_path_factory.mktemp("clients")) as running:
        yield running


class Waited:
    """A client without asyncio, waited for in a thread: a story is told once for both kinds."""

    def __init__(self, client: TallygateClientSync) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call

    def reserve(self, *args: Any, **kwargs: Any) -> "WaitedReservation":
        return WaitedReservation(self._client, args, kwargs)


class WaitedReservation:
    def __init__(self, client: TallygateClientSync, args: Any, kwargs: Any) -> None:
        self._ask: Callable[[], Any] = lambda: client.reserve(*args, **kwargs)

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Answer:
        answer: Answer = (await asyncio.to_thread(self._ask)).answer
        return answer

    async def __aenter__(self) -> Any:
        self._hold = await asyncio.to_thread(self._ask)
        return Waited(await asyncio.to_thread(self._hold.__enter__))

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._hold.__exit__, *error)


KINDS = ("kafka", "kafka-sync", "http", "http-sync")


@contextlib.asynccontextmanager
async def connected(kind: str, stack: Stack, brokers: str, **more: Any) -> AsyncIterator[Any]:
    over_kafka: dict[str, Any] = {"service": "cli", "timeout": TIMEOUT, **more}
    over_http: dict[str, Any] = {"key": stack.gateway.admin, "timeout": TIMEOUT, **more}
    match kind:
        case "kafka":
            async with Tallygate(brokers, **over_kafka) as client:
                yield client
        case "http":
            async with TallygateHTTP(stack.gateway.url, **over_http) as http:
                yield http
        case "kafka-sync" | "http-sync":
            made = TallygateSync(brokers, **over_kafka) if kind == "kafka-sync" else None
            waited = made or TallygateHTTPSync(stack.gateway.url, **over_http)
            await asyncio.to_thread(waited.start)
            try:
                yield Waited(waited)
            finally:
                await asyncio.to_thread(waited.close)


@pytest.fixture(params=KINDS)
async def client(request: pytest.FixtureRequest, stack: Stack, module_kafka: Broker) -> AsyncIterator[Any]:
    async with connected(request.param, stack, module_kafka.bootstrap) as started:
        yield started


@pytest.fixture
def customer(request: pytest.FixtureRequest) -> str:
    return f"org/{request.node.name} ü%?#"


async def pool(client: TallygateClient, customer: str) -> tuple[str, str]:
    [found] = (await client.balance(customer)).pools
    return found.balance, found.held


async def until_balance(client: TallygateClient, customer: str, balance: str) -> None:
    """Usage that Kafka has is decided soon."""
    async with asyncio.timeout(TIMEOUT):
        while (found := (await pool(client, customer))[0]) != balance:
            assert Decimal(found) > Decimal(balance)
            await asyncio.sleep(0.05)


async def test_reserve_extend_settle(client: TallygateClient, customer: str) -> None:
    assert (await client.grant(customer, 1000, id="g1")).allowed
    async with client.reserve(customer, feature="llm", quantities={"tokens": 75}, ttl_seconds=60) as hold:
        assert hold.credits == "75"
        assert await pool(client, customer) == ("925", "75")
        first = hold.answer.hold
        assert first is not None
        later = await hold.extend(900)
        assert later.hold is not None
        assert later.hold.expires_at > first.expires_at
        settled = await hold.settle({"tokens": "60.5"})
    assert (settled.op, settled.credits, settled.balance) == ("settle", "60.5", "939.5")
    assert (await client.settle(customer, hold.id, {"tokens": "60.5"})) == settled
    assert await pool(client, customer) == ("939.5", "0")
    statement = await client.balance(customer)
    assert [(grant.id, grant.balance) for grant in statement.grants] == [("g1", "939.5")]


async def test_a_block_left_without_settle_or_by_an_error_releases(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 100)
    async with client.reserve(customer, feature="llm", credits=40):
        assert await pool(client, customer) == ("60", "40")
    with pytest.raises(ZeroDivisionError):
        async with client.reserve(customer, feature="llm", credits=40):
            _ = 1 / 0
    assert await pool(client, customer) == ("100", "0")


async def test_a_denial_is_a_value_or_is_raised_before_the_block(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 10)
    answer = await client.reserve(customer, feature="llm", credits=11)
    assert (answer.allowed, answer.reason, answer.limits[0].remaining) == (False, Reason.CREDITS_EXHAUSTED, "10")
    assert (await client.check(customer, feature="llm", credits=11, explain=True)).trace
    assert (await client.check("never-seen", feature="llm")).reason is Reason.CUSTOMER_UNKNOWN
    with pytest.raises(Denied, match="credits_exhausted"):
        async with client.reserve(customer, feature="llm", credits=11):
            pytest.fail("entered")
    with pytest.raises(Denied, match="customer_unknown"):
        await client.balance("never-seen")


async def test_less_where_not_all_is_affordable(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 30)
    estimate = await client.estimate(customer, feature="llm", of="tokens", quantities={"tokens": 4096})
    assert estimate.affordable == {"tokens": "30"}
    answer = await client.reserve(customer, feature="llm", quantities={"tokens": 4096}, at_least={"tokens": 20})
    assert answer.hold is not None
    assert answer.hold.quantities == {"tokens": "30"}
    assert (await client.release(customer, answer.id)).balance == "30"


async def test_the_same_id_is_one_hold_and_with_other_content_refused(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 100)
    id = f"call-{customer}"  # a header could not hold it
    first = await client.reserve(customer, feature="llm", credits="40.0", id=id)
    assert await client.reserve(customer, feature="llm", credits=40, id=id) == first
    with pytest.raises(RefusedRequest) as caught:
        await client.reserve(customer, feature="llm", credits=41, id=id)
    assert caught.value.reason is Reason.ID_CONFLICT
    with pytest.raises(RefusedRequest) as caught:
        await client.settle(customer, "none")
    assert caught.value.reason is Reason.HOLD_UNKNOWN
    assert caught.value.answer is not None
    with pytest.raises(RefusedRequest, match="feature"):
        await client.reserve(customer, feature="")
    assert await pool(client, customer) == ("60", "40")


async def test_usage_is_there_once_it_is_flushed(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 10_000)
    for number in range(2_500):
        await client.usage(customer, "llm.call", {"tokens": 2, "team": "research", "model": None, "user": f"u{number}"})
    await client.flush()
    await until_balance(client, customer, "5000")


async def test_the_books(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 100, id="g1")
    assert (await client.set_budget(customer, "teams", 50, scope={"team": "*"}, period="day")).allowed
    assert (await client.set_rate_limit(customer, "calls", 10, per_seconds=60)).allowed
    assert (await client.subscribe(customer, "pro")).allowed
    assert (await client.reset_pool(customer)).allowed
    with pytest.raises(RefusedRequest) as caught:
        await client.subscribe(customer, "none")
    assert caught.value.reason is Reason.PLAN_UNKNOWN
    answer = await client.reserve(customer, feature="llm", credits=51, dimensions={"team": "r"})
    assert answer.reason is Reason.BUDGET_EXHAUSTED
    await client.void_grant(customer, "g1")
    await client.set_customer(customer, suspended=True)
    assert (await client.check(customer, feature="llm")).reason is Reason.CUSTOMER_SUSPENDED


async def test_twenty_at_once_are_held_to_the_limit(client: TallygateClient, customer: str) -> None:
    await client.grant(customer, 500)
    answers = await asyncio.gather(*(client.reserve(customer, feature="llm", credits=75) for _ in range(20)))
    assert sum(answer.allowed for answer in answers) == 6


# Of HTTP alone


async def test_a_lease_over_http_decides_here_and_settles_there(stack: Stack) -> None:
    async with TallygateHTTP(stack.gateway.url, key=stack.gateway.admin) as client:
        await client.grant("leasing", 1000)
        async with client.lease("leasing", feature="llm", quantities={"tokens": 100}) as lease:
            assert lease.take({"tokens": 60}).allowed
        assert await pool(client, "leasing") == ("940", "0")


async def test_a_wrong_key_is_told_apart(stack: Stack) -> None:
    async with TallygateHTTP(stack.gateway.url, key="tg_wrong") as client:
        with pytest.raises(NotAllowed, match="check of customer 'acme' is not allowed"):
            await client.check("acme", feature="llm")
        await client.usage("acme", "llm.call", {"tokens": 1})
        with pytest.raises(UsageLost, match=r"1 usage events were not confirmed .*401"):
            await client.flush()


async def test_what_the_gateway_refuses_costs_no_other_event(stack: Stack) -> None:
    async with TallygateHTTP(stack.gateway.url, key=stack.gateway.admin, usage_linger=5) as client:
        await client.grant("half", 1000)
        for number in range(100):
            await client.usage("half", "llm.call", {"tokens": 1, "note": "x" * (70_000 if number == 7 else 10_000)})
        with pytest.raises(UsageLost) as caught:
            await client.flush(timeout=TIMEOUT)
        assert caught.value.events == 1
        await until_balance(client, "half", "901")


@contextlib.contextmanager
def front(*answers: tuple[int, bytes] | None) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that answers as it is told, then goes on with the last; None: it hangs up. What it was asked is kept."""
    asked: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.say(200, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append((self.path, self.headers.get("Idempotency-Key", ""), body))
            answer = answers[min(len(asked), len(answers)) - 1]
            if answer is None:
                self.close_connection = True
            else:
                self.say(*answer)

        def say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ALLOWED = Answer(id="h1", op="reserve", customer="acme", allowed=True, reason=Reason.ALLOWED, at="2026-01-31T00:00:00Z")
FELL_BACK = Answer(
    id="h1", op="reserve", customer="acme", allowed=True, reason=Reason.ALLOWED, at=ALLOWED.at, fallback=True
)


async def test_passing_trouble_is_tried_again_under_the_same_id() -> None:
    with front((503, b"{}"), (429, b"{}"), None, (502, b"no JSON"), (200, encode_answer(ALLOWED))) as (url, asked):
        async with TallygateHTTP(url, key="tg_") as client:
            assert await client.reserve("acme", feature="llm", id="h1") == ALLOWED
    assert [(path, key) for path, key, _ in asked] == [("/v1/reserve", "h1")] * 5
    assert len({body for _, _, body in asked}) == 1


async def test_no_answer_fails_closed_unless_the_feature_is_named() -> None:
    with front((503, b"{}")) as (url, asked):
        async with TallygateHTTP(url, key="tg_", timeout=0.5) as client:
            with pytest.raises(
                NoAnswer, match=r"no answer to reserve 'h1' .* \(sent \d times; last: .* 503\)"
            ) as caught:
                await client.reserve("acme", feature="llm", id="h1")
            assert (caught.value.op, caught.value.id) == ("reserve", "h1")
        assert len(asked) > 1


async def test_a_feature_that_fails_open_reports_its_work_as_usage() -> None:
    with front((503, b"{}")) as (url, asked):
        client = await TallygateHTTP(url, key="tg_", timeout=0.3, fail_open={"llm": "llm.call"}).start()
        async with client.reserve(
            "acme", feature="llm", quantities={"tokens": 9}, dimensions={"team": "r"}, id="h1"
        ) as hold:
            assert hold.answer.fallback
            await hold.settle({"tokens": "7.5"})
            await hold.settle({"tokens": "7.5"})  # counts once
        with pytest.raises(UsageLost):
            await client.close()
    said = {path: body for path, _, body in asked}
    assert b'"data":{"team":"r","tokens":7.5}' in said["/v1/usage"]
    assert said["/v1/usage"].count(b"specversion") == 1
    assert b'"hold":"h1"' in said["/v1/release"]  # what may have been held is given back
    assert "/v1/settle" not in said


async def test_a_fallback_of_the_gateway_is_not_settled_as_a_hold() -> None:
    with front((200, encode_answer(FELL_BACK))) as (url, asked):
        async with TallygateHTTP(url, key="tg_") as client, client.reserve("acme", feature="llm", id="h1") as hold:
            with pytest.raises(NotHeld, match="nothing is held under 'h1'"):
                await hold.settle({"tokens": 7})
    assert [path for path, _, _ in asked] == ["/v1/reserve"]


async def test_nobody_there_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NotConnected, match=f"no gateway answers at {url}"):
            await TallygateHTTP(url, key="tg_", timeout=0.3).start()
    with pytest.raises(ValueError, match="no URL of a gateway"):
        TallygateHTTP("localhost:8086", key="tg_")
    client = TallygateHTTP(url, key="tg_")
    with pytest.raises(ClientClosed):
        await client.check("acme", feature="llm")


def test_what_waits_is_sent_when_a_program_ends() -> None:
    with front((202, b"{}")) as (url, asked):
        named = url.replace("127.0.0.1", "localhost")  # names are looked up that late, too
        program = (
            "from tallygate.connectors.client import TallygateHTTPSync\n"
            f"client = TallygateHTTPSync({named!r}, key='tg_', usage_linger=60).start()\n"
            "client.usage('acme', 'llm.call', {'tokens': 1})\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert [(path, body.count(b"specversion")) for path, _, body in asked] == [("/v1/usage", 1)]


async def test_another_server_is_no_gateway() -> None:
    with front((404, b"<html>")) as (url, _):
        async with TallygateHTTP(url, key="tg_") as client:
            with pytest.raises(TallygateError, match=r"404.*is it a Tallygate gateway"):
                await client.check("acme", feature="llm")
