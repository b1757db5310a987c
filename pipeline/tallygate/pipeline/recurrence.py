"""Recurring instants: `anchor + n × interval` by the calendar, in UTC.

Months and years are counted from the anchor and clamped to the month's last day: 31 January, 28 February, 31 March.
Source: SEMANTICS, burn-down 3; the intervals are ISO 8601 durations of one unit.
"""

from calendar import monthrange
from datetime import MAXYEAR, MINYEAR
from typing import Final

from tallygate.schemas.instants import LATEST, from_datetime, to_datetime
from tallygate.schemas.intervals import parse_interval
from tallygate.schemas.journal import Recurrence

_LATEST: Final = from_datetime(LATEST)


def next_after(recurrence: Recurrence, at: int) -> int | None:
    """The first instant of the recurrence that is later than `at`; None where that is beyond the calendar's end."""
    months, span = parse_interval(recurrence.interval)
    anchor = recurrence.anchor
    if span:
        instant = at + span - (at - anchor) % span
        return instant if instant <= _LATEST else None
    here, start = to_datetime(at), to_datetime(anchor)
    n = ((here.year - start.year) * 12 + here.month - start.month) // months
    later = (add_months(anchor, n * months), add_months(anchor, (n + 1) * months))  # the first may be in `at`'s month
    return next((instant for instant in later if instant is not None and instant > at), None)


def at_or_before(recurrence: Recurrence, at: int) -> int:
    """The last instant of the recurrence that is not later than `at`; the calendar's beginning counts as one."""
    months, span = parse_interval(recurrence.interval)
    anchor = recurrence.anchor
    if span:
        return at - (at - anchor) % span
    here, start = to_datetime(at), to_datetime(anchor)
    n = ((here.year - start.year) * 12 + here.month - start.month) // months
    earlier = (
        add_months(anchor, (n + 1) * months),
        add_months(anchor, n * months),
        add_months(anchor, (n - 1) * months),
    )
    return next((instant for instant in earlier if instant is not None and instant <= at), 0)


def add_months(anchor: int, months: int) -> int | None:
    """The instant so many months from the anchor, on the anchor's day or the month's last; None: no such year."""
    start = to_datetime(anchor)
    month = start.year * 12 + start.month - 1 + months
    year, month = month // 12, month % 12 + 1
    if not MINYEAR <= year <= MAXYEAR:
        return None
    day = min(start.day, monthrange(year, month)[1])
    return from_datetime(start.replace(year=year, month=month, day=day))
