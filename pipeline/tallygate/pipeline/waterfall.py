"""The decision waterfall: one answer over every level, all of it or none.

In order: customer, feature, rate limits, budgets (narrowest first), allowance, credits, overage policy. The first level
that says no gives the reason; every level that says no is listed.
"""

import msgspec

from tallygate.pipeline import budgets, credits
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.budgets import Level
from tallygate.pipeline.credits import Shares
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.catalog import Feature
from tallygate.schemas.reasons import Reason


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a call wants: its feature, what it costs, its quantities by meter, who makes it."""

    feature: Feature
    credits_nanos: int
    quantities: dict[str, int]
    dimensions: dict[str, str]


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What the gate says, and everything needed to act on a yes."""

    reason: Reason
    levels: list[Level]
    receipt: Shares = ()
    overage_nanos: int = 0
    limits: tuple[LimitState, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.ALLOWED


def gate(draft: AccountDraft, ask: Ask, at: int, explain: bool = False) -> Verdict:
    """Would this be allowed now? Changes nothing."""
    if draft.row is None:
        return Verdict(Reason.CUSTOMER_UNKNOWN, [])
    if draft.row.suspended:
        return Verdict(Reason.CUSTOMER_SUSPENDED, [])
    levels = budgets.levels(draft, ask.dimensions, ask.credits_nanos, ask.quantities, at)
    receipt, uncovered = credits.plan(draft, ask.feature.pool, ask.credits_nanos)
    reasons = []
    if any(level.budget.hard and not level.has_room for level in levels):
        reasons.append(Reason.BUDGET_EXHAUSTED)
    if not _may_owe(draft, ask.feature, uncovered, at):
        reasons.append(Reason.CREDITS_EXHAUSTED)
    reason = reasons[0] if reasons else Reason.ALLOWED
    limits: tuple[LimitState, ...] = ()
    if reasons or explain:
        looked_at = [budgets.limit_state(level) for level in levels]
        looked_at.append(credits_state(draft, ask, Reason.CREDITS_EXHAUSTED not in reasons))
        limits = tuple(state for state in looked_at if explain or not state.ok)
    return Verdict(reason, levels, receipt, uncovered, limits)


def _may_owe(draft: AccountDraft, feature: Feature, nanos: int, at: int) -> bool:
    """Does the feature's overage policy let the customer owe this much more?"""
    if not nanos or feature.overage_nanos_max is None:
        return True
    pool = draft.pool(feature.pool, at)
    return pool.overage_nanos + pool.overage_held_nanos + nanos <= feature.overage_nanos_max


def credits_state(draft: AccountDraft, ask: Ask, ok: bool) -> LimitState:
    """The pool as a limit: what its active grants gave, what of it is used, held and left."""
    grants = credits.active_grants(draft, ask.feature.pool)
    limit = sum(grant.amount_nanos for grant in grants)
    held = sum(grant.held_nanos for grant in grants)
    left = sum(grant.balance_nanos for grant in grants)
    return LimitState(
        kind="credits",
        name=ask.feature.pool,
        ok=ok,
        unit="credits",
        asked=from_nanos(ask.credits_nanos),
        limit=from_nanos(limit),
        used=from_nanos(limit - held - left),
        held=from_nanos(held),
        remaining=from_nanos(left),
    )
