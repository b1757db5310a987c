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
from msgspec.structs import replace

from tallygate.pipeline import budgets, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.credits import active_grants
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import Allowance, access, allowances, offer_of
from tallygate.pipeline.metering import Measured
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
    ScopeRow,
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

    __slots__ = ("charges", "columns", "cost", "costs", "hour", "late", "members", "shape", "shares", "totals")

    def __init__(self, shape: Shape, hour: int, late: bool) -> None:
        self.shape = shape
        self.hour = hour
        self.late = late
        self.members: list[Member] = []
        #: By place among the kind's meters, of those that are not absent; the totals by name.
        self.columns: dict[int, list[int]] = {}
        self.costs: dict[int, list[int]] = {}
        self.totals: dict[str, int] = {}
        #: By feature, event by event; and all together.
        self.charges: list[tuple[_Bill, list[int]]] = []
        self.cost = 0
        self.shares: list[GroupShare] = []

    def add_up(self) -> None:
        meters, members = self.shape.kind.meters, self.members
        if len(members) == 1:  # as most are where customers have many dimensions
            weighed = members[0].weighed
            for place, quantity in enumerate(weighed.quantities):
                if quantity != ABSENT:
                    self.columns[place], self.costs[place] = [quantity], [weighed.costs[place]]
                    self.totals[meters[place].name] = quantity
            return
        costs = list(zip(*[one.weighed.costs for one in members], strict=True))
        for place, column in enumerate(zip(*[one.weighed.quantities for one in members], strict=True)):
            if column[0] != ABSENT:
                self.columns[place], self.costs[place] = list(column), list(costs[place])
                self.totals[meters[place].name] = sum(column)


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


class _Bill:
    """What a feature is charged, and by whom it is paid; nobody: then all of it is owed in `pool`."""

    __slots__ = ("cause", "feature", "free", "payer", "pool", "total")

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.free: set[str] = set()  # meters that allowances include
        self.total = 0
        self.payer: GrantRow | None = None
        self.pool = ""
        self.cause = -1


class _Raised:
    """What is asked of a budget in one scope."""

    __slots__ = ("asked", "place")

    def __init__(self, place: budgets.Place) -> None:
        self.place = place
        self.asked = 0


class _Counting:
    """What was gathered, counted together: `possible` only looks, `do` changes the account."""

    def __init__(self, draft: Draft, gathered: Gathering) -> None:
        self._tariff = draft.tariff
        self._draft = draft
        self._account = gathered.account
        self._first_at = gathered.first_at
        self._at = gathered.members[-1].counted_at
        self._groups = list(gathered.groups.values())
        self._offer = offer_of(gathered.account, draft.tariff)
        self._bills: dict[str, _Bill] = {}
        self._included: list[Allowance] = []
        self._rows: list[tuple[ScopeRow, int]] = []

    def possible(self) -> bool:
        """Whether the order of the events makes no difference."""
        for group in self._groups:
            group.add_up()
        return self._allowances_hold() and self._find_payers() and self._budgets_are_calm()

    # ---- looking ----

    def _allowances_hold(self) -> bool:
        """Finds what each feature is charged; False where an allowance ends in between."""
        asked: dict[str, dict[str, int]] = {}
        for group in self._groups:
            kind = group.shape.kind
            for place in group.columns:
                feature = kind.features[place]
                if feature is not None:
                    quantities = asked.get(feature.name)
                    if quantities is None:
                        quantities = asked[feature.name] = {}
                        self._bills[feature.name] = _Bill(feature)
                    name = kind.meters[place].name
                    quantities[name] = quantities.get(name, 0) + group.totals[name]
        for bill in self._bills.values():
            if not self._include(bill, asked[bill.feature.name]):
                return False
        for group in self._groups:
            self._charge(group)
        return True

    def _include(self, bill: _Bill, quantities: dict[str, int]) -> bool:
        """Finds the meters whose quantities allowances include; False where that depends on the event."""
        right = access(self._account, self._tariff, self._offer, bill.feature)
        if not right.entitlements:
            return True
        met: set[str] = set()
        for each in allowances(self._account, right, quantities, self._at):
            meter = each.entitlement.meter
            if self._first_at < each.scope.period_at or meter in met:
                return False
            met.add(meter)
            if each.entitlement.beyond == "credits" and each.asked_nanos > each.remaining_nanos:
                if each.remaining_nanos > 0:
                    return False
                continue
            bill.free.add(meter)
            self._included.append(each)
            places = [group for group in self._groups if meter in group.totals]
            for group in places:
                group.shares.append(GroupShare(each.scope.id, list(group.totals).index(meter)))
        return True

    def _charge(self, group: Group) -> None:
        kind = group.shape.kind
        by_feature: dict[str, list[int]] = {}
        for place, costs in group.costs.items():
            feature = kind.features[place]
            if feature is None or kind.meters[place].name in self._bills[feature.name].free:
                continue
            so_far = by_feature.get(feature.name)
            by_feature[feature.name] = costs if so_far is None else [a + b for a, b in zip(so_far, costs, strict=True)]
        for name, each in by_feature.items():
            if total := sum(each):
                bill = self._bills[name]
                bill.total += total
                group.cost += total
                group.charges.append((bill, each))

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

    def _budgets_are_calm(self) -> bool:
        """Finds what budgets are asked for; False where one begins a period or reaches a threshold."""
        raised: dict[str, _Raised] = {}
        of_plan, anchor = not self._account.budgets.values(), self._account.anchor
        for group in self._groups:
            names = list(group.totals)
            for place in self._places(group.shape):
                unit = place.budget.unit
                if unit == CREDITS_UNIT:
                    column, asked = COST_COLUMN, group.cost
                elif unit in group.totals:
                    column, asked = names.index(unit), group.totals[unit]
                else:
                    continue
                if asked:
                    one = raised.get(place.id)
                    if one is None:
                        one = raised[place.id] = _Raised(place)
                    one.asked += asked
                    group.shares.append(GroupShare(place.id, column))
        for one in raised.values():
            budget = one.place.budget
            row = budgets.row_at(self._account, one.place, self._at, anchor if of_plan else budget.anchor)
            if self._first_at < row.period_at:
                return False
            if budgets.reports(budget) and budgets.would_report(budget, row, one.asked):
                return False
            self._rows.append((row, one.asked))
        return True

    def _places(self, shape: Shape) -> list[budgets.Place]:
        """The budgets that events of a shape fall under; of a plan's they are the same for everybody on it."""
        account = self._account
        if account.budgets.values():
            kept = {} if account.budgets.changes or account.subscriptions.changes else account.account.places
            own = kept.get(shape)
            if own is None:
                own = kept[shape] = budgets.places(budgets.budgets_of(account, self._offer), shape.dimensions)
            return own
        found = shape.places.get(id(self._offer))
        if found is None:
            found = shape.places[id(self._offer)] = budgets.places(self._offer.budgets, shape.dimensions)
        return found

    # ---- doing ----

    def do(self) -> None:
        account = self._account
        hours: dict[str, UsageRow] = {}
        for group in self._groups:
            one = group.members[0]
            cause = account.cause(Cause(one.topic, one.partition, one.offset, one.event.id))
            self._record(group, cause, hours)
            self._remember(group, cause)
        for id, row in hours.items():
            account.usage.put(id, row)
        for bill in self._bills.values():
            if bill.total:
                feature, cap = bill.feature, bill.feature.overage_nanos_max
                holds.charge(account, feature.pools, bill.total, feature.name, cap, self._at, bill.cause)
        for each in self._included:
            if each.asked_nanos:
                used = each.scope.used_nanos + each.asked_nanos
                account.scopes.put(each.scope.id, replace(each.scope, used_nanos=used))
        for scope, asked in self._rows:
            account.scopes.put(scope.id, replace(scope, used_nanos=scope.used_nanos + asked))

    def _record(self, group: Group, cause: int, hours: dict[str, UsageRow]) -> None:
        """The hour's rows, as `metering.record` writes them."""
        account, hour, count = self._account, group.hour, len(group.members)
        late = count if group.late else 0
        for place in group.columns:
            meter, (kept, text) = group.shape.kind.meters[place], group.shape.kept[place]
            name, aggregation = meter.name, meter.aggregation
            total = group.totals[name]
            id = usage_id_of(name, hour, text)
            row = hours.get(id) or account.usage_hour(id, name, hour, kept, aggregation)
            sums = row.quantity_nanos + total, row.events + count, row.late_events + late
            hours[id] = UsageRow(name, hour, kept, *sums, row.latest_at, row.since, row.aggregation)
            account.deltas.append(UsageDelta(name, hour, kept, total, count, late, cause))

    def _remember(self, group: Group, cause: int) -> None:
        charges = []
        for bill, each in group.charges:
            if bill.cause < 0:
                bill.cause = cause
            payer = bill.payer
            paid = (payer.id, payer.category, payer.price_nanos) if payer else ("", "", 0)
            charges.append(GroupCharge(bill.feature.name, bill.pool, *paid, each))
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
            group.shares,
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
