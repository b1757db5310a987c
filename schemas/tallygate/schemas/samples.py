"""One story told in every record type: the samples behind the golden files and the examples in the JSON Schemas.

Acme bought 1 000 credits and capped its agent "drafter" at 500 a day. The agent reserves 12.5 credits, the work takes
10.25. Each type has a `full` sample, which sets every field, and a `minimal` one, which sets only what it must.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import msgspec

from tallygate.schemas import answers, catalog, journal, ledger, samples_catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.reasons import Reason
from tallygate.schemas.samples_keys import AUDIT, KEYS
from tallygate.schemas.samples_published import PUBLISHED
from tallygate.schemas.samples_requests import REQUESTS, WHO, Sample

_AT: Final = 1_767_268_800_000  # 2026-01-01T12:00:00Z
_HOUR: Final = 3_600_000
_DAY: Final = 24 * _HOUR


EVENT: Final = Sample(
    "usage-event",
    UsageEvent(
        specversion="1.0",
        id="call-7",
        source="/gateway/eu-1",
        type="llm.call",
        subject="acme",
        time=datetime(2026, 1, 1, 13, 0, 0, 250_000, tzinfo=UTC),
        datacontenttype="application/vnd.acme.call+json",
        data={"input_tokens": 4808, "seconds": Decimal("1.25"), **WHO},
    ),
    UsageEvent(specversion="1.0", id="call-8", source="/gateway/eu-1", type="llm.call", subject="acme"),
)

_LIMIT: Final = answers.LimitState(
    kind="budget",
    name="agents",
    ok=False,
    unit="credits",
    asked="12.5",
    limit="500",
    used="480",
    held="10",
    remaining="10",
    scope={"agent": "drafter"},
    hard=False,
    resets_at="2026-01-02T00:00:00Z",
    observe=True,
)
_HOLD: Final = answers.HoldView(
    "call-7", "llm", "12.5", "2026-01-01T12:05:00Z", (answers.Share("order-1", "12.5"),), {"input_tokens": "4808"}
)
_GRANT: Final = answers.GrantView(
    id="order-1",
    pool="credits",
    amount="1000",
    balance="987.5",
    held="12.5",
    priority=1,
    category="paid",
    effective_at="2026-01-01T00:00:00Z",
    expires_at="2027-01-01T00:00:00Z",
    active=False,
)
ANSWER: Final = Sample(
    "answer",
    answers.Answer(
        id="call-7",
        op="reserve",
        customer="acme",
        allowed=False,
        reason=Reason.BUDGET_EXHAUSTED,
        at="2026-01-01T12:00:00.250Z",
        catalog=3,
        message="budget agents of agent=drafter has 10 credits left",
        credits="12.5",
        paid=(answers.Share("order-1", "12.5"),),
        overage="0.25",
        balance="987.5",
        hold=_HOLD,
        limits=(_LIMIT,),
        statement=answers.Statement(
            pools=(answers.PoolView("credits", "987.5", "12.5", "0.25", "42", "2026-01-01T00:00:00Z"),),
            grants=(_GRANT,),
            holds=(_HOLD,),
            limits=(_LIMIT,),
            subscription=answers.SubscriptionView("pro", "2026-01-01T00:00:00Z", "2026-01-01T12:00:00Z", ("extra",)),
            entitlements=(
                answers.EntitlementState("tier", "static", "gold"),
                answers.EntitlementState(
                    "llm",
                    "metered",
                    meter="input_tokens",
                    limit="1000",
                    used="750",
                    held="50",
                    remaining="200",
                    period="month",
                    period_at="2026-01-01T00:00:00Z",
                    resets_at="2026-02-01T00:00:00Z",
                    beyond="credits",
                    own=True,
                ),
            ),
        ),
        retry_after_ms=43_200_000,
        late=True,
        value="gold",
        affordable={"output_tokens": "2500"},
        would_deny=(Reason.RATE_LIMITED,),
        trace=(
            answers.Step("customer", True, Reason.ALLOWED),
            answers.Step("budgets", False, Reason.BUDGET_EXHAUSTED, (_LIMIT,)),
        ),
        fallback=True,
    ),
    answers.Answer(
        id="call-7",
        op="reserve",
        customer="acme",
        allowed=True,
        reason=Reason.ALLOWED,
        at="2026-01-01T12:00:00Z",
    ),
)

POSTING: Final = Sample(
    "posting",
    ledger.Posting(
        asset="credits",
        account=ledger.consumed("llm"),
        amount_nanos=10_250_000_000,
        at=_AT,
        cause=0,
        grant="order-1",
        category="paid",
        price_nanos=20_000_000,
        feature="llm",
    ),
    ledger.Posting(asset="credits", account=ledger.OVERAGE, amount_nanos=-1, at=_AT, cause=-1),
)
DECISION: Final = Sample(
    "decision",
    journal.DecisionRecord(
        id="call-7",
        op="settle",
        allowed=True,
        reason=Reason.ALLOWED,
        at=_AT,
        cause=0,
        feature="llm",
        credits_nanos=10_250_000_000,
        overage_nanos=1,
        dimensions=WHO,
        hold="call-7",
        limits=(_LIMIT,),
        late=True,
        quantities={"input_tokens": 4_808_000_000_000},
        asked_nanos=500_000_000,
        at_least={"input_tokens": 1_000_000_000},
        ttl_seconds=120,
        request='{"type":"tallygate.customer.v1","id":"stop-1","customer":"acme"}',
    ),
    journal.DecisionRecord(id="call-7", op="reserve", allowed=True, reason=Reason.ALLOWED, at=_AT, cause=0),
)

JOURNAL: Final = (
    Sample(
        "row-account",
        journal.AccountRow(
            customer="acme", created_at=_AT, due_at=_AT + _HOUR, was_due_at=_AT + _DAY, suspended=True, strict=True
        ),
        journal.AccountRow(customer="acme", created_at=_AT),
    ),
    Sample(
        "row-pool",
        journal.PoolRow(
            pool="credits",
            overage_nanos=1,
            overage_held_nanos=2,
            usage_nanos=10_250_000_000,
            grant_usage_nanos=10_249_999_999,
            period_at=_AT,
            resets=journal.Recurrence("P1M", _AT),
            resets_at=_AT + 31 * _DAY,
            preserve_overage=True,
            dropped_at=_AT,
        ),
        journal.PoolRow(pool="credits"),
    ),
    Sample(
        "row-grant",
        journal.GrantRow(
            id="order-1",
            pool="credits",
            amount_nanos=1_000_000_000_000,
            balance_nanos=987_500_000_000,
            held_nanos=12_500_000_000,
            priority=1,
            created_at=_AT,
            effective_at=_AT,
            expires_at=_AT + 365 * _DAY,
            voided_at=_AT + 30 * _DAY,
            category="promotional",
            price_nanos=20_000_000,
            active=True,
            ended=True,
            recurrence=journal.Recurrence("P1M", _AT),
            recurs_at=_AT + 31 * _DAY,
            rollover_min_nanos=1,
            rollover_max_nanos=500_000_000_000,
            cycle=2,
            returnable_nanos=3,
            source="pro:contract-1",
        ),
        journal.GrantRow(
            id="order-1",
            pool="credits",
            amount_nanos=1_000_000_000_000,
            balance_nanos=0,
            held_nanos=0,
            priority=1,
            created_at=_AT,
            effective_at=_AT,
        ),
    ),
    Sample(
        "row-hold",
        journal.HoldRow(
            id="call-7",
            feature="llm",
            pool="credits",
            created_at=_AT,
            expires_at=_AT + 300_000,
            receipt=(journal.HeldShare("order-1", 12_500_000_000, 2),),
            scopes=(journal.HeldShare("agents\0agent=drafter", 12_500_000_000),),
            quantities={"input_tokens": 4_808_000_000_000},
            credits_nanos=12_500_000_001,
            dimensions=WHO,
            overage_nanos=1,
            at_end="settle",
        ),
        journal.HoldRow(
            id="call-7",
            feature="llm",
            pool="credits",
            created_at=_AT,
            expires_at=_AT + 300_000,
            receipt=(),
            scopes=(),
            quantities={},
            credits_nanos=0,
            dimensions={},
        ),
    ),
    Sample(
        "row-budget",
        journal.BudgetRow(
            name="agents",
            limit_nanos=500_000_000_000,
            scope={"agent": "*"},
            unit="credits",
            period="day",
            hard=False,
            anchor=_AT,
            thresholds=(80, 100),
            observe=True,
        ),
        journal.BudgetRow(name="all", limit_nanos=500_000_000_000, scope={}, unit="credits", period="lifetime"),
    ),
    Sample(
        "row-rate-limit",
        journal.RateLimitRow(
            name="calls",
            limit_nanos=60_000_000_000,
            per_seconds=60,
            burst_nanos=10_000_000_000,
            scope={"agent": "*"},
            unit="calls",
            observe=True,
        ),
        journal.RateLimitRow(
            name="calls",
            limit_nanos=60_000_000_000,
            per_seconds=60,
            burst_nanos=60_000_000_000,
            scope={},
            unit="requests",
        ),
    ),
    Sample(
        "row-subscription",
        journal.SubscriptionRow(
            plan="pro",
            add_ons=("more-searches",),
            overrides=(
                catalog.Entitlement(
                    "search", "metered", "", "searches", 5_000_000_000_000, "day", "credits", observe=True
                ),
                catalog.Entitlement("support", "static", "gold"),
            ),
            anchor=_AT - _DAY,
            since=_AT,
        ),
        journal.SubscriptionRow(plan="pro", add_ons=(), overrides=(), anchor=_AT, since=_AT),
    ),
    Sample(
        "row-scope",
        journal.ScopeRow(
            id="agents\0agent=drafter",
            budget="agents",
            scope={"agent": "drafter"},
            period_at=_AT,
            used_nanos=10_250_000_000,
            held_nanos=12_500_000_000,
            alerted=80,
            alerted_limit_nanos=12_800_000_000,
        ),
        journal.ScopeRow(id="all", budget="all", scope={}, period_at=0),
    ),
    Sample(
        "row-usage",
        journal.UsageRow(
            meter="input_tokens",
            hour=_AT,
            dimensions=WHO,
            quantity_nanos=4_808_000_000_000,
            events=1,
            late_events=1,
            latest_at=_AT + 250,
            since=_AT + 691_200_000,
            aggregation="latest",
        ),
        journal.UsageRow(meter="input_tokens", hour=_AT, dimensions={}),
    ),
    Sample("row-value", journal.ValueRow(at=_AT), journal.ValueRow(at=_AT)),
    Sample(
        "row-partition",
        journal.PartitionRow(
            applied={"tallygate.requests.v1": 41, "tallygate.usage.v1": 7},
            stream_at=_AT,
            catalog=3,
            run=journal.UsageRun(upto=12, after="acme", skipped=(9,), catalog=3),
        ),
        journal.PartitionRow(applied={}, stream_at=0, catalog=0),
    ),
    Sample(
        "row-producer",
        journal.ProducerRow(epoch=1_795_000_000_000, sequence=41, at=_AT),
        journal.ProducerRow(epoch=0, sequence=0, at=0),
    ),
    Sample(
        "row-open",
        journal.OpenRow(owner="0f8fad5bd9cb469fa16570867728950e", at=_AT),
        journal.OpenRow(owner="0f8fad5bd9cb469fa16570867728950e", at=0),
    ),
    Sample(
        "entry",
        journal.Entry(
            customer="acme",
            at=_AT,
            catalog=3,
            causes=(journal.Cause("tallygate.requests.v1", 5, 41, "call-7-done"),),
            postings=(
                ledger.Posting(
                    "credits", ledger.held("call-7"), -10_250_000_000, _AT, 0, "order-1", "paid", 20_000_000
                ),
                POSTING.full,
            ),
            decisions=(DECISION.full,),
            usage=(journal.UsageDelta("input_tokens", _AT, WHO, 4_808_000_000_000, 1, 0, 0),),
            balances=(journal.PoolBalance("credits", 989_750_000_000, 0, 1),),
            seen=(journal.Seen("00112233445566778899aabbccddeeff", msgspec.Raw(b'{"allowed":true}')),),
            alerts=(
                journal.Alert(
                    "agents", {"agent": "drafter"}, "credits", 80, 500_000_000_000, 400_000_000_000, _AT, _AT, 0
                ),
            ),
            counted=(
                journal.CountedEvents(
                    0,
                    "llm.call",
                    "gateway/eu-1",
                    WHO,
                    False,
                    _AT,
                    ["e-1", "e-2"],
                    [7, 9],
                    [_AT - 2_000, _AT - 1_000],
                    ["input_tokens"],
                    [[500_000_000_000, 300_000_000_000]],
                    [journal.GroupCharge("llm", "credits", "order-1", "paid", 20_000_000, [500_000_000, 300_000_000])],
                    [journal.GroupShare("agents\0agent=drafter", journal.COST_COLUMN)],
                ),
            ),
        ),
        journal.Entry(customer="acme", at=_AT, catalog=0, causes=()),
    ),
)

CATALOG: Final = Sample("catalog", samples_catalog.FULL, catalog.Catalog(version=1))

SAMPLES: Final = (EVENT, *REQUESTS, ANSWER, POSTING, DECISION, *JOURNAL, *PUBLISHED, CATALOG, *KEYS, AUDIT)
