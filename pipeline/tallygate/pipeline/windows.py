"""Periods of budgets and allowances: in UTC, or counted from an anchor; weeks without one start on Monday."""

from typing import Final

from tallygate.pipeline.recurrence import at_or_before, next_after
from tallygate.schemas.instants import DAY_MS, HOUR_MS, from_datetime, to_datetime
from tallygate.schemas.journal import Recurrence

INTERVALS: Final = {"hour": "PT1H", "day": "P1D", "week": "P1W", "month": "P1M"}
_MONDAY: Final = 4 * DAY_MS  # 1970-01-05


#: The periods that were asked for last, by name and anchor: the calendar costs 5 µs, and answers the same for a month.
_spans: dict[tuple[str, int | None], tuple[int, int]] = {}
_SPANS_MAX: Final = 50_000


def period_start(period: str, at: int, anchor: int | None = None) -> int:
    """The start of the period that holds the instant; 0 for a lifetime."""
    if period == "lifetime":
        return 0
    span = _spans.get((period, anchor))
    if span is None or not span[0] <= at < span[1]:
        start = _start(period, at, anchor)
        end = period_end(period, start, anchor)
        if len(_spans) >= _SPANS_MAX:
            _spans.clear()
        span = _spans[period, anchor] = start, 1 << 62 if end is None else end
    return span[0]


def _start(period: str, at: int, anchor: int | None) -> int:
    if anchor is not None:
        return at_or_before(Recurrence(INTERVALS[period], anchor), at)
    match period:
        case "hour":
            return at - at % HOUR_MS
        case "day":
            return at - at % DAY_MS
        case "week":
            return at - (at - _MONDAY) % (7 * DAY_MS)
        case "month":
            return from_datetime(to_datetime(at).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
        case _:
            raise AssertionError(f"no period: {period}")


def period_end(period: str, start: int, anchor: int | None = None) -> int | None:
    """When the period that starts at `start` ends; None for a lifetime."""
    if period == "lifetime":
        return None
    return next_after(Recurrence(INTERVALS[period], start if anchor is None else anchor), start)
