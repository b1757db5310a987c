"""A partition and its oracle side by side: what is done to one is done to the other, and then everything is compared.

An action takes `pick`, which chooses from a sequence: a property-based test draws there, a long run uses a seed.
Inputs gather until they are flushed as one chunk; time stands still for none of them.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from simulation.audit import Audit
from simulation.naive_ledger import ZERO, Call, Customer, Ended, Grant, Limit, Policy
from stories import FEATURES
from tallygate.pipeline.transition import Tick
from tallygate.schemas import topics
from tallygate.schemas.amounts import to_nanos
from tallygate.schemas.answers import Answer, LimitState, Statement, decode_answer
from tallygate.schemas.events import BATCH, UsageEvent, encode_event
from tallygate.schemas.instants import DAY_MS, HOUR_MS, to_datetime
from tallygate.schemas.journal import usage_id
from tallygate.schemas.requests import (
    Check,
    GiveGrant,
    Release,
    Request,
    Reserve,
    SetBudget,
    Settle,
    encode_request,
)

Pick = Callable[[Sequence[Any]], Any]

CUSTOMERS: Final = ("acme", "zeta", "ab")
AMOUNTS: Final = tuple(map(Decimal, ("0", "0.000000001", "0.5", "1", "2", "3", "7", "10", "20", "75")))
#: Few and alike, so that what ends and begins often meets at one instant. Long ones are rare.
SPANS_MS: Final = (1, 500, 999, *(1000, 30_000, 60_000, 300_000, HOUR_MS) * 2, 6 * HOUR_MS, DAY_MS, 31 * DAY_MS)
TTLS: Final = (None, 1, 30, 60, 300, 3600, 48 * 3600)
BUDGETS: Final = {
    "all": ({}, "credits", "lifetime"),
    "day": ({}, "credits", "day"),
    "team": ({"team": "*"}, "credits", "hour"),
    "pair": ({"team": "x", "agent": "*"}, "credits", "month"),
    "units": ({"agent": "*"}, "work_units", "week"),
}
#: Ids are known for a day; what is asked again is asked again well within it.
_REMEMBERED_MS: Final = DAY_MS - HOUR_MS


def _policies() -> dict[str, Policy]:
    owe = {"none": ZERO, "unlimited": None}
    found = {}
    for name, file in FEATURES.items():
        hold, overage = file.get("hold", {}), file.get("overage", "none")
        found[name] = Policy(
            pool=file.get("pool", "credits"),
            owe=owe[overage] if overage in owe else Decimal(overage),
            settles_at_end=hold.get("at_end") == "settle",
            ttl=timedelta(seconds=hold.get("ttl_seconds", 300)),
        )
    return found


class Asked(msgspec.Struct):
    """A request that was asked, to be asked again."""

    request: Request
    at: int
    reply: bytes = b""


class World:
    """Customers, their services, and their oracles. After every flush, `compare` says whether both still agree."""

    def __init__(self, chunk: int = 1) -> None:
        self.audit = Audit(chunk)
        self.naive = {name: Customer(_policies()) for name in CUSTOMERS}
        self.log: list[str] = []
        self._asked: list[Asked] = []
        self._used: list[tuple[UsageEvent, int]] = []
        self._usage: dict[str, dict[str, list[int]]] = {name: {} for name in CUSTOMERS}
        self._counted = [0, 0, 0]
        self._number = 0

    @property
    def now(self) -> int:
        return self.audit.partition.now

    @property
    def now_time(self) -> datetime:
        return to_datetime(self.now)

    def compare(self) -> None:
        """What every customer sees, against the oracle."""
        self.audit.flush()
        assert self.audit.counted == self._counted
        for name in CUSTOMERS:
            naive, statement = self._naive(name), self.audit.statement(name)
            assert (statement is not None) == naive.known
            if statement is not None:
                _compare_grants(naive, statement)
                _compare_limits(naive, statement, self.now_time)

    def close(self) -> None:
        """What the books say, against the oracle, once the owner has noticed what time has brought."""
        self.audit.flush()
        self.audit.push(Tick(self.now))
        self.compare()
        for name in CUSTOMERS:
            assert self.audit.usage(name) == self._usage[name]
            for feature, total in self.naive[name].consumed.items():
                assert self.audit.consumed(name, feature) == to_nanos(total), (name, feature)
        self.audit.close()

    # ---- actions ----

    def wait(self, pick: Pick) -> None:
        self.audit.partition.now += pick(SPANS_MS)
        self.log.append(f"now {self.now_time}")

    def tick(self, pick: Pick) -> None:
        self.audit.partition.now += pick(SPANS_MS)
        self.log.append(f"tick {self.now_time}")
        self.audit.push(Tick(self.now))

    def restart(self, pick: Pick) -> None:
        """Memory is lost; the new owner remembers few or many accounts."""
        self.log.append("restart")
        self.audit.restart(accounts_max=pick((1, 100)))

    def grant(self, pick: Pick) -> None:
        now, id = self.now, self._new_id("g")
        starts = now + pick((*(0,) * len(SPANS_MS), *SPANS_MS))
        ends = self._end(starts, pick)
        request = GiveGrant(
            id=id,
            customer=pick(CUSTOMERS),
            amount=pick((*AMOUNTS, Decimal(100), Decimal(500))),
            pool=pick(("credits", "credits", "messages")),
            priority=pick((0, 1, 2)),
            effective_at=to_datetime(starts) if starts > now else None,
            expires_at=ends,
            category=pick(("paid", "trial")),
        )
        created, effective = to_datetime(now), to_datetime(starts)
        self._naive(request.customer).grant(
            Grant(id, request.pool, request.amount, request.priority, created, effective, request.expires_at), created
        )
        self._ask(request, lambda answer: _same("allowed", answer.reason))

    def budget(self, pick: Pick) -> None:
        name = pick(tuple(BUDGETS))
        scope, unit, period = BUDGETS[name]
        limit, hard = pick(AMOUNTS), pick((True, True, False))
        request = SetBudget(
            id=self._new_id("b"),
            customer=pick(CUSTOMERS),
            name=name,
            limit=limit,
            scope=scope,
            unit=unit,
            period=period,  # type: ignore[arg-type]
            hard=hard,
        )
        self._naive(request.customer).budget(name, scope, unit, period, limit, hard)
        self._ask(request, lambda answer: _same("allowed", answer.reason))

    def reserve(self, pick: Pick) -> None:
        """Sometimes after a check of the same, with which it must agree."""
        customer, call = self._call(pick)
        request = Reserve(
            id=self._new_id("h"),
            customer=customer,
            feature=call.feature,
            quantities=call.quantities,
            credits=call.cost - sum(call.quantities.values(), ZERO),
            dimensions=call.dimensions,
            ttl_seconds=pick(TTLS),
            explain=pick((False, True)),
        )
        naive = self._naive(customer)
        reason, full = naive.judge(call)
        checked: list[Answer] = []
        if pick((True, False)):
            check = Check(
                id=self._new_id("c"),
                customer=customer,
                feature=request.feature,
                quantities=request.quantities,
                credits=request.credits,
                dimensions=request.dimensions,
                explain=request.explain,
            )
            self._ask(check, checked.append)
        if reason == "allowed":
            ttl = request.ttl_seconds
            naive.reserve(request.id, call, None if ttl is None else timedelta(seconds=ttl))
            assert not any(
                limit.hard and limit.asked and limit.used + limit.held > limit.limit for limit in naive.limits_of(call)
            )
        spendable = naive.spendable(naive.policies[call.feature].pool)

        def expect(answer: Answer) -> None:
            _same(reason, answer.reason)
            _same(None if reason == "customer_unknown" else call.cost, answer.credits and Decimal(answer.credits))
            _same(spendable, Decimal(answer.balance or "-1"))
            if not request.explain and reason != "allowed":
                _same_limits(full, [limit for limit in answer.limits if limit.kind == "budget"])
            for one in checked:
                _same((one.allowed, one.reason, one.limits, one.credits), (answer.allowed, answer.reason, answer.limits,
                                                                           answer.credits))  # fmt: skip

        self._ask(request, expect)

    def settle(self, pick: Pick) -> None:
        customer, naive = self._somebody(pick)
        late = [id for id, ended in naive.ended.items() if self._may_settle_late(ended)]
        ids = [*naive.holds, *late]
        if not ids:
            return
        id = pick(ids)
        is_late = id not in naive.holds
        call = naive.ended[id].hold.call if is_late else naive.holds[id].call
        cost, quantities = call.cost, call.quantities
        request = Settle(id=self._new_id("s"), customer=customer, hold=id)
        how = pick(("as held", "credits", "quantities"))
        if how != "as held":
            cost = pick(AMOUNTS)
            quantities = {f"{call.feature}_units": cost} if how == "quantities" else {}
            request = replace(request, **({"quantities": quantities} if quantities else {"credits": cost}))
        settle = naive.settle_late if is_late else naive.settle
        self._count_usage(customer, call, quantities, self.now, is_late)
        settle(id, cost, quantities, self.now_time)
        spendable = naive.spendable(naive.policies[call.feature].pool)

        def expect(answer: Answer) -> None:
            _same(("allowed", is_late), (answer.reason, answer.late))
            _same(cost, Decimal(answer.credits or "-1"))
            _same(spendable, Decimal(answer.balance or "-1"))
            paid = sum((Decimal(share.amount) for share in answer.paid), ZERO)
            _same(cost, paid + Decimal(answer.overage or "-1"))

        self._ask(request, expect)

    def release(self, pick: Pick) -> None:
        customer, naive = self._somebody(pick)
        ended = [id for id, each in naive.ended.items() if self._remembered(each)]
        if not (naive.holds or ended):
            return
        id = pick(list(naive.holds) if naive.holds and pick((True, True, False)) else [*naive.holds, *ended])
        if id in naive.holds:
            naive.release(id, self.now_time)
        request = Release(id=self._new_id("r"), customer=customer, hold=id)
        self._ask(request, lambda answer: _same("allowed", answer.reason))

    def misuse(self, pick: Pick) -> None:
        """Requests that are refused and change nothing."""
        customer, naive = self._somebody(pick)
        request: Request = Release(id=self._new_id("r"), customer=customer, hold="never")
        reason = "hold_unknown"
        again = [each for each in self._asked if each.request.customer == customer and self._fresh(each.at)]
        if again and pick((True, False)):
            request, reason = _altered(pick(again).request), "id_conflict"
        elif naive.holds and pick((True, False)):
            request = Reserve(id=pick(list(naive.holds)), customer=customer, feature="work", credits=Decimal("0.125"))
            reason = "id_conflict"
        self._ask(request, lambda answer: _same(reason, answer.reason), remembered=False)

    def repeat(self, pick: Pick) -> None:
        """A request from before, whose answer has perhaps been lost."""
        again = [each for each in self._asked if self._fresh(each.at)]
        if again:
            asked = pick(again)
            self.log.append(f"again {asked.request.id}")
            self.audit.ask(asked.request, lambda reply: _same(asked.reply, reply))

    def use(self, pick: Pick) -> None:
        customer, call = self._call(pick)
        ago = pick((None, None, 0, HOUR_MS, DAY_MS, DAY_MS + 1, 40 * DAY_MS, -300_000))
        now = self.now
        at = now if ago is None else max(0, now - ago)
        event = self._event(customer, call, None if ago is None else at)
        units = next(iter(call.quantities.values()), ZERO)
        call = Call(call.feature, units, {f"{call.feature}_units": units}, call.dimensions, call.at)
        self._count_usage(customer, call, call.quantities, at, now - at > DAY_MS)
        self._naive(customer).use(call)
        self._used.append((event, now))
        self._counted[0] += 1
        self._push_events(event)

    def use_again(self, pick: Pick) -> None:
        """An event that was counted already, alone or in one record with others."""
        known = [event for event, at in self._used if self._fresh(at)]
        if known:
            event = pick(known)
            self._counted[1] += 1
            self._push_events(event)

    def use_wrongly(self, pick: Pick) -> None:
        """A batch with one bad event: none of it counts."""
        customer, call = self._call(pick)
        good = self._event(customer, call, None)
        bad = self._event(pick(CUSTOMERS), call, None)
        ahead = to_datetime(self.now + 300_001)
        bad = replace(bad, **pick(({"type": "never"}, {"data": {"units": "no"}}, {"data": {}}, {"time": ahead})))
        self._counted[2] += 1
        self._push_events(*pick(((good, bad), (bad, good))))

    # ---- what an action is made of ----

    def _end(self, starts: int, pick: Pick) -> datetime | None:
        """An end after the start: none, after a span, or somewhere around the end of an hour or a day."""
        span = pick((None, DAY_MS, 31 * DAY_MS) * 4 + SPANS_MS)
        if span is None:
            return None
        end = starts + span
        if pick((True, False)):
            period = pick((HOUR_MS, DAY_MS))
            end += period - end % period + pick((0, 0, 0, 1, 500))
        return to_datetime(end)

    def _somebody(self, pick: Pick) -> tuple[str, Customer]:
        name = pick(CUSTOMERS)
        return name, self._naive(name)

    def _naive(self, name: str) -> Customer:
        """The customer, up to now; what ends as estimated on the way is usage of that instant."""
        naive = self.naive[name]
        before = set(naive.ended)
        naive.advance(self.now_time)
        for id, ended in naive.ended.items():
            if id not in before and ended.how == "estimated":
                at = int(ended.at.timestamp() * 1000)
                self._count_usage(name, ended.hold.call, ended.hold.call.quantities, at, False)
        return naive

    def _call(self, pick: Pick) -> tuple[str, Call]:
        feature = pick(tuple(FEATURES))
        units, credits = pick(AMOUNTS), pick((ZERO, ZERO, *AMOUNTS))
        dimensions = {}
        for name, values in (("team", (None, "x", "y")), ("agent", (None, "a", "*"))):
            value = pick(values)
            if value is not None:
                dimensions[name] = value
        quantities = {f"{feature}_units": units} if pick((True, False)) else {}
        cost = credits + sum(quantities.values(), ZERO)
        return pick(CUSTOMERS), Call(feature, cost, quantities, dimensions, self.now_time)

    def _event(self, customer: str, call: Call, at: int | None) -> UsageEvent:
        return UsageEvent(
            specversion="1.0",
            id=self._new_id("e"),
            source="world",
            type=call.feature,
            subject=customer,
            time=None if at is None else to_datetime(at),
            data={"units": str(next(iter(call.quantities.values()), ZERO)), **call.dimensions},
        )

    def _count_usage(self, customer: str, call: Call, quantities: dict[str, Decimal], at: int, late: bool) -> None:
        for meter, quantity in quantities.items():
            id = usage_id(meter, at - at % HOUR_MS, call.dimensions)
            row = self._usage[customer].setdefault(id, [0, 0, 0])
            row[0] += to_nanos(quantity)
            row[1] += 1
            row[2] += late

    def _ask(self, request: Request, expect: Callable[[Answer], None], remembered: bool = True) -> None:
        self.log.append(encode_request(request).decode())
        asked = Asked(request, self.now)
        if remembered and not isinstance(request, Check):
            self._asked.append(asked)

        def on_reply(reply: bytes) -> None:
            asked.reply = reply
            expect(decode_answer(reply))

        self.audit.ask(request, on_reply)

    def _push_events(self, *events: UsageEvent) -> None:
        self.log.extend(encode_event(event).decode() for event in events)
        value = encode_event(events[0]) if len(events) == 1 else b"[%s]" % b",".join(map(encode_event, events))
        headers = {"content-type": BATCH} if len(events) > 1 else {}
        self.audit.push(self.audit.partition.record(topics.USAGE, value, headers))

    def _new_id(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{str(self._number)[::-1]}"  # so that ids do not sort by age

    def _fresh(self, at: int) -> bool:
        return self.now - at < _REMEMBERED_MS

    def _remembered(self, ended: Ended) -> bool:
        return self.now_time - ended.at < timedelta(milliseconds=_REMEMBERED_MS)

    def _may_settle_late(self, ended: Ended) -> bool:
        return ended.how in ("expired", "released") and self._remembered(ended)


def _altered(request: Request) -> Request:
    """The same id with another content."""
    match request:
        case Reserve():
            return replace(request, credits=request.credits + 1)
        case Settle():
            return replace(request, credits=(request.credits or ZERO) + Decimal("0.125"))
        case Release():
            return replace(request, hold=request.hold + "x")
        case GiveGrant():
            return replace(request, amount=request.amount + 1)
        case SetBudget():
            return replace(request, limit=request.limit + 1)
        case _:
            raise AssertionError(request)


def _same(expected: object, found: object) -> None:
    assert expected == found, f"expected {expected!r}, found {found!r}"


def _budget_of(limit: LimitState) -> tuple[str, tuple[tuple[str, str], ...]]:
    return limit.name, tuple(sorted(limit.scope.items()))


def _same_limits(expected: list[Limit], found: list[LimitState]) -> None:
    _same(
        sorted((limit.name, limit.scope, limit.limit, limit.used, limit.held) for limit in expected),
        sorted((*_budget_of(limit), Decimal(limit.limit), Decimal(limit.used), Decimal(limit.held)) for limit in found),
    )


def _compare_grants(naive: Customer, statement: Statement) -> None:
    alive = [grant for grant in naive.grants if grant.state != "ended" or naive.held(grant)]
    _same(
        {grant.id: (grant.balance, naive.held(grant), grant.state == "active") for grant in alive},
        {view.id: (Decimal(view.balance), Decimal(view.held), view.active) for view in statement.grants},
    )
    _same(
        {hold.id: (hold.call.cost, [(grant.id, part) for grant, part in hold.parts]) for hold in naive.holds.values()},
        {
            view.id: (Decimal(view.credits), [(share.grant, Decimal(share.amount)) for share in view.shares])
            for view in statement.holds
        },
    )
    for pool in statement.pools:
        _same(naive.spendable(pool.pool), Decimal(pool.balance))
        _same(naive.owed[pool.pool], Decimal(pool.overage))


def _compare_limits(naive: Customer, statement: Statement, now: datetime) -> None:
    """Every scope shown is as the oracle has it; a scope not shown has never been used."""
    shown = {_budget_of(limit): limit for limit in statement.limits}
    assert len(shown) == len(statement.limits)
    for limit in statement.limits:
        _same_limits([naive.limit(naive.budgets[limit.name], limit.scope, now)], [limit])
    for budget in naive.budgets.values():
        calls = [*naive.spent, *(hold.call for hold in naive.holds.values())]
        for call in calls:
            scope = budget.falls_under(call.dimensions)
            if scope is not None and call.number > budget.since and call.amount(budget.unit):
                assert (budget.name, tuple(sorted(scope.items()))) in shown
