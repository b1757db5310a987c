"""Credits: which grants pay, and in what order.

A grant pays while it is active, `effective_at <= t < min(expires_at, voided_at)`, in burn order. Its balance never goes
below zero: what no grant covers becomes overage. What stream time does to grants is in `grants.py`.
"""

from msgspec.structs import replace

from tallygate.pipeline.account import FOREVER, AccountDraft
from tallygate.schemas.instants import SECOND_MS
from tallygate.schemas.journal import GrantRow, HeldShare
from tallygate.schemas.ledger import granted

Shares = tuple[HeldShare, ...]


def burn_order(grant: GrantRow) -> tuple[int, int, int, str]:
    """Priority, then expiry at whole seconds (none last), then creation, then id. Source: SEMANTICS, burn-down 1."""
    expires = FOREVER if grant.expires_at is None else grant.expires_at // SECOND_MS
    return (grant.priority, expires, grant.created_at, grant.id)


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
            shares.append(HeldShare(grant.id, part, grant.cycle))
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
        row = draft.pool(pool)
        draft.pools.put(pool, replace(row, grant_usage_nanos=row.grant_usage_nanos + paid))
    return shares, uncovered
