"""What is remembered of ids, so that the same command twice leaves the same world."""

from hashlib import blake2b
from typing import Literal

import msgspec

from tallygate.schemas.journal import COST_COLUMN, CountedEvents, HeldShare
from tallygate.schemas.requests import OPS, Request


class Remembered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request that was answered: a digest of its content, and the answer."""

    content: str
    answer: msgspec.Raw


End = Literal["settled", "released", "expired"]


class EndedHold(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A hold that is over: how it ended, and what a late settle needs, like what it held of `allowances`.

    Of a settled one: a digest of what was settled, and the id of the request that did. `estimated`: its time
    was over, and it was settled as it was held.
    """

    how: End
    feature: str
    pool: str
    quantities: dict[str, int]
    credits_nanos: int
    dimensions: dict[str, str]
    content: str = ""
    settled_by: str = ""
    allowances: tuple[HeldShare, ...] = ()
    estimated: bool = False


class Payment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a grant has paid, and what is to be known of the grant when it is gone."""

    grant: str
    pool: str
    nanos: int
    category: str
    price_nanos: int


class Charge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a feature was charged for an event: by which grants, what came to be owed in `pool` or was written off."""

    feature: str
    pool: str
    cost_nanos: int
    payments: tuple[Payment, ...]
    owed_nanos: int = 0
    written_off_nanos: int = 0


class CountedEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An event that was counted, as far as undoing it needs: `at` its own time, `counted_at` stream time then.

    `scopes` is what was counted in budgets and allowances; `voided`: it was undone.
    """

    type: str
    at: int
    counted_at: int
    quantities: dict[str, int]
    dimensions: dict[str, str]
    charges: tuple[Charge, ...] = ()
    scopes: tuple[HeldShare, ...] = ()
    late: bool = False
    voided: bool = False


def one_of(counted: CountedEvents, number: int) -> CountedEvent:
    """What is remembered of one event that was counted together with others."""
    quantities = {meter: column[number] for meter, column in zip(counted.meters, counted.quantities, strict=True)}
    charges, total = [], 0
    for each in counted.charges:
        cost = each.costs[number]
        total += cost
        if cost and each.grant:
            paid = Payment(each.grant, each.pool, cost, each.category, each.price_nanos)
            charges.append(Charge(each.feature, each.pool, cost, (paid,)))
        elif cost:
            charges.append(Charge(each.feature, each.pool, cost, (), cost))
    parts = [
        (share.id, total if share.column == COST_COLUMN else counted.quantities[share.column][number])
        for share in counted.shares
    ]
    return CountedEvent(
        counted.type,
        counted.times[number],
        counted.counted_at,
        quantities,
        counted.dimensions,
        tuple(charges),
        tuple(HeldShare(id, nanos) for id, nanos in parts if nanos),
        counted.late,
    )


_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_remembered: msgspec.json.Decoder[Remembered] = msgspec.json.Decoder(Remembered)
_counted: msgspec.json.Decoder[CountedEvent] = msgspec.json.Decoder(CountedEvent)
_counted_events: msgspec.json.Decoder[CountedEvents] = msgspec.json.Decoder(CountedEvents)
_ended: msgspec.json.Decoder[EndedHold] = msgspec.json.Decoder(EndedHold)


def digest(customer: str, kind: str, *parts: str) -> bytes:
    """16 bytes that stand for an id; kinds are `event`, `hold` or an operation."""
    text = "\0".join((customer, kind, *parts))
    return blake2b(text.encode(), digest_size=16).digest()


def request_digest(request: Request) -> bytes:
    return digest(request.customer, OPS[type(request)], request.id)


def content_of(request: Request) -> str:
    """A digest of a whole request, as 32 hex digits; the order of an object's members does not matter."""
    return blake2b(_encode_sorted(request), digest_size=16).hexdigest()


def encode_memory(memory: Remembered | EndedHold | CountedEvent | CountedEvents) -> bytes:
    return _encode(memory)


def decode_remembered(memory: bytes) -> Remembered:
    return _remembered.decode(memory)


def decode_ended(memory: bytes) -> EndedHold:
    return _ended.decode(memory)


def decode_counted_events(value: bytes) -> CountedEvents:
    return _counted_events.decode(value)


def decode_counted(memory: bytes) -> CountedEvent:
    return _counted.decode(memory)
