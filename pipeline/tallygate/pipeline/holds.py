"""Holds: credits set aside before the work, then settled, released or expired.

A hold keeps a receipt per grant in burn order, and its share of every budget level and allowance. What it holds cannot
be spent, expire or be forfeited under it until it ends.
"""

from msgspec.structs import replace

from tallygate.pipeline import budgets, credits
from tallygate.pipeline.account import FOREVER, AccountDraft
from tallygate.pipeline.credits import Shares
from tallygate.pipeline.grants import end_of, outlives
from tallygate.schemas.journal import GrantRow, HeldShare, HoldRow
from tallygate.schemas.ledger import OVERAGE, WRITE_OFF, breakage, consumed, granted, held


def place(draft: AccountDraft, hold: HoldRow, at: int, cause: int) -> None:
    """Take what the hold's receipt says out of its grants. The gate has said that there is room."""
    for share in hold.receipt:
        grant = _holding(draft, share)
        assert grant.balance_nanos >= share.nanos, f"grant {grant.id!r} does not have what it shall hold"
        balance, held_nanos = grant.balance_nanos - share.nanos, grant.held_nanos + share.nanos
        draft.grants.put(grant.id, replace(grant, balance_nanos=balance, held_nanos=held_nanos))
        draft.move(granted(grant.id), held(hold.id), share.nanos, at, cause, grant.pool, grant, hold.feature)
    if hold.overage_nanos:
        pool = draft.pool(hold.pool)
        total = pool.overage_held_nanos + hold.overage_nanos
        draft.pools.put(hold.pool, replace(pool, overage_held_nanos=total))
    draft.holds.put(hold.id, hold)
    draft.wake(hold.expires_at)


def lift(draft: AccountDraft, hold: HoldRow) -> None:
    """End the hold: its levels and what it may owe are free again, its receipt is still to be consumed or returned."""
    draft.holds.remove(hold.id)
    budgets.unhold(draft, hold.scopes)
    if hold.overage_nanos:
        pool = draft.pool(hold.pool)
        assert pool.overage_held_nanos >= hold.overage_nanos
        left = pool.overage_held_nanos - hold.overage_nanos
        draft.pools.put(hold.pool, replace(pool, overage_held_nanos=left))


def give_back(draft: AccountDraft, hold: HoldRow, at: int, cause: int) -> None:
    """End the hold unused."""
    lift(draft, hold)
    for share in hold.receipt:
        _return(draft, hold, share, share.nanos, at, cause)


def consume(
    draft: AccountDraft, hold: HoldRow, cost: int, pools: tuple[str, ...], cap: int | None, at: int, cause: int
) -> tuple[Shares, int]:
    """Pay a cost out of a lifted hold; returns who paid and what nobody covered.

    The receipt is consumed in burn order and its rest given back; cost above it burns on like usage.
    """
    paid: list[HeldShare] = []
    left = cost
    for share in hold.receipt:
        part = min(left, share.nanos)
        left -= part
        if part:
            _consume(draft, hold, share, part, at, cause)
            paid.append(HeldShare(share.id, part))
        _return(draft, hold, share, share.nanos - part, at, cause)
    more, uncovered = charge(draft, pools, left, hold.feature, cap, at, cause)
    return _merged(paid, more), uncovered


def charge(
    draft: AccountDraft, pools: tuple[str, ...], nanos: int, feature: str, cap: int | None, at: int, cause: int
) -> tuple[Shares, int]:
    """Burn what work has cost from pools in their order; what no grant covers is owed in the last one.

    A `cap` above 0 bounds what may be owed there; what is beyond it is written off.
    """
    if not nanos:
        return (), 0
    shares: Shares = ()
    left = nanos
    for name in pools:
        before = left
        more, left = credits.burn(draft, name, left, consumed(feature), at, cause, feature)
        shares += more
        if before > left:
            _use(draft, name, before - left)
        if not left:
            return shares, 0
    pool = pools[-1]
    row = draft.pool(pool)
    owed = left if not cap else min(left, max(0, cap - row.overage_nanos - row.overage_held_nanos))
    draft.move(OVERAGE, consumed(feature), owed, at, cause, pool, None, feature)
    draft.move(WRITE_OFF, consumed(feature), left - owed, at, cause, pool, None, feature)
    draft.pools.put(pool, replace(row, overage_nanos=row.overage_nanos + owed, usage_nanos=row.usage_nanos + left))
    return shares, left


def next_instant(draft: AccountDraft) -> int:
    """The earliest end of a hold's time to live."""
    return min((hold.expires_at for hold in draft.holds.values()), default=FOREVER)


def _consume(draft: AccountDraft, hold: HoldRow, share: HeldShare, nanos: int, at: int, cause: int) -> None:
    grant = _holding(draft, share)
    draft.move(held(hold.id), consumed(hold.feature), nanos, at, cause, grant.pool, grant, hold.feature)
    row = draft.pool(grant.pool)
    usage, by_grants = row.usage_nanos + nanos, row.grant_usage_nanos + nanos
    draft.pools.put(grant.pool, replace(row, usage_nanos=usage, grant_usage_nanos=by_grants))
    _put(draft, replace(grant, held_nanos=grant.held_nanos - nanos), at)


def _return(draft: AccountDraft, hold: HoldRow, share: HeldShare, nanos: int, at: int, cause: int) -> None:
    if not nanos:
        return
    grant = _holding(draft, share)
    back = nanos if grant.active else 0
    returnable = grant.returnable_nanos
    if share.cycle != grant.cycle:  # a reset or recurrence has passed under the hold: it returns what would have stayed
        back = min(back, returnable)
        returnable -= back
    lost = breakage("forfeited") if grant.active else end_of(grant)
    draft.move(held(hold.id), granted(grant.id), back, at, cause, grant.pool, grant, hold.feature)
    draft.move(held(hold.id), lost, nanos - back, at, cause, grant.pool, grant, hold.feature)
    held_nanos, balance = grant.held_nanos - nanos, grant.balance_nanos + back
    _put(draft, replace(grant, held_nanos=held_nanos, balance_nanos=balance, returnable_nanos=returnable), at)


def _use(draft: AccountDraft, pool: str, nanos: int) -> None:
    row = draft.pool(pool)
    draft.pools.put(pool, replace(row, usage_nanos=row.usage_nanos + nanos))


def _holding(draft: AccountDraft, share: HeldShare) -> GrantRow:
    grant = draft.grants.get(share.id)
    assert grant is not None, f"a hold draws on grant {share.id!r}, which is gone"
    return grant


def _put(draft: AccountDraft, grant: GrantRow, at: int) -> None:
    """Keep the grant, unless it is over and nothing is held of it any more."""
    assert grant.held_nanos >= 0
    if grant.active or grant.held_nanos:
        draft.grants.put(grant.id, grant)
    elif outlives(grant, at):
        draft.grants.put(grant.id, grant)
        draft.wake(FOREVER if grant.expires_at is None else grant.expires_at)
    else:
        draft.grants.remove(grant.id)


def _merged(first: list[HeldShare], more: Shares) -> Shares:
    """Shares by grant, each once, in the order of first payment."""
    if not more:
        return tuple(first)
    total: dict[str, int] = {}
    for share in (*first, *more):
        total[share.id] = total.get(share.id, 0) + share.nanos
    return tuple(HeldShare(id, nanos) for id, nanos in total.items())
