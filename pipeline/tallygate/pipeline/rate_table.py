"""The rates of one meter, found by a few look-ups however many models have prices of their own."""

from bisect import bisect_right
from collections.abc import Iterable

from tallygate.schemas.catalog import Rate

_Values = tuple[str | None, ...]


class RateTable:
    """Of the rates whose conditions a call meets, the one with most conditions holds; then the latest; then the first.

    Rates are grouped by which dimensions they name, and within a group by the values that they ask for.
    """

    def __init__(self, rates: Iterable[Rate]) -> None:
        shapes: dict[tuple[str, ...], dict[_Values, list[tuple[int, Rate]]]] = {}
        for rank, rate in enumerate(sorted(rates, key=lambda rate: (-len(rate.when), -rate.since))):
            names = tuple(sorted(rate.when))
            values: _Values = tuple(rate.when[name] for name in names)
            shapes.setdefault(names, {}).setdefault(values, []).append((rank, rate))
        self._shapes = tuple(shapes.items())
        self._begin = sorted(
            {rate.since for by_values in shapes.values() for own in by_values.values() for _, rate in own}
        )

    def find(self, dimensions: dict[str, str], at: int) -> Rate | None:
        """The rate that holds for these dimensions at an instant."""
        best: tuple[int, Rate] | None = None
        for names, by_values in self._shapes:
            for each in by_values.get(tuple(map(dimensions.get, names)), ()):
                if best is not None and each[0] > best[0]:
                    break
                if each[1].since <= at:
                    best = each
                    break
        return None if best is None else best[1]

    def unchanged(self, at: int) -> tuple[int, int]:
        """From when until when at least the rate is the same as at an instant: no other begins meanwhile."""
        place = bisect_right(self._begin, at)
        begins = self._begin[place - 1] if place else 0
        return begins, self._begin[place] if place < len(self._begin) else 1 << 62
