"""A plain scenario run: one customer with one pool, moved through time by the worker's own functions."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from tallygate.pipeline import grants, holds
from tallygate.pipeline.account import FOREVER, Account, AccountDraft
from tallygate.pipeline.credits import Shares, active_grants, spendable
from tallygate.pipeline.hours import Hours
from tallygate.pipeline.rows import MemoryRows
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.scenario import Scenario, ScenarioGrant, ScenarioOp
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.waterfall import Ask, gate
from tallygate.schemas.amounts import NANOS, from_nanos
from tallygate.schemas.catalog import EMPTY, Feature
from tallygate.schemas.instants import HOUR_MS, SECOND_MS, format_instant
from tallygate.schemas.journal import GrantRow, HoldRow, PoolRow
from tallygate.schemas.reasons import Reason

POOL: Final = "credits"
_RESERVES: Final = Feature("scenario", (POOL,))
_TARIFF: Final = Tariff(EMPTY)
_QUERY, _INPUT = 0, 1


def run_scenario(scenario: Scenario) -> dict[str, Any]:
    """One object a query, and one an op."""
    run = _Run(scenario)
    steps: list[tuple[int, int, int, ScenarioOp | None]] = [
        (at, _QUERY, n, None) for n, at in enumerate(scenario.queries)
    ]
    inputs = (*scenario.usage, *scenario.ops)
    steps += [(op.at, _INPUT, n, op) for n, op in enumerate(inputs)]
    queries: dict[int, dict[str, Any]] = {}
    ops: dict[int, dict[str, Any]] = {}
    for at, _, number, op in sorted(steps, key=lambda step: step[:3]):
        run.advance(at)
        if op is None:
            queries[number] = run.query(at)
        elif number < len(scenario.usage):
            run.use(op)
        else:
            ops[number] = run.operate(op)
    run.advance(max((at for at, *_ in steps), default=scenario.start.at))
    return {"queries": [queries[n] for n in sorted(queries)], "ops": [ops[n] for n in sorted(ops)]}


class _Ended(NamedTuple):
    """A hold that is over: what it held, and what was settled with which answer, if anything was."""

    held_nanos: int
    settled_nanos: int | None = None
    answer: Mapping[str, Any] = {}


class _Run:
    """One customer with one pool, moved through time."""

    def __init__(self, scenario: Scenario) -> None:
        start = scenario.start
        self._preserve = scenario.preserve_overage
        self._aggregation = scenario.aggregation
        self._greatest = (0, 0)
        self._resets = list(scenario.resets)
        self._ended: dict[str, _Ended] = {}
        self._draft = AccountDraft(Account("scenario"), MemoryRows(), Hours(Rules(), 0))
        self._draft.know(start.at)
        self._draft.pools.put(
            POOL, PoolRow(POOL, start.overage_nanos, 0, start.usage_nanos, start.grant_usage_nanos, start.at)
        )
        for given in scenario.grants:
            self._take(given, scenario)
        grants.repay(self._draft, POOL, start.at, -1)

    def _take(self, given: ScenarioGrant, scenario: Scenario) -> None:
        """A grant as it is at the start: its balance is what it has after whatever happens at that instant."""
        start = scenario.start.at
        grant = GrantRow(
            id=given.id,
            pool=POOL,
            amount_nanos=given.amount_nanos,
            balance_nanos=0,
            held_nanos=0,
            priority=given.priority,
            created_at=given.created_at,
            effective_at=given.effective_at,
            expires_at=given.expires_at,
            voided_at=given.voided_at,
            recurrence=given.recurrence,
            rollover_min_nanos=given.rollover_min_nanos,
            rollover_max_nanos=given.rollover_max_nanos,
        )
        if grants.ends_at(grant) <= max(start, given.effective_at):
            return
        if given.effective_at > start:
            self._draft.grants.put(given.id, grant)
            return
        grants.begin(self._draft, grant, start, -1)
        balances = scenario.start.balances
        if balances is not None:
            begun = self._draft.grants.get(given.id)
            assert begun is not None
            self._draft.grants.put(given.id, replace(begun, balance_nanos=balances.get(given.id, 0)))

    def advance(self, until: int) -> None:
        """Everything that time brings up to and including `until`."""
        draft = self._draft
        while True:
            reset = self._resets[0] if self._resets else FOREVER
            at = min(holds.next_instant(draft), grants.next_instant(draft), reset)
            if at > until:
                return
            for hold in sorted((h for h in draft.holds.values() if h.expires_at <= at), key=lambda h: h.id):
                holds.give_back(draft, hold, at, -1)
                self._ended[hold.id] = _Ended(hold.credits_nanos)
            if at == reset:
                self._resets.pop(0)
            grants.advance(draft, at, (POOL,) if at == reset else (), self._preserve)

    def query(self, at: int) -> dict[str, Any]:
        active = active_grants(self._draft, POOL)
        pool = self._draft.pool(POOL)
        return {
            "at": format_instant(at),
            "balances": {grant.id: from_nanos(grant.balance_nanos) for grant in active},
            "balance": from_nanos(spendable(self._draft, POOL)),
            "held": from_nanos(sum(grant.held_nanos for grant in self._draft.grants.values())),
            "overage": from_nanos(pool.overage_nanos),
            "usage_in_period": from_nanos(pool.usage_nanos),
            "total_grant_usage": from_nanos(pool.grant_usage_nanos),
        }

    def use(self, op: ScenarioOp) -> dict[str, Any]:
        assert op.amount_nanos is not None
        return self._charge(op, self._billed(op.at, op.amount_nanos))

    def _billed(self, at: int, nanos: int) -> int:
        """What a usage adds to the bill, as in `metering`: the amount, one, or by how much it raises its hour's."""
        match self._aggregation:
            case "sum":
                return nanos
            case "count":
                return NANOS
            case "max":
                hour = at - at % HOUR_MS
                before = self._greatest[1] if self._greatest[0] == hour else 0
                self._greatest = hour, max(before, nanos)
                return max(0, nanos - before)
            case other:
                raise AssertionError(f"no such aggregation: {other}")

    def _charge(self, op: ScenarioOp, nanos: int) -> dict[str, Any]:
        shares, uncovered = holds.charge(self._draft, (POOL,), nanos, "scenario", None, op.at, -1)
        return {**_answer(op, Reason.ALLOWED, shares), "overage": from_nanos(uncovered)}

    def operate(self, op: ScenarioOp) -> dict[str, Any]:
        match op.op:
            case "usage":
                return self.use(op)
            case "reserve":
                return self._reserve(op)
            case "settle":
                return self._settle(op)
            case "release":
                return self._release(op)
            case "void_grant":
                return self._void(op)
            case _:
                raise AssertionError(op.op)

    def _reserve(self, op: ScenarioOp) -> dict[str, Any]:
        assert op.amount_nanos is not None
        if op.id in self._ended or self._draft.holds.get(op.id) is not None:
            return _answer(op, Reason.ID_CONFLICT)
        verdict = gate(self._draft, _TARIFF, Ask(_RESERVES, {}, op.amount_nanos, {}), op.at)
        if not verdict.allowed:
            return _answer(op, verdict.reason)
        hold = HoldRow(
            id=op.id,
            feature="scenario",
            pool=POOL,
            created_at=op.at,
            expires_at=op.at + op.ttl_seconds * SECOND_MS,
            receipt=verdict.receipt,
            scopes=(),
            quantities={},
            credits_nanos=op.amount_nanos,
            dimensions={},
        )
        holds.place(self._draft, hold, op.at, -1)
        return _answer(op, Reason.ALLOWED, verdict.receipt)

    def _settle(self, op: ScenarioOp) -> dict[str, Any]:
        hold = self._draft.holds.get(op.id)
        if hold is None:
            return self._settle_ended(op)
        cost = hold.credits_nanos if op.amount_nanos is None else op.amount_nanos
        holds.lift(self._draft, hold)
        shares, uncovered = holds.consume(self._draft, hold, cost, (POOL,), None, op.at, -1)
        answer = {**_answer(op, Reason.ALLOWED, shares), "overage": from_nanos(uncovered)}
        self._ended[op.id] = _Ended(hold.credits_nanos, cost, answer)
        return answer

    def _settle_ended(self, op: ScenarioOp) -> dict[str, Any]:
        ended = self._ended.get(op.id)
        if ended is None:
            return _answer(op, Reason.HOLD_UNKNOWN)
        cost = ended.held_nanos if op.amount_nanos is None else op.amount_nanos
        if ended.settled_nanos is not None:
            same = cost == ended.settled_nanos
            return {**ended.answer, "at": format_instant(op.at)} if same else _answer(op, Reason.ID_CONFLICT)
        answer = {**self._charge(op, cost), "late": True}
        self._ended[op.id] = _Ended(ended.held_nanos, cost, answer)
        return answer

    def _release(self, op: ScenarioOp) -> dict[str, Any]:
        hold = self._draft.holds.get(op.id)
        if hold is not None:
            holds.give_back(self._draft, hold, op.at, -1)
            self._ended[op.id] = _Ended(hold.credits_nanos)
            return _answer(op, Reason.ALLOWED, hold.receipt)
        return _answer(op, Reason.ALLOWED if op.id in self._ended else Reason.HOLD_UNKNOWN)

    def _void(self, op: ScenarioOp) -> dict[str, Any]:
        grant = self._draft.grants.get(op.id)
        if grant is None or grant.voided_at is not None or grants.ends_at(grant) <= op.at:
            return _answer(op, Reason.GRANT_ENDED)
        grants.void(self._draft, grant, op.at, -1)
        return _answer(op, Reason.ALLOWED)


def _answer(op: ScenarioOp, reason: Reason, shares: Shares = ()) -> dict[str, Any]:
    return {
        "at": format_instant(op.at),
        "op": op.op,
        "id": op.id,
        "allowed": reason is Reason.ALLOWED,
        "reason": str(reason),
        "amounts": {share.id: from_nanos(share.nanos) for share in shares},
    }
