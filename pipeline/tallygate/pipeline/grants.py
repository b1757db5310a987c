"""What happens to grants: they begin, recur, roll over at resets, and end.

At one instant, in this order: ends, then resets, then beginnings and recurrences (each grant once), then carried
overage burns once over all active grants. Source: SEMANTICS, burn-down 2 to 5.
"""

from msgspec.structs import replace

from tallygate.pipeline.account import FOREVER, AccountDraft
from tallygate.pipeline.credits import active_grants, burn, burn_order
from tallygate.pipeline.recurrence import at_or_before, next_after
from tallygate.schemas.journal import GrantRow
from tallygate.schemas.ledger import OVERAGE, breakage, granted, issued


def ends_at(grant: GrantRow) -> int:
    """When the grant stops paying."""
    expires = FOREVER if grant.expires_at is None else grant.expires_at
    return expires if grant.voided_at is None else min(expires, grant.voided_at)


def next_instant(draft: AccountDraft) -> int:
    """The earliest instant at which stream time changes a grant or resets a pool."""
    first = min((_changes_at(grant) for grant in draft.grants.values()), default=FOREVER)
    return min([first, *(pool.resets_at for pool in draft.pools.values() if pool.resets_at is not None)])


def _changes_at(grant: GrantRow) -> int:
    if grant.active:
        end = ends_at(grant)
        return end if grant.recurs_at is None else min(end, grant.recurs_at)
    if _pending(grant):
        return grant.effective_at
    return FOREVER if grant.expires_at is None or grant.held_nanos else grant.expires_at


def _pending(grant: GrantRow) -> bool:
    """Not yet effective."""
    return not grant.active and not grant.ended


def give(draft: AccountDraft, given: list[GrantRow], at: int, cause: int) -> None:
    """New grants, active now or when their time comes; debts burn once, over all that are active then."""
    pools = set()
    for grant in given:
        if grant.effective_at <= at:
            begin(draft, grant, at, cause)
            pools.add(grant.pool)
        else:
            draft.grants.put(grant.id, grant)
            draft.wake(grant.effective_at)
        if draft.pools.get(grant.pool) is None:
            draft.pools.put(grant.pool, draft.pool(grant.pool))
    for pool in sorted(pools):
        repay(draft, pool, at, cause)


def advance(draft: AccountDraft, at: int, resets: tuple[str, ...] = (), preserve_overage: bool = False) -> None:
    """Everything that stream time does to grants at the instant `at`; `resets` names the pools reset there."""
    end_due(draft, at)
    for pool in resets:
        reset(draft, pool, at, -1, preserve_overage)
    for row in sorted(draft.pools.values(), key=lambda each: each.pool):
        if row.resets is not None and row.resets_at is not None and row.resets_at <= at:
            reset(draft, row.pool, at, -1, row.preserve_overage)
            again = next_after(row.resets, at)
            draft.pools.put(row.pool, replace(draft.pool(row.pool), resets_at=again))
    begin_due(draft, at)


def end_due(draft: AccountDraft, at: int) -> None:
    for grant in sorted(draft.grants.values(), key=burn_order):
        if ends_at(grant) > at:
            continue
        if grant.active:
            end(draft, grant, at, -1)
        elif _pending(grant) or not (grant.held_nanos or outlives(grant, at)):
            draft.grants.remove(grant.id)


def begin_due(draft: AccountDraft, at: int) -> None:
    """Beginnings and recurrences at `at`, then the repayment of carried overage."""
    pools = set()
    for grant in sorted(draft.grants.values(), key=burn_order):
        if _pending(grant) and grant.effective_at <= at:
            begin(draft, grant, at, -1)
        elif grant.active and grant.recurs_at is not None and grant.recurs_at <= at:
            _recur(draft, grant, at)
        else:
            continue
        pools.add(grant.pool)
    for pool in sorted(pools):
        repay(draft, pool, at, -1)


def end(draft: AccountDraft, grant: GrantRow, at: int, cause: int) -> None:
    """The grant stops paying: what is left is breakage. What holds hold of it stays theirs until they end."""
    draft.move(granted(grant.id), end_of(grant), grant.balance_nanos, at, cause, grant.pool, grant)
    draft.reordered()
    if grant.held_nanos or outlives(grant, at):
        draft.grants.put(grant.id, replace(grant, active=False, ended=True, balance_nanos=0))
    else:
        draft.grants.remove(grant.id)


def end_of(grant: GrantRow) -> str:
    """The account of what is left of a grant that has ended."""
    voided = grant.voided_at is not None and (grant.expires_at is None or grant.voided_at < grant.expires_at)
    return breakage("voided" if voided else "expired")


def void(draft: AccountDraft, grant: GrantRow, at: int, cause: int) -> None:
    """End a grant before its time; one that has not begun leaves nothing."""
    voided = replace(grant, voided_at=at)
    if grant.active:
        draft.grants.put(grant.id, voided)
        end(draft, voided, at, cause)
    else:
        draft.grants.remove(grant.id)


def outlives(grant: GrantRow, at: int) -> bool:
    """Whether an ended grant is kept: a voided one until it would have expired, for what may come back to it."""
    return grant.expires_at is None or grant.expires_at > at


def reset(draft: AccountDraft, pool: str, at: int, cause: int, preserve_overage: bool) -> None:
    """End the usage period: every active grant keeps what may roll over, overage is dropped or burnt at once.

    What took effect or recurred at this very instant belongs to the period that the reset opens.
    """
    for grant in active_grants(draft, pool):
        if _renewed_at(grant, at):
            continue
        balance = grant.balance_nanos
        kept = min(grant.rollover_max_nanos, max(grant.rollover_min_nanos, balance))
        draft.move(granted(grant.id), breakage("forfeited"), max(0, balance - kept), at, cause, pool, grant)
        draft.move(issued(grant.category), granted(grant.id), max(0, kept - balance), at, cause, pool, grant)
        whole = balance + grant.held_nanos
        returnable = max(0, min(grant.rollover_max_nanos, max(grant.rollover_min_nanos, whole)) - kept)
        draft.grants.put(
            grant.id, replace(grant, balance_nanos=kept, cycle=grant.cycle + 1, returnable_nanos=returnable)
        )
    row = draft.pool(pool)
    draft.pools.put(pool, replace(row, usage_nanos=0, grant_usage_nanos=0, period_at=at))
    if preserve_overage:
        repay(draft, pool, at, cause)
    elif row.overage_nanos:
        draft.move(breakage("overage_dropped"), OVERAGE, row.overage_nanos, at, cause, pool)
        draft.pools.put(pool, replace(draft.pool(pool), overage_nanos=0, dropped_at=at))


def _renewed_at(grant: GrantRow, at: int) -> bool:
    """Whether stream time itself set the balance at this instant already, before a reset was asked for."""
    if grant.created_at == at:
        return False
    if grant.effective_at == at:
        return True
    due = grant.recurs_at is not None and grant.recurs_at <= at  # it recurs after the reset, in this same step
    return not due and grant.recurrence is not None and at_or_before(grant.recurrence, at) == at


def repay(draft: AccountDraft, pool: str, at: int, cause: int) -> None:
    """Carried overage burns once over the active grants."""
    row = draft.pools.get(pool)
    if row is None or not row.overage_nanos:
        return
    _, left = burn(draft, pool, row.overage_nanos, OVERAGE, at, cause)
    draft.pools.put(pool, replace(draft.pool(pool), overage_nanos=left))


def begin(draft: AccountDraft, grant: GrantRow, at: int, cause: int) -> None:
    """The grant's credits become spendable."""
    recurs_at = None if grant.recurrence is None else next_after(grant.recurrence, at)
    begun = replace(grant, active=True, balance_nanos=grant.amount_nanos, recurs_at=recurs_at)
    draft.grants.put(grant.id, begun)
    draft.reordered()
    draft.move(issued(grant.category), granted(grant.id), grant.amount_nanos, at, cause, grant.pool, grant)
    draft.wake(_changes_at(begun))


def _recur(draft: AccountDraft, grant: GrantRow, at: int) -> None:
    """The balance becomes the amount: it does not accumulate, so what was left is forfeited."""
    assert grant.recurrence is not None
    draft.move(granted(grant.id), breakage("forfeited"), grant.balance_nanos, at, -1, grant.pool, grant)
    draft.move(issued(grant.category), granted(grant.id), grant.amount_nanos, at, -1, grant.pool, grant)
    draft.grants.put(
        grant.id,
        replace(
            grant,
            balance_nanos=grant.amount_nanos,
            recurs_at=next_after(grant.recurrence, at),
            cycle=grant.cycle + 1,
            returnable_nanos=0,
        ),
    )
