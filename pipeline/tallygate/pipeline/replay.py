"""From accepted journal records to the local table: the one reading of the journal that recovery and work share.

Rows go in as they are. An entry is not kept, but the ids it has seen are, under `␀seen␀ day digest`; an account row
also files its customer under the instant at which stream time next changes it, `␀due␀ instant customer`, and what
belongs to an hour of usage is filed under that hour, `␀hour␀ hour key`, so that it is found when the hour is closed.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tallygate.pipeline.memory import digest
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.journal import ENTRY_KIND, OPEN_KEY, CountedEvents, Seen

Write = tuple[bytes, bytes | None]

#: What is remembered of an event that was counted with others begins so; the digest of their first, and its number.
SHARED: Final = b"@"
#: Of one that was counted alone, but in the same form: its record follows.
ALONE: Final = b"#"
#: The kinds of rows that belong to an hour; it stands in their ids behind the meter.
OF_HOURS: Final = ("usage", "value")


class _Ids(msgspec.Struct):
    """Of an entry, only what the local table keeps of it."""

    customer: str
    at: int
    seen: tuple[Seen, ...] = ()
    counted: tuple[msgspec.Raw, ...] = ()


class _Due(msgspec.Struct):
    """Of an account row, only what files its customer."""

    due_at: int = 0
    was_due_at: int = 0


_ids = msgspec.json.Decoder(_Ids).decode
_counted = msgspec.json.Decoder(CountedEvents).decode
_due = msgspec.json.Decoder(_Due).decode
_SEEN = b"\0seen\0"
_GROUP = b"\0"
_DUE = b"\0due\0"
_HOUR = b"\0hour\0"
_ENTRY = ENTRY_KIND.encode()
_OF_HOURS = frozenset(kind.encode() for kind in OF_HOURS)


def table_writes(key: bytes, value: bytes | None) -> Sequence[Write]:
    """The writes that an accepted record makes to the local table; a value of None deletes.

    Every record of a recovery passes here, so nothing is decoded that is not needed.
    """
    if key[:1] == b"\0":
        return () if key == OPEN_KEY else ((key, value),)
    customer, kind, _ = key.split(b"\0", 2)
    if kind == _ENTRY:
        return () if value is None else _seen_writes(value)
    if kind == b"account" and value is not None:
        return [(key, value), *_due_writes(customer, value)]
    if kind in _OF_HOURS:
        return ((key, value), hour_write(key, value))
    return ((key, value),)


def _seen_writes(value: bytes) -> list[Write]:
    entry = _ids(value)
    writes: list[Write] = []
    for raw in entry.counted:
        group = _counted(raw)
        ids = [digest(entry.customer, "event", group.source, id) for id in group.ids]
        writes += counted_writes(entry.at, ids, bytes(raw))
    # Last: an event that was voided or corrected in the same step is among both.
    writes += [seen_write(entry.at, seen) for seen in entry.seen]
    return writes


def seen_write(at: int, seen: Seen) -> Write:
    return seen_key(at // DAY_MS, bytes.fromhex(seen.key)), b"%d " % at + bytes(seen.value)


def _due_writes(customer: bytes, value: bytes) -> list[Write]:
    account = _due(value)
    writes: list[Write] = []
    if account.was_due_at and account.was_due_at != account.due_at:
        writes.append((_DUE + account.was_due_at.to_bytes(8, "big") + customer, None))
    if account.due_at:
        writes.append((_DUE + account.due_at.to_bytes(8, "big") + customer, b""))
    return writes


def counted_writes(at: int, digests: list[bytes], group: bytes) -> list[Write]:
    """Events that were counted together: their record once, under the first, and a reference for each; one alone has
    the record itself.
    """
    begin, since = _SEEN + (at // DAY_MS).to_bytes(4, "big"), b"%d " % at
    if len(digests) == 1:
        return [(begin + digests[0], since + ALONE + group)]
    reference = since + SHARED + digests[0]
    writes: list[Write] = [(begin + own, reference + b"%d" % number) for number, own in enumerate(digests)]
    writes.append((begin + digests[0] + _GROUP, since + group))
    return writes


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


def hour_write(key: bytes, value: bytes | None) -> Write:
    """How a row that belongs to an hour is filed under it, and not any more when it is deleted.

    An event may claim any time; hours before 1970 need no order among themselves.
    """
    hour = int(key.split(b"\0", 4)[3])
    return _HOUR + max(0, hour).to_bytes(8, "big") + key, None if value is None else b""


def hour_range(before: int) -> tuple[bytes, bytes]:
    """The range of table keys of what belongs to hours that start before this instant."""
    return _HOUR, _HOUR + max(0, before).to_bytes(8, "big")


def of_hour(key: bytes) -> bytes:
    """The key of the row that is filed so."""
    return key[len(_HOUR) + 8 :]
