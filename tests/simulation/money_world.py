"""A partition to which anything may happen that the core knows, and the laws of money, checked after every step.

There is no oracle here: what must hold is said of the books themselves. `pick` chooses from a sequence: a
property-based test draws there, a long run uses a seed. Inputs gather until they are flushed as one chunk.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from money import MORE, catalog
from partition import Partition
from tallygate.pipeline.account import Account
from tallygate.pipeline.decide import decide
from tallygate.pipeline.replay import due_range
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Input, Tick, Transition
from tallygate.schemas import topics
from tallygate.schemas.amounts import from_nanos, to_nanos
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.events import BATCH, UsageEvent, encode_event
from tallygate.schemas.instants import DAY_MS, HOUR_MS, parse_instant, to_datetime
from tallygate.schemas.journal import (
    ENTRY_KIND,
    Entry,
    GrantRow,
    HoldRow,
    ScopeRow,
    UsageRow,
    decode_record,
    split_key,
    usage_id,
)
from tallygate.schemas.ledger import Posting
from tallygate.schemas.reasons import DENIALS, Reason
from tallygate.schemas.requests import (
    Balance,
    Check,
    Estimate,
    Extend,
    GiveGrant,
    Override,
    Recurring,
    Release,
    Request,
    Reserve,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Settle,
    Subscribe,
    VoidGrant,
    encode_request,
)

Pick = Callable[[Sequence[Any]], Any]

CUSTOMERS: Final = ("acme", "zeta")
AMOUNTS: Final = tuple(map(Decimal, ("0", "0.000000001", "0.5", "1", "2", "3", "7", "10", "20", "75")))
#: Few and alike, so that what ends, begins and recurs often meets at one instant.
SPANS_MS: Final = (1, 999, 1000, 30_000, 60_000, HOUR_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS, 31 * DAY_MS, 59 * DAY_MS)
DIMENSIONS: Final = ({}, {"team": "x"}, {"team": "x", "agent": "a"}, {"team": "y", "agent": "b"}, {"agent": "a"})
SCOPES: Final = ({}, {"team": "*"}, {"agent": "*"}, {"team": "x", "agent": "*"})
PERIODS: Final = ("lifetime", "hour", "day", "week", "month")
INTERVALS: Final = ("PT1H", "P1D", "P1W", "P1M")
POOLS: Final = ("credits", "trial", "messages")
NANO: Final = Decimal("0.000000001")

_METERS: Final = {
    "peak": {"event_type": "work", "value": "units", "aggregation": "max", "dimensions": ["team"]},
    "least": {"event_type": "work", "value": "units", "aggregation": "min"},
    "last": {"event_type": "work", "value": "units", "aggregation": "latest"},
    "agents": {"event_type": "work", "value": "agent", "aggregation": "unique"},
    "calls": {"event_type": "owing", "aggregation": "count", "where": {"team": ["x", "y"]}, "dimensions": ["team"]},
}


def _features(price: int, without: str = "") -> dict[str, dict[str, Any]]:
    features = {name: more for name, more in MORE.items() if name != without}
    features["peaks"] = {"meters": ["peak"], "rates": [{"meter": "peak", "credits": price}], "overage": "unlimited"}
    features["agents"] = {"meters": ["agents"], "rates": [{"meter": "agents", "credits": price}]}
    if "owing" in features:
        rates = [{"meter": "owing_units", "credits": price}, {"meter": "calls", "credits": "0.1"}]
        features["owing"] = {**features["owing"], "meters": ["owing_units", "calls"], "rates": rates}
    return features


def _entitled(features: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(features, "credits"), **{k: v for k, v in more.items() if k in features}}


def _plans(features: dict[str, Any], limit: int) -> dict[str, Any]:
    metered = {"meter": "work_units", "limit": limit, "period": "day", "beyond": "credits"}
    uncapped = {**metered, "meter": "both_units", "beyond": "allow"}
    return {
        "free": {
            "entitlements": _entitled(features, work={**metered, "beyond": "deny"}, message=False),
            "budgets": {"plan": {"limit": 60, "period": "week", "thresholds": [50, 100]}},
            "rate_limits": {"flow": {"limit": 5, "per": "minute"}},
        },
        "pro": {
            "entitlements": _entitled(features, work=metered, both=uncapped),
            "grants": {
                "monthly": {"amount": 50, "every": "P1M", "rollover_min": 5, "rollover_max": 20, "price": "0.5"},
                "welcome": {"amount": 9, "pool": "trial", "category": "trial", "expires_after": "P1W", "priority": 0},
            },
            "budgets": {"plan": {"limit": 80, "scope": {"team": "*"}, "thresholds": [80], "observe": limit > 5}},
            "resets": {"credits": "P1M", "trial": {"every": "P1W", "preserve_overage": True}},
        },
    }  # fmt: skip


def _make(version: int, variant: int) -> Catalog:
    """Variants: no plans; plans; other prices and limits; a feature and its meter dropped; a plan dropped."""
    features = _features(price=2 if variant == 2 else 1, without="owing" if variant == 3 else "")
    meters = {name: more for name, more in _METERS.items() if name != "calls" or variant != 3}
    more: dict[str, Any] = {}
    if variant:
        plans = _plans(features, limit=9 if variant == 2 else 5)
        if variant == 4:
            del plans["pro"]
        add_on = {"entitlements": {"work": plans["free"]["entitlements"]["work"]}, "grants": {"pack": {"amount": 8}}}
        more = {"plans": plans, "add_ons": {"more": add_on}, "default_plan": "free"}
    return catalog(version, features, meters=meters, **more)


CATALOGS: Final = tuple(_make(1, variant) for variant in range(5))
FEATURES: Final = tuple(feature.name for feature in CATALOGS[0].features)


class Asked(msgspec.Struct):
    """A request that was answered, to be asked again."""

    request: Request
    at: int
    answer: bytes


class MoneyWorld:
    """Two customers, everything that can be asked of them, and what must be true whatever was asked."""

    def __init__(self, chunk: int = 1, variant: int = 0) -> None:
        self.partition = Partition(CATALOGS[variant])
        self.chunk = chunk
        self.log: list[str] = []
        self._asked: list[Asked] = []
        self._used: list[tuple[UsageEvent, int]] = []
        self._pending: list[tuple[Input, Request | None]] = []
        self._number = 0
        self._legs: dict[tuple[str, str, str], int] = defaultdict(int)
        self._kinds: dict[tuple[str, str], tuple[str, int]] = {}
        self._deltas: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])

    # ---- what can happen ----

    def wait(self, pick: Pick) -> None:
        self._note("wait", span := pick(SPANS_MS))
        self.partition.now += span

    def tick(self, pick: Pick) -> None:
        self.flush()
        self.wait(pick)
        self._push(Tick(self.partition.now))
        self.flush()  # one that is due since this very chunk would be noticed by the next tick
        assert not self.partition.rows.scan(*due_range(self.partition.now)), "somebody waits for what has passed"

    def restart(self, pick: Pick) -> None:
        self.flush()
        self._note("restart")
        self.partition.restart()

    def switch(self, pick: Pick) -> None:
        """Another catalog, under the next version."""
        self.flush()
        other = pick(CATALOGS)
        self._note("catalog", CATALOGS.index(other))
        self.partition.catalog = msgspec.structs.replace(other, version=self.partition.catalog.version + 1)

    def grant(self, pick: Pick) -> None:
        now = self.partition.now
        effective = now + pick((0, 0, 0, HOUR_MS, DAY_MS))
        expires = pick((None, None, HOUR_MS, DAY_MS, 31 * DAY_MS))
        recurrence = pick((None, None, *INTERVALS))
        self._ask(
            GiveGrant(
                id=self._id("g"),
                customer=pick(CUSTOMERS),
                amount=pick(AMOUNTS),
                pool=pick(POOLS),
                priority=pick((0, 1, 2)),
                effective_at=None if effective == now else to_datetime(effective),
                expires_at=None if expires is None else to_datetime(effective + expires),
                category=pick(("paid", "trial", "promotional")),
                price=pick((Decimal(0), Decimal("0.25"))),
                recurrence=recurrence and Recurring(recurrence, pick((None, to_datetime(now - HOUR_MS)))),
                rollover_min=pick((Decimal(0), Decimal(2))),
                rollover_max=pick((Decimal(0), Decimal(5), Decimal(100))),
            )
        )

    def void(self, pick: Pick) -> None:
        customer = pick(CUSTOMERS)
        grants = sorted(self.account(customer).grants) or ["nothing"]
        self._ask(VoidGrant(id=self._id("v"), customer=customer, grant=pick(grants)))

    def reset(self, pick: Pick) -> None:
        who, pool = pick(CUSTOMERS), pick(POOLS)
        self._ask(ResetPool(id=self._id("x"), customer=who, pool=pool, preserve_overage=pick((False, True))))

    def budget(self, pick: Pick) -> None:
        self._ask(
            SetBudget(
                id=self._id("b"),
                customer=pick(CUSTOMERS),
                name=pick(("one", "two", "plan")),
                limit=pick(AMOUNTS),
                scope=pick(SCOPES),
                unit=pick(("credits", "credits", "work_units")),
                period=pick(PERIODS),
                hard=pick((True, True, False)),
                anchor=pick((None, to_datetime(self.partition.now - 3 * DAY_MS))),
                thresholds=pick(((), (50, 100))),
                observe=pick((False, False, True)),
            )
        )

    def rate_limit(self, pick: Pick) -> None:
        self._ask(
            SetRateLimit(
                id=self._id("r"),
                customer=pick(CUSTOMERS),
                name=pick(("flow", "own")),
                limit=pick(AMOUNTS),
                per_seconds=pick((1, 60)),
                burst=pick((None, None, Decimal(3))),
                scope=pick(SCOPES),
                unit=pick(("requests", "credits")),
                observe=pick((False, True)),
            )
        )

    def subscribe(self, pick: Pick) -> None:
        override = Override(
            "metered", meter="work_units", limit=Decimal(4), period="hour", beyond=pick(("deny", "credits"))
        )
        self._ask(
            Subscribe(
                id=self._id("s"),
                customer=pick(CUSTOMERS),
                plan=pick(("free", "pro")),
                add_ons=pick(((), ("more",))),
                overrides=pick(({}, {}, {"work": override}, {"message": Override("boolean", "false")})),
                anchor=pick((None, to_datetime(self.partition.now - 10 * DAY_MS))),
            )
        )

    def customer(self, pick: Pick) -> None:
        self._ask(SetCustomer(id=self._id("c"), customer=pick(CUSTOMERS), suspended=pick((False, False, True))))

    def reserve(self, pick: Pick) -> None:
        """A check of the very same call says what the reservation is answered."""
        call = self._call(pick)
        least = pick((None, None, Decimal(0), NANO, Decimal(1)))
        unit = next(iter(call["quantities"]), "credits")
        asked = call["quantities"].get(unit, call["credits"])
        at_least = {} if least is None or least > asked else {unit: least}
        ttl = pick((None, 1, 60, 3600, 48 * 3600))
        self.flush()
        said = self._ask_now(Check(id=self._id("k"), **call))
        request = Reserve(id=self._id("h"), **call, at_least=at_least, ttl_seconds=ttl, explain=True)
        answer = self._ask_now(request)
        if not at_least or said.allowed:
            assert (answer.allowed, answer.reason, answer.credits) == (said.allowed, said.reason, said.credits)
        assert not said.allowed or answer.allowed
        if answer.allowed:
            self._admitted(answer)

    def settle(self, pick: Pick) -> None:
        hold, customer = self._hold(pick)
        credits = pick((None, None, *AMOUNTS))
        quantities = pick((None, {}, {"work_units": pick(AMOUNTS)}))
        self._ask(Settle(id=self._id("t"), customer=customer, hold=hold, credits=credits, quantities=quantities))

    def release(self, pick: Pick) -> None:
        hold, customer = self._hold(pick)
        self._ask(Release(id=self._id("l"), customer=customer, hold=hold))

    def extend(self, pick: Pick) -> None:
        """A hold never ends sooner for it."""
        hold, customer = self._hold(pick)
        self.flush()
        before = self.account(customer).holds.get(hold)
        request = Extend(id=self._id("e"), customer=customer, hold=hold, ttl_seconds=pick((1, 60, 7200)))
        if self._ask_now(request).allowed:
            assert before is not None
            assert self.account(customer).holds[hold].expires_at >= before.expires_at

    def use(self, pick: Pick) -> None:
        self._send([self._event(pick)])

    def use_many(self, pick: Pick) -> None:
        """Several events in one record, and what undoes the first of them."""
        events = [self._event(pick), self._event(pick), self._event(pick)]
        events.append(self._change(pick, events[0]))
        self._send(events)

    def use_again(self, pick: Pick) -> None:
        if self._used:
            self._send([pick(self._used)[0]])

    def change(self, pick: Pick) -> None:
        """Void or correct an event that was sent; some of them are forgotten, some are themselves corrections."""
        if self._used:
            self._send([self._change(pick, pick(self._used[-6:])[0])])

    def repeat(self, pick: Pick) -> None:
        """The same request again is answered with the same bytes."""
        self.flush()
        known = [asked for asked in self._asked if self.partition.now - asked.at < DAY_MS - HOUR_MS]
        if known:
            asked = pick(known)
            self._note("again", asked.request.id)
            assert self._answer_now(asked.request) == asked.answer

    def estimate(self, pick: Pick) -> None:
        """What is affordable is allowed, and a little more is not."""
        call = self._call(pick)
        unit = pick(("credits", *call["quantities"]))
        self.flush()
        answer = self._ask_now(Estimate(id=self._id("m"), **call, of=unit))
        if answer.affordable is None:
            return
        most = Decimal(answer.affordable[unit])
        step = NANO if unit == "credits" else Decimal(1)
        if most < 10**14:
            assert not self._check(call, unit, most + step).allowed
        if most:
            assert self._check(call, unit, most).allowed

    # ---- laws ----

    def flush(self) -> list[bytes]:
        """Decide what has gathered in one chunk; the answers in order."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        inputs = [each for each, _ in pending]
        self._decides_purely(inputs)
        transition = self.partition.apply(*inputs)
        answers = [reply.answer for reply in transition.replies]
        asked = [request for _, request in pending if request is not None]
        for request, answer in zip(asked, answers, strict=True):
            said = decode_answer(answer)
            if not isinstance(request, Check | Estimate | Balance) and said.reason in {*DENIALS, Reason.ALLOWED}:
                self._asked = [*self._asked[-20:], Asked(request, parse_instant(said.at), answer)]
        touched = set()
        for key, value in transition.records:
            if key[:1] != b"\0" and split_key(key)[1] == ENTRY_KIND:
                assert value is not None
                entry = decode_record(value)
                assert isinstance(entry, Entry)
                self._post(entry)
                touched.add(entry.customer)
        for customer in touched:
            self._agrees(customer)
        return answers

    def close(self) -> None:
        """The journal alone rebuilds the table, byte for byte."""
        self.flush()
        rows = self.partition.rows.items()
        assert self.partition.replayed().items() == rows
        additive = {"sum", "count"}
        hours: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(dict)
        for key, value in self.partition.journal:
            row = decode_record(value) if key[:1] != b"\0" and value is not None else None
            if isinstance(row, UsageRow) and self._aggregation(row.meter) in additive:
                customer, _, id = split_key(key)
                hours[customer, id][row.since] = [row.quantity_nanos, row.events, row.late_events]
        for hour, found in hours.items():
            assert [sum(column) for column in zip(*found.values(), strict=True)] == self._deltas[hour]

    def account(self, customer: str) -> Account:
        """The customer as the table has it."""
        return PartitionState.load(self.partition.rows, 0).account(customer)

    def _decides_purely(self, inputs: list[Input]) -> None:
        """The same arguments give the same transition, whatever is in memory; and nothing changes."""
        partition = self.partition
        before = partition.rows.items()
        fresh = PartitionState.load(partition.rows, 0)
        for customer in CUSTOMERS:  # where rate limits stand is in memory alone
            account = fresh.account(customer)
            account.drains = dict(partition.state.account(customer).drains)
            fresh._accounts[customer] = account
        first, second, third = (
            _told(decide(state, inputs, partition.catalog, partition.rules))
            for state in (partition.state, partition.state, fresh)
        )
        assert first == second, "decide() has changed the state"
        assert first == third, "memory and table disagree"
        assert partition.rows.items() == before, "decide() has written rows"

    def _post(self, entry: Entry) -> None:
        """Take an entry into the books."""
        sums: dict[str, int] = defaultdict(int)
        no = {decision.cause for decision in entry.decisions if not decision.allowed}
        for leg in entry.postings:
            sums[leg.asset] += leg.amount_nanos
            self._legs[entry.customer, leg.asset, leg.account] += leg.amount_nanos
            assert -1 <= leg.cause < len(entry.causes)
            assert leg.cause not in no, "a denial has moved something"
            self._is_marked(entry.customer, leg)
        assert not any(sums.values()), "an entry's postings sum to zero"
        for delta in entry.usage:
            row = self._deltas[entry.customer, usage_id(delta.meter, delta.hour, delta.dimensions)]
            for number, added in enumerate((delta.quantity_nanos, delta.events, delta.late_events)):
                row[number] += added

    def _is_marked(self, customer: str, leg: Posting) -> None:
        """A leg of a grant's credits carries its category and price, always the same."""
        kind = leg.account.partition(":")[0]
        if not leg.grant:
            assert kind in ("overage", "write_off", "consumed", "breakage")
            return
        known = self._kinds.setdefault((customer, leg.grant), (leg.category, leg.price_nanos))
        assert known == (leg.category, leg.price_nanos)
        assert leg.category
        if kind == "issued":
            assert leg.account == f"issued:{leg.category}"

    def _agrees(self, customer: str) -> None:
        """The books rebuild balances, holds and debts; receipts rebuild what is held; nothing is below zero."""
        account = self.account(customer)
        rebuilt = {
            (asset, name): n
            for (who, asset, name), n in self._legs.items()
            if who == customer and n and name.partition(":")[0] in ("grant", "hold", "overage")
        }
        expected = {(g.pool, f"grant:{g.id}"): g.balance_nanos for g in account.grants.values()}
        held: dict[str, int] = defaultdict(int)
        owing: dict[str, int] = defaultdict(int)
        for hold in account.holds.values():
            assert hold.credits_nanos == sum(share.nanos for share in hold.receipt) + hold.overage_nanos
            owing[hold.pool] += hold.overage_nanos
            for share in hold.receipt:
                key = (account.grants[share.id].pool, f"hold:{hold.id}")
                expected[key] = expected.get(key, 0) + share.nanos
            for share in (*hold.receipt, *hold.scopes):
                held[share.id] += share.nanos
        expected |= {(p.pool, "overage"): -p.overage_nanos for p in account.pools.values()}
        assert rebuilt == {name: n for name, n in expected.items() if n}
        for grant in account.grants.values():
            assert grant.balance_nanos >= 0
            assert grant.active or not grant.balance_nanos
            assert grant.held_nanos == held[grant.id]
        for scope in account.scopes.values():
            assert scope.used_nanos >= 0
            assert scope.held_nanos == held[scope.id]
        for pool in account.pools.values():
            assert min(pool.overage_nanos, pool.usage_nanos, pool.grant_usage_nanos) >= 0
            assert pool.overage_held_nanos == owing[pool.pool]
            assert pool.grant_usage_nanos <= pool.usage_nanos or pool.preserve_overage or pool.overage_nanos >= 0

    def _admitted(self, answer: Answer) -> None:
        """What was let through has room at every level that enforces, and is set aside at every level."""
        assert answer.hold is not None
        account = self.account(answer.customer)
        hold = account.holds[answer.hold.id]
        assert account.row is not None
        assert not account.row.suspended
        assert from_nanos(hold.credits_nanos) == answer.credits
        shares = {share.id: share.nanos for share in hold.scopes}
        for limit in answer.limits:
            asked = to_nanos(limit.asked)
            enforces = limit.hard and not limit.observe
            if limit.kind == "credits" or not asked:
                continue
            assert not enforces or limit.ok
            assert not enforces or to_nanos(limit.used) + to_nanos(limit.held) + asked <= to_nanos(limit.limit)
            if limit.kind == "rate":
                continue
            if limit.kind == "allowance" and enforces:
                row = account.scopes[f"allowance:{hold.feature}\0{limit.unit}"]
                assert row.used_nanos + row.held_nanos <= to_nanos(limit.limit)
            rows = [row for id in shares if (row := account.scopes[id]) and _is_of(row, limit.name, limit.scope)]
            if limit.kind == "budget":
                [row] = rows
                assert shares[row.id] == asked
                assert row.used_nanos + row.held_nanos == to_nanos(limit.used) + to_nanos(limit.held) + asked
        feature = next(each for each in self.partition.catalog.features if each.name == hold.feature)
        _paid_in_order(account, feature.pools, hold)
        if hold.overage_nanos and feature.overage_nanos_max is not None and not feature.observe:
            pool = account.pools[hold.pool]
            assert pool.overage_nanos + pool.overage_held_nanos <= feature.overage_nanos_max

    # ---- asking ----

    def _call(self, pick: Pick) -> dict[str, Any]:
        feature = pick((*FEATURES, "work", "work", "work"))  # the one with allowances
        meters = {f.name: f.meters for f in self.partition.catalog.features}.get(feature, ())
        meters = tuple(meter for meter in meters if self._aggregation(meter) == "sum")
        quantities = {meter: pick(AMOUNTS) for meter in meters if pick((True, False))}
        return {
            "customer": pick(CUSTOMERS),
            "feature": feature,
            "quantities": quantities,
            "credits": pick(AMOUNTS[:-2]) if not quantities or pick((True, False)) else Decimal(0),
            "dimensions": pick(DIMENSIONS),
        }

    def _check(self, call: dict[str, Any], unit: str, amount: Decimal) -> Answer:
        if unit == "credits":
            call = {**call, "credits": amount}
        else:
            call = {**call, "quantities": {**call["quantities"], unit: amount}}
        return self._ask_now(Check(id=self._id("k"), **call))

    def _hold(self, pick: Pick) -> tuple[str, str]:
        """A hold, open or not, and its customer."""
        known = [
            (asked.request.id, asked.request.customer) for asked in self._asked if isinstance(asked.request, Reserve)
        ]
        return pick(known[-8:] or [("nothing", "acme")])

    def _event(self, pick: Pick) -> UsageEvent:
        data: dict[str, Any] = {"units": str(pick(AMOUNTS)), **pick(DIMENSIONS)}
        ago = pick((None, None, 0, HOUR_MS, 30 * HOUR_MS))
        event = UsageEvent(
            specversion="1.0",
            id=self._id("u"),
            source="machine",
            type=pick(("work", "owing", "capped", "both", "bothcapped", "message")),
            subject=pick(CUSTOMERS),
            time=None if ago is None else to_datetime(self.partition.now - ago),
            data=data,
        )
        self._used.append((event, self.partition.now))
        return event

    def _change(self, pick: Pick, of: UsageEvent) -> UsageEvent:
        data: dict[str, Any] = {"source": of.source, "id": of.id}
        kind = pick(("tallygate.usage.voided", "tallygate.usage.corrected"))
        if kind == "tallygate.usage.corrected":
            data["data"] = {"units": str(pick(AMOUNTS)), **pick(DIMENSIONS)}
        event = UsageEvent(
            specversion="1.0", id=self._id("w"), source="machine", type=kind, subject=of.subject, data=data
        )
        self._used.append((event, self.partition.now))
        return event

    def _send(self, events: list[UsageEvent]) -> None:
        """One record with events of one customer (one partition of one: of any)."""
        self._note("use", *(f"{event.type}:{event.id} {event.subject} {event.data}" for event in events))
        headers: dict[str, bytes] = {}
        value = encode_event(events[0])
        if len(events) > 1:
            value = msgspec.json.encode([msgspec.Raw(encode_event(event)) for event in events])
            headers = {"content-type": BATCH}
        self._push(self.partition.record(topics.USAGE, value, headers))

    def _ask(self, request: Request) -> None:
        self._note(request)
        self._push(self.partition.record(topics.REQUESTS, encode_request(request)), request)

    def _ask_now(self, request: Request) -> Answer:
        self._note(request)
        return decode_answer(self._answer_now(request))

    def _answer_now(self, request: Request) -> bytes:
        self._pending.append((self.partition.record(topics.REQUESTS, encode_request(request)), request))
        [answer] = self.flush()
        return answer

    def _push(self, each: Input, request: Request | None = None) -> None:
        self._pending.append((each, request))
        if len(self._pending) >= self.chunk:
            self.flush()

    def _aggregation(self, meter: str) -> str:
        names = {each.name: each.aggregation for each in CATALOGS[0].meters}
        return names.get(meter, "")

    def _id(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    def _note(self, *what: object) -> None:
        self.log.append(" ".join(str(each) for each in what))


def _paid_in_order(account: Account, pools: tuple[str, ...], hold: HoldRow) -> None:
    """Pool after pool, each in burn order, every grant to its end before the next one pays."""

    def order(grant: GrantRow) -> tuple[object, ...]:
        ends = (1, 0) if grant.expires_at is None else (0, grant.expires_at // 1000)
        return (pools.index(grant.pool), grant.priority, ends, grant.created_at, grant.id)

    active = sorted((g for g in account.grants.values() if g.active and g.pool in pools), key=order)
    paid = [share.id for share in hold.receipt]
    assert paid == [grant.id for grant in active if grant.id in paid]
    last = (
        len(active) if hold.overage_nanos else next((n for n, g in enumerate(active) if paid and g.id == paid[-1]), 0)
    )
    assert not any(grant.balance_nanos for grant in active[:last])


def _is_of(row: ScopeRow, budget: str, scope: dict[str, str]) -> bool:
    return row.budget == budget and row.scope == scope


def _told(transition: Transition) -> tuple[object, ...]:
    """A transition by what the world sees of it."""
    t = transition
    return (t.records, t.replies, t.dead_letters, t.outcomes, t.events, t.duplicates, t.row)
