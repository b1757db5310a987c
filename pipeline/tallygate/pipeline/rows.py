"""A local table in memory, for simulation and what-if runs: the same bytes as on disk."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from tallygate.pipeline.replay import Write


class MemoryRows:
    """Sorted bytes in a dict; implements `Rows`."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def get(self, key: bytes, /) -> bytes | None:
        return self._values.get(key)

    def get_many(self, keys: list[bytes], /) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def scan(self, begin: bytes, end: bytes, most: int = 0, /) -> list[tuple[bytes, bytes]]:
        keys = self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]
        return [(key, self._values[key]) for key in (keys[:most] if most else keys)]

    def apply(self, writes: Iterable[Write]) -> None:
        for key, value in writes:
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._values:
                    insort(self._keys, key)
                self._values[key] = value

    def drop(self, begin: bytes, end: bytes) -> None:
        """Remove all pairs with begin <= key < end."""
        first, last = bisect_left(self._keys, begin), bisect_left(self._keys, end)
        for key in self._keys[first:last]:
            del self._values[key]
        del self._keys[first:last]

    def items(self) -> list[tuple[bytes, bytes]]:
        return [(key, self._values[key]) for key in self._keys]
