"""Reserve, settle, release, extend; check and estimate, which only ask."""

from decimal import Decimal

import msgspec
from msgspec.structs import replace

from tallygate.pipeline import affordable, budgets, credits, entitlements, holds, rates
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.draft import Draft, amount
from tallygate.pipeline.entitlements import access, allowances, cost_of, offer_of
from tallygate.pipeline.memory import (
    End,
    EndedHold,
    content_of,
    decode_ended,
    decode_remembered,
    digest,
    encode_memory,
)
from tallygate.pipeline.metering import call_quantities, record
from tallygate.pipeline.statement import hold_view, shares_view
from tallygate.pipeline.transition import RequestInput
from tallygate.pipeline.waterfall import Ask, Verdict, feature_unknown, gate
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.catalog import CREDITS_UNIT, Feature
from tallygate.schemas.instants import SECOND_MS
from tallygate.schemas.journal import DecisionRecord, HoldRow
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import Check, Estimate, Extend, Release, Reserve, Settle


def reserve(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Reserve)
    if account.holds.get(request.id) is not None:
        raise Refused(Reason.ID_CONFLICT, f"hold {request.id!r} is open: use a new id for a new reservation")
    asked = _ask(draft, request)
    least = _least(request, asked)
    if asked is None:
        return _decided(draft, account, each, feature_unknown(account, request.lease))
    at, wanted = draft.stream_at, asked
    verdict = gate(account, draft.tariff, asked, at, request.explain)
    if not verdict.allowed and least is not None:
        asked, verdict = _at_least(draft, account, asked, least, verdict, request.explain)
    if not verdict.allowed:
        return _decided(draft, account, each, verdict, wanted)
    ttl = request.ttl_seconds or asked.feature.ttl_seconds
    hold = HoldRow(
        id=request.id,
        feature=asked.feature.name,
        pool=asked.feature.pools[-1],
        created_at=at,
        expires_at=at + ttl * SECOND_MS,
        receipt=verdict.receipt,
        scopes=budgets.hold(account, verdict.levels) + entitlements.hold(account, verdict.allowances),
        quantities=asked.quantities,
        credits_nanos=verdict.cost_nanos,
        dimensions=asked.dimensions,
        overage_nanos=verdict.overage_nanos,
        # What a lease has not settled was taken by nobody: its holder settles what was.
        at_end="release" if request.lease else asked.feature.at_end,
    )
    rates.pass_through(account, verdict.flows)
    return _decided(draft, account, each, verdict, wanted, hold)


def check(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Check)
    asked = _ask(draft, request)
    if asked is None:
        return _of_no_feature(draft.answer(each), feature_unknown(account), request.explain)
    verdict = gate(account, draft.tariff, asked, draft.stream_at, request.explain)
    return _with_verdict(draft.answer(each, verdict.reason), account, verdict, asked.feature, request.explain)


def estimate(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    """What the call would cost, and how much of one unit is affordable with the rest as it is."""
    request = each.request
    assert isinstance(request, Estimate)
    asked = _ask(draft, request)
    if asked is None:
        return _of_no_feature(draft.answer(each), feature_unknown(account), False)
    if request.of != CREDITS_UNIT and request.of not in asked.feature.meters:
        raise Refused(Reason.METER_UNKNOWN, f"of: feature {asked.feature.name!r} has no meter {request.of!r}")
    at = draft.stream_at
    verdict = gate(account, draft.tariff, asked, at)
    most, at_most = affordable.most(account, draft.tariff, asked, request.of, 0, at)
    answer = _with_verdict(draft.answer(each, verdict.reason), account, verdict, asked.feature, False)
    return replace(answer, affordable={request.of: from_nanos(most) if at_most.allowed else "0"})


def _ask(draft: Draft, request: Reserve | Check | Estimate) -> Ask | None:
    feature = draft.tariff.features.get(request.feature)
    if feature is None:
        return None
    quantities = call_quantities(feature, draft.tariff, request.quantities)
    lease = isinstance(request, Reserve) and request.lease
    return Ask(feature, quantities, amount("credits", request.credits), request.dimensions, lease)


def _least(request: Reserve, asked: Ask | None) -> tuple[str, int] | None:
    """The unit and how little of it will do."""
    if not request.at_least:
        return None
    if len(request.at_least) != 1:
        raise Refused(Reason.MALFORMED, "at_least: name one meter, or credits")
    [(unit, value)] = request.at_least.items()
    least = amount(f"at_least.{unit}", value)
    if asked is not None:
        wanted = asked.credits_nanos if unit == CREDITS_UNIT else asked.quantities.get(unit)
        if wanted is None or least > wanted:
            raise Refused(Reason.MALFORMED, f"at_least.{unit}: must not be more than what is asked")
    return unit, least


def _at_least(
    draft: Draft, account: AccountDraft, asked: Ask, least: tuple[str, int], denied: Verdict, explain: bool
) -> tuple[Ask, Verdict]:
    """As much as is affordable between the least that will do and what is asked; else the first denial stands."""
    unit, nanos = least
    at, wanted = draft.stream_at, asked.credits_nanos if unit == CREDITS_UNIT else asked.quantities[unit]
    most, verdict = affordable.most(account, draft.tariff, asked, unit, nanos, at, wanted)
    if not verdict.allowed:
        return asked, denied
    reduced = affordable.of(asked, unit, most)
    return reduced, gate(account, draft.tariff, reduced, at, explain) if explain else verdict


def _decided(
    draft: Draft,
    account: AccountDraft,
    each: RequestInput,
    verdict: Verdict,
    asked: Ask | None = None,
    hold: HoldRow | None = None,
) -> Answer:
    """Put a reservation's decision into the ledger, its hold in force, and answer; `asked` as at first."""
    request = each.request
    assert isinstance(request, Reserve)
    cause = draft.cause(account, each)
    if hold is not None:
        holds.place(account, hold, draft.stream_at, cause)
    account.decisions.append(
        DecisionRecord(
            id=request.id,
            op="reserve",
            allowed=verdict.allowed,
            reason=verdict.reason,
            at=draft.stream_at,
            cause=cause,
            feature=request.feature,
            credits_nanos=verdict.cost_nanos,
            overage_nanos=verdict.overage_nanos if verdict.allowed else 0,
            dimensions=request.dimensions,
            hold=hold.id if hold else "",
            limits=tuple(limit for limit in verdict.limits if not limit.ok),
            quantities=asked.quantities if asked else {},
            asked_nanos=asked.credits_nanos if asked else 0,
            at_least=dict([least]) if (least := _least(request, None)) else {},
            ttl_seconds=request.ttl_seconds or 0,
        )
    )
    answer = draft.answer(each, verdict.reason)
    if asked is None:
        return _of_no_feature(answer, verdict, request.explain)
    answer = _with_verdict(answer, account, verdict, asked.feature, request.explain)
    return answer if hold is None else replace(answer, hold=hold_view(hold))


def _of_no_feature(answer: Answer, verdict: Verdict, explain: bool) -> Answer:
    return replace(answer, allowed=False, reason=verdict.reason, trace=verdict.trace if explain else ())


def _with_verdict(answer: Answer, account: AccountDraft, verdict: Verdict, feature: Feature, explain: bool) -> Answer:
    return replace(
        answer,
        credits=from_nanos(verdict.cost_nanos) if verdict.priced else None,
        balance=_left(account, feature.pools),
        limits=verdict.limits,
        would_deny=verdict.would_deny,
        trace=verdict.trace if explain else (),
        retry_after_ms=verdict.retry_after_ms,
        value=verdict.value,
    )


def _left(account: AccountDraft, pools: tuple[str, ...]) -> str:
    return from_nanos(sum(credits.spendable(account, pool) for pool in pools))


# ---- settle ----


def settle(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Settle)
    hold = account.holds.get(request.hold)
    content = content_of(replace(request, id="-"))
    late, ended = hold is None, None
    if hold is None:
        ended = _ended(draft, account, request.hold)
        if ended.how == "settled":
            return _settled_before(draft, each, ended, content)
        hold = _late_hold(request.hold, ended, draft)
    work = _work(draft, request, hold, late)
    cause = draft.cause(account, each)
    account.know(draft.stream_at)
    if not late:
        holds.lift(account, hold)
    elif ended is not None and ended.estimated:
        work = _beyond(draft, work, hold, ended)
    cost, paid, uncovered = _work_done(draft, account, hold, work, cause)
    decision = _decision(draft, each, "settle", cause, hold, cost, uncovered, late)
    # As it was held: the quantities say all, unless credits were held without any.
    asked = work.direct_nanos or (cost if work.fixed and not work.quantities else 0)
    account.decisions.append(replace(decision, quantities=work.quantities, asked_nanos=asked))
    _remember_end(draft, account, hold, "settled", content, request.id)
    return replace(
        draft.answer(each),
        credits=from_nanos(cost),
        paid=shares_view(paid),
        overage=from_nanos(uncovered),
        balance=_left(account, work.feature.pools),
        late=late,
    )


class _Work(msgspec.Struct, frozen=True, gc=False):
    """Work that has happened at `at`: what it took, what that costs beside `direct_nanos` without any allowance.

    `fixed`: it costs just that and takes of the allowances what it held of them.
    """

    feature: Feature
    quantities: dict[str, int]
    priced_nanos: int
    at: int
    direct_nanos: int = 0
    fixed: bool = False
    late: bool = False


def _work_done(
    draft: Draft, account: AccountDraft, hold: HoldRow, work: _Work, cause: int
) -> tuple[int, credits.Shares, int]:
    """Record, charge and count work under a lifted (or ended) hold; its cost, payers, and overage."""
    at, feature = work.at, work.feature
    billed = record(account, draft.tariff, work.quantities, hold.dimensions, at, work.late, cause)
    offer = offer_of(account, draft.tariff)
    right = access(account, draft.tariff, offer, feature)
    included = allowances(account, right, billed, at) if right.entitlements else []
    priced = work.priced_nanos
    if not work.fixed and (included or billed != work.quantities):
        priced = cost_of(draft.tariff, included, billed, hold.dimensions, at)
    cost = work.direct_nanos + priced
    as_held = {share.id: share.nanos for share in hold.scopes} if work.fixed else None
    entitlements.consume(account, included, as_held)
    paid, uncovered = holds.consume(account, hold, cost, feature.pools, feature.overage_nanos_max, at, cause)
    found = budgets.levels(account, offer, hold.dimensions, cost, billed, at)
    budgets.consume(account, found, at, cause)
    return cost, paid, uncovered


def _work(draft: Draft, request: Settle, hold: HoldRow, late: bool) -> _Work:
    """What the request says that the work took; what was held where it names neither quantities nor credits."""
    feature, at = _feature(draft, hold), draft.stream_at
    if request.quantities is None and request.credits is None:
        return _Work(feature, hold.quantities, hold.credits_nanos, at, fixed=True, late=late)
    quantities = call_quantities(feature, draft.tariff, request.quantities or {}, tuple(hold.quantities))
    direct = amount("credits", request.credits or Decimal(0))
    try:
        priced = cost_of(draft.tariff, [], quantities, hold.dimensions, at)
    except Refused:
        unpriced = True
    else:
        unpriced = any(nanos and name not in feature.meters for name, nanos in quantities.items())
    if unpriced:  # a later catalog has no price for work that has happened: it costs what was held for it
        return _Work(feature, quantities, max(0, hold.credits_nanos - direct), at, direct, fixed=True, late=late)
    return _Work(feature, quantities, priced, at, direct, late=late)


def _beyond(draft: Draft, work: _Work, hold: HoldRow, ended: EndedHold) -> _Work:
    """What work took beyond the estimate that was settled for it when its hold's time was over; an estimate stays."""
    more = {name: nanos - hold.quantities.get(name, 0) for name, nanos in work.quantities.items()}
    quantities = {name: nanos for name, nanos in more.items() if nanos > 0}
    direct = max(0, work.direct_nanos - hold.credits_nanos)
    priced = max(0, work.priced_nanos + work.direct_nanos - hold.credits_nanos) - direct
    if ended.allowances and not work.fixed:  # the estimate's cost does not say what they had included
        priced = cost_of(draft.tariff, [], quantities, hold.dimensions, work.at)
    return replace(work, quantities=quantities, priced_nanos=priced, direct_nanos=direct)


def _feature(draft: Draft, hold: HoldRow) -> Feature:
    """The hold's feature; where a later catalog has dropped it, one that pays from the hold's pool."""
    return draft.tariff.features.get(hold.feature) or Feature(hold.feature, (hold.pool,))


def _settled_before(draft: Draft, each: RequestInput, ended: EndedHold, content: str) -> Answer:
    request = each.request
    assert isinstance(request, Settle)
    if ended.content != content:
        raise Refused(Reason.ID_CONFLICT, f"hold {request.hold!r} was settled with other amounts")
    known = draft.seen(digest(request.customer, "settle", ended.settled_by))
    assert known is not None, "a hold's end is remembered no longer than the request that ended it"
    return replace(decode_answer(bytes(decode_remembered(known).answer)), id=request.id)


# ---- release, extend, time to live ----


def release(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Release)
    hold = account.holds.get(request.hold)
    if hold is None:
        ended = _ended(draft, account, request.hold)
        return replace(draft.answer(each), message=f"nothing to release: the hold has {ended.how}")
    cause = draft.cause(account, each)
    holds.give_back(account, hold, draft.stream_at, cause)
    _remember_end(draft, account, hold, "released")
    account.decisions.append(_decision(draft, each, "release", cause, hold))
    return replace(draft.answer(each), balance=_left(account, (hold.pool,)))


def extend(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    request = each.request
    assert isinstance(request, Extend)
    hold = account.holds.get(request.hold)
    if hold is None:
        ended = _ended(draft, account, request.hold)
        raise Refused(Reason.HOLD_ENDED, f"hold {request.hold!r} has {ended.how}: reserve anew")
    longer = replace(hold, expires_at=max(hold.expires_at, draft.stream_at + request.ttl_seconds * SECOND_MS))
    account.holds.put(hold.id, longer)
    cause = draft.cause(account, each)
    decision = _decision(draft, each, "extend", cause, hold)
    account.decisions.append(replace(decision, ttl_seconds=request.ttl_seconds))
    return replace(draft.answer(each), hold=hold_view(longer))


def end_of_time_to_live(draft: Draft, account: AccountDraft, hold: HoldRow, at: int) -> None:
    """A hold's time is over: released, or settled as estimated, as its feature had chosen."""
    if hold.at_end == "settle":
        holds.lift(account, hold)
        as_held = _Work(_feature(draft, hold), hold.quantities, hold.credits_nanos, at, fixed=True)
        _work_done(draft, account, hold, as_held, -1)
    else:
        holds.give_back(account, hold, at, -1)
    _remember_end(draft, account, hold, "expired", estimated=hold.at_end == "settle")


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
        scopes=() if ended.estimated else ended.allowances,
        quantities=ended.quantities,
        credits_nanos=ended.credits_nanos,
        dimensions=ended.dimensions,
    )


def _remember_end(
    draft: Draft,
    account: AccountDraft,
    hold: HoldRow,
    how: End,
    content: str = "",
    settled_by: str = "",
    estimated: bool = False,
) -> None:
    ended = EndedHold(
        how,
        hold.feature,
        hold.pool,
        hold.quantities,
        hold.credits_nanos,
        hold.dimensions,
        content,
        settled_by,
        tuple(share for share in hold.scopes if entitlements.is_allowance(share)),
        estimated,
    )
    draft.remember(account, digest(account.customer, "hold", hold.id), encode_memory(ended))


def _decision(
    draft: Draft,
    each: RequestInput,
    op: str,
    cause: int,
    hold: HoldRow,
    cost: int = 0,
    overage: int = 0,
    late: bool = False,
) -> DecisionRecord:
    return DecisionRecord(
        id=each.request.id,
        op=op,
        allowed=True,
        reason=Reason.ALLOWED,
        at=draft.stream_at,
        cause=cause,
        feature=hold.feature,
        credits_nanos=cost,
        overage_nanos=overage,
        dimensions=hold.dimensions,
        hold=hold.id,
        late=late,
    )
