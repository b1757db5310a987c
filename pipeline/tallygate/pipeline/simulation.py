"""A partition in memory, moved through time: the worker's own `decide` without a broker.

Stream time is moved to every instant at which something is due, one by one, so that periods, holds and grants end
exactly then; a worker notices the same within one tick.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.account import Account, AccountDraft
from tallygate.pipeline.decide import decide
from tallygate.pipeline.replay import due_instant, due_range, forgotten_range, table_writes
from tallygate.pipeline.rows import MemoryRows
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.tally import Tally
from tallygate.pipeline.transition import Input, RequestInput, Route, Source, Tick, Transition, UsageInput
from tallygate.schemas import topics
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import Answer, Statement, decode_answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import DAY_MS, format_instant
from tallygate.schemas.journal import PoolRow, encode_record, row_key
from tallygate.schemas.ledger import OVERAGE, WRITE_OFF, Posting, consumed
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Balance, Request

_ROUTE: Final = Route(topics.reply_topic("simulate"), None, b"")
_CONSUMED: Final = consumed("")


class Step(msgspec.Struct, frozen=True):
    """One input at an instant. `place` says where it was written."""

    at: int
    input: Request | UsageEvent
    place: str = ""


class Simulation:
    """`tally` sums up, and `postings` (customer, cause's id, leg) collects, all since the last `count_from_here`."""

    def __init__(self, catalog: Catalog, keep_postings: bool = False) -> None:
        self.catalog = catalog
        self.tally = Tally()
        self.postings: list[tuple[str, str, Posting]] = []
        self.customers: list[str] = []
        self._keep_postings = keep_postings
        self._rules = Rules()
        self._rows = MemoryRows()
        self._state = PartitionState.load(self._rows, 0)
        self._offset = -1

    def advance(self, at: int) -> None:
        """Everything that time brings up to and including the instant."""
        self._let_happen(at)
        if at > self._state.row.stream_at:
            self._apply(Tick(at))

    def _let_happen(self, at: int) -> None:
        while found := self._rows.scan(*due_range(at)):
            due = found[0][0]
            self._apply(Tick(due_instant(due)))
            assert self._rows.get(due) is None, "what was due is done"
        if at // DAY_MS > self._state.row.stream_at // DAY_MS > 0:
            self._rows.drop(*forgotten_range(self._state.row.stream_at))

    def take(self, step: Step) -> dict[str, Any]:
        """Decide one input at its instant; its answer as JSON."""
        self._let_happen(step.at)
        self._offset += 1
        if isinstance(step.input, UsageEvent):
            return self._use(step.input, step.at)
        source = Source(topics.REQUESTS, 0, self._offset, step.at)
        transition = self._apply(RequestInput(source, step.input, _ROUTE))
        self._meet(step.input.customer)
        [reply] = transition.replies
        answer: dict[str, Any] = msgspec.json.decode(reply.answer)
        del answer["type"]
        return answer

    def statement(self, customer: str, at: int) -> Statement:
        """What a customer has, after everything that time brings up to the instant; changes nothing else."""
        self.advance(at)
        self._offset += 1
        asked = Balance(id="statement", customer=customer)
        source = Source(topics.REQUESTS, 0, self._offset, at)
        transition = decide(self._state, [RequestInput(source, asked, _ROUTE)], self.catalog, self._rules)
        answer: Answer = decode_answer(transition.replies[0].answer)
        return answer.statement or Statement()

    def put(
        self,
        customer: str,
        balances: Mapping[str, int],
        overage: Mapping[str, int],
        created_at: Mapping[str, int],
    ) -> set[str]:
        """Set what active grants have and what pools owe, and when grants were made; the grants that there are."""
        account = Account.load(customer, self._rows)
        for id, grant in account.grants.items():
            balance = balances.get(id, grant.balance_nanos) if grant.active else grant.balance_nanos
            row = replace(grant, balance_nanos=balance, created_at=created_at.get(id, grant.created_at))
            self._rows.apply([(row_key(customer, "grant", id), encode_record(row))])
        for pool, nanos in overage.items():
            owing = replace(account.pools.get(pool) or PoolRow(pool), overage_nanos=nanos)
            self._rows.apply([(row_key(customer, "pool", pool), encode_record(owing))])
        self._state = PartitionState.load(self._rows, 0)
        return set(account.grants)

    def count_from_here(self) -> None:
        self.tally = Tally()
        self.postings = []

    def _apply(self, each: Input) -> Transition:
        transition = decide(self._state, [each], self.catalog, self._rules)
        for key, value in transition.records:
            self._rows.apply(table_writes(key, value))
        self._state.commit(transition)
        for account in transition.drafts:
            self._count(account)
        return transition

    def _count(self, account: AccountDraft) -> None:
        self._meet(account.customer)
        for decision in account.decisions:
            self.tally.decided(account.customer, decision)
        self.tally.posted(account.customer, account.postings)
        if self._keep_postings:
            for leg in account.postings:
                cause = account.causes[leg.cause].id if leg.cause >= 0 else ""
                self.postings.append((account.customer, cause, leg))

    def _meet(self, customer: str) -> None:
        if customer not in self.customers and self._rows.get(row_key(customer, "account")) is not None:
            self.customers.append(customer)

    def _use(self, event: UsageEvent, at: int) -> dict[str, Any]:
        """A usage event's answer in the form of the others."""
        transition = self._apply(UsageInput(Source(topics.USAGE, 0, self._offset, at), (event,)))
        answer: dict[str, Any] = {
            "id": event.id,
            "op": "usage",
            "customer": event.subject,
            "allowed": not transition.dead_letters,
            "reason": str(Reason.ALLOWED),
            "at": format_instant(at),
            "catalog": self.catalog.version,
        }
        for dead in transition.dead_letters:
            answer |= {"reason": str(dead.reason), "message": dead.message}
        if transition.duplicates:
            answer["duplicate"] = True
        return answer | _paid([leg for draft in transition.drafts for leg in draft.postings if leg.cause >= 0])


def _paid(legs: Iterable[Posting]) -> dict[str, Any]:
    """What an event cost, who paid, and what no grant covered; negative where an earlier event is undone."""
    features: dict[str, int] = {}
    paid: dict[str, int] = {}
    uncovered = 0
    for leg in legs:
        if leg.account.startswith(_CONSUMED):
            features[leg.feature] = features.get(leg.feature, 0) + leg.amount_nanos
            if leg.grant:
                paid[leg.grant] = paid.get(leg.grant, 0) + leg.amount_nanos
        elif leg.feature and leg.account in (OVERAGE, WRITE_OFF):
            uncovered -= leg.amount_nanos
    return {
        "credits": from_nanos(sum(features.values())),
        "features": {name: from_nanos(nanos) for name, nanos in features.items()},
        "paid": [{"grant": grant, "amount": from_nanos(nanos)} for grant, nanos in paid.items() if nanos],
        "overage": from_nanos(uncovered),
    }
