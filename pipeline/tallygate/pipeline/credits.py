"""Credits: which grants pay, in what order, and what stream time does to grants.

A grant pays while it is active, `effective_at <= t < min(expires_at, voided_at)`, in burn order. Its balance never goes
below zero: what no grant covers becomes overage, and what becomes active later pays that first.
"""

from typing import Final

from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.schemas.instants import SECOND_MS
from tallygate.schemas.journal import GrantRow, HeldShare
from tallygate.schemas.ledger import OVERAGE, breakage, granted, issued

FOREVER: Final = 1 << 62
Shares = tuple[HeldShare, ...]


def burn_order(grant: GrantRow) -> tuple[int, int, int, str]:
    """Priority, then expiry at whole seconds (none last), then creation, then id. Source: SEMANTICS, burn-down 1."""
    expires = FOREVER if grant.expires_at is None else grant.expires_at // SECOND_MS
    return (grant.priority, expires, grant.created_at, grant.id)


def ends_at(grant: GrantRow) -> int:
    """When the grant stops paying."""
    return min(
        FOREVER if grant.expires_at is None else grant.expires_at,
        FOREVER if grant.voided_at is None else grant.voided_at,
    )


def active_grants(draft: AccountDraft, pool: str) -> list[GrantRow]:
    """The pool's active grants in burn order."""
    order = draft.burn.get(pool)
    if order is None:
        active = sorted((g for g in draft.grants.values() if g.active and g.pool == pool), key=burn_order)
        order = tuple(g.id for g in active)
        draft.burn = {**draft.burn, pool: order}
    return [grant for id in order if (grant := draft.grants.get(id)) is not None]


def spendable(draft: AccountDraft, pool: str) -> int:
    return sum(grant.balance_nanos for grant in active_grants(draft, pool))


def plan(draft: AccountDraft, pool: str, nanos: int) -> tuple[Shares, int]:
    """Who would pay `nanos`, in burn order, and what nobody covers. Changes nothing."""
    shares = []
    for grant in active_grants(draft, pool):
        if not nanos:
            break
        if part := min(nanos, grant.balance_nanos):
            shares.append(HeldShare(grant.id, part))
            nanos -= part
    return tuple(shares), nanos


def burn(
    draft: AccountDraft, pool: str, nanos: int, target: str, at: int, cause: int, feature: str = ""
) -> tuple[Shares, int]:
    """Let the active grants pay into `target`; returns who paid and what nobody covered."""
    shares, uncovered = plan(draft, pool, nanos)
    for share in shares:
        grant = draft.grants.get(share.id)
        assert grant is not None
        draft.grants.put(grant.id, replace(grant, balance_nanos=grant.balance_nanos - share.nanos))
        draft.move(granted(grant.id), target, share.nanos, at, cause, pool, grant, feature)
    if paid := nanos - uncovered:
        row = draft.pool(pool, at)
        draft.pools.put(pool, replace(row, grant_usage_nanos=row.grant_usage_nanos + paid))
    return shares, uncovered


def activate(draft: AccountDraft, grant: GrantRow, at: int, cause: int) -> None:
    """The grant's credits become spendable; carried overage is paid from them by `repay` afterwards."""
    draft.grants.put(grant.id, replace(grant, active=True, balance_nanos=grant.amount_nanos))
    draft.reordered()
    draft.move(issued(grant.category), granted(grant.id), grant.amount_nanos, at, cause, grant.pool, grant)
    draft.wake(_known(ends_at(grant)))


def end(draft: AccountDraft, grant: GrantRow, at: int, cause: int) -> None:
    """The grant stops paying: what is left is breakage. What holds hold of it stays theirs until they end."""
    why = "voided" if grant.voided_at is not None and grant.voided_at <= at else "expired"
    draft.move(granted(grant.id), breakage(why), grant.balance_nanos, at, cause, grant.pool, grant)
    draft.reordered()
    if grant.held_nanos:
        draft.grants.put(grant.id, replace(grant, active=False, balance_nanos=0))
    else:
        draft.grants.remove(grant.id)


def repay(draft: AccountDraft, pool: str, at: int, cause: int) -> None:
    """Carried overage burns once over the active grants."""
    row = draft.pools.get(pool)
    if row is None or not row.overage_nanos:
        return
    _, left = burn(draft, pool, row.overage_nanos, OVERAGE, at, cause)
    draft.pools.put(pool, replace(draft.pool(pool, at), overage_nanos=left))


def give(draft: AccountDraft, grant: GrantRow, at: int, cause: int) -> None:
    """A new grant: active now, or when its time comes."""
    if grant.effective_at <= at:
        activate(draft, grant, at, cause)
        repay(draft, grant.pool, at, cause)
    else:
        draft.grants.put(grant.id, grant)
        draft.wake(grant.effective_at)
    if draft.pools.get(grant.pool) is None:
        draft.pools.put(grant.pool, draft.pool(grant.pool, at))


def next_instant(draft: AccountDraft) -> int:
    """The earliest instant at which stream time changes a grant."""
    instants = [ends_at(g) if g.active else g.effective_at for g in draft.grants.values() if g.active or _pending(g)]
    return min(instants, default=FOREVER)


def advance_grants(draft: AccountDraft, at: int, cause: int = -1) -> None:
    """Everything that happens to grants at exactly the instant `at`: expiries, activations, then repayment."""
    grants = draft.grants.values()
    for grant in grants:
        if grant.active and ends_at(grant) <= at:
            end(draft, grant, at, cause)
    pools = []
    for grant in sorted((g for g in grants if _pending(g) and g.effective_at <= at), key=burn_order):
        if ends_at(grant) <= at:
            draft.grants.remove(grant.id)
            continue
        activate(draft, grant, at, cause)
        pools.append(grant.pool)
    for pool in sorted(set(pools)):
        repay(draft, pool, at, cause)


def _pending(grant: GrantRow) -> bool:
    """Not yet effective; a grant that has ended only lives on for its holds."""
    return not grant.active and not grant.held_nanos


def _known(instant: int) -> int | None:
    return None if instant == FOREVER else instant
