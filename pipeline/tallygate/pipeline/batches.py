"""Usage batches: runs of batch records, counted by group and charged once for each customer and feature.

A batch counts once, by (producer, epoch, sequence): the partition keeps the last of each producer, in constant space. A
large run is put in force customer by customer, in steps that are small enough for requests to pass between them; the
partition row says how far, so that whoever takes over goes on exactly there.
"""

from typing import Final, Protocol

from msgspec.structs import replace

from tallygate.pipeline import budgets, entitlements, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import Access, access, allowances, offer_of
from tallygate.pipeline.metering import add_figure
from tallygate.pipeline.transition import Batch, Outcome, UsageRunInput
from tallygate.pipeline.usage_groups import Figure, Group, Use, cost_at
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import (
    Cause,
    ProducerRow,
    UsageDelta,
    UsageRun,
    decode_record,
    producer_of,
    producer_range,
)

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
    source, at, tariff = each.source, draft.stream_at, draft.tariff
    cause = account.cause(Cause(source.topic, source.partition, source.offset, each.name))
    offer = offer_of(account, tariff)
    budgeted = bool(budgets.budgets_of(account, offer))
    rights: dict[str, Access] = {}
    costs: dict[str, int] = {}
    for group in groups:
        draft.events += group.events
        total = 0
        billed: dict[str, int] = {}
        for use, figure in zip(group.combination.uses, group.figures, strict=True):
            if not figure.events:
                continue
            added = billed[use.meter.name] = _record(account, group, use, figure, cause)
            if not use.feature:
                continue
            right = rights.get(use.feature)
            if right is None:
                right = rights[use.feature] = access(account, tariff, offer, tariff.features[use.feature])
            if right.entitlements:
                added = _beyond_allowances(account, right, use, added, at)
            cost = _tier_cost(draft, group, use, added) if use.tiered else use.cost(added)
            if cost:
                costs[use.feature] = costs.get(use.feature, 0) + cost
                total += cost
        if budgeted:
            budgets.consume(
                account, budgets.levels(account, offer, group.combination.dimensions, total, billed, at), at, cause
            )
    for name, cost in costs.items():
        feature = tariff.features[name]
        holds.charge(account, feature.pools, cost, name, feature.overage_nanos_max, at, cause)


def _tier_cost(draft: Draft, group: Group, use: Use, nanos: int) -> int:
    combined = group.combination
    return cost_at(draft.tariff.price(use.meter.name, nanos, combined.dimensions, combined.at), nanos)


def _beyond_allowances(account: AccountDraft, right: Access, use: Use, nanos: int, at: int) -> int:
    """Take what is included; what of the quantity is to be paid with credits."""
    found = allowances(account, right, {use.meter.name: nanos}, at)
    left = nanos
    for each in found:
        left = each.asked_nanos - each.counted_nanos if each.entitlement.beyond == "credits" else 0
    entitlements.consume(account, found)
    return left


def _record(account: AccountDraft, group: Group, use: Use, figure: Figure, cause: int) -> int:
    """Take a figure into its hour; returns what it adds to the bill."""
    combination = group.combination
    late = figure.events if group.late else 0
    before = account.usage_hour(use.row_id, use.meter.name, combination.hour, use.kept, use.meter.aggregation)
    added, total, latest_at = figure.quantity_nanos, before.quantity_nanos + figure.quantity_nanos, before.latest_at
    if use.meter.aggregation not in ("sum", "count"):
        total, added, latest_at = add_figure(account, use.meter, before, use.row_id, figure)
    events, late_events = before.events + figure.events, before.late_events + late
    row = replace(before, quantity_nanos=total, events=events, late_events=late_events, latest_at=latest_at)
    account.usage.put(use.row_id, row)
    delta = UsageDelta(row.meter, row.hour, row.dimensions, figure.quantity_nanos, figure.events, late, cause)
    account.deltas.append(delta)
    return added
