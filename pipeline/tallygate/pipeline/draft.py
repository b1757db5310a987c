"""A transition in the making: what `decide` collects over a run of inputs."""

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.hours import Hours
from tallygate.pipeline.memory import digest, encode_memory, one_of, request_digest
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState, remembered_at
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.transition import DeadLetter, Input, Outcome, Reply, RequestInput, Route, Source, UsageInput
from tallygate.schemas.amounts import AmountError, quantity_nanos
from tallygate.schemas.answers import Answer, encode_answer
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import Cause, CountedEvents, ProducerRow, Seen
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import OPS

if TYPE_CHECKING:
    from tallygate.pipeline.gathering import Gathering


class Draft:
    """Accounts as this transition changes them, stream time as it has moved, and what goes out."""

    def __init__(self, state: PartitionState, tariff: Tariff, rules: Rules) -> None:
        self.state = state
        self.tariff = tariff
        self.rules = rules
        self.stream_at = state.row.stream_at
        self.hours = Hours(rules, self.stream_at)
        self.applied = dict(state.row.applied)
        self.run = state.row.run
        self.accounts: dict[str, AccountDraft] = {}
        self.producers: dict[str, ProducerRow | None] = {}
        self.replies: list[Reply] = []
        self.dead_letters: list[DeadLetter] = []
        self.outcomes: list[Outcome] = []
        self.events = 0
        self.duplicates = 0
        #: Usage that is still to be counted, by customer.
        self.gathered: dict[str, Gathering] = {}
        self._digests: dict[int, list[bytes]] = {}  # of usage and of requests, by offset
        self._asked: dict[int, bytes] = {}
        self._looked_up: dict[bytes, list[bytes]] = {}
        self._seen: dict[bytes, tuple[int, bytes | tuple[CountedEvents, int]]] = {}

    def meet(self, source: Source) -> None:
        """Take note of an input's record: its offset, and its instant, which may move stream time on."""
        assert source.offset > self.applied.get(source.topic, -1), f"{source} is applied already"
        self.applied[source.topic] = source.offset
        self.move_on(source.at)

    def move_on(self, at: int) -> None:
        """Stream time moves to this instant, or stays where it is later."""
        self.stream_at = self.hours.stream_at = max(self.stream_at, at)

    def look_up(self, inputs: Sequence[Input]) -> None:
        """Asks the local table once which of all these ids are known."""
        first_at = last_at = 0  # stream time at the first of them, and at the last
        every: list[bytes] = []
        for each in inputs:
            if isinstance(each, UsageInput):
                found = [digest(e.subject, "event", e.source, e.id) for e in each.events]
                self._digests[each.source.offset] = found
                every += found
            elif isinstance(each, RequestInput):
                own = self._asked[each.source.offset] = request_digest(each.request)
                every.append(own)
            else:
                continue
            last_at = max(last_at, self.stream_at, each.source.at)
            first_at = first_at or last_at
        if every:
            self._looked_up = self.state.remembered(every, first_at, last_at)

    def digests(self, each: UsageInput) -> list[bytes]:
        """The ids of an input's events."""
        return self._digests[each.source.offset]

    def request_digest(self, each: RequestInput) -> bytes:
        return self._asked[each.source.offset]

    def account(self, customer: str) -> AccountDraft:
        draft = self.accounts.get(customer)
        if draft is None:
            draft = self.accounts[customer] = AccountDraft(self.state.account(customer), self.state.rows, self.hours)
        return draft

    def seen(self, digest: bytes) -> bytes | None:
        """What is remembered of an id, in this transition or before."""
        found = self._seen.get(digest)
        if found is None:
            values = self._looked_up.get(digest)
            if values is None:
                values = self.state.remembered([digest], self.stream_at, self.stream_at)[digest]
            return remembered_at(values, self.stream_at, self.rules.remember_ms)
        seen_at, memory = found
        if self.stream_at - seen_at >= self.rules.remember_ms:
            return None
        return memory if isinstance(memory, bytes) else encode_memory(one_of(*memory))

    def knows(self, digest: bytes) -> bool:
        """Whether an id is remembered, whatever is remembered of it."""
        if digest in self._seen:
            return True
        values = self._looked_up.get(digest)
        return self.seen(digest) is not None if values is None or values else False

    def take_id(self, digest: bytes) -> None:
        """The id of an event that is gathered and still to be counted."""
        self._seen[digest] = self.stream_at, b""

    def remember_counted(self, digests: list[bytes], counted: CountedEvents) -> None:
        """Take note of events that were counted together; the account has their memory."""
        for number, own in enumerate(digests):
            self._seen[own] = counted.counted_at, (counted, number)

    def remember(self, account: AccountDraft, digest: bytes, memory: bytes = b"null") -> None:
        self._seen[digest] = self.stream_at, memory
        account.seen.append(Seen(digest.hex(), msgspec.Raw(memory)))

    def answer(self, each: RequestInput, reason: Reason = Reason.ALLOWED) -> Answer:
        """The answer to a request, as plain as it can be."""
        request = each.request
        return Answer(
            id=request.id,
            op=OPS[type(request)],
            customer=request.customer,
            allowed=reason is Reason.ALLOWED,
            reason=reason,
            at=format_instant(self.stream_at),
            catalog=self.tariff.version,
        )

    def cause(self, account: AccountDraft, each: RequestInput) -> int:
        """The index of this request among the causes of what follows."""
        source = each.source
        return account.cause(Cause(source.topic, source.partition, source.offset, each.request.id))

    def refuse(self, route: Route | None, id: str, op: str, customer: str, reason: Reason, message: str) -> None:
        """Answer that a request is wrong in itself. Nothing is decided, nothing remembered."""
        self.outcomes.append(Outcome(op, "refused", reason))
        if route is None:
            return
        refusal = Answer(
            id=id,
            op=op,
            customer=customer,
            allowed=False,
            reason=reason,
            at=format_instant(self.stream_at),
            catalog=self.tariff.version,
            message=message,
        )
        self.replies.append(Reply(route, encode_answer(refusal)))


def amount(field: str, value: Decimal) -> int:
    """Nanos of a request's amount; `Refused` names the field."""
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise Refused(Reason.QUANTITY_INVALID, f"{field}: {error}") from None
