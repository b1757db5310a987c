"""Budgets: limits on scopes over a period.

A budget's selector names dimensions and their values; `"*"` stands for each value, one allowance for each. A call with
dimensions falls into the concrete scope of every budget whose selector it matches; the empty selector is the customer.
A customer's own budget stands in for the plan's of the same name.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.tariff import Offer
from tallygate.pipeline.windows import period_end, period_start
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.catalog import CREDITS_UNIT
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import Alert, BudgetRow, HeldShare, ScopeRow, scope_text

_SOFT: Final = (100,)


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
        """What asks nothing of a limit is never stopped by it, however far work has gone beyond."""
        return not self.asked_nanos or self.asked_nanos <= self.remaining_nanos


def budgets_of(draft: AccountDraft, offer: Offer) -> Sequence[BudgetRow]:
    """The customer's own budgets, and those of the plan, counted from the subscription's anchor."""
    found = draft.budgets.values()
    if not offer.budgets:
        return found
    of_plan = offer.budgets_from(draft.anchor)
    if not found:
        return of_plan
    names = {budget.name for budget in found}
    return [*found, *(each for each in of_plan if each.name not in names)]


def levels(
    draft: AccountDraft,
    offer: Offer,
    dimensions: dict[str, str],
    credits_nanos: int,
    quantities: dict[str, int],
    at: int,
) -> list[Level]:
    """Every budget that a call falls under, narrowest first, as it stands at `at`."""
    found = []
    for budget in budgets_of(draft, offer):
        if budget.unit == CREDITS_UNIT:
            asked = credits_nanos
        elif budget.unit in quantities:
            asked = quantities[budget.unit]
        else:
            continue
        scope = concrete(budget.scope, dimensions)
        if scope is not None:
            found.append(Level(budget, scope_row(draft, budget, scope, at), asked))
    if len(found) > 1:
        found.sort(key=lambda level: (-len(level.budget.scope), level.scope.id))
    return found


class Place(msgspec.Struct, frozen=True, gc=False):
    """A budget in the one scope of it in which calls with the same dimensions fall."""

    budget: BudgetRow
    id: str
    scope: dict[str, str]


def places(found: Sequence[BudgetRow], dimensions: dict[str, str]) -> list[Place]:
    """Where calls with these dimensions fall, narrowest first."""
    places = []
    for budget in found:
        scope = concrete(budget.scope, dimensions)
        if scope is not None:
            places.append(Place(budget, f"{budget.name}\0{scope_text(scope)}", scope))
    return sorted(places, key=lambda place: (-len(place.budget.scope), place.id))


def concrete(selector: dict[str, str], dimensions: dict[str, str]) -> dict[str, str] | None:
    """The scope in which a call with these dimensions falls, or None."""
    scope = {}
    for name, wanted in selector.items():
        value = dimensions.get(name)
        if value is None or (wanted not in ("*", value)):
            return None
        scope[name] = value
    return scope


def scope_row(draft: AccountDraft, budget: BudgetRow, scope: dict[str, str], at: int) -> ScopeRow:
    """Where a budget stands in one scope: afresh when its period has rolled over, with what is held still held."""
    return row_at(draft, Place(budget, f"{budget.name}\0{scope_text(scope)}", scope), at, budget.anchor)


def row_at(draft: AccountDraft, place: Place, at: int, anchor: int | None) -> ScopeRow:
    """The same, with periods counted from an anchor."""
    budget = place.budget
    start = period_start(budget.period, at, anchor)
    row = draft.scopes.get(place.id)
    if row is None:
        return ScopeRow(place.id, budget.name, place.scope, start)
    if row.period_at != start:
        return replace(row, period_at=start, used_nanos=0, alerted=0)
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
        assert row is not None, f"a hold holds of scope {share.id!r}, which is gone"
        assert row.held_nanos >= share.nanos, f"scope {share.id!r} holds less than its holds"
        draft.scopes.put(row.id, replace(row, held_nanos=row.held_nanos - share.nanos))


def consume(draft: AccountDraft, found: list[Level], at: int, cause: int) -> None:
    """Count what is asked as used in every level; it may pass the limit, since the work has happened."""
    for level in found:
        if not level.asked_nanos:
            continue
        row = replace(level.scope, used_nanos=level.scope.used_nanos + level.asked_nanos)
        draft.scopes.put(row.id, _alerted(draft, level, row, at, cause))


def reports(budget: BudgetRow) -> bool:
    """Whether there is any threshold to be reported."""
    return bool(budget.thresholds) or not budget.hard or budget.observe


def would_report(budget: BudgetRow, row: ScopeRow, more_nanos: int) -> bool:
    """Whether so much more use in a scope may change what has been reported of it."""
    if row.alerted and budget.limit_nanos > row.alerted_limit_nanos:
        return True
    after = _reached(budget, replace(row, used_nanos=row.used_nanos + more_nanos))
    return any(each > row.alerted for each in after)


def _alerted(draft: AccountDraft, level: Level, row: ScopeRow, at: int, cause: int) -> ScopeRow:
    """Report each threshold that is reached and was not before: in this period, of a limit no lower than now."""
    budget, reported = level.budget, row.alerted
    if not reports(budget):
        return row
    if reported and budget.limit_nanos > row.alerted_limit_nanos:  # raised: it may be reached no more
        reported = min(reported, max(_reached(budget, level.scope), default=0))
    due = [each for each in _reached(budget, row) if each > reported]
    for threshold in due:
        draft.alerts.append(
            Alert(
                budget.name,
                row.scope,
                budget.unit,
                threshold,
                budget.limit_nanos,
                row.used_nanos,
                row.period_at,
                at,
                cause,
            )
        )
    if not due and reported == row.alerted:
        return row
    return replace(row, alerted=max([reported, *due]), alerted_limit_nanos=budget.limit_nanos)


def _reached(budget: BudgetRow, row: ScopeRow) -> list[int]:
    """The thresholds (per cent) that use has reached, rising; a soft budget reports its limit, too."""
    thresholds = {*budget.thresholds, *(() if budget.hard and not budget.observe else _SOFT)}
    return sorted(each for each in thresholds if row.used_nanos * 100 >= each * budget.limit_nanos)


def wait_ms(level: Level, at: int) -> int | None:
    """How long until the level has room for what is asked, if what is held stays held; None: never."""
    ends = period_end(level.budget.period, level.scope.period_at, level.budget.anchor)
    fits = level.asked_nanos <= level.budget.limit_nanos - level.scope.held_nanos
    return ends - at if ends is not None and fits else None


def limit_state(level: Level) -> LimitState:
    budget, row = level.budget, level.scope
    ends = period_end(budget.period, row.period_at, budget.anchor)
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
        observe=budget.observe,
    )


def states(draft: AccountDraft, offer: Offer, at: int) -> tuple[LimitState, ...]:
    """Every budget in every scope that has been used, and budgets of one scope that has not."""
    found: list[LimitState] = []
    for budget in sorted(budgets_of(draft, offer), key=lambda b: b.name):
        scopes = [row.scope for row in draft.scopes.values() if row.budget == budget.name]
        if not scopes and "*" not in budget.scope.values():
            scopes = [dict(budget.scope)]
        found.extend(
            limit_state(Level(budget, scope_row(draft, budget, scope, at), 0))
            for scope in sorted(scopes, key=scope_text)
            if concrete(budget.scope, scope) is not None
        )
    return tuple(found)
