"""The samples of requests: Acme buys, limits its agents, reserves, settles, asks."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from tallygate.schemas import requests

WHO: Final = {"agent": "drafter", "team": "research"}


class Sample(msgspec.Struct, frozen=True):
    """`name` is also the golden files' name: `<name>.full.json` and `<name>.minimal.json`."""

    name: str
    full: Any
    minimal: Any


_SPENT: Final = {"input_tokens": Decimal(4808), "output_tokens": Decimal("10")}
REQUESTS: Final = (
    Sample(
        "request-reserve",
        requests.Reserve(
            id="call-7",
            customer="acme",
            feature="llm",
            quantities=_SPENT,
            credits=Decimal("0.5"),
            dimensions=WHO,
            at_least={"output_tokens": Decimal(1)},
            ttl_seconds=120,
            explain=True,
            lease=True,
        ),
        requests.Reserve(id="call-7", customer="acme", feature="llm"),
    ),
    Sample(
        "request-settle",
        requests.Settle(
            id="call-7-done", customer="acme", hold="call-7", quantities=_SPENT, credits=Decimal("0.000000001")
        ),
        requests.Settle(id="call-7-done", customer="acme", hold="call-7"),
    ),
    Sample(
        "request-release",
        requests.Release(id="call-7-off", customer="acme", hold="call-7"),
        requests.Release(id="call-7-off", customer="acme", hold="call-7"),
    ),
    Sample(
        "request-extend",
        requests.Extend(id="call-7-on", customer="acme", hold="call-7", ttl_seconds=600),
        requests.Extend(id="call-7-on", customer="acme", hold="call-7", ttl_seconds=600),
    ),
    Sample(
        "request-estimate",
        requests.Estimate(
            id="how-far-1",
            customer="acme",
            feature="llm",
            of="output_tokens",
            quantities=_SPENT,
            credits=Decimal("0.5"),
            dimensions=WHO,
        ),
        requests.Estimate(id="how-far-1", customer="acme", feature="llm", of="credits"),
    ),
    Sample(
        "request-check",
        requests.Check(
            id="may-i-1",
            customer="acme",
            feature="llm",
            quantities=_SPENT,
            credits=Decimal("12.5"),
            dimensions=WHO,
            explain=True,
        ),
        requests.Check(id="may-i-1", customer="acme", feature="llm"),
    ),
    Sample(
        "request-balance",
        requests.Balance(id="how-much-1", customer="acme"),
        requests.Balance(id="how-much-1", customer="acme"),
    ),
    Sample(
        "request-grant",
        requests.GiveGrant(
            id="order-1",
            customer="acme",
            amount=Decimal("1000"),
            pool="tokens",
            priority=5,
            effective_at=datetime(2026, 1, 1, tzinfo=UTC),
            expires_at=datetime(2027, 1, 1, tzinfo=UTC) + timedelta(milliseconds=500),
            category="promotional",
            price=Decimal("0.02"),
            recurrence=requests.Recurring("P1M", datetime(2026, 1, 31, tzinfo=UTC)),
            rollover_min=Decimal("10"),
            rollover_max=Decimal("500"),
        ),
        requests.GiveGrant(id="order-1", customer="acme", amount=Decimal("1000")),
    ),
    Sample(
        "request-void-grant",
        requests.VoidGrant(id="refund-1", customer="acme", grant="order-1"),
        requests.VoidGrant(id="refund-1", customer="acme", grant="order-1"),
    ),
    Sample(
        "request-reset",
        requests.ResetPool(id="february", customer="acme", pool="tokens", preserve_overage=True),
        requests.ResetPool(id="february", customer="acme"),
    ),
    Sample(
        "request-budget",
        requests.SetBudget(
            id="cap-1",
            customer="acme",
            name="agents",
            limit=Decimal("500"),
            scope={"agent": "*"},
            unit="input_tokens",
            period="day",
            hard=False,
            anchor=datetime(2026, 1, 1, 6, tzinfo=UTC),
            thresholds=(80, 100),
            observe=True,
        ),
        requests.SetBudget(id="cap-1", customer="acme", name="agents", limit=Decimal("500")),
    ),
    Sample(
        "request-rate-limit",
        requests.SetRateLimit(
            id="pace-1",
            customer="acme",
            name="calls",
            limit=Decimal("60"),
            per_seconds=60,
            burst=Decimal("10"),
            scope={"agent": "*"},
            unit="calls",
            observe=True,
        ),
        requests.SetRateLimit(id="pace-1", customer="acme", name="calls", limit=Decimal("60"), per_seconds=60),
    ),
    Sample(
        "request-subscribe",
        requests.Subscribe(
            id="contract-1",
            customer="acme",
            plan="pro",
            add_ons=("more-searches",),
            overrides={
                "search": requests.Override("metered", "", "searches", Decimal("5000"), "day", "credits"),
                "support": requests.Override("static", "gold"),
            },
            anchor=datetime(2026, 1, 15, tzinfo=UTC),
        ),
        requests.Subscribe(id="contract-1", customer="acme", plan="pro"),
    ),
    Sample(
        "request-customer",
        requests.SetCustomer(id="stop-1", customer="acme", suspended=True, strict=True),
        requests.SetCustomer(id="stop-1", customer="acme"),
    ),
)
