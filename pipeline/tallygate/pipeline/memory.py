"""What is remembered of ids, so that the same command twice leaves the same world."""

from hashlib import blake2b
from typing import Literal

import msgspec

from tallygate.schemas.journal import HeldShare
from tallygate.schemas.requests import Request


class Remembered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request that was answered: a digest of its content, and the answer."""

    content: str
    answer: msgspec.Raw


End = Literal["settled", "released", "expired"]


class EndedHold(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A hold that is over: how it ended, and what a late settle needs, like what it held of `allowances`.

    Of a settled one: a digest of what was settled, and the id of the request that did.
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


class Charge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a feature was charged for an event: by which grants, what is owed in which pool."""

    feature: str
    pool: str
    cost_nanos: int
    shares: tuple[HeldShare, ...]
    overage_nanos: int


class CountedEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An event that was counted, as far as undoing it needs: `at` its own time, `counted_at` stream time then.

    `allowances` is what fell to the included allowances, by scope; `voided`: it was undone.
    """

    type: str
    at: int
    counted_at: int
    quantities: dict[str, int]
    dimensions: dict[str, str]
    charges: tuple[Charge, ...] = ()
    allowances: tuple[HeldShare, ...] = ()
    voided: bool = False


_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_remembered: msgspec.json.Decoder[Remembered] = msgspec.json.Decoder(Remembered)
_counted: msgspec.json.Decoder[CountedEvent] = msgspec.json.Decoder(CountedEvent)
_ended: msgspec.json.Decoder[EndedHold] = msgspec.json.Decoder(EndedHold)


def digest(customer: str, kind: str, *parts: str) -> bytes:
    """16 bytes that stand for an id; kinds are `event`, `hold` or an operation."""
    text = "\0".join((customer, kind, *parts))
    return blake2b(text.encode(), digest_size=16).digest()


def content_of(request: Request) -> str:
    """A digest of a whole request, as 32 hex digits; the order of an object's members does not matter."""
    return blake2b(_encode_sorted(request), digest_size=16).hexdigest()


def encode_memory(memory: Remembered | EndedHold | CountedEvent) -> bytes:
    return _encode(memory)


def decode_remembered(memory: bytes) -> Remembered:
    return _remembered.decode(memory)


def decode_ended(memory: bytes) -> EndedHold:
    return _ended.decode(memory)


def decode_counted(memory: bytes) -> CountedEvent:
    return _counted.decode(memory)
