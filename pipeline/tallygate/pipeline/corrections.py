"""Undoing an event that was counted: opposite postings to the grants that paid, in reverse order.

What cannot go back to its grant, because it is no longer active, comes back as an adjustment grant of the same
category, price, priority and expiry. What was owed is owed no more; what of it has been repaid since comes back as a
promotional adjustment, for nobody knows any more which credits did that. Source: SEMANTICS, burn-down 7.
"""

from msgspec.structs import replace

from tallygate.pipeline import grants
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.memory import Charge, CountedEvent, Payment
from tallygate.pipeline.metering import unrecord
from tallygate.pipeline.tariff import Tariff
from tallygate.schemas.journal import GrantRow, HeldShare
from tallygate.schemas.ledger import OVERAGE, WRITE_OFF, breakage, consumed, granted


def undo(account: AccountDraft, tariff: Tariff, before: CountedEvent, id: str, at: int, cause: int) -> None:
    """Take everything back that counting the event did; `id` names the adjustment grants that this may need."""
    unrecord(account, tariff, before.quantities, before.dimensions, before.at, before.late, cause)
    for charge in reversed(before.charges):
        _forgive(account, charge, before.counted_at, id, at, cause)
        for payment in reversed(charge.payments):
            _refund(account, charge.feature, payment, before.counted_at, id, at, cause)
    own = _adjustment(id, "")
    for pool in sorted({grant.pool for grant in account.grants.values() if grant.id.startswith(own)}):
        grants.repay(account, pool, at, cause)
    for share in before.scopes:
        _uncount(account, share, before.counted_at)


def _uncount(account: AccountDraft, share: HeldShare, counted_at: int) -> None:
    """Take a share out of its budget or allowance, unless a new period has begun there."""
    row = account.scopes.get(share.id)
    if row is not None and counted_at >= row.period_at:
        account.scopes.put(share.id, replace(row, used_nanos=max(0, row.used_nanos - share.nanos)))


def _refund(
    account: AccountDraft, feature: str, payment: Payment, counted_at: int, id: str, at: int, cause: int
) -> None:
    """Give back what a grant has paid: to itself while it is active, else as a grant like it."""
    _unuse(account, payment.pool, payment.nanos, payment.nanos, counted_at)
    grant, source = account.grants.get(payment.grant), consumed(feature)
    if grant is not None and grant.active:
        account.move(source, granted(grant.id), payment.nanos, at, cause, grant.pool, grant, feature)
        account.grants.put(grant.id, replace(grant, balance_nanos=grant.balance_nanos + payment.nanos))
    elif grant is not None and grants.outlives(grant, at):
        _adjust(account, grant, source, payment.nanos, _adjustment(id, grant.id), at, cause, feature)
    else:  # its expiry has passed, and so what comes back has expired
        like = _like(payment.grant, payment.pool, at, payment.category, payment.price_nanos)
        account.move(source, breakage("expired"), payment.nanos, at, cause, payment.pool, like, feature)


def _forgive(account: AccountDraft, charge: Charge, counted_at: int, id: str, at: int, cause: int) -> None:
    """What was written off is so no more, nor is owed what was; what of it was repaid comes back as a grant."""
    source, feature, pool = consumed(charge.feature), charge.feature, charge.pool
    account.move(source, WRITE_OFF, charge.written_off_nanos, at, cause, pool, None, feature)
    _unuse(account, pool, charge.written_off_nanos, 0, counted_at)
    row = account.pool(pool)
    if row.dropped_at > counted_at:  # a reset has dropped it
        account.move(source, breakage("overage_dropped"), charge.owed_nanos, at, cause, pool, None, feature)
        return
    forgiven = min(row.overage_nanos, charge.owed_nanos)
    repaid = charge.owed_nanos - forgiven
    account.move(source, OVERAGE, forgiven, at, cause, pool, None, feature)
    if forgiven:
        account.pools.put(pool, replace(row, overage_nanos=row.overage_nanos - forgiven))
    _unuse(account, pool, charge.owed_nanos, repaid, counted_at)
    if repaid:
        like = _like("overage", pool, at, "promotional", 0)
        _adjust(account, like, source, repaid, _adjustment(id, "overage"), at, cause, feature)


def _unuse(account: AccountDraft, pool: str, used_nanos: int, by_grants_nanos: int, counted_at: int) -> None:
    """Count usage back, unless it was that of a period which has ended."""
    row = account.pool(pool)
    if used_nanos and counted_at >= row.period_at:
        usage, by_grants = max(0, row.usage_nanos - used_nanos), max(0, row.grant_usage_nanos - by_grants_nanos)
        account.pools.put(pool, replace(row, usage_nanos=usage, grant_usage_nanos=by_grants))


def _adjust(
    account: AccountDraft, like: GrantRow, source: str, nanos: int, id: str, at: int, cause: int, feature: str
) -> None:
    """A grant of the same category, price, priority and expiry, with what comes back."""
    there = account.grants.get(id)
    if there is not None and there.active:  # another feature's charge for the same event comes back with it
        amount, balance = there.amount_nanos + nanos, there.balance_nanos + nanos
        grant = replace(there, amount_nanos=amount, balance_nanos=balance)
    else:
        grant = replace(
            _like(id, like.pool, at, like.category, like.price_nanos),
            amount_nanos=nanos,
            balance_nanos=nanos,
            priority=like.priority,
            expires_at=like.expires_at,
            active=True,
        )
    account.grants.put(id, grant)
    account.reordered()
    account.move(source, granted(id), nanos, at, cause, like.pool, grant, feature)
    if like.expires_at is not None:
        account.wake(like.expires_at)


def _like(id: str, pool: str, at: int, category: str, price_nanos: int) -> GrantRow:
    return GrantRow(id, pool, 0, 0, 0, 1, at, at, category=category, price_nanos=price_nanos)


def _adjustment(id: str, grant: str) -> str:
    return f"adjustment:{id}:{grant}"
