"""Holds: credits set aside before the work, then settled, released or expired.

A hold keeps a receipt per grant in burn order, and its share of every budget level. What it holds cannot be spent,
expire or be forfeited under it until it ends.
"""

from msgspec.structs import replace

from tallygate.pipeline import budgets, credits
from tallygate.pipeline.account import FOREVER, AccountDraft
from tallygate.pipeline.credits import Shares
from tallygate.schemas.catalog import Feature
from tallygate.schemas.journal import GrantRow, HeldShare, HoldRow
from tallygate.schemas.ledger import OVERAGE, WRITE_OFF, breakage, consumed, granted, held


def place(draft: AccountDraft, hold: HoldRow, levels: list[budgets.Level], at: int, cause: int) -> HoldRow:
    """Take what the hold's receipt says out of its grants and levels. The gate has said that there is room."""
    for share in hold.receipt:
        grant = draft.grants.get(share.id)
        assert grant is not None
        assert grant.balance_nanos >= share.nanos, f"grant {grant.id!r} does not have what it shall hold"
        draft.grants.put(
            grant.id,
            replace(grant, balance_nanos=grant.balance_nanos - share.nanos, held_nanos=grant.held_nanos + share.nanos),
        )
        draft.move(granted(grant.id), held(hold.id), share.nanos, at, cause, hold.pool, grant, hold.feature)
    if hold.overage_nanos:
        pool = draft.pool(hold.pool, at)
        draft.pools.put(hold.pool, replace(pool, overage_held_nanos=pool.overage_held_nanos + hold.overage_nanos))
    placed = replace(hold, scopes=budgets.hold(draft, levels))
    draft.holds.put(hold.id, placed)
    draft.wake(hold.expires_at)
    return placed


def give_back(draft: AccountDraft, hold: HoldRow, at: int, cause: int) -> None:
    """End the hold unused."""
    _take_down(draft, hold, at)
    for share in hold.receipt:
        _return(draft, hold, share, share.nanos, at, cause)


def settle(
    draft: AccountDraft, hold: HoldRow, cost: int, feature: Feature | None, at: int, cause: int
) -> tuple[Shares, int]:
    """End the hold with what the work cost; returns who paid and what nobody covered.

    The receipt is consumed in burn order and its rest given back; cost above it burns on like usage.
    """
    _take_down(draft, hold, at)
    paid: list[HeldShare] = []
    left = cost
    for share in hold.receipt:
        part = min(left, share.nanos)
        left -= part
        _consume(draft, hold, share, part, at, cause)
        _return(draft, hold, share, share.nanos - part, at, cause)
        if part:
            paid.append(HeldShare(share.id, part))
    if used := cost - left:
        pool = draft.pool(hold.pool, at)
        draft.pools.put(hold.pool, replace(pool, grant_usage_nanos=pool.grant_usage_nanos + used))
    more, uncovered = charge(draft, hold.pool, left, hold.feature, feature, at, cause)
    pool = draft.pool(hold.pool, at)
    draft.pools.put(hold.pool, replace(pool, usage_nanos=pool.usage_nanos + used))
    return _merged(paid, more), uncovered


def charge(
    draft: AccountDraft, pool: str, nanos: int, feature: str, policy: Feature | None, at: int, cause: int
) -> tuple[Shares, int]:
    """Burn what work has cost; what no grant covers is owed, or beyond the feature's cap written off."""
    if not nanos:
        return (), 0
    shares, uncovered = credits.burn(draft, pool, nanos, consumed(feature), at, cause, feature)
    row = draft.pool(pool, at)
    owed = uncovered
    if policy is not None and policy.overage_nanos_max:
        owed = min(uncovered, max(0, policy.overage_nanos_max - row.overage_nanos - row.overage_held_nanos))
    draft.move(OVERAGE, consumed(feature), owed, at, cause, pool, None, feature)
    draft.move(WRITE_OFF, consumed(feature), uncovered - owed, at, cause, pool, None, feature)
    draft.pools.put(pool, replace(row, overage_nanos=row.overage_nanos + owed, usage_nanos=row.usage_nanos + nanos))
    return shares, uncovered


def next_instant(draft: AccountDraft) -> int:
    """The earliest end of a hold's time to live."""
    return min((hold.expires_at for hold in draft.holds.values()), default=FOREVER)


def _take_down(draft: AccountDraft, hold: HoldRow, at: int) -> None:
    draft.holds.remove(hold.id)
    budgets.unhold(draft, hold.scopes)
    if hold.overage_nanos:
        pool = draft.pool(hold.pool, at)
        assert pool.overage_held_nanos >= hold.overage_nanos
        draft.pools.put(hold.pool, replace(pool, overage_held_nanos=pool.overage_held_nanos - hold.overage_nanos))


def _consume(draft: AccountDraft, hold: HoldRow, share: HeldShare, nanos: int, at: int, cause: int) -> None:
    if not nanos:
        return
    grant = _holding(draft, share)
    draft.move(held(hold.id), consumed(hold.feature), nanos, at, cause, hold.pool, grant, hold.feature)
    _put(draft, replace(grant, held_nanos=grant.held_nanos - nanos))


def _return(draft: AccountDraft, hold: HoldRow, share: HeldShare, nanos: int, at: int, cause: int) -> None:
    if not nanos:
        return
    grant = _holding(draft, share)
    back = nanos if grant.active else 0
    if share.cycle != grant.cycle:  # a reset or recurrence has passed under the hold: it returns what may roll over
        back = min(back, max(0, grant.rollover_max_nanos - grant.balance_nanos))
    lost = breakage("forfeited" if grant.active else "expired")
    draft.move(held(hold.id), granted(grant.id), back, at, cause, hold.pool, grant, hold.feature)
    draft.move(held(hold.id), lost, nanos - back, at, cause, hold.pool, grant, hold.feature)
    _put(draft, replace(grant, held_nanos=grant.held_nanos - nanos, balance_nanos=grant.balance_nanos + back))


def _holding(draft: AccountDraft, share: HeldShare) -> GrantRow:
    grant = draft.grants.get(share.id)
    assert grant is not None, f"a hold draws on grant {share.id!r}, which is gone"
    return grant


def _put(draft: AccountDraft, grant: GrantRow) -> None:
    """Keep the grant, unless it has ended and nothing is held of it any more."""
    assert grant.held_nanos >= 0
    if grant.active or grant.held_nanos:
        draft.grants.put(grant.id, grant)
    else:
        draft.grants.remove(grant.id)


def _merged(first: list[HeldShare], more: Shares) -> Shares:
    """Shares by grant, each once, in the order of first payment."""
    total: dict[str, int] = {}
    for share in (*first, *more):
        total[share.id] = total.get(share.id, 0) + share.nanos
    return tuple(HeldShare(id, nanos) for id, nanos in total.items())
