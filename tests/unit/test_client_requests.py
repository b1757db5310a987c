"""What each call of the client sends: the bytes decode to the request that was meant."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from sent_requests import SentRequests
from tallygate.connectors import client_async
from tallygate.connectors.client import Override, RefusedRequest, Tallygate, TallygateClient, TallygateSync
from tallygate.connectors.client_administration import Administration
from tallygate.schemas import requests
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import OPS
from tallygate.schemas.samples_requests import REQUESTS

ANCHOR = datetime(2026, 1, 31, tzinfo=UTC)
Call = Callable[[Tallygate], Awaitable[Any]]


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> SentRequests:
    standing_in = SentRequests()
    monkeypatch.setattr(client_async, "Transport", standing_in)
    return standing_in


@pytest.fixture
def client(transport: SentRequests) -> Tallygate:
    return Tallygate("127.0.0.1:1", service="test")


#: Each sample request, full and minimal, as a call of the client.
CALLS: dict[str, tuple[Call, Call]] = {
    "reserve": (
        lambda client: client.ask(  # only leases ask for one, and they have no explanations
            replace(
                client.reserve(
                    "acme",
                    feature="llm",
                    quantities={"output_tokens": 10, "input_tokens": 4808},
                    credits="0.50",
                    dimensions={"team": "research", "agent": "drafter"},
                    at_least={"output_tokens": 1},
                    ttl_seconds=120,
                    explain=True,
                    id="call-7",
                )._request,
                lease=True,
            )
        ),
        lambda client: client.reserve("acme", feature="llm", id="call-7"),
    ),
    "settle": (
        lambda client: client.settle(
            "acme", "call-7", {"input_tokens": 4808, "output_tokens": 10}, credits="0.000000001", id="call-7-done"
        ),
        lambda client: client.settle("acme", "call-7", id="call-7-done"),
    ),
    "release": (lambda client: client.release("acme", "call-7", id="call-7-off"),) * 2,
    "extend": (lambda client: client.extend("acme", "call-7", 600, id="call-7-on"),) * 2,
    "estimate": (
        lambda client: client.estimate(
            "acme",
            feature="llm",
            of="output_tokens",
            quantities={"input_tokens": 4808, "output_tokens": 10},
            credits="0.5",
            dimensions={"agent": "drafter", "team": "research"},
        ),
        lambda client: client.estimate("acme", feature="llm", of="credits"),
    ),
    "check": (
        lambda client: client.check(
            "acme",
            feature="llm",
            quantities={"input_tokens": 4808, "output_tokens": 10},
            credits="12.5",
            dimensions={"agent": "drafter", "team": "research"},
            explain=True,
        ),
        lambda client: client.check("acme", feature="llm"),
    ),
    "balance": (lambda client: client.balance("acme"),) * 2,
    "grant": (
        lambda client: client.grant(
            "acme",
            1000,
            id="order-1",
            pool="tokens",
            priority=5,
            effective_at=datetime(2026, 1, 1, tzinfo=UTC),
            expires_at=datetime(2027, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC),
            category="promotional",
            price="0.02",
            every="P1M",
            anchor=ANCHOR,
            rollover_min=10,
            rollover_max="500.0",
        ),
        lambda client: client.grant("acme", "1000", id="order-1"),
    ),
    "void-grant": (lambda client: client.void_grant("acme", "order-1", id="refund-1"),) * 2,
    "reset": (
        lambda client: client.reset_pool("acme", "tokens", preserve_overage=True, id="february"),
        lambda client: client.reset_pool("acme", id="february"),
    ),
    "budget": (
        lambda client: client.set_budget(
            "acme",
            "agents",
            500,
            scope={"agent": "*"},
            unit="input_tokens",
            period="day",
            hard=False,
            anchor=datetime(2026, 1, 1, 6, tzinfo=UTC),
            thresholds=[100, 80, 100],
            observe=True,
            id="cap-1",
        ),
        lambda client: client.set_budget("acme", "agents", 500, id="cap-1"),
    ),
    "rate-limit": (
        lambda client: client.set_rate_limit(
            "acme",
            "calls",
            60,
            per_seconds=60,
            burst="10",
            scope={"agent": "*"},
            unit="calls",
            observe=True,
            id="pace-1",
        ),
        lambda client: client.set_rate_limit("acme", "calls", 60, per_seconds=60, id="pace-1"),
    ),
    "subscribe": (
        lambda client: client.subscribe(
            "acme",
            "pro",
            add_ons=["more-searches"],
            overrides={
                "support": Override("static", "gold"),
                "search": Override("metered", "", "searches", Decimal("5.0E3"), "day", "credits"),
            },
            anchor=datetime(2026, 1, 15, tzinfo=UTC),
            id="contract-1",
        ),
        lambda client: client.subscribe("acme", "pro", id="contract-1"),
    ),
    "customer": (
        lambda client: client.set_customer("acme", suspended=True, strict=True, id="stop-1"),
        lambda client: client.set_customer("acme", suspended=False, id="stop-1"),
    ),
}
READS = ("check", "estimate", "balance")


def test_every_request_has_a_call() -> None:
    assert set(CALLS) == set(OPS.values())


@pytest.mark.parametrize("sample", REQUESTS, ids=lambda sample: sample.name)
async def test_the_samples_are_what_the_calls_send(sample: Any, client: Tallygate, transport: SentRequests) -> None:
    op = OPS[type(sample.full)]
    for call in CALLS[op]:
        await call(client)
    full, minimal = transport.sent
    if op in READS:  # only asked: an id of its own each time
        assert full.id != minimal.id
        full, minimal = replace(full, id=sample.full.id), replace(minimal, id=sample.minimal.id)
    assert (full, minimal) == (sample.full, sample.minimal)


def test_the_calls_without_asyncio_are_the_same(transport: SentRequests) -> None:
    with TallygateSync("127.0.0.1:1", service="test") as client:
        for name, method in (vars(Administration) | vars(TallygateClient)).items():
            if callable(method) and not name.startswith("_"):
                assert callable(getattr(client, name)), name
        client.subscribe("acme", "pro", overrides={"sso": Override("boolean", "true")})
        with client.reserve("acme", feature="llm") as hold:
            assert hold.expires_at == "2026-01-31T00:05:00Z"
            hold.extend(600)
            assert hold.expires_at == "2026-01-31T00:10:00Z"
            assert hold.answer.hold is not None
            assert hold.answer.hold.expires_at == "2026-01-31T00:05:00Z"
    ops = [OPS[type(request)] for request in transport.sent]
    assert ops == ["subscribe", "reserve", "extend", "release"]


async def test_a_hold_can_be_extended_more_than_once(client: Tallygate, transport: SentRequests) -> None:
    async with client.reserve("acme", feature="llm", id="h1") as hold:
        await hold.extend(600)
        await hold.extend(600)
        await hold.settle()
    _, one, other, _ = transport.sent
    assert isinstance(one, requests.Extend)
    assert (one.hold, one.ttl_seconds) == ("h1", 600)
    assert one.id != other.id


async def test_a_grant_that_is_voided_twice_is_one_request(client: Tallygate, transport: SentRequests) -> None:
    for grant in ("g1", "g1", "g2"):
        await client.void_grant("acme", grant)
    one, again, other = transport.sent
    assert one == again
    assert one.id != other.id


@pytest.mark.parametrize(
    ("call", "reason", "says"),
    [
        (lambda client: client.grant("acme", 1, every="monthly"), Reason.MALFORMED, "every: 'monthly' is no interval"),
        (lambda client: client.grant("acme", 1, anchor=ANCHOR), Reason.MALFORMED, "anchor: .*say `every`, too"),
        (lambda client: client.grant("acme", 1, rollover_min=-1), Reason.QUANTITY_INVALID, "rollover_min: -1"),
        (lambda client: client.extend("acme", "h1", 0), Reason.MALFORMED, "ttl_seconds"),
        (lambda client: client.set_rate_limit("acme", "n", 1, per_seconds=0), Reason.MALFORMED, "per_seconds"),
        (lambda client: client.set_rate_limit("acme", "n", "x", per_seconds=1), Reason.QUANTITY_INVALID, "limit: x"),
        (lambda client: client.set_budget("acme", "n", 1, thresholds=[0]), Reason.MALFORMED, "thresholds"),
        (lambda client: client.set_budget("acme", "n", 1, anchor=datetime(2026, 1, 1)), Reason.MALFORMED, "anchor"),
        (
            lambda client: client.subscribe("acme", "p", overrides={"f": Override("metered", limit=Decimal(-1))}),
            Reason.QUANTITY_INVALID,
            "overrides.f.limit: -1 is negative",
        ),
        (lambda client: client.subscribe("acme", ""), Reason.MALFORMED, "plan"),
        (lambda client: client.reserve("acme", feature="llm", at_least={"a": -1}), Reason.QUANTITY_INVALID, "a: -1"),
        (lambda client: client.set_customer("acme", suspended="no"), Reason.MALFORMED, "suspended"),
    ],
)
async def test_what_is_wrong_is_refused_before_it_is_sent(
    client: Tallygate, transport: SentRequests, call: Call, reason: Reason, says: str
) -> None:
    with pytest.raises(RefusedRequest, match=says) as caught:
        await call(client)
    assert caught.value.reason is reason
    assert transport.sent == []
