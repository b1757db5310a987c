"""Sums, extremes and last values of rows by the number of their group, exact."""

from collections.abc import Callable, Sequence

import numpy as np

from tallygate.topologies.usage_columns import Array
from tallygate.topologies.usage_joined import EXACT_MAX


def dense(key: Array, size: int) -> tuple[Array, Array]:
    """The keys that occur, ascending, and for each row the place of its own among them."""
    if size > 4 * len(key) + 4096:
        return np.unique(key, return_inverse=True)
    present = np.flatnonzero(np.bincount(key, minlength=size))
    if len(present) == size:
        return present, key
    places = np.zeros(size, np.int64)
    places[present] = np.arange(len(present))
    return present, places[key]


def ranks(texts: Sequence[str | None]) -> Array:
    ranks = np.empty(len(texts), np.int64)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))  # type: ignore[arg-type]
    return ranks


def sums(values: Array, of_row: Array, groups: int) -> list[int]:
    if values.dtype != object and (not len(values) or int(values.max()) * len(values) < EXACT_MAX):
        return np.bincount(of_row, values, minlength=groups).astype(np.int64).tolist()  # type: ignore[no-any-return]
    return reduced(np.add.reduceat, values.astype(object), of_row, groups)


def reduced(reduce: Callable[[Array, Array], Array], values: Array, of_row: Array, groups: int) -> list[int]:
    """By group; 0 for a group without rows."""
    order = np.argsort(of_row, kind="stable")
    present, begins = np.unique(of_row[order], return_index=True)
    found = [0] * groups
    if len(present):
        for group, value in zip(present.tolist(), reduce(values[order], begins).tolist(), strict=True):
            found[group] = value
    return found


def latest(values: Array, at: Array, of_row: Array, groups: int) -> tuple[list[int], list[int]]:
    """The value of the latest instant by group, the last one of several; and that instant."""
    order = np.lexsort((at, of_row))
    present, begins = np.unique(of_row[order], return_index=True)
    lasts = order[np.append(begins[1:], len(order)) - 1] if len(present) else order
    found, ats = [0] * groups, [0] * groups
    for group, value, when in zip(present.tolist(), values[lasts].tolist(), at[lasts].tolist(), strict=True):
        found[group], ats[group] = value, when
    return found, ats
