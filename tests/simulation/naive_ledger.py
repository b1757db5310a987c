"""The rules of money a second time, as naively as they can be written: the oracle of the simulation.

Written from the meaning of the words, not from the core: amounts are Decimals, instants datetimes, nothing is kept that
can be summed up again, nothing is cached, nothing is fast. It shares no code with `tallygate.pipeline`.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

ZERO = Decimal(0)
Dimensions = dict[str, str]


@dataclass(frozen=True)
class Policy:
    """What a feature allows: `owe` is how much may be owed, None without limit."""

    pool: str
    owe: Decimal | None
    settles_at_end: bool
    ttl: timedelta


@dataclass
class Grant:
    id: str
    pool: str
    amount: Decimal
    priority: int
    created: datetime
    effective: datetime
    expires: datetime | None
    balance: Decimal = ZERO
    state: str = "future"  # then active, then ended

    @property
    def burn_order(self) -> tuple[int, bool, datetime, datetime, str]:
        ends = (self.expires or datetime.max.replace(tzinfo=UTC)).replace(microsecond=0)
        return (self.priority, self.expires is None, ends, self.created, self.id)


@dataclass
class Call:
    """Work that was reserved or has happened: where it counts, and how much."""

    feature: str
    cost: Decimal
    quantities: dict[str, Decimal]
    dimensions: Dimensions
    at: datetime
    number: int = 0

    def amount(self, unit: str) -> Decimal | None:
        return self.cost if unit == "credits" else self.quantities.get(unit)


@dataclass
class Hold:
    id: str
    call: Call
    expires: datetime
    parts: list[tuple[Grant, Decimal]]
    owed: Decimal


@dataclass
class Budget:
    name: str
    scope: Dimensions
    unit: str
    period: str
    limit: Decimal
    hard: bool
    since: int

    def falls_under(self, dimensions: Dimensions) -> Dimensions | None:
        """The concrete scope of a call with these dimensions, if the budget selects it."""
        if all(dimensions.get(name) and wanted in ("*", dimensions[name]) for name, wanted in self.scope.items()):
            return {name: dimensions[name] for name in self.scope}
        return None


@dataclass(frozen=True)
class Limit:
    """A budget's scope at an instant."""

    name: str
    scope: tuple[tuple[str, str], ...]
    limit: Decimal
    used: Decimal
    held: Decimal
    hard: bool
    asked: Decimal = ZERO

    @property
    def room(self) -> bool:
        return not self.asked or self.used + self.held + self.asked <= self.limit


@dataclass
class Ended:
    hold: Hold
    at: datetime
    how: str


@dataclass
class Customer:
    policies: dict[str, Policy]
    known: bool = False
    grants: list[Grant] = field(default_factory=list)
    holds: dict[str, Hold] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    spent: list[Call] = field(default_factory=list)
    owed: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    consumed: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    breakage: Decimal = ZERO
    issued: Decimal = ZERO
    numbers: int = 0

    # ---- time ----

    def advance(self, now: datetime) -> None:
        """Everything that happens up to and at `now`, one instant after the other."""
        while True:
            instants = [hold.expires for hold in self.holds.values()]
            instants += [g.expires for g in self.grants if g.state == "active" and g.expires is not None]
            instants += [g.effective for g in self.grants if g.state == "future"]
            if not instants or min(instants) > now:
                return
            self._happen(min(instants))

    def _happen(self, at: datetime) -> None:
        for grant in self.grants:
            if grant.state == "active" and grant.expires is not None and grant.expires <= at:
                self.breakage += grant.balance
                grant.balance, grant.state = ZERO, "ended"
        for id in sorted(id for id, hold in self.holds.items() if hold.expires <= at):
            hold = self.holds[id]
            if self.policies[hold.call.feature].settles_at_end:
                self._settle(hold, hold.call.cost, hold.call.quantities, at)
                self.ended[id] = Ended(hold, at, "estimated")
            else:
                self._give_back(hold)
                self.ended[id] = Ended(hold, at, "expired")
        beginning = [g for g in self.grants if g.state == "future" and g.effective <= at]
        for grant in beginning:
            self._begin(grant)
        for pool in {grant.pool for grant in beginning}:
            self._repay(pool)

    # ---- what customers and services do ----

    def grant(self, grant: Grant, now: datetime) -> None:
        self.known = True
        self.grants.append(grant)
        if grant.effective <= now:
            self._begin(grant)
            self._repay(grant.pool)

    def budget(self, name: str, scope: Dimensions, unit: str, period: str, limit: Decimal, hard: bool) -> None:
        self.known = True
        if name in self.budgets:
            self.budgets[name].limit, self.budgets[name].hard = limit, hard
        else:
            self.numbers += 1
            self.budgets[name] = Budget(name, scope, unit, period, limit, hard, self.numbers)

    def judge(self, call: Call) -> tuple[str, list[Limit]]:
        """The reason of the answer, and the budgets that have no room for the call."""
        if not self.known:
            return "customer_unknown", []
        full = [limit for limit in self.limits_of(call) if limit.hard and not limit.room]
        if full:
            return "budget_exhausted", full
        policy = self.policies[call.feature]
        missing = max(ZERO, call.cost - self.spendable(policy.pool))
        if missing and policy.owe is not None and self.debt(policy.pool) + missing > policy.owe:
            return "credits_exhausted", full
        return "allowed", full

    def reserve(self, id: str, call: Call, ttl: timedelta | None) -> None:
        """A call that the gate has let through."""
        policy = self.policies[call.feature]
        self.numbers += 1
        call.number = self.numbers
        parts, owed = self._pay(policy.pool, call.cost)
        self.holds[id] = Hold(id, call, call.at + (ttl or policy.ttl), parts, owed)

    def settle(self, id: str, cost: Decimal, quantities: dict[str, Decimal], now: datetime) -> None:
        hold = self.holds[id]
        self._settle(hold, cost, quantities, now)
        self.ended[id] = Ended(hold, now, "settled")

    def settle_late(self, id: str, cost: Decimal, quantities: dict[str, Decimal], now: datetime) -> None:
        call = self.ended[id].hold.call
        self.ended[id] = Ended(self.ended[id].hold, now, "settled")
        self.use(Call(call.feature, cost, quantities, call.dimensions, now))

    def release(self, id: str, now: datetime) -> None:
        hold = self.holds[id]
        self._give_back(hold)
        self.ended[id] = Ended(hold, now, "released")

    def use(self, call: Call) -> None:
        self.known = True
        self._charge(call.feature, call.cost)
        self._count(call)

    # ---- how it stands ----

    def active(self, pool: str) -> list[Grant]:
        return sorted((g for g in self.grants if g.pool == pool and g.state == "active"), key=lambda g: g.burn_order)

    def spendable(self, pool: str) -> Decimal:
        return sum((grant.balance for grant in self.active(pool)), ZERO)

    def held(self, grant: Grant) -> Decimal:
        return sum((part for hold in self.holds.values() for of, part in hold.parts if of is grant), ZERO)

    def debt(self, pool: str) -> Decimal:
        """What is owed, and what open holds may still come to owe."""
        holds = [hold for hold in self.holds.values() if self.policies[hold.call.feature].pool == pool]
        return self.owed[pool] + sum((hold.owed for hold in holds), ZERO)

    def limits_of(self, call: Call) -> list[Limit]:
        found = []
        for budget in self.budgets.values():
            scope, asked = budget.falls_under(call.dimensions), call.amount(budget.unit)
            if scope is not None and asked is not None:
                found.append(self.limit(budget, scope, call.at, asked))
        return found

    def limit(self, budget: Budget, scope: Dimensions, now: datetime, asked: Decimal = ZERO) -> Limit:
        used, held = ZERO, ZERO
        for call in self.spent:
            if same_period(budget.period, call.at, now):
                used += self._counts(budget, scope, call)
        for hold in self.holds.values():
            held += self._counts(budget, scope, hold.call)
        name, sorted_scope = budget.name, tuple(sorted(scope.items()))
        return Limit(name, sorted_scope, budget.limit, used, held, budget.hard, asked)

    def _counts(self, budget: Budget, scope: Dimensions, call: Call) -> Decimal:
        """What a call that came after the budget counts in this scope of it."""
        if call.number > budget.since and budget.falls_under(call.dimensions) == scope:
            return call.amount(budget.unit) or ZERO
        return ZERO

    # ---- moving credits ----

    def _begin(self, grant: Grant) -> None:
        grant.state, grant.balance = "active", grant.amount
        self.issued += grant.amount

    def _pay(self, pool: str, amount: Decimal) -> tuple[list[tuple[Grant, Decimal]], Decimal]:
        parts = []
        for grant in self.active(pool):
            part = min(amount, grant.balance)
            grant.balance -= part
            amount -= part
            if part:
                parts.append((grant, part))
        return parts, amount

    def _repay(self, pool: str) -> None:
        _, self.owed[pool] = self._pay(pool, self.owed[pool])

    def _give_back(self, hold: Hold) -> None:
        del self.holds[hold.id]
        for grant, part in hold.parts:
            self._return(grant, part)

    def _return(self, grant: Grant, part: Decimal) -> None:
        if grant.state == "active":
            grant.balance += part
        else:
            self.breakage += part

    def _settle(self, hold: Hold, cost: Decimal, quantities: dict[str, Decimal], at: datetime) -> None:
        del self.holds[hold.id]
        left = cost
        for grant, part in hold.parts:
            taken = min(left, part)
            left -= taken
            self._return(grant, part - taken)
        self.consumed[hold.call.feature] += cost - left
        self._charge(hold.call.feature, left)
        self._count(Call(hold.call.feature, cost, quantities, hold.call.dimensions, at))

    def _charge(self, feature: str, cost: Decimal) -> None:
        policy = self.policies[feature]
        self.consumed[feature] += cost
        _, missing = self._pay(policy.pool, cost)
        if policy.owe:
            missing = min(missing, max(ZERO, policy.owe - self.debt(policy.pool)))
        self.owed[policy.pool] += missing

    def _count(self, call: Call) -> None:
        self.numbers += 1
        call.number = self.numbers
        self.spent.append(call)


def same_period(period: str, one: datetime, other: datetime) -> bool:
    """Do both instants lie in one period of the UTC calendar?"""
    match period:
        case "lifetime":
            return True
        case "week":
            return one.isocalendar()[:2] == other.isocalendar()[:2]
        case "hour":
            return (one.date(), one.hour) == (other.date(), other.hour)
        case "day":
            return one.date() == other.date()
        case "month":
            return (one.year, one.month) == (other.year, other.month)
        case _:
            raise AssertionError(period)
