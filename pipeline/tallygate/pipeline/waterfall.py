"""The decision waterfall: one answer over every level, all of it or none.

In order: customer, feature, rate limits, budgets (narrowest first), allowance, credits, overage policy. The first level
that says no gives the reason; every level that says no is listed. A level in observe mode only reports.
"""

import msgspec

from tallygate.pipeline import budgets, credits, entitlements, rates
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.budgets import Level
from tallygate.pipeline.credits import Shares
from tallygate.pipeline.entitlements import Access, Allowance, access, allowances, cost_of, offer_of
from tallygate.pipeline.rates import Flow
from tallygate.pipeline.tariff import Tariff
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import LimitState, Step
from tallygate.schemas.catalog import CREDITS_UNIT, Feature
from tallygate.schemas.reasons import Reason


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a call wants: a feature, quantities by meter, credits asked for directly, who makes it; is it a lease?"""

    feature: Feature
    quantities: dict[str, int]
    credits_nanos: int
    dimensions: dict[str, str]
    lease: bool = False


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What the gate says, and everything needed to act on a yes."""

    reason: Reason
    cost_nanos: int = 0
    receipt: Shares = ()
    overage_nanos: int = 0
    levels: list[Level] = []
    allowances: list[Allowance] = []
    flows: list[Flow] = []
    limits: tuple[LimitState, ...] = ()
    would_deny: tuple[Reason, ...] = ()
    trace: tuple[Step, ...] = ()
    retry_after_ms: int | None = None
    value: str | None = None

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.ALLOWED

    @property
    def priced(self) -> bool:
        """Whether the gate has come as far as what it costs."""
        return self.reason not in (
            Reason.CUSTOMER_UNKNOWN,
            Reason.CUSTOMER_SUSPENDED,
            Reason.CUSTOMER_STRICT,
            Reason.FEATURE_NOT_ENTITLED,
        )


def gate(draft: AccountDraft, tariff: Tariff, ask: Ask, at: int, explain: bool = False) -> Verdict:
    """Would this be allowed now? Changes nothing."""
    stopped = customer_stopped(draft, ask.lease)
    if stopped is not None:
        return stopped
    offer = offer_of(draft, tariff)
    right = access(draft, tariff, offer, ask.feature)
    if right.reason is not Reason.ALLOWED:
        return _refused("feature", right.reason)
    included = allowances(draft, right, ask.quantities, at) if right.entitlements else []
    cost = ask.credits_nanos + cost_of(tariff, included, ask.quantities, ask.dimensions, at)
    levels = budgets.levels(draft, offer, ask.dimensions, cost, ask.quantities, at)
    flows = rates.flows(draft, offer, ask.dimensions, cost, ask.quantities, at)
    receipt, uncovered = plan(draft, ask.feature.pools, cost)
    seen = _Seen(draft, ask, right, levels, flows, included, cost, uncovered)
    denied, observed = seen.reasons()
    plain = not (denied or observed or explain)
    return Verdict(
        reason=denied[0] if denied else Reason.ALLOWED,
        cost_nanos=cost,
        receipt=receipt,
        overage_nanos=uncovered,
        levels=levels,
        allowances=included,
        flows=flows,
        limits=() if plain else seen.limits(explain),
        would_deny=observed,
        trace=seen.trace() if explain else (),
        retry_after_ms=seen.retry_after_ms(at) if denied else None,
        value=right.value,
    )


def customer_stopped(draft: AccountDraft, lease: bool) -> Verdict | None:
    """The no to a customer who is not known or is suspended, whatever is asked, and to a strict one's lease."""
    if draft.row is None:
        return _refused("customer", Reason.CUSTOMER_UNKNOWN)
    if draft.row.suspended:
        return _refused("customer", Reason.CUSTOMER_SUSPENDED)
    if lease and draft.row.strict:
        return _refused("customer", Reason.CUSTOMER_STRICT)
    return None


def feature_unknown(draft: AccountDraft, lease: bool = False) -> Verdict:
    """The no to a feature that the catalog does not have."""
    return customer_stopped(draft, lease) or _refused("feature", Reason.FEATURE_UNKNOWN)


def plan(draft: AccountDraft, pools: tuple[str, ...], nanos: int) -> tuple[Shares, int]:
    """Who would pay, pool after pool, and what nobody covers. Changes nothing."""
    if not nanos:
        return (), 0
    shares: Shares = ()
    for pool in pools:
        more, nanos = credits.plan(draft, pool, nanos)
        shares += more
        if not nanos:
            break
    return shares, nanos


def _refused(step: str, reason: Reason) -> Verdict:
    order = ("customer", "feature")
    trace = [Step(name, True, Reason.ALLOWED) for name in order[: order.index(step)]]  # type: ignore[arg-type]
    return Verdict(reason, trace=(*trace, Step(step, False, reason)))  # type: ignore[arg-type]


class _Seen:
    """Everything the gate has looked at."""

    def __init__(
        self,
        draft: AccountDraft,
        ask: Ask,
        right: Access,
        levels: list[Level],
        flows: list[Flow],
        included: list[Allowance],
        cost: int,
        uncovered: int,
    ) -> None:
        self._draft = draft
        self._ask = ask
        self._levels = levels
        self._flows = flows
        self._included = included
        self._cost = cost
        self._uncovered = uncovered
        self._may_owe = _may_owe(draft, ask.feature, uncovered)

    def reasons(self) -> tuple[list[Reason], tuple[Reason, ...]]:
        """Why not, in the waterfall's order: what denies, and what in observe mode would."""
        denied: list[Reason] = []
        observed: list[Reason] = []
        for flow in self._flows:
            if not flow.has_room:
                (observed if flow.limit.observe else denied).append(Reason.RATE_LIMITED)
        for level in self._levels:
            if level.budget.hard and not level.has_room:
                (observed if level.budget.observe else denied).append(Reason.BUDGET_EXHAUSTED)
        for each in self._included:
            if not each.has_room:
                (observed if each.entitlement.observe else denied).append(Reason.ALLOWANCE_EXHAUSTED)
        if not self._may_owe:
            (observed if self._ask.feature.observe else denied).append(Reason.CREDITS_EXHAUSTED)
        return list(dict.fromkeys(denied)), tuple(dict.fromkeys(observed))

    def limits(self, explain: bool) -> tuple[LimitState, ...]:
        """Every limit that said no, or every one looked at."""
        found = [
            *(rates.limit_state(flow) for flow in self._flows),
            *(budgets.limit_state(level) for level in self._levels),
            *(entitlements.limit_state(each) for each in self._included),
            self._credits_state(),
        ]
        return tuple(found) if explain else tuple(state for state in found if not state.ok and state.hard)

    def retry_after_ms(self, at: int) -> int | None:
        """How long until everything that denies lets this through; None where waiting does not help."""
        waits: list[int | None] = [flow.retry_after_ms for flow in self._flows if not flow.limit.observe]
        waits += [
            budgets.wait_ms(level, at)
            for level in self._levels
            if level.budget.hard and not level.budget.observe and not level.has_room
        ]
        waits += [
            entitlements.wait_ms(each, at)
            for each in self._included
            if not each.entitlement.observe and not each.has_room
        ]
        if not (self._may_owe or self._ask.feature.observe):
            waits.append(None)
        known = [wait for wait in waits if wait is not None]
        return max(known) if known and len(known) == len(waits) else None

    def trace(self) -> tuple[Step, ...]:
        """The whole waterfall, step by step."""
        flows = tuple(rates.limit_state(flow) for flow in self._flows)
        levels = tuple(budgets.limit_state(level) for level in self._levels)
        included = tuple(entitlements.limit_state(each) for each in self._included)
        credit = self._credits_state()
        paid = self._uncovered == 0
        may = self._may_owe or self._ask.feature.observe
        return (
            Step("customer", True, Reason.ALLOWED),
            Step("feature", True, Reason.ALLOWED),
            _step("rate_limits", Reason.RATE_LIMITED, flows),
            _step("budgets", Reason.BUDGET_EXHAUSTED, levels),
            _step("allowance", Reason.ALLOWANCE_EXHAUSTED, included),
            Step("credits", paid, Reason.ALLOWED if paid else Reason.CREDITS_EXHAUSTED, (credit,)),
            Step("overage", may, Reason.ALLOWED if may else Reason.CREDITS_EXHAUSTED),
        )

    def _credits_state(self) -> LimitState:
        """The feature's pools as a limit: what active grants gave, what of it is used, held and left."""
        grants = [grant for pool in self._ask.feature.pools for grant in credits.active_grants(self._draft, pool)]
        limit = sum(grant.amount_nanos for grant in grants)
        held = sum(grant.held_nanos for grant in grants)
        left = sum(grant.balance_nanos for grant in grants)
        return LimitState(
            kind="credits",
            name=", ".join(self._ask.feature.pools),
            ok=self._may_owe,
            unit=CREDITS_UNIT,
            asked=from_nanos(self._cost),
            limit=from_nanos(limit),
            used=from_nanos(max(0, limit - held - left)),
            held=from_nanos(held),
            remaining=from_nanos(left),
            observe=self._ask.feature.observe,
        )


def _may_owe(draft: AccountDraft, feature: Feature, nanos: int) -> bool:
    """Does the feature's overage policy let the customer owe this much more?"""
    if not nanos or feature.overage_nanos_max is None:
        return True
    pool = draft.pool(feature.pools[-1])
    return pool.overage_nanos + pool.overage_held_nanos + nanos <= feature.overage_nanos_max


def _step(name: str, reason: Reason, limits: tuple[LimitState, ...]) -> Step:
    ok = all(limit.ok or limit.observe or not limit.hard for limit in limits)
    return Step(name, ok, Reason.ALLOWED if ok else reason, limits)  # type: ignore[arg-type]
