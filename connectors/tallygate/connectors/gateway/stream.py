"""Decisions and balances as they come: server-sent events, of the customers that a key may see and no others."""

import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.responses import Response, StreamingResponse

from tallygate.connectors.client_errors import TallygateError
from tallygate.connectors.gateway.audit import now_ms
from tallygate.connectors.gateway.feed import FeedAway, Listener
from tallygate.connectors.gateway.limits import check_customers
from tallygate.connectors.gateway.operations import Call, Operation, Parameter, Shown
from tallygate.connectors.gateway.problems import Problem, unavailable
from tallygate.schemas.answers import Statement
from tallygate.schemas.names import NAME_MAX
from tallygate.schemas.requests import Balance

STREAMS_MAX: Final = 1_000
CUSTOMERS_MAX: Final = 100
EVENT_STREAM: Final = "text/event-stream"
#: Balances follow decisions, at most this often for each customer; and a sign of life comes at least this often.
BALANCE_SECONDS: Final = 1.0
QUIET_SECONDS: Final = 15.0
#: How long a stream may go on after its key has ended, where nothing else happens.
KEY_SECONDS: Final = 1.0

#: What browsers send when they connect again. An id says where a decision lies in the journal, not on the topic.
LAST_EVENT_ID: Final = "last-event-id"
_ID_SHOWN: Final = 100

_encode = msgspec.json.Encoder().encode


class StreamedBalance(msgspec.Struct, frozen=True):
    customer: str
    at: str
    statement: Statement


class Missed(msgspec.Struct, frozen=True):
    """Decisions after `last_event_id` may have been missed: they are not sent again, but stand in the ledger."""

    last_event_id: str


async def _stream(call: Call) -> Response:
    asked = call.request.query_params.getlist("customer")
    if len(asked) > CUSTOMERS_MAX:
        raise Problem(400, "malformed", f"at most {CUSTOMERS_MAX} customers a stream")
    for customer in asked:
        call.allowed(customer)
    customers = frozenset(asked or call.key.customers)
    if call.gateway.streams >= STREAMS_MAX:
        raise unavailable("too-many-streams", f"{STREAMS_MAX} streams are open on this gateway")
    try:
        listener = await call.gateway.feed.listen(customers or None)
    except FeedAway as away:
        raise unavailable("not-connected", f"decisions cannot be followed now: {away}") from None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(call, listener), headers=headers, media_type=EVENT_STREAM)


async def _events(call: Call, listener: Listener) -> AsyncIterator[bytes]:
    """Ends when the caller leaves, the gateway closes, the key ends, or the caller does not keep up."""
    gateway = call.gateway
    gateway.streams += 1
    gateway.figures.streams.inc()
    try:
        if (last := call.request.headers.get(LAST_EVENT_ID)) is not None:
            yield _event("missed", _encode(Missed(last[:_ID_SHOWN])))
        due: dict[str, float] = {}
        for customer in sorted(listener.customers or ()):
            yield await _balance(call, customer)
        quiet_until = time.monotonic() + QUIET_SECONDS
        while True:
            now = time.monotonic()
            found = await listener.next(max(0.0, min([quiet_until, now + KEY_SECONDS, *due.values()]) - now))
            if listener.over or not gateway.keys.holds(call.key.id, now_ms()):
                return
            if found is not None:
                record_id, record = found
                yield _event("decision", record.value or b"", record_id)
                quiet_until = time.monotonic() + QUIET_SECONDS
                customer = (record.key or b"").decode(errors="replace")
                if listener.customers is not None:
                    due.setdefault(customer, time.monotonic() + BALANCE_SECONDS)
            for customer in [name for name, at in due.items() if at <= time.monotonic()]:
                del due[customer]
                yield await _balance(call, customer)
            if time.monotonic() >= quiet_until:
                yield b": quiet\n\n"
                quiet_until = time.monotonic() + QUIET_SECONDS
    finally:
        gateway.feed.leave(listener)
        gateway.streams -= 1
        gateway.figures.streams.dec()


async def _balance(call: Call, customer: str) -> bytes:
    check_customers(call.key, (customer,))
    try:
        answer = await call.gateway.client.ask(Balance(id=call.gateway.new_id(), customer=customer))
    except TallygateError:
        return b": no balance now\n\n"
    if answer.statement is None:
        return b": the customer is not known yet\n\n"
    return _event("balance", _encode(StreamedBalance(customer, answer.at, answer.statement)))


def _event(kind: str, data: bytes, id: str = "") -> bytes:
    head = f"id: {id}\nevent: {kind}\n" if id else f"event: {kind}\n"
    return b"%bdata: %b\n\n" % (head.encode(), data.replace(b"\n", b" "))


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/stream",
        name="stream",
        summary="Follow decisions and balances",
        text=(
            "Server-sent events: `decision` as published on `tallygate.decisions.v1`, at least once, with an id that "
            "stays; `balance` of each customer named, at the beginning and within a second after its decisions. What "
            "happens while nobody listens is not sent again: who connects again with `Last-Event-ID` hears that first, "
            "as the event `missed`, and then the balances as they are; the ledger has the rest. "
            "A stream ends with its key."
        ),
        group="Customers",
        scope="read",
        handler=_stream,
        parameters=(
            Parameter(
                "customer",
                "May be repeated. Without it: the key's customers, or all (then without balances).",
                {"type": "string", "minLength": 1, "maxLength": NAME_MAX},
            ),
        ),
        answers={200: Shown("Until somebody leaves.", None, "event: balance\ndata: {}\n\n", media=EVENT_STREAM)},
        problems=(400,),
    ),
)
