"""Gathered usage: events of one customer in one step, counted together where that is the same as one by one.

Counting an event by itself costs a row of each kind and a pair of postings; most of a customer's events in a step
differ in nothing but their quantities. They are gathered by type, source, dimensions and hour, until
anything else looks at the customer or stream time changes something there. Then, for all of it at once:

* Prices are rounded event by event, as ever, and then added: a total does not depend on what was counted together.
* An hour's row is written once a group, each feature is charged once, each budget and allowance raised once.
* Of each event is remembered what undoing it needs, in columns.

That is the same as one after the other as long as nothing happens in between that tells their order: one grant pays all
of it (or it is all owed), an allowance holds all or none of it, no threshold is passed and no period begins. Where one
of these is not so, the events are counted event by event.
"""

import msgspec

from tallygate.pipeline import budgets, entitlements, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.credits import active_grants
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import Allowance, access, allowances, offer_of
from tallygate.pipeline.metering import Measured
from tallygate.pipeline.tariff import Offer
from tallygate.pipeline.weighing import ABSENT, Shape, Weighed
from tallygate.schemas.catalog import CREDITS_UNIT, Feature
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import (
    COST_COLUMN,
    Cause,
    CountedEvents,
    GrantRow,
    GroupCharge,
    GroupShare,
    UsageDelta,
    UsageRow,
    usage_id_of,
)


class Member(msgspec.Struct, frozen=True, gc=False):
    """One event that was gathered. `counted_at`: stream time then."""

    event: UsageEvent
    digest: bytes
    topic: str
    partition: int
    offset: int
    counted_at: int
    weighed: Weighed

    def measured(self) -> Measured:
        """The same as `metering.measure` has it."""
        weighed = self.weighed
        names = [meter.name for meter in weighed.shape.kind.meters]
        quantities = {n: q for n, q in zip(names, weighed.quantities, strict=True) if q != ABSENT}
        return Measured(self.event, weighed.at, quantities, {}, weighed.shape.dimensions)


class Group:
    """Members with everything in common but id, time, offset and quantities; no meter is absent in one only."""

    __slots__ = ("columns", "costs", "hour", "late", "members", "shape", "totals")

    def __init__(self, shape: Shape, hour: int, late: bool) -> None:
        self.shape = shape
        self.hour = hour
        self.late = late
        self.members: list[Member] = []
        #: By place among the kind's meters, of those that are not absent; and their totals.
        self.columns: dict[int, list[int]] = {}
        self.costs: dict[int, list[int]] = {}
        self.totals: dict[str, int] = {}

    def add_up(self) -> None:
        kind = self.shape.kind
        quantities = list(zip(*[one.weighed.quantities for one in self.members], strict=True))
        costs = list(zip(*[one.weighed.costs for one in self.members], strict=True))
        for place, column in enumerate(quantities):
            if column[0] != ABSENT:
                self.columns[place] = list(column)
                self.costs[place] = list(costs[place])
                self.totals[kind.meters[place].name] = sum(column)


class Gathering:
    """A customer's events of a step so far."""

    __slots__ = ("account", "first_at", "groups", "members")

    def __init__(self, account: AccountDraft, at: int) -> None:
        self.account = account
        self.first_at = at
        self.members: list[Member] = []
        self.groups: dict[tuple[object, ...], Group] = {}

    def add(self, one: Member, grace_ms: int) -> None:
        weighed, shape = one.weighed, one.weighed.shape
        hour, late = weighed.at - weighed.at % HOUR_MS, one.counted_at - weighed.at > grace_ms
        there = ABSENT in weighed.quantities and tuple([q == ABSENT for q in weighed.quantities])
        key = (shape, hour, late, one.event.source, there)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(shape, hour, late)
        group.members.append(one)
        self.members.append(one)


class _Bill(msgspec.Struct, gc=False):
    """What a feature is charged: for each of its groups, event by event."""

    feature: Feature
    groups: list[tuple[Group, list[int]]]
    total: int = 0
    payer: GrantRow | None = None  # who pays, or nobody: then all of it is owed
    pool: str = ""


class _Counting:
    """What was gathered, counted together; `bills` and `possible` look only, `do` changes the account."""

    def __init__(self, draft: Draft, gathered: Gathering) -> None:
        self._draft = draft
        self._gathered = gathered
        self._account = gathered.account
        self._at = gathered.members[-1].counted_at
        self._groups = list(gathered.groups.values())
        self._offer: Offer = offer_of(gathered.account, draft.tariff)
        self._included: dict[str, list[tuple[Group, Allowance, str]]] = {}
        self._bills: dict[str, _Bill] = {}

    def possible(self) -> bool:
        """Whether the order of the events makes no difference."""
        for group in self._groups:
            group.add_up()
        return self._bill() and self._find_payers() and self._levels_are_calm()

    # ---- looking ----

    def _bill(self) -> bool:
        """What each feature is charged; False where an allowance ends in between."""
        for group in self._groups:
            by_feature: dict[str, list[int]] = {}
            for place in group.columns:
                feature = group.shape.kind.features[place]
                if feature is not None:
                    by_feature.setdefault(feature.name, []).append(place)
            for name, places in by_feature.items():
                feature = self._draft.tariff.features[name]
                free = self._free(group, feature)
                if free is None:
                    return False
                meters = group.shape.kind.meters
                costs = [group.costs[place] for place in places if meters[place].name not in free]
                each = [sum(parts) for parts in zip(*costs, strict=True)] if costs else []
                bill = self._bills.get(name)
                if bill is None:
                    bill = self._bills[name] = _Bill(feature, [])
                bill.groups.append((group, each))
                bill.total += sum(each)
        return True

    def _free(self, group: Group, feature: Feature) -> set[str] | None:
        """The meters whose quantities allowances include; None where that depends on the event."""
        right = access(self._account, self._draft.tariff, self._offer, feature)
        if not right.entitlements:
            return set()
        free: set[str] = set()
        seen: set[str] = set()
        for each in allowances(self._account, right, group.totals, self._at):
            entitlement, meter = each.entitlement, each.entitlement.meter
            if self._gathered.first_at < each.scope.period_at or meter in seen:
                return None
            seen.add(meter)
            known = self._included.setdefault(each.scope.id, [])
            asked = each.asked_nanos + sum(other.asked_nanos for _, other, _ in known)
            if entitlement.beyond == "credits" and asked > each.remaining_nanos:
                if each.remaining_nanos > 0:
                    return None
                continue
            known.append((group, each, meter))
            free.add(meter)
        return free

    def _find_payers(self) -> bool:
        """Who pays each bill; False where it takes more than one."""
        asked: dict[str, int] = {}
        for bill in self._bills.values():
            if not bill.total:
                continue
            feature = bill.feature
            for pool in feature.pools:
                payer = next((grant for grant in active_grants(self._account, pool) if grant.balance_nanos), None)
                if payer is not None:
                    asked[payer.id] = asked.get(payer.id, 0) + bill.total
                    if asked[payer.id] > payer.balance_nanos:
                        return False
                    bill.payer, bill.pool = payer, pool
                    break
            else:
                if feature.overage_nanos_max:
                    return False
                bill.pool = feature.pools[-1]
        return True

    def _levels_are_calm(self) -> bool:
        """Whether no budget begins a period or reaches a threshold."""
        used: dict[str, int] = {}
        for group in self._groups:
            for level in self._levels(group):
                budget, row = level.budget, level.scope
                if self._gathered.first_at < row.period_at:
                    return False
                if budgets.reports(budget):
                    before = used.get(row.id, 0)
                    used[row.id] = before + level.asked_nanos
                    if budgets.would_report(budget, row, used[row.id]):
                        return False
        return True

    def _levels(self, group: Group) -> list[budgets.Level]:
        cost = sum(sum(each) for bill in self._bills.values() for own, each in bill.groups if own is group)
        return budgets.levels(self._account, self._offer, group.shape.dimensions, cost, group.totals, self._at)

    # ---- doing ----

    def do(self) -> None:
        causes = {}
        for group in self._groups:
            one = group.members[0]
            cause = Cause(one.topic, one.partition, one.offset, one.event.id)
            causes[id(group)] = self._account.cause(cause)
            self._record(group, causes[id(group)])
        for bill in self._bills.values():
            if bill.total:
                feature, first = bill.feature, causes[id(bill.groups[0][0])]
                cap = feature.overage_nanos_max
                holds.charge(self._account, feature.pools, bill.total, feature.name, cap, self._at, first)
        for group in self._groups:
            self._remember(group, causes[id(group)], self._use(group, causes[id(group)]))

    def _record(self, group: Group, cause: int) -> None:
        """The hour's rows, as `metering.record` writes them."""
        account, late, count = self._account, group.late, len(group.members)
        for place in group.columns:
            meter, (kept, text) = group.shape.kind.meters[place], group.shape.kept[place]
            total = group.totals[meter.name]
            id = usage_id_of(meter.name, group.hour, text)
            row = account.usage_hour(id, meter.name, group.hour, kept, meter.aggregation)
            late_events = count if late else 0
            after = UsageRow(
                meter.name,
                group.hour,
                kept,
                row.quantity_nanos + total,
                row.events + count,
                row.late_events + late_events,
                row.latest_at,
                row.since,
                row.aggregation,
            )
            account.usage.put(id, after)
            account.deltas.append(UsageDelta(meter.name, group.hour, kept, total, count, late_events, cause))

    def _use(self, group: Group, cause: int) -> list[GroupShare]:
        """Count what falls to allowances and budgets, each as it stands by now; which they were."""
        shares = []
        names = list(group.totals)
        for known in self._included.values():
            for own, each, meter in known:
                if own is group:
                    entitlements.consume_all(self._account, each)
                    shares.append(GroupShare(each.scope.id, names.index(meter)))
        for level in self._levels(group):
            budgets.consume(self._account, [level], self._at, cause)
            unit = level.budget.unit
            shares.append(GroupShare(level.scope.id, COST_COLUMN if unit == CREDITS_UNIT else names.index(unit)))
        return shares

    def _remember(self, group: Group, cause: int, shares: list[GroupShare]) -> None:
        charges = []
        for name, bill in self._bills.items():
            for own, each in bill.groups:
                if own is group and bill.total and any(each):
                    payer = bill.payer
                    paid = (payer.id, payer.category, payer.price_nanos) if payer else ("", "", 0)
                    charges.append(GroupCharge(name, bill.pool, *paid, each))
        members = group.members
        counted = CountedEvents(
            cause,
            members[0].event.type,
            members[0].event.source,
            group.shape.dimensions,
            group.late,
            self._at,
            [one.event.id for one in members],
            [one.offset for one in members],
            [one.weighed.at for one in members],
            list(group.totals),
            list(group.columns.values()),
            charges,
            shares,
        )
        digests = [one.digest for one in members]
        self._account.counted.append((counted, digests))
        self._draft.remember_counted(digests, counted)


def count_together(draft: Draft, gathered: Gathering) -> bool:
    """Puts all of it in force, and says so; changes nothing where the order of the events makes a difference."""
    counting = _Counting(draft, gathered)
    if not counting.possible():
        return False
    counting.do()
    return True
