"""Usage events: counted, charged, and undone again where a later event says so.

An event is priced by the rate card of its own time and burnt at stream time: the ledger never rewrites the past.
"""

from typing import Final

from msgspec.structs import replace

from tallygate.pipeline import budgets, entitlements, grants, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import access, allowances, cost_of, offer_of
from tallygate.pipeline.memory import Charge, CountedEvent, decode_counted, digest, encode_memory
from tallygate.pipeline.metering import Measured, measure, record, unrecord
from tallygate.pipeline.transition import Source
from tallygate.pipeline.windows import period_start
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import Cause, GrantRow, HeldShare
from tallygate.schemas.ledger import OVERAGE, breakage, consumed, granted
from tallygate.schemas.reasons import Reason, Refused

VOIDED: Final = "tallygate.usage.voided"
CORRECTED: Final = "tallygate.usage.corrected"


class Correction:
    """An event that undoes another one and may put new data in its place."""

    def __init__(self, event: UsageEvent, id: bytes, before: CountedEvent, after: Measured | None) -> None:
        self.event = event
        self.id = id
        self.before = before
        self.after = after


def read(draft: Draft, event: UsageEvent, source: Source) -> Measured | Correction:
    """What an event amounts to; `Refused` where it is wrong. Changes nothing."""
    if event.type in (VOIDED, CORRECTED):
        return _correction(draft, event)
    measured = measure(draft.tariff, event, source.at)
    ahead = measured.at - draft.stream_at
    if ahead > draft.rules.future_ms_max:
        raise Refused(
            Reason.TIME_IN_FUTURE,
            f"time {format_instant(measured.at)} is {from_nanos(ahead * 1_000_000)} s ahead: check that clock",
        )
    return measured


def _correction(draft: Draft, event: UsageEvent) -> Correction:
    source, named = event.data.get("source"), event.data.get("id")
    if not isinstance(source, str) or not isinstance(named, str):
        raise Refused(Reason.MALFORMED, f"{event.type} names the event's `source` and `id` in its data")
    id = digest(event.subject, "event", source, named)
    memory = draft.seen(id)
    if memory is None:
        raise Refused(Reason.EVENT_UNKNOWN, f"no event {named[:80]!r} of {source[:80]!r} was counted lately")
    before = decode_counted(memory)
    if event.type == VOIDED:
        return Correction(event, id, before, None)
    data = event.data.get("data")
    if not isinstance(data, dict):
        raise Refused(Reason.MALFORMED, f"{event.type} has the right data under `data`")
    corrected = replace(event, type=before.type, data=data, time=None)
    return Correction(event, id, before, measure(draft.tariff, corrected, before.at))


def take(draft: Draft, account: AccountDraft, one: Measured | Correction, source: Source) -> None:
    """Put an event that was read in force, unless it is known already."""
    event = one.event
    own = digest(event.subject, "event", event.source, event.id)
    if draft.seen(own) is not None:
        draft.duplicates += 1
        return
    account.know(draft.stream_at)
    cause = account.cause(Cause(source.topic, source.partition, source.offset, event.id))
    draft.events += 1
    if isinstance(one, Measured):
        draft.remember(account, own, encode_memory(_count(draft, account, one, event.type, cause)))
        return
    draft.remember(account, own, encode_memory(CountedEvent(event.type, 0, draft.stream_at, {}, {}, voided=True)))
    if one.before.voided:
        return
    undo(draft, account, one.before, one.id.hex(), cause)
    after = replace(one.before, voided=True)
    if one.after is not None:
        after = _count(draft, account, one.after, one.before.type, cause)
    draft.remember(account, one.id, encode_memory(after))


def _count(draft: Draft, account: AccountDraft, one: Measured, type: str, cause: int) -> CountedEvent:
    at = draft.stream_at
    late = at - one.at > draft.rules.grace_ms
    billed = record(account, draft.tariff, one.quantities, one.dimensions, one.at, late, cause, one.values)
    offer = offer_of(account, draft.tariff)
    by_feature: dict[str, dict[str, int]] = {}
    for meter, quantity in billed.items():
        feature = draft.tariff.feature_of.get(meter)
        if feature is not None:
            by_feature.setdefault(feature.name, {})[meter] = quantity
    charges: list[Charge] = []
    drawn: list[HeldShare] = []
    total = 0
    for name, quantities in by_feature.items():
        feature = draft.tariff.features[name]
        included = allowances(account, access(account, draft.tariff, offer, feature), quantities, at)
        cost = cost_of(draft.tariff, included, quantities, one.dimensions, one.at)
        entitlements.consume(account, included)
        drawn += [HeldShare(each.scope.id, each.counted_nanos) for each in included if each.counted_nanos]
        if cost:
            shares, left = holds.charge(account, feature.pools, cost, name, feature.overage_nanos_max, at, cause)
            charges.append(Charge(name, feature.pools[-1], cost, shares, left))
            total += cost
    found = budgets.levels(account, offer, one.dimensions, total, billed, at)
    budgets.consume(account, found, at, cause)
    return CountedEvent(type, one.at, at, billed, one.dimensions, tuple(charges), tuple(drawn))


def undo(draft: Draft, account: AccountDraft, before: CountedEvent, id: str, cause: int) -> None:
    """Opposite postings to the grants that paid, in reverse order; what cannot go back becomes an adjustment grant."""
    at = draft.stream_at
    unrecord(account, draft.tariff, before.quantities, before.dimensions, before.at, cause)
    for charge in before.charges:
        for share in reversed(charge.shares):
            _refund(account, charge.feature, share, f"adjustment:{id}:{share.id}", at, cause)
        _forgive(account, charge, f"adjustment:{id}", at, cause)
    for drawn in before.allowances:
        _unuse(account, drawn.id, drawn.nanos, before.counted_at)
    total = sum(charge.cost_nanos for charge in before.charges)
    offer = offer_of(account, draft.tariff)
    for level in budgets.levels(account, offer, before.dimensions, total, before.quantities, at):
        counted_in = period_start(level.budget.period, before.counted_at, level.budget.anchor)
        if counted_in == level.scope.period_at:
            used = max(0, level.scope.used_nanos - level.asked_nanos)
            account.scopes.put(level.scope.id, replace(level.scope, used_nanos=used))


def _unuse(account: AccountDraft, scope: str, nanos: int, counted_at: int) -> None:
    row = account.scopes.get(scope)
    if row is not None and counted_at >= row.period_at:
        account.scopes.put(scope, replace(row, used_nanos=max(0, row.used_nanos - nanos)))


def _refund(account: AccountDraft, feature: str, share: HeldShare, id: str, at: int, cause: int) -> None:
    """Give a share back to its grant: as balance while it is active, else as a grant like it."""
    grant = account.grants.get(share.id)
    if grant is None:  # it has expired, and so would what comes back to it
        return
    row = account.pool(grant.pool)
    usage = max(0, row.usage_nanos - share.nanos)
    by_grants = max(0, row.grant_usage_nanos - share.nanos)
    account.pools.put(grant.pool, replace(row, usage_nanos=usage, grant_usage_nanos=by_grants))
    source = consumed(feature)
    if grant.active and grant.cycle == share.cycle:
        account.move(source, granted(grant.id), share.nanos, at, cause, grant.pool, grant, feature)
        account.grants.put(grant.id, replace(grant, balance_nanos=grant.balance_nanos + share.nanos))
        return
    if grants.outlives(grant, at):
        _adjust(account, grant, source, share.nanos, id, at, cause, feature)
    else:
        account.move(source, breakage("expired"), share.nanos, at, cause, grant.pool, grant, feature)


def _forgive(account: AccountDraft, charge: Charge, id: str, at: int, cause: int) -> None:
    """What was owed is owed no more; what of it has been paid since comes back as an adjustment grant."""
    if not charge.overage_nanos:
        return
    row = account.pool(charge.pool)
    forgiven = min(row.overage_nanos, charge.overage_nanos)
    source = consumed(charge.feature)
    account.move(source, OVERAGE, forgiven, at, cause, charge.pool, None, charge.feature)
    account.pools.put(charge.pool, replace(row, overage_nanos=row.overage_nanos - forgiven))
    if paid := charge.overage_nanos - forgiven:
        like = GrantRow(id, charge.pool, 0, 0, 0, 1, at, at, category="promotional")
        _adjust(account, like, source, paid, id, at, cause, charge.feature)


def _adjust(
    account: AccountDraft, like: GrantRow, source: str, nanos: int, id: str, at: int, cause: int, feature: str
) -> None:
    """A grant of the same category, priority and expiry, with what comes back."""
    grant = GrantRow(
        id=id,
        pool=like.pool,
        amount_nanos=nanos,
        balance_nanos=nanos,
        held_nanos=0,
        priority=like.priority,
        created_at=at,
        effective_at=at,
        expires_at=like.expires_at,
        category=like.category,
        price_nanos=like.price_nanos,
        active=True,
    )
    account.grants.put(id, grant)
    account.reordered()
    account.move(source, granted(id), nanos, at, cause, like.pool, grant, feature)
    if like.expires_at is not None:
        account.wake(like.expires_at)
