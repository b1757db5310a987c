"""Recurring instants: `anchor + n × interval` by the calendar, in UTC.

Months and years are counted from the anchor and clamped to the month's last day: 31 January, 28 February, 31 March.
Source: SEMANTICS, burn-down 3; the intervals are ISO 8601 durations of one unit.
"""

import re
from calendar import monthrange
from datetime import MAXYEAR, MINYEAR
from typing import Final

from tallygate.schemas.instants import DAY_MS, HOUR_MS, LATEST, MINUTE_MS, from_datetime, to_datetime
from tallygate.schemas.journal import Recurrence

_LATEST: Final = from_datetime(LATEST)
_INTERVAL: Final = re.compile(r"P(?:([1-9][0-9]{0,3})([YMWD])|T([1-9][0-9]{0,5})([HM]))")
_SPAN_MS: Final = {"W": 7 * DAY_MS, "D": DAY_MS}
_CLOCK_MS: Final = {"H": HOUR_MS, "M": MINUTE_MS}


def parse_interval(text: str) -> tuple[int, int]:
    """(months, ms) of an interval, one of them 0; `ValueError` where it is none."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no interval: write one of P1D, P2W, P1M, P1Y, PT1H, PT15M with any number")
    count, unit, clock_count, clock_unit = found.groups()
    if clock_unit:
        return 0, int(clock_count) * _CLOCK_MS[clock_unit]
    if unit in _SPAN_MS:
        return 0, int(count) * _SPAN_MS[unit]
    return int(count) * (12 if unit == "Y" else 1), 0


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
