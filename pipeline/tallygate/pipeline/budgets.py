"""Budgets: limits on scopes over a period.

A budget's selector names dimensions and their values; `"*"` stands for each value, one allowance for each. A call with
dimensions falls into the concrete scope of every budget whose selector it matches; the empty selector is the customer.
"""

from datetime import datetime, timedelta

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.instants import DAY_MS, HOUR_MS, format_instant, from_datetime, to_datetime
from tallygate.schemas.journal import BudgetRow, HeldShare, ScopeRow, scope_text

CREDITS = "credits"
_WEEK_ANCHOR = 4 * DAY_MS  # 1970-01-05, a Monday


class Level(msgspec.Struct, frozen=True, gc=False):
    """One budget in one concrete scope, with what a call asks of it."""

    budget: BudgetRow
    scope: ScopeRow
    asked_nanos: int

    @property
    def remaining_nanos(self) -> int:
        return self.budget.limit_nanos - self.scope.used_nanos - self.scope.held_nanos

    @property
    def has_room(self) -> bool:
        return self.asked_nanos <= self.remaining_nanos


def levels(
    draft: AccountDraft, dimensions: dict[str, str], credits_nanos: int, quantities: dict[str, int], at: int
) -> list[Level]:
    """Every budget that a call falls under, narrowest first, as it stands at `at`."""
    found = []
    for budget in draft.budgets.values():
        if budget.unit == CREDITS:
            asked = credits_nanos
        elif budget.unit in quantities:
            asked = quantities[budget.unit]
        else:
            continue
        scope = _concrete(budget, dimensions)
        if scope is not None:
            found.append(Level(budget, _scope_row(draft, budget, scope, at), asked))
    found.sort(key=lambda level: (-len(level.budget.scope), level.scope.id))
    return found


def _concrete(budget: BudgetRow, dimensions: dict[str, str]) -> dict[str, str] | None:
    scope = {}
    for name, wanted in budget.scope.items():
        value = dimensions.get(name)
        if value is None or (wanted not in ("*", value)):
            return None
        scope[name] = value
    return scope


def _scope_row(draft: AccountDraft, budget: BudgetRow, scope: dict[str, str], at: int) -> ScopeRow:
    id = f"{budget.name}\0{scope_text(scope)}"
    start = period_start(budget.period, at)
    row = draft.scopes.get(id)
    if row is None:
        return ScopeRow(id, budget.name, scope, start)
    if row.period_at != start:
        return replace(row, period_at=start, used_nanos=0)
    return row


def hold(draft: AccountDraft, found: list[Level]) -> tuple[HeldShare, ...]:
    """Set what is asked aside in every level."""
    for level in found:
        row = level.scope
        draft.scopes.put(row.id, replace(row, held_nanos=row.held_nanos + level.asked_nanos))
    return tuple(HeldShare(level.scope.id, level.asked_nanos) for level in found if level.asked_nanos)


def unhold(draft: AccountDraft, shares: tuple[HeldShare, ...]) -> None:
    """Give what a hold holds of its levels back."""
    for share in shares:
        row = draft.scopes.get(share.id)
        if row is None:
            continue  # the budget was removed under the hold
        assert row.held_nanos >= share.nanos, f"scope {share.id!r} holds less than its holds"
        draft.scopes.put(row.id, replace(row, held_nanos=row.held_nanos - share.nanos))


def consume(draft: AccountDraft, found: list[Level]) -> None:
    """Count what is asked as used in every level; it may pass the limit, since the work has happened."""
    for level in found:
        row = level.scope
        draft.scopes.put(row.id, replace(row, used_nanos=row.used_nanos + level.asked_nanos))


def limit_state(level: Level) -> LimitState:
    budget, row = level.budget, level.scope
    ends = period_end(budget.period, row.period_at)
    return LimitState(
        kind="budget",
        name=budget.name,
        ok=level.has_room,
        unit=budget.unit,
        asked=from_nanos(level.asked_nanos),
        limit=from_nanos(budget.limit_nanos),
        used=from_nanos(row.used_nanos),
        held=from_nanos(row.held_nanos),
        remaining=from_nanos(level.remaining_nanos),
        scope=row.scope,
        hard=budget.hard,
        resets_at=None if ends is None else format_instant(ends),
    )


def states(draft: AccountDraft, at: int) -> tuple[LimitState, ...]:
    """Every budget's every scope that has been used, and whole-customer budgets that have not."""
    found: list[LimitState] = []
    for budget in sorted(draft.budgets.values(), key=lambda b: b.name):
        scopes = [row.scope for row in draft.scopes.values() if row.budget == budget.name]
        if not scopes and "*" not in budget.scope.values():
            scopes = [dict(budget.scope)]
        found.extend(
            limit_state(Level(budget, _scope_row(draft, budget, scope, at), 0))
            for scope in sorted(scopes, key=scope_text)
            if _concrete(budget, scope) is not None
        )
    return tuple(found)


def period_start(period: str, at: int) -> int:
    """The start of the period that holds the instant; periods are aligned in UTC, weeks start on Monday."""
    match period:
        case "lifetime":
            return 0
        case "hour":
            return at - at % HOUR_MS
        case "day":
            return at - at % DAY_MS
        case "week":
            return at - (at - _WEEK_ANCHOR) % (7 * DAY_MS)
        case "month":
            day = to_datetime(at)
            return from_datetime(day.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
        case _:
            raise AssertionError(f"no period: {period}")


def period_end(period: str, start: int) -> int | None:
    """When the period that starts at `start` ends; None for a lifetime."""
    match period:
        case "lifetime":
            return None
        case "hour":
            return start + HOUR_MS
        case "day":
            return start + DAY_MS
        case "week":
            return start + 7 * DAY_MS
        case "month":
            later: datetime = to_datetime(start) + timedelta(days=32)
            return from_datetime(later.replace(day=1))
        case _:
            raise AssertionError(f"no period: {period}")
