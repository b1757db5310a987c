"""A transition in the making: what `decide` collects over a run of inputs."""

from decimal import Decimal

import msgspec

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.transition import DeadLetter, Outcome, Reply, RequestInput, Route, Source
from tallygate.schemas.amounts import AmountError, quantity_nanos
from tallygate.schemas.answers import Answer, encode_answer
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import Cause, ProducerRow, Seen
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import OPS


class Draft:
    """Accounts as this transition changes them, stream time as it has moved, and what goes out."""

    def __init__(self, state: PartitionState, tariff: Tariff, rules: Rules) -> None:
        self.state = state
        self.tariff = tariff
        self.rules = rules
        self.stream_at = state.row.stream_at
        self.applied = dict(state.row.applied)
        self.run = state.row.run
        self.accounts: dict[str, AccountDraft] = {}
        self.producers: dict[str, ProducerRow | None] = {}
        self.replies: list[Reply] = []
        self.dead_letters: list[DeadLetter] = []
        self.outcomes: list[Outcome] = []
        self.events = 0
        self.duplicates = 0
        self._seen: dict[bytes, tuple[int, bytes]] = {}

    def meet(self, source: Source) -> None:
        """Take note of an input's record: its offset, and its instant, which may move stream time on."""
        assert source.offset > self.applied.get(source.topic, -1), f"{source} is applied already"
        self.applied[source.topic] = source.offset
        self.stream_at = max(self.stream_at, source.at)

    def account(self, customer: str) -> AccountDraft:
        draft = self.accounts.get(customer)
        if draft is None:
            draft = self.accounts[customer] = AccountDraft(self.state.account(customer), self.state.rows)
        return draft

    def seen(self, digest: bytes) -> bytes | None:
        """What is remembered of an id, in this transition or before."""
        found = self._seen.get(digest)
        if found is None:
            return self.state.seen(digest, self.stream_at, self.rules.remember_ms)
        seen_at, memory = found
        return memory if self.stream_at - seen_at < self.rules.remember_ms else None

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
