"""Instants: integers of milliseconds since 1970 in UTC inside, RFC 3339 text at the edges."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

#: The instants that inputs may name; an offset can push the text of an instant beyond the year 9999 in UTC.
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def from_datetime(instant: datetime) -> int:
    """Milliseconds of a datetime that knows its offset."""
    return (instant - EPOCH) // _MS


def to_datetime(at: int) -> datetime:
    return EPOCH + at * _MS


def parse_instant(text: str) -> int:
    """Milliseconds of RFC 3339 text, read as on the wire; `ValueError` where it is none or has no offset."""
    try:
        instant = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise ValueError(f"{text!r} is no instant: write it like 2026-01-31T00:00:00Z") from None
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} has no offset: write it in UTC, like 2026-01-31T00:00:00Z")
    return from_datetime(instant)


@lru_cache(maxsize=1024)  # one stream time appears in many answers
def format_instant(at: int) -> str:
    """`2026-01-31T00:00:00Z`, with milliseconds where there are any; years 1 to 9999."""
    spec = "milliseconds" if at % SECOND_MS else "seconds"
    return to_datetime(at).isoformat(timespec=spec).replace("+00:00", "Z")
