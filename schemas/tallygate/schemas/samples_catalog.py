"""The sample catalog, as machines hold it and as people write it: both say the same."""

from typing import Any, Final

from tallygate.schemas import catalog

_AT: Final = 1_767_268_800_000  # 2026-01-01T12:00:00Z

FULL: Final = catalog.Catalog(
    version=3,
    meters=(
        catalog.Meter("input_tokens", "llm.call", "sum", "input_tokens", ("team", "agent")),
        catalog.Meter("calls", "llm.call", "count", "", ("team", "agent"), {"status": ("ok", "partial")}),
        catalog.Meter("searches", "search", "unique", "query"),
    ),
    features=(
        catalog.Feature(
            name="llm",
            pools=("trial", "credits"),
            meters=("input_tokens", "calls"),
            rates=(
                catalog.Rate(
                    "input_tokens",
                    2_500_000_000,
                    1_000_000_000_000_000,
                    {"team": "research"},
                    _AT,
                    (catalog.Tier(200_000_000_000_000, 5_000_000_000),),
                ),
                catalog.Rate("calls", 0, 1_000_000_000),
            ),
            ttl_seconds=120,
            at_end="settle",
            overage_nanos_max=None,
            fail="open",
            observe=True,
        ),
        catalog.Feature("search", ("credits",), ("searches",), (catalog.Rate("searches", 100_000_000, 1_000_000_000),)),
        catalog.Feature("support", ("credits",)),
        catalog.Feature("sso", ("credits",)),
    ),
    plans=(
        catalog.Plan(
            name="pro",
            entitlements=(
                catalog.Entitlement("llm", "credit"),
                catalog.Entitlement("search", "metered", "", "searches", 1_000_000_000_000, "day", "credits", True),
                catalog.Entitlement("support", "static", "gold"),
                catalog.Entitlement("sso", "boolean", "false"),
            ),
            grants=(
                catalog.PlanGrant(
                    name="monthly",
                    pool="trial",
                    amount_nanos=10_000_000_000_000,
                    priority=5,
                    category="trial",
                    price_nanos=10_000_000,
                    every="P1M",
                    expires_after="P1Y",
                    rollover_min_nanos=1_000_000_000,
                    rollover_max_nanos=2_000_000_000_000,
                ),
            ),
            budgets=(
                catalog.PlanBudget(
                    name="teams",
                    limit_nanos=500_000_000_000,
                    scope={"team": "*"},
                    unit="calls",
                    period="day",
                    hard=False,
                    thresholds=(80, 100),
                    observe=True,
                ),
            ),
            rate_limits=(catalog.RateLimit("pace", 60_000_000_000, 60, 10_000_000_000, {"agent": "*"}, "calls", True),),
            resets=(catalog.PoolReset("credits", "P1M", preserve_overage=True),),
        ),
    ),
    add_ons=(
        catalog.Plan(
            name="more-searches",
            entitlements=(catalog.Entitlement("search", "metered", "", "searches", 500_000_000_000, "day", "credits"),),
        ),
    ),
    default_plan="pro",
)

FILE: Final[dict[str, Any]] = {
    "meters": {
        "input_tokens": {"event_type": "llm.call", "value": "input_tokens", "dimensions": ["team", "agent"]},
        "calls": {
            "event_type": "llm.call",
            "aggregation": "count",
            "dimensions": ["team", "agent"],
            "where": {"status": ["ok", "partial"]},
        },
        "searches": {"event_type": "search", "aggregation": "unique", "value": "query"},
    },
    "features": {
        "llm": {
            "pools": ["trial", "credits"],
            "meters": ["input_tokens", "calls"],
            "rates": [
                {
                    "meter": "input_tokens",
                    "credits": "2.50",
                    "per": 1000000,
                    "when": {"team": "research"},
                    "since": "2026-01-01T12:00:00Z",
                    "tiers": [{"above": 200000, "credits": 5}],
                }
            ],
            "hold": {"ttl_seconds": 120, "at_end": "settle"},
            "overage": "unlimited",
            "fail": "open",
            "observe": True,
        },
        "search": {"meters": ["searches"], "rates": [{"meter": "searches", "credits": "0.1"}]},
        "support": {"pool": "credits"},
        "sso": {},
    },
    "rate_cards": {"calls": {"feature": "llm", "rates": [{"meter": "calls", "credits": 0}]}},
    "plans": {
        "pro": {
            "entitlements": {
                "llm": "credits",
                "search": {
                    "meter": "searches",
                    "limit": 1000,
                    "period": "day",
                    "beyond": "credits",
                    "observe": True,
                },
                "support": {"value": "gold"},
                "sso": False,
            },
            "grants": {
                "monthly": {
                    "pool": "trial",
                    "amount": 10000,
                    "priority": 5,
                    "category": "trial",
                    "price": "0.01",
                    "every": "P1M",
                    "expires_after": "P1Y",
                    "rollover_min": 1,
                    "rollover_max": 2000,
                }
            },
            "budgets": {
                "teams": {
                    "limit": 500,
                    "scope": {"team": "*"},
                    "unit": "calls",
                    "period": "day",
                    "hard": False,
                    "thresholds": [80, 100],
                    "observe": True,
                }
            },
            "rate_limits": {
                "pace": {
                    "limit": 60,
                    "per": "minute",
                    "burst": 10,
                    "scope": {"agent": "*"},
                    "unit": "calls",
                    "observe": True,
                }
            },
            "resets": {"credits": {"every": "P1M", "preserve_overage": True}},
        }
    },
    "add_ons": {
        "more-searches": {
            "entitlements": {"search": [{"meter": "searches", "limit": 500, "period": "day", "beyond": "credits"}]}
        }
    },
    "default_plan": "pro",
}
