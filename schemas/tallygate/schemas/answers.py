"""Answers: what comes back on `tallygate.replies.<service>.v1`, one JSON object a record.

Amounts are decimal strings, instants RFC 3339 in UTC.
"""

from typing import Literal

import msgspec

from tallygate.schemas.reasons import Reason


class LimitState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One limit as the decision saw it: `asked` of `remaining` = `limit` - `used` - `held`."""

    kind: Literal["budget", "credits", "rate", "allowance"]
    name: str
    ok: bool
    unit: str
    asked: str
    limit: str
    used: str
    held: str
    remaining: str
    scope: dict[str, str] = {}
    hard: bool = True
    resets_at: str | None = None
    observe: bool = False


class Share(msgspec.Struct, frozen=True):
    """What one grant pays."""

    grant: str
    amount: str


class HoldView(msgspec.Struct, frozen=True):
    """A hold: credits set aside, by grant in burn order, until `expires_at`."""

    id: str
    feature: str
    credits: str
    expires_at: str
    shares: tuple[Share, ...] = ()
    quantities: dict[str, str] = {}


class GrantView(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    pool: str
    amount: str
    balance: str
    held: str
    priority: int
    category: str
    effective_at: str
    expires_at: str | None = None
    active: bool = True


class PoolView(msgspec.Struct, frozen=True, omit_defaults=True):
    """`balance` is what can be spent now; `held` is set aside; `overage` is owed.

    `used` is the usage since `period_at`, the last reset (none: since ever).
    """

    pool: str
    balance: str
    held: str
    overage: str
    used: str = "0"
    period_at: str | None = None


class EntitlementState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A right to a feature, from the plan, or the customer's `own` in its place.

    `metered`: `used` and `held` of `limit` in the period from `period_at` (none: for life) until `resets_at`.
    """

    feature: str
    kind: Literal["boolean", "static", "metered", "credit"]
    value: str = ""
    meter: str = ""
    limit: str = "0"
    used: str = "0"
    held: str = "0"
    remaining: str = "0"
    period: str = ""
    period_at: str | None = None
    resets_at: str | None = None
    beyond: str = ""
    own: bool = False


class SubscriptionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """The plan that a customer was put on at `since`; periods count from `anchor`."""

    plan: str
    anchor: str
    since: str
    add_ons: tuple[str, ...] = ()


class Statement(msgspec.Struct, frozen=True):
    """The answer to a balance request. Without a subscription the catalog's default plan holds, if there is one."""

    pools: tuple[PoolView, ...] = ()
    grants: tuple[GrantView, ...] = ()
    holds: tuple[HoldView, ...] = ()
    limits: tuple[LimitState, ...] = ()
    subscription: SubscriptionView | None = None
    entitlements: tuple[EntitlementState, ...] = ()


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of the waterfall, in its order: what was looked at there, and whether it said yes."""

    step: Literal["customer", "feature", "rate_limits", "budgets", "allowance", "credits", "overage"]
    ok: bool
    reason: Reason
    limits: tuple[LimitState, ...] = ()


class Answer(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="tallygate.answer.v1"
):
    """One answer. `limits` lists every limit that said no, or every limit looked at where the request said `explain`.

    `credits` is the cost decided on; `paid` says by which grants; `overage` what no grant covered; `balance` what is
    left in the feature's pools. `value` is that of a static entitlement, `affordable` answers an estimate, `would_deny`
    is what limits in observe mode would have said, `trace` the whole waterfall, on request. `late` marks a settle that
    came after its hold had ended. `fallback`: no worker answered in time and the feature fails open; nothing is held,
    and what the work took is to be reported as usage.
    """

    id: str
    op: str
    customer: str
    allowed: bool
    reason: Reason
    at: str
    catalog: int = 0
    message: str = ""
    credits: str | None = None
    paid: tuple[Share, ...] = ()
    overage: str | None = None
    balance: str | None = None
    hold: HoldView | None = None
    limits: tuple[LimitState, ...] = ()
    statement: Statement | None = None
    retry_after_ms: int | None = None
    late: bool = False
    value: str | None = None
    affordable: dict[str, str] | None = None
    would_deny: tuple[Reason, ...] = ()
    trace: tuple[Step, ...] = ()
    fallback: bool = False


encode_answer = msgspec.json.Encoder().encode
decode_answer = msgspec.json.Decoder(Answer).decode
