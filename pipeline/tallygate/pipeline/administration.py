"""Requests of those who run the books: grants, resets, budgets, rate limits, subscriptions, customers."""

from datetime import datetime

from msgspec.structs import replace

from tallygate.pipeline import credits, grants
from tallygate.pipeline.account import FOREVER, AccountDraft
from tallygate.pipeline.draft import Draft, amount
from tallygate.pipeline.recurrence import next_after
from tallygate.pipeline.transition import RequestInput
from tallygate.schemas.amounts import NANOS, from_nanos
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import CREDITS_UNIT, REQUESTS_UNIT, Entitlement, Plan, PlanGrant
from tallygate.schemas.instants import format_instant, from_datetime
from tallygate.schemas.intervals import parse_interval
from tallygate.schemas.journal import (
    AccountRow,
    BudgetRow,
    DecisionRecord,
    GrantRow,
    PoolRow,
    RateLimitRow,
    Recurrence,
    SubscriptionRow,
    scope_text,
)
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import (
    OPS,
    GiveGrant,
    Override,
    Recurring,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Subscribe,
    VoidGrant,
    encode_request,
)


def give_grant(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, GiveGrant)
    at = draft.stream_at
    if account.grants.get(request.id) is not None:
        raise Refused(Reason.ID_CONFLICT, f"grant {request.id!r} exists: use a new id for a new grant")
    effective = _instant(request.effective_at, at)
    expires = None if request.expires_at is None else from_datetime(request.expires_at)
    if expires is not None and expires <= max(at, effective):
        raise Refused(Reason.MALFORMED, f"expires_at {format_instant(expires)} is not after the grant takes effect")
    period = account.pool(request.pool).period_at
    if effective < period:
        raise Refused(
            Reason.GRANT_BACKDATED,
            f"effective_at {format_instant(effective)} is before the current period began, {format_instant(period)}",
        )
    grant = GrantRow(
        id=request.id,
        pool=request.pool,
        amount_nanos=amount("amount", request.amount),
        balance_nanos=0,
        held_nanos=0,
        priority=request.priority,
        created_at=at,
        effective_at=effective,
        expires_at=expires,
        category=request.category,
        price_nanos=amount("price", request.price),
        recurrence=_recurrence(request.recurrence, effective),
        rollover_min_nanos=amount("rollover_min", request.rollover_min),
        rollover_max_nanos=amount("rollover_max", request.rollover_max),
    )
    account.know(at)
    cause = _decided(draft, account, each, grant.amount_nanos)
    grants.give(account, [grant], at, cause)
    balance = from_nanos(credits.spendable(account, grant.pool))
    return replace(draft.answer(each), credits=from_nanos(grant.amount_nanos), balance=balance)


def void_grant(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, VoidGrant)
    grant = account.grants.get(request.grant)
    if grant is None:
        raise Refused(Reason.GRANT_UNKNOWN, f"there is no grant {request.grant!r} of this customer")
    if grant.voided_at is not None or grant.ended:
        raise Refused(Reason.GRANT_ENDED, f"grant {request.grant!r} has ended")
    cause = _decided(draft, account, each, grant.balance_nanos)
    grants.void(account, grant, draft.stream_at, cause)
    balance = from_nanos(credits.spendable(account, grant.pool))
    return replace(draft.answer(each), credits=from_nanos(grant.balance_nanos), balance=balance)


def reset_pool(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, ResetPool)
    at = draft.stream_at
    pool = account.pools.get(request.pool)
    if pool is None:
        raise Refused(Reason.RESET_REFUSED, f"this customer has no pool {request.pool!r}")
    if pool.period_at >= at:
        raise Refused(
            Reason.RESET_REFUSED, f"pool {request.pool!r} was reset at {format_instant(pool.period_at)} already"
        )
    cause = _decided(draft, account, each, 0)
    grants.reset(account, request.pool, at, cause, request.preserve_overage)
    return replace(draft.answer(each), balance=from_nanos(credits.spendable(account, request.pool)))


def set_budget(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, SetBudget)
    _check_unit(draft, request.unit, CREDITS_UNIT)
    row = BudgetRow(
        name=request.name,
        limit_nanos=amount("limit", request.limit),
        scope=request.scope,
        unit=request.unit,
        period=request.period,
        hard=request.hard,
        anchor=None if request.anchor is None else from_datetime(request.anchor),
        thresholds=tuple(sorted(set(request.thresholds))),
        observe=request.observe,
    )
    before = account.budgets.get(request.name)
    if before is not None and (before.unit, before.scope) != (row.unit, row.scope):
        raise Refused(
            Reason.BUDGET_FIXED,
            f"budget {request.name!r} counts {before.unit} of {scope_text(before.scope) or 'the customer'}: "
            "its limit, period and thresholds can change; give another unit or scope a name of its own",
        )
    account.know(draft.stream_at)
    _decided(draft, account, each, row.limit_nanos if row.unit == CREDITS_UNIT else 0)
    account.budgets.put(request.name, row)
    return draft.answer(each)


def set_rate_limit(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, SetRateLimit)
    if request.unit != CREDITS_UNIT:
        _check_unit(draft, request.unit, REQUESTS_UNIT)
    limit = amount("limit", request.limit)
    if not limit:
        raise Refused(Reason.QUANTITY_INVALID, "limit: must be more than 0; a budget of 0 stops everything")
    burst = limit if request.burst is None else amount("burst", request.burst)
    if burst < (NANOS if request.unit == REQUESTS_UNIT else 1):
        raise Refused(Reason.QUANTITY_INVALID, "burst: lets nothing through; it is the limit unless it is said")
    row = RateLimitRow(
        name=request.name,
        limit_nanos=limit,
        per_seconds=request.per_seconds,
        burst_nanos=burst,
        scope=request.scope,
        unit=request.unit,
        observe=request.observe,
    )
    account.know(draft.stream_at)
    _decided(draft, account, each, limit)
    account.rate_limits.put(request.name, row)
    return draft.answer(each)


def set_customer(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, SetCustomer)
    account.know(draft.stream_at)
    assert isinstance(account.row, AccountRow)
    _decided(draft, account, each, 0)
    row = account.row
    account.row = replace(
        row,
        suspended=row.suspended if request.suspended is None else request.suspended,
        strict=row.strict if request.strict is None else request.strict,
    )
    return draft.answer(each)


def subscribe(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    """Grants of what is subscribed to no more end, those of what is new begin; pools are reset in the plan's rhythm.

    What was subscribed to before and still is keeps its grants as they are: asking again gives nothing twice.
    """
    request = each.request
    assert isinstance(request, Subscribe)
    tariff, at = draft.tariff, draft.stream_at
    plan = tariff.plans.get(request.plan)
    if plan is None:
        known = ", ".join(sorted(tariff.plans)) or "none"
        raise Refused(Reason.PLAN_UNKNOWN, f"there is no plan {request.plan!r}; there are: {known}")
    for name in request.add_ons:
        if name not in tariff.add_ons:
            raise Refused(Reason.PLAN_UNKNOWN, f"there is no add-on {name!r}")
    if len(set(request.add_ons)) < len(request.add_ons):
        raise Refused(Reason.MALFORMED, "add_ons: names one twice")
    overrides = tuple(_override(draft, feature, each_) for feature, each_ in request.overrides.items())
    before = account.subscription
    stays = before is not None and before.plan == plan.name
    anchor = _instant(request.anchor, before.anchor if before is not None and stays else at)
    parts = {f"plan:{plan.name}": plan, **{f"add-on:{name}": tariff.add_ons[name] for name in request.add_ons}}
    had = {f"plan:{before.plan}", *(f"add-on:{name}" for name in before.add_ons)} if before else set()
    given = [
        _plan_grant(one, source, request.id, anchor, at)
        for source, part in parts.items()
        if source not in had
        for one in part.grants
    ]
    for grant in given:
        if account.grants.get(grant.id) is not None:
            raise Refused(Reason.ID_CONFLICT, f"grant {grant.id!r} exists: use a new id for a new subscription")
    account.know(at)
    cause = _decided(draft, account, each, 0)
    for grant in sorted(account.grants.values(), key=credits.burn_order):
        if grant.source and grant.source not in parts and not grant.ended:
            grants.void(account, grant, at, cause)
    for pool in sorted(account.pools.values(), key=lambda each: each.pool):
        if pool.resets is not None:
            account.pools.put(pool.pool, replace(pool, resets=None, resets_at=None, preserve_overage=False))
    account.subscriptions.put("", SubscriptionRow(plan.name, request.add_ons, overrides, anchor, at))
    grants.give(account, given, at, cause)
    for part in parts.values():
        _set_resets(account, part, anchor, at)
    return draft.answer(each)


def _set_resets(account: AccountDraft, part: Plan, anchor: int, at: int) -> None:
    for reset in part.resets:
        resets = Recurrence(reset.every, anchor)
        row: PoolRow = account.pool(reset.pool)
        resets_at = next_after(resets, at)
        account.pools.put(
            reset.pool, replace(row, resets=resets, resets_at=resets_at, preserve_overage=reset.preserve_overage)
        )
        account.wake(FOREVER if resets_at is None else resets_at)


def _plan_grant(given: PlanGrant, source: str, request: str, anchor: int, at: int) -> GrantRow:
    """A grant of a plan or add-on; `source` is `plan:<name>` or `add-on:<name>`."""
    recurrence = Recurrence(given.every, anchor) if given.every else None
    expires = next_after(Recurrence(given.expires_after, at), at) if given.expires_after else None
    return GrantRow(
        id=f"{source.partition(':')[2]}:{request}:{given.name}",
        pool=given.pool,
        amount_nanos=given.amount_nanos,
        balance_nanos=0,
        held_nanos=0,
        priority=given.priority,
        created_at=at,
        effective_at=at,
        expires_at=expires,
        category=given.category,
        price_nanos=given.price_nanos,
        recurrence=recurrence,
        rollover_min_nanos=given.rollover_min_nanos,
        rollover_max_nanos=given.rollover_max_nanos,
        source=source,
    )


def _override(draft: Draft, feature: str, given: Override) -> Entitlement:
    if feature not in draft.tariff.features:
        raise Refused(Reason.FEATURE_UNKNOWN, f"overrides.{feature}: there is no such feature")
    if given.kind == "metered" and given.meter not in draft.tariff.features[feature].meters:
        raise Refused(Reason.METER_UNKNOWN, f"overrides.{feature}.meter: {given.meter!r} is no meter of it")
    if given.kind == "boolean" and given.value not in ("", "true", "false"):
        raise Refused(Reason.MALFORMED, f"overrides.{feature}.value: a boolean is true or false, not {given.value!r}")
    limit = amount(f"overrides.{feature}.limit", given.limit)
    return Entitlement(feature, given.kind, given.value, given.meter, limit, given.period, given.beyond)


def _check_unit(draft: Draft, unit: str, beside: str) -> None:
    if unit != beside and unit not in draft.tariff.meters:
        raise Refused(Reason.METER_UNKNOWN, f"unit {unit!r} is neither {beside} nor a meter of the catalog")


def _recurrence(given: Recurring | None, effective: int) -> Recurrence | None:
    if given is None:
        return None
    try:
        parse_interval(given.interval)
    except ValueError as error:
        raise Refused(Reason.MALFORMED, f"recurrence.interval: {error}") from None
    return Recurrence(given.interval, _instant(given.anchor, effective))


def _instant(given: datetime | None, otherwise: int) -> int:
    return otherwise if given is None else from_datetime(given)


def _decided(draft: Draft, account: AccountDraft, each: RequestInput, nanos: int) -> int:
    """Put what was done into the ledger; returns its cause."""
    cause = draft.cause(account, each)
    account.decisions.append(
        DecisionRecord(
            id=each.request.id,
            op=OPS[type(each.request)],
            allowed=True,
            reason=Reason.ALLOWED,
            at=draft.stream_at,
            cause=cause,
            credits_nanos=nanos,
            request=encode_request(each.request).decode(),
        )
    )
    return cause
