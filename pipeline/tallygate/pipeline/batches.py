"""Usage batches: runs of batch records, counted by group and charged once for each customer and feature.

A batch counts once, by (producer, epoch, sequence): the partition keeps the last of each producer, in constant space. A
large run is put in force customer by customer, in steps that are small enough for requests to pass between them; the
partition row says how far, so that whoever takes over goes on exactly there.
"""

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from tallygate.pipeline import budgets, entitlements, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import Access, access, allowances, offer_of
from tallygate.pipeline.metering import add_figure
from tallygate.pipeline.tariff import Offer, Tariff
from tallygate.pipeline.transition import Batch, Outcome, UsageRunInput
from tallygate.pipeline.usage_groups import Combination, Figure, Group, Use, cost_at
from tallygate.schemas.catalog import CREDITS_UNIT
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import (
    BudgetRow,
    Cause,
    ProducerRow,
    UsageDelta,
    UsageRow,
    UsageRun,
    decode_record,
    producer_of,
    producer_range,
    scope_text,
)

#: A budget, a concrete scope of it, and that scope's id.
_Scope = tuple[BudgetRow, dict[str, str], str]
_FALLING_KEPT_MAX: Final = 50_000
#: How many producers one tick may forget.
_FORGOTTEN_MAX: Final = 10_000


class Producers(Protocol):
    """A partition's state, as far as it says where producers stand."""

    def producer(self, name: str, /) -> ProducerRow | None: ...


def duplicates(state: Producers, batches: tuple[Batch, ...]) -> frozenset[int]:
    """The offsets of those batches that count for nobody because they have counted before."""
    last: dict[str, tuple[int, int]] = {}
    found = []
    for batch in batches:
        if batch.id is None or batch.refused is not None:
            continue
        name = batch.id.producer
        if name not in last:
            row = state.producer(name)
            last[name] = (row.epoch, row.sequence) if row else (-1, -1)
        place = (batch.id.epoch, batch.id.sequence)
        if place > last[name]:
            last[name] = place
        else:
            found.append(batch.source.offset)
    return frozenset(found)


def begin(draft: Draft, each: UsageRunInput) -> None:
    """Note a run's batches: what is refused, what was counted before, and where each producer stands now."""
    known = duplicates(draft.state, each.batches)
    for batch in each.batches:
        if batch.refused is not None:
            draft.dead_letters.append(batch.refused)
            draft.outcomes.append(Outcome("usage", "refused", batch.refused.reason))
        elif batch.source.offset in known:
            draft.duplicates += batch.events
        else:
            assert batch.id is not None
            draft.producers[batch.id.producer] = ProducerRow(batch.id.epoch, batch.id.sequence, draft.stream_at)
    refused = {batch.source.offset for batch in each.batches if batch.refused is not None}
    assert set(each.skipped) == known | refused, "the groups are those of the batches that count"


def end(draft: Draft, each: UsageRunInput) -> None:
    """Note how far the run is in force."""
    source = each.source
    if each.last:
        draft.run = None
        draft.applied[source.topic] = source.offset
    else:
        draft.run = UsageRun(source.offset, each.customers[-1][0], each.skipped, each.catalog)


def forget_idle(draft: Draft) -> None:
    """Once an hour of stream time, forget the producers from which nothing came as long as ids are remembered."""
    if draft.stream_at // HOUR_MS == draft.state.row.stream_at // HOUR_MS:
        return
    for key, value in draft.state.rows.scan(*producer_range(), _FORGOTTEN_MAX):
        row = decode_record(value)
        assert isinstance(row, ProducerRow)
        if draft.stream_at - row.at >= draft.rules.remember_ms:
            draft.producers.setdefault(producer_of(key), None)


def count(draft: Draft, account: AccountDraft, groups: tuple[Group, ...], each: UsageRunInput) -> None:
    """Count a customer's groups, and charge what they cost: once for each feature."""
    account.know(draft.stream_at)
    source = each.source
    cause = account.cause(Cause(source.topic, source.partition, source.offset, each.name))
    tally = _Tally(draft, account, cause)
    for group in groups:
        draft.events += group.events
        tally.add(group)
    tally.finish()


class _Hour(msgspec.Struct, gc=False):
    """What the groups add to one usage row that sums."""

    use: Use
    hour: int
    quantity_nanos: int = 0
    events: int = 0
    late_events: int = 0


class _Tally:
    """A customer's groups, added up: every row, allowance, budget and feature is touched once, whatever they are."""

    __slots__ = (
        "_account",
        "_at",
        "_budgets",
        "_cause",
        "_costs",
        "_draft",
        "_hours",
        "_included",
        "_offer",
        "_rights",
        "_used",
    )

    def __init__(self, draft: Draft, account: AccountDraft, cause: int) -> None:
        self._draft = draft
        self._account = account
        self._cause = cause
        self._at = draft.stream_at
        self._offer = offer_of(account, draft.tariff)
        self._budgets = account.budgets.values()
        self._rights: dict[str, Access] = {}
        self._hours: dict[str, _Hour] = {}
        self._included: dict[tuple[str, str], int] = {}  # by feature and meter
        self._costs: dict[str, int] = {}  # by feature
        self._used: dict[str, tuple[BudgetRow, dict[str, str], int]] = {}  # by scope

    def add(self, group: Group) -> None:
        total = 0
        billed: dict[str, int] = {}
        combined = group.combination
        for use, figure in zip(combined.uses, group.figures, strict=True):
            if not figure.events:
                continue
            name = use.meter.name
            added = billed[name] = self._record(group, use, figure)
            cost = self._cost(combined, use, added) if use.feature else 0
            if cost:
                self._costs[use.feature] = self._costs.get(use.feature, 0) + cost
                total += cost
        if self._budgets or self._offer.budgets:
            for budget, scope, id in self._scopes(combined):
                asked = total if budget.unit == CREDITS_UNIT else billed.get(budget.unit, 0)
                if asked:
                    before = self._used.get(id)
                    self._used[id] = budget, scope, asked + (before[2] if before else 0)

    def finish(self) -> None:
        account, at, cause = self._account, self._at, self._cause
        for id, each in self._hours.items():
            _put(account, id, each.use, each.hour, each.quantity_nanos, each.events, each.late_events, cause)
        for (of, meter), nanos in self._included.items():
            entitlements.consume(account, allowances(account, self._rights[of], {meter: nanos}, at))
        if self._used:
            anchor = account.anchor
            found = []
            for budget, scope, asked in self._used.values():
                own = account.budgets.get(budget.name) is not None
                known = budget if own else replace(budget, anchor=anchor)
                found.append(budgets.Level(known, budgets.scope_row(account, known, scope, at), asked))
            found.sort(key=lambda level: (-len(level.budget.scope), level.scope.id))
            budgets.consume(account, found, at, cause)
        for name, cost in self._costs.items():
            feature = self._draft.tariff.features[name]
            holds.charge(account, feature.pools, cost, name, feature.overage_nanos_max, at, cause)

    def _record(self, group: Group, use: Use, figure: Figure) -> int:
        """Take a figure into its hour; returns what it adds to the bill."""
        late = figure.events if group.late else 0
        if use.meter.aggregation in ("sum", "count"):
            hour = self._hours.get(use.row_id)
            if hour is None:
                hour = self._hours[use.row_id] = _Hour(use, group.combination.hour)
            hour.quantity_nanos += figure.quantity_nanos
            hour.events += figure.events
            hour.late_events += late
            return figure.quantity_nanos
        account, meter, hour_at = self._account, use.meter, group.combination.hour
        row = account.usage_hour(use.row_id, meter.name, hour_at, use.kept, meter.aggregation)
        total, added, latest_at = add_figure(account, meter, row, use.row_id, figure)
        events, late_events = row.events + figure.events, row.late_events + late
        row = replace(row, quantity_nanos=total, events=events, late_events=late_events, latest_at=latest_at)
        account.usage.put(use.row_id, row)
        delta = UsageDelta(row.meter, row.hour, row.dimensions, figure.quantity_nanos, figure.events, late, self._cause)
        account.deltas.append(delta)
        return added

    def _cost(self, combined: Combination, use: Use, nanos: int) -> int:
        """What a quantity costs in credits beside its allowances, which are counted."""
        feature, meter = use.feature, use.meter.name
        right = self._rights.get(feature)
        if right is None:
            right = self._rights[feature] = access(
                self._account, self._draft.tariff, self._offer, self._draft.tariff.features[feature]
            )
        beyond = [each.beyond for each in right.entitlements if each.kind == "metered" and each.meter == meter]
        if "credits" in beyond:  # the first groups are included, and it ends somewhere
            found = allowances(self._account, right, {meter: nanos}, self._at)
            nanos = found[-1].asked_nanos - found[-1].counted_nanos if beyond[-1] == "credits" else 0
            entitlements.consume(self._account, found)
        elif beyond:
            self._included[feature, meter] = self._included.get((feature, meter), 0) + nanos
            return 0
        if not use.tiered:
            return use.cost(nanos)
        return cost_at(self._draft.tariff.price(meter, nanos, combined.dimensions, combined.at), nanos)

    def _scopes(self, combined: Combination) -> list[_Scope]:
        """The budgets that a group falls under, each with its concrete scope and that scope's id."""
        found = _falling(self._budgets, combined.dimensions)
        names = {budget.name for budget in self._budgets}
        of_plan = _of_plan(self._draft.tariff, combined, self._offer)
        return [*found, *(each for each in of_plan if each[0].name not in names)] if names else of_plan


def _of_plan(tariff: Tariff, combined: Combination, offer: Offer) -> list[_Scope]:
    """Which of a plan's budgets a combination falls under: asked for every customer on the plan, so kept."""
    key = (id(combined), id(offer))
    found = tariff.falling.get(key)
    if found is None:
        if len(tariff.falling) >= _FALLING_KEPT_MAX:
            tariff.falling.clear()
        found = tariff.falling[key] = (combined, offer, _falling(offer.budgets, combined.dimensions))
    scopes: list[_Scope] = found[2]
    return scopes


def _falling(budgets_: Iterable[BudgetRow], dimensions: dict[str, str]) -> list[_Scope]:
    found = []
    for budget in budgets_:
        scope = budgets.concrete(budget.scope, dimensions)
        if scope is not None:
            found.append((budget, scope, f"{budget.name}\0{scope_text(scope)}"))
    return found


def _put(
    account: AccountDraft, id: str, use: Use, hour: int, nanos: int, events: int, late_events: int, cause: int
) -> None:
    meter = use.meter
    row = account.usage_hour(id, meter.name, hour, use.kept, meter.aggregation)
    account.usage.put(
        id,
        UsageRow(
            meter.name,
            hour,
            use.kept,
            row.quantity_nanos + nanos,
            row.events + events,
            row.late_events + late_events,
            row.latest_at,
            row.since,
            row.aggregation,
        ),
    )
    account.deltas.append(UsageDelta(meter.name, hour, use.kept, nanos, events, late_events, cause))
