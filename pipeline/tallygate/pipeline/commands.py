"""Requests: what each one does to an account, and what it is answered."""

from collections.abc import Callable
from decimal import Decimal
from typing import Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline import budgets, credits, grants, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.memory import (
    End,
    EndedHold,
    Remembered,
    content_of,
    decode_ended,
    decode_remembered,
    digest,
    encode_memory,
)
from tallygate.pipeline.metering import call_quantities, record
from tallygate.pipeline.statement import hold_view, shares_view, statement
from tallygate.pipeline.transition import Outcome, Reply, RequestInput
from tallygate.pipeline.waterfall import Ask, Verdict, gate
from tallygate.schemas.amounts import AmountError, from_nanos, quantity_nanos
from tallygate.schemas.answers import Answer, decode_answer, encode_answer
from tallygate.schemas.catalog import Feature
from tallygate.schemas.instants import SECOND_MS, format_instant, from_datetime
from tallygate.schemas.journal import BudgetRow, Cause, DecisionRecord, GrantRow, HoldRow
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import (
    OPS,
    Balance,
    Check,
    GiveGrant,
    Release,
    Reserve,
    SetBudget,
    Settle,
)


def answer(draft: Draft, each: RequestInput, account: AccountDraft) -> None:
    """Decide one request and put its answer on the way; a known id is answered as before."""
    request, op = each.request, OPS[type(each.request)]
    remembers = not isinstance(request, Check | Balance)
    id = digest(request.customer, op, request.id)
    content = content_of(request) if remembers else ""
    known = draft.seen(id) if remembers else None
    try:
        if known is not None:
            reply = _as_before(known, content, request.id)
        else:
            decided = _HANDLERS[type(request)](draft, account, each)
            reply = encode_answer(decided)
            draft.outcomes.append(Outcome(op, "allowed" if decided.allowed else "denied", decided.reason))
            if remembers:
                draft.remember(account, id, encode_memory(Remembered(content, msgspec.Raw(reply))))
    except Refused as refused:
        draft.refuse(each.route, request.id, op, request.customer, refused.reason, refused.message)
        return
    if each.route is not None:
        draft.replies.append(Reply(each.route, reply))


def _as_before(known: bytes, content: str, id: str) -> bytes:
    before = decode_remembered(known)
    if before.content != content:
        raise Refused(Reason.ID_CONFLICT, f"id {id!r} was used for another request: use a new id for a new request")
    return bytes(before.answer)


# ---- reserve and check ----


def _reserve(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Reserve)
    at = draft.stream_at
    found = _ask(draft, request)
    if found is None:
        return _decided(draft, account, each, _no_feature(account), 0, 0)
    if account.holds.get(request.id) is not None:
        raise Refused(Reason.ID_CONFLICT, f"hold {request.id!r} is open: use a new id for a new reservation")
    verdict = gate(account, found, at, request.explain)
    cause = _cause(account, each)
    hold = None
    if verdict.allowed:
        ttl = request.ttl_seconds or found.feature.ttl_seconds
        hold = holds.place(
            account,
            HoldRow(
                id=request.id,
                feature=found.feature.name,
                pool=found.feature.pool,
                created_at=at,
                expires_at=at + ttl * SECOND_MS,
                receipt=verdict.receipt,
                scopes=(),
                quantities=found.quantities,
                credits_nanos=found.credits_nanos,
                dimensions=request.dimensions,
                overage_nanos=verdict.overage_nanos,
                at_end=found.feature.at_end,
            ),
            verdict.levels,
            at,
            cause,
        )
    return _decided(draft, account, each, verdict, found.credits_nanos, cause, found, hold)


def _check(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Check)
    found = _ask(draft, request)
    if found is None:
        return _answer(draft, each, _no_feature(account))
    verdict = gate(account, found, draft.stream_at, request.explain)
    return replace(
        _answer(draft, each, verdict),
        credits=from_nanos(found.credits_nanos),
        balance=from_nanos(credits.spendable(account, found.feature.pool)),
    )


def _ask(draft: Draft, request: Reserve | Check) -> Ask | None:
    feature = draft.tariff.features.get(request.feature)
    if feature is None:
        return None
    quantities = call_quantities(feature, draft.tariff, request.quantities)
    cost = _nanos("credits", request.credits)
    cost += draft.tariff.call_cost(quantities, request.dimensions, draft.stream_at)
    return Ask(feature, cost, quantities, request.dimensions)


def _no_feature(account: AccountDraft) -> Verdict:
    """No such feature; the customer comes before it in the waterfall."""
    if account.row is None:
        return Verdict(Reason.CUSTOMER_UNKNOWN, [])
    return Verdict(Reason.CUSTOMER_SUSPENDED if account.row.suspended else Reason.FEATURE_UNKNOWN, [])


def _decided(
    draft: Draft,
    account: AccountDraft,
    each: RequestInput,
    verdict: Verdict,
    cost: int,
    cause: int,
    asked: Ask | None = None,
    hold: HoldRow | None = None,
) -> Answer:
    """The answer to a reservation, and its decision in the ledger."""
    request = each.request
    assert isinstance(request, Reserve)
    if asked is None:
        cause = _cause(account, each)
    account.decisions.append(
        DecisionRecord(
            id=request.id,
            op="reserve",
            allowed=verdict.allowed,
            reason=verdict.reason,
            at=draft.stream_at,
            cause=cause,
            feature=request.feature,
            credits_nanos=cost,
            overage_nanos=verdict.overage_nanos if verdict.allowed else 0,
            dimensions=request.dimensions,
            hold=hold.id if hold else "",
            limits=tuple(limit for limit in verdict.limits if not limit.ok),
        )
    )
    plain = _answer(draft, each, verdict)
    if asked is None:
        return plain
    left = from_nanos(credits.spendable(account, asked.feature.pool))
    return replace(plain, credits=from_nanos(cost), balance=left, hold=hold_view(hold) if hold else None)


def _answer(draft: Draft, each: RequestInput, verdict: Verdict) -> Answer:
    request = each.request
    return Answer(
        id=request.id,
        op=OPS[type(request)],
        customer=request.customer,
        allowed=verdict.allowed,
        reason=verdict.reason,
        at=format_instant(draft.stream_at),
        catalog=draft.tariff.version,
        limits=verdict.limits,
    )


# ---- settle and release ----


def _settle(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Settle)
    hold = account.holds.get(request.hold)
    content = content_of(replace(request, id="-"))
    if hold is None:
        ended = _ended(draft, account, request.hold)
        if ended.how == "settled":
            return _settled_before(draft, each, ended, content)
        hold = _late_hold(request.hold, ended, draft)
        late = True
    else:
        late = False
    quantities, cost = _actual(draft, request, hold)
    at = draft.stream_at
    cause = _cause(account, each)
    feature = draft.tariff.features.get(hold.feature)
    if late:
        account.know(at)
        shares, uncovered = holds.charge(account, hold.pool, cost, hold.feature, feature, at, cause)
    else:
        shares, uncovered = holds.settle(account, hold, cost, feature, at, cause)
    record(account, draft.tariff, quantities, hold.dimensions, at, late, cause)
    spend_budgets(account, cost, quantities, hold.dimensions, at)
    account.decisions.append(
        DecisionRecord(
            id=request.id,
            op="settle",
            allowed=True,
            reason=Reason.ALLOWED,
            at=at,
            cause=cause,
            feature=hold.feature,
            credits_nanos=cost,
            overage_nanos=uncovered,
            dimensions=hold.dimensions,
            hold=hold.id,
            late=late,
        )
    )
    decided = replace(
        _answer(draft, each, Verdict(Reason.ALLOWED, [])),
        credits=from_nanos(cost),
        paid=shares_view(shares),
        overage=from_nanos(uncovered),
        balance=from_nanos(credits.spendable(account, hold.pool)),
        late=late,
    )
    _remember_end(draft, account, hold, "settled", content, request.id)
    return decided


def _actual(draft: Draft, request: Settle, hold: HoldRow) -> tuple[dict[str, int], int]:
    """What the work took: quantities and cost; what was held where the request names neither."""
    if request.quantities is None and request.credits is None:
        return hold.quantities, hold.credits_nanos
    feature = draft.tariff.features.get(hold.feature) or Feature(hold.feature, hold.pool)
    quantities = call_quantities(feature, draft.tariff, request.quantities or {})
    cost = _nanos("credits", request.credits or Decimal(0))
    return quantities, cost + draft.tariff.call_cost(quantities, hold.dimensions, draft.stream_at)


def _settled_before(draft: Draft, each: RequestInput, ended: EndedHold, content: str) -> Answer:
    request = each.request
    assert isinstance(request, Settle)
    if ended.content != content:
        raise Refused(Reason.ID_CONFLICT, f"hold {request.hold!r} was settled with other amounts")
    known = draft.seen(digest(request.customer, "settle", ended.settled_by))
    assert known is not None, "a hold's end is remembered no longer than the request that ended it"
    return replace(decode_answer(bytes(decode_remembered(known).answer)), id=request.id)


def _release(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Release)
    hold = account.holds.get(request.hold)
    if hold is None:
        ended = _ended(draft, account, request.hold)
        return replace(
            _answer(draft, each, Verdict(Reason.ALLOWED, [])), message=f"nothing to release: the hold has {ended.how}"
        )
    cause = _cause(account, each)
    holds.give_back(account, hold, draft.stream_at, cause)
    _remember_end(draft, account, hold, "released")
    account.decisions.append(
        DecisionRecord(
            id=request.id,
            op="release",
            allowed=True,
            reason=Reason.ALLOWED,
            at=draft.stream_at,
            cause=cause,
            feature=hold.feature,
            dimensions=hold.dimensions,
            hold=hold.id,
        )
    )
    return replace(
        _answer(draft, each, Verdict(Reason.ALLOWED, [])),
        balance=from_nanos(credits.spendable(account, hold.pool)),
    )


def end_of_time_to_live(draft: Draft, account: AccountDraft, hold: HoldRow, at: int) -> None:
    """A hold's time is over: released, or settled as estimated, as its feature had chosen."""
    if hold.at_end == "settle":
        feature = draft.tariff.features.get(hold.feature)
        holds.settle(account, hold, hold.credits_nanos, feature, at, -1)
        record(account, draft.tariff, hold.quantities, hold.dimensions, at, False, -1)
        spend_budgets(account, hold.credits_nanos, hold.quantities, hold.dimensions, at)
    else:
        holds.give_back(account, hold, at, -1)
    _remember_end(draft, account, hold, "expired")


def _ended(draft: Draft, account: AccountDraft, hold: str) -> EndedHold:
    known = draft.seen(digest(account.customer, "hold", hold))
    if known is None:
        raise Refused(Reason.HOLD_UNKNOWN, f"there is no hold {hold!r} of this customer, and none has ended lately")
    return decode_ended(known)


def _late_hold(id: str, ended: EndedHold, draft: Draft) -> HoldRow:
    """A hold that is over, as far as a late settle needs it: it holds nothing any more."""
    return HoldRow(
        id=id,
        feature=ended.feature,
        pool=ended.pool,
        created_at=draft.stream_at,
        expires_at=draft.stream_at,
        receipt=(),
        scopes=(),
        quantities=ended.quantities,
        credits_nanos=ended.credits_nanos,
        dimensions=ended.dimensions,
    )


def _remember_end(
    draft: Draft, account: AccountDraft, hold: HoldRow, how: End, content: str = "", settled_by: str = ""
) -> None:
    ended = EndedHold(
        how, hold.feature, hold.pool, hold.quantities, hold.credits_nanos, hold.dimensions, content, settled_by
    )
    draft.remember(account, digest(account.customer, "hold", hold.id), encode_memory(ended))


# ---- grants, budgets, balance ----


def _grant(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, GiveGrant)
    at = draft.stream_at
    if account.grants.get(request.id) is not None:
        raise Refused(Reason.ID_CONFLICT, f"grant {request.id!r} exists: use a new id for a new grant")
    effective = at if request.effective_at is None else from_datetime(request.effective_at)
    expires = None if request.expires_at is None else from_datetime(request.expires_at)
    if expires is not None and expires <= max(at, effective):
        raise Refused(Reason.MALFORMED, f"expires_at {format_instant(expires)} is not after the grant takes effect")
    grant = GrantRow(
        id=request.id,
        pool=request.pool,
        amount_nanos=_nanos("amount", request.amount),
        balance_nanos=0,
        held_nanos=0,
        priority=request.priority,
        created_at=at,
        effective_at=effective,
        expires_at=expires,
        category=request.category,
        price_nanos=_nanos("price", request.price),
    )
    account.know(at)
    cause = _cause(account, each)
    grants.give(account, grant, at, cause)
    _decide_admin(draft, account, each, cause, grant.amount_nanos)
    return replace(
        _answer(draft, each, Verdict(Reason.ALLOWED, [])),
        credits=from_nanos(grant.amount_nanos),
        balance=from_nanos(credits.spendable(account, grant.pool)),
    )


def _budget(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, SetBudget)
    if request.unit != budgets.CREDITS and request.unit not in draft.tariff.meters:
        raise Refused(Reason.METER_UNKNOWN, f"unit {request.unit!r} is neither credits nor a meter of the catalog")
    limit = _nanos("limit", request.limit)
    account.know(draft.stream_at)
    cause = _cause(account, each)
    row = BudgetRow(request.name, limit, request.scope, request.unit, request.period, request.hard)
    account.budgets.put(request.name, row)
    _decide_admin(draft, account, each, cause, limit)
    return _answer(draft, each, Verdict(Reason.ALLOWED, []))


def _balance(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    if account.row is None:
        return _answer(draft, each, Verdict(Reason.CUSTOMER_UNKNOWN, []))
    return replace(_answer(draft, each, Verdict(Reason.ALLOWED, [])), statement=statement(account, draft.stream_at))


def _decide_admin(draft: Draft, account: AccountDraft, each: RequestInput, cause: int, nanos: int) -> None:
    account.decisions.append(
        DecisionRecord(
            id=each.request.id,
            op=OPS[type(each.request)],
            allowed=True,
            reason=Reason.ALLOWED,
            at=draft.stream_at,
            cause=cause,
            credits_nanos=nanos,
        )
    )


def spend_budgets(
    account: AccountDraft, cost: int, quantities: dict[str, int], dimensions: dict[str, str], at: int
) -> None:
    """Count what happened in every budget it falls under."""
    if account.account.budgets or account.budgets.changes:
        budgets.consume(account, budgets.levels(account, dimensions, cost, quantities, at))


def _cause(account: AccountDraft, each: RequestInput) -> int:
    source = each.source
    return account.cause(Cause(source.topic, source.partition, source.offset, each.request.id))


def _nanos(field: str, value: Decimal) -> int:
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise Refused(Reason.QUANTITY_INVALID, f"{field}: {error}") from None


_HANDLERS: Final[dict[type, Callable[[Draft, AccountDraft, RequestInput], Answer]]] = {
    Reserve: _reserve,
    Check: _check,
    Settle: _settle,
    Release: _release,
    GiveGrant: _grant,
    SetBudget: _budget,
    Balance: _balance,
}
assert set(_HANDLERS) == set(OPS)
