"""The columns of several batches as one, with one numbering of their texts and one scale of their numbers."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from tallygate.schemas.amounts import AmountError, quantity_nanos
from tallygate.schemas.reasons import Reason, Refused
from tallygate.topologies.usage_columns import Array, Columns, Numbers, Strings

#: Below this a power of ten and a nano sum are int64 and exact in a double.
EXACT_MAX: Final = 1 << 53


class WrongRecords(Exception):
    """Records of the run, by their place in it, that have a row which is wrong."""

    def __init__(self, found: dict[int, Refused]) -> None:
        super().__init__(found)
        self.found = found


class JoinedColumns:
    """The batches of a run, one after the other."""

    def __init__(self, batches: Sequence[Columns], customers: list[str]) -> None:
        self.batches = batches
        self.begins = np.cumsum([0, *(batch.events for batch in batches)])
        self.at = _joined([batch.at for batch in batches])
        self.customers = customers
        self.customer = _joined([batch.customer for batch in batches])
        self.type_names, self._type = _renumbered([batch.type for batch in batches])

    def types(self) -> list[tuple[str, Array | None]]:
        """Each type with its rows; None are all."""
        if len(self.type_names) == 1:
            return [(str(self.type_names[0]), None)]
        return sorted((str(name), np.flatnonzero(self._type == number)) for number, name in enumerate(self.type_names))

    def places(self, rows: Array | None) -> list[int]:
        """The batches that the rows are in."""
        if rows is None:
            return list(range(len(self.batches)))
        return np.unique(np.searchsorted(self.begins, rows, side="right") - 1).tolist()  # type: ignore[no-any-return]

    def strings(self, name: str) -> tuple[list[str | None], Array]:
        """A property as texts of the whole run."""
        return _renumbered([_as_strings(batch, name) for batch in self.batches])

    def is_boolean(self, name: str) -> bool:
        columns = (batch.properties.get(name) for batch in self.batches)
        return any(isinstance(column, Strings) and column.boolean for column in columns)

    def numbers(self, name: str) -> Numbers:
        """A property as numbers of the whole run; raises `WrongRecords` for a text that is none."""
        columns = []
        for place, batch in enumerate(self.batches):
            column = batch.properties.get(name)
            if column is None:
                column = Numbers(np.zeros(batch.events, np.int64), 0, np.zeros(batch.events, bool))
            elif isinstance(column, Strings):
                column = _parsed(name, column, place)
            elif column.places > 9:
                column = _within_nine(name, column, place)
            columns.append(column)
        if any(column.places != columns[0].places for column in columns):
            columns = [Numbers(c.values.astype(object) * 10 ** (9 - c.places), 9, c.valid) for c in columns]
        valid = None
        if any(column.valid is not None for column in columns):
            valid = _joined([np.ones(len(c.values), bool) if c.valid is None else c.valid for c in columns])
        return Numbers(_joined([column.values for column in columns]), columns[0].places, valid)


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _as_strings(batch: Columns, name: str) -> Strings:
    column = batch.properties.get(name)
    if column is None:
        return Strings(np.zeros(batch.events, np.int64), [None])
    return column if isinstance(column, Strings) else column.strings()


def _renumbered(columns: list[Strings]) -> tuple[list[str | None], Array]:
    """One numbering for all."""
    numbers: dict[str | None, int] = {}
    parts = []
    for column in columns:
        own = [numbers.setdefault(text, len(numbers)) for text in column.texts]
        parts.append(np.array(own, np.int64)[column.codes])
    return list(numbers), _joined(parts)


def _parsed(name: str, column: Strings, place: int) -> Numbers:
    nanos: list[int] = []
    for text in column.texts:
        try:
            if column.boolean and text is not None:
                raise AmountError(f"{text} is no number")
            nanos.append(0 if text is None else quantity_nanos(text))
        except AmountError as error:
            raise WrongRecords({place: Refused(Reason.QUANTITY_INVALID, f"data.{name}: {error}")}) from None
    valid = np.array([text is not None for text in column.texts])[column.codes]
    values = np.array(nanos, np.int64 if max(nanos) < EXACT_MAX else object)[column.codes]
    return Numbers(values, 9, None if valid.all() else valid)


def _within_nine(name: str, column: Numbers, place: int) -> Numbers:
    scale = 10 ** (column.places - 9)
    values = column.values if scale < EXACT_MAX else column.values.astype(object)
    if (values % scale).any():
        why = f"data.{name}: a quantity has more than 9 decimal places"
        raise WrongRecords({place: Refused(Reason.QUANTITY_INVALID, why)})
    return Numbers(values // scale, 9, column.valid)
