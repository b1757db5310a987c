"""Requests: each is decided once, and answered the same whenever it comes again."""

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline import administration, reservations
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import offer_of
from tallygate.pipeline.memory import Remembered, content_of, decode_remembered, encode_memory
from tallygate.pipeline.statement import statement
from tallygate.pipeline.transition import Outcome, Reply, RequestInput
from tallygate.schemas.answers import Answer, encode_answer
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import (
    OPS,
    Balance,
    Check,
    Estimate,
    Extend,
    GiveGrant,
    Release,
    Reserve,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Settle,
    Subscribe,
    VoidGrant,
)

#: Requests that only ask.
READS: Final = (Check, Estimate, Balance)


def answer(draft: Draft, each: RequestInput, account: AccountDraft) -> None:
    """Decide one request and put its answer on the way; a known id is answered as before."""
    request, op = each.request, OPS[type(each.request)]
    remembers = not isinstance(request, READS)
    id = draft.request_digest(each)
    content = content_of(request) if remembers else ""
    known = draft.seen(id) if remembers else None
    try:
        if known is not None:
            reply = _as_before(known, content, request.id)
        else:
            decided = _HANDLERS[type(request)](draft, account, each)
            reply = encode_answer(decided)
            draft.outcomes.append(Outcome(op, "allowed" if decided.allowed else "denied", decided.reason))
            if remembers:
                draft.remember(account, id, encode_memory(Remembered(content, msgspec.Raw(reply))))
    except Refused as refused:
        draft.refuse(each.route, request.id, op, request.customer, refused.reason, refused.message)
        return
    if each.route is not None:
        draft.replies.append(Reply(each.route, reply))


def _as_before(known: bytes, content: str, id: str) -> bytes:
    before = decode_remembered(known)
    if before.content != content:
        raise Refused(Reason.ID_CONFLICT, f"id {id!r} was used for another request: use a new id for a new request")
    return bytes(before.answer)


def _balance(draft: Draft, account: AccountDraft, each: RequestInput) -> Answer:
    if account.row is None:
        return draft.answer(each, Reason.CUSTOMER_UNKNOWN)
    view = statement(account, offer_of(account, draft.tariff), draft.stream_at)
    return replace(draft.answer(each), statement=view)


_HANDLERS: Final[dict[type, Callable[[Draft, AccountDraft, RequestInput], Answer]]] = {
    Reserve: reservations.reserve,
    Check: reservations.check,
    Estimate: reservations.estimate,
    Settle: reservations.settle,
    Release: reservations.release,
    Extend: reservations.extend,
    Balance: _balance,
    GiveGrant: administration.give_grant,
    VoidGrant: administration.void_grant,
    ResetPool: administration.reset_pool,
    SetBudget: administration.set_budget,
    SetRateLimit: administration.set_rate_limit,
    Subscribe: administration.subscribe,
    SetCustomer: administration.set_customer,
}
assert set(_HANDLERS) == set(OPS)
