"""From accepted journal records to the local table: the one reading of the journal that recovery and work share.

Rows go in as they are. An entry is not kept, but the ids it has seen are, under `␀seen␀ day digest`; an account row
also files its customer under the instant at which stream time next changes it, `␀due␀ instant customer`.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from tallygate.pipeline.memory import digest
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.journal import ENTRY_KIND, OPEN_KEY, AccountRow, CountedEvents, Seen, decode_record, split_key

Write = tuple[bytes, bytes | None]

#: What is remembered of an event that was counted with others begins so; the digest of their first, and its number.
SHARED: Final = b"@"


class _Ids(msgspec.Struct):
    """Of an entry, only what the local table keeps of it."""

    customer: str
    at: int
    seen: tuple[Seen, ...] = ()
    counted: tuple[msgspec.Raw, ...] = ()


_ids = msgspec.json.Decoder(_Ids)
_counted = msgspec.json.Decoder(CountedEvents).decode
_SEEN = b"\0seen\0"
_GROUP = b"\0"
_DUE = b"\0due\0"


def table_writes(key: bytes, value: bytes | None) -> Iterator[Write]:
    """The writes that an accepted record makes to the local table; a value of None deletes."""
    if key[:1] == b"\0":
        if key != OPEN_KEY:
            yield key, value
        return
    _, kind, _ = split_key(key)
    if kind == ENTRY_KIND:
        if value is not None:
            entry = _ids.decode(value)
            day = entry.at // DAY_MS
            # First: an event that was voided or corrected in the same step is among both.
            for raw in entry.counted:
                group = _counted(raw)
                ids = [digest(entry.customer, "event", group.source, id) for id in group.ids]
                yield from counted_writes(entry.at, ids, bytes(raw))
            for seen in entry.seen:
                yield seen_key(day, bytes.fromhex(seen.key)), b"%d " % entry.at + bytes(seen.value)
        return
    yield key, value
    if kind == "account" and value is not None:
        account = decode_record(value)
        assert isinstance(account, AccountRow)
        if account.was_due_at and account.was_due_at != account.due_at:
            yield due_key(account.was_due_at, account.customer), None
        if account.due_at:
            yield due_key(account.due_at, account.customer), b""


def counted_writes(at: int, digests: list[bytes], group: bytes) -> Iterator[Write]:
    """Events that were counted together: their record once, under the first, and a reference for each."""
    day = at // DAY_MS
    yield group_key(day, digests[0]), b"%d " % at + group
    reference = b"%d " % at + SHARED + digests[0]
    prefix = _SEEN + day.to_bytes(4, "big")
    for number, own in enumerate(digests):
        yield prefix + own, reference + b"%d" % number


def group_key(day: int, first: bytes) -> bytes:
    return seen_key(day, first) + _GROUP


def seen_key(day: int, digest: bytes) -> bytes:
    return _SEEN + day.to_bytes(4, "big") + digest


def forgotten_range(stream_at: int) -> tuple[bytes, bytes]:
    """The range of table keys whose ids are past remembering at this stream time."""
    return _SEEN, _SEEN + max(0, stream_at // DAY_MS - 1).to_bytes(4, "big")


def due_key(at: int, customer: str) -> bytes:
    return _DUE + at.to_bytes(8, "big") + customer.encode()


def due_range(until: int) -> tuple[bytes, bytes]:
    """The range of table keys of customers whom stream time changes at or before `until`."""
    return _DUE, _DUE + (until + 1).to_bytes(8, "big")


def due_instant(key: bytes) -> int:
    return int.from_bytes(key[len(_DUE) : len(_DUE) + 8], "big")


def due_customer(key: bytes) -> str:
    return key[len(_DUE) + 8 :].decode()
