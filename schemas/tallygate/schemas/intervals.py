"""Intervals: ISO 8601 durations of one unit, `P1M`, `P2W`, `PT15M`."""

import re
from typing import Final

from tallygate.schemas.instants import DAY_MS, HOUR_MS, MINUTE_MS

INTERVAL_PATTERN: Final = r"^P(?:[1-9][0-9]{0,3}[YMWD]|T[1-9][0-9]{0,5}[HM])$"

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
