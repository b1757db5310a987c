"""Usage batches as bytes: events or columns in, one Arrow IPC stream out. `schemas/usage-batch.md` is the format."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from tallygate.schemas.usage_batch import BYTES_MAX, EVENTS_MAX, SUBJECT, TIME, TYPE

UTC_MS: Final = pa.timestamp("ms", tz="UTC")
_DECIMALS: Final = pa.decimal128(38, 9)

#: What an event's property may be.
Value = str | int | Decimal | bool
#: One event: customer, type, instant in ms (None: when it arrives), data.
Event = tuple[str, str, int | None, Mapping[str, Value]]


class BatchTooLarge(ValueError):
    """The events do not fit into one record; one line that says by how much."""


def encode_columns(columns: Mapping[str, Any]) -> bytes:
    """The value of a batch record: `columns` by name are Arrow arrays of one length, at least `subject` and `type`.

    Raises BatchTooLarge, and what pyarrow raises for columns that do not fit each other.
    """
    batch = pa.record_batch(dict(columns))
    if batch.num_rows > EVENTS_MAX:
        raise BatchTooLarge(f"{batch.num_rows} events: at most {EVENTS_MAX} in a batch")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    if len(value) > BYTES_MAX:
        raise BatchTooLarge(f"{len(value)} bytes: at most {BYTES_MAX} in a batch")
    return value


def encode_batch(events: Sequence[Event]) -> bytes:
    """The value of a batch record that holds these events; raises BatchTooLarge."""
    subjects, types, times, data = zip(*events, strict=True)
    columns = {SUBJECT: _strings(subjects), TYPE: _strings(types)}
    if any(at is not None for at in times):
        columns[TIME] = pa.array(times, pa.int64()).view(UTC_MS)
    first = data[0]
    names: Sequence[str] = list(first)
    if any(each.keys() != first.keys() for each in data):
        names = list(dict.fromkeys(name for each in data for name in each))
    for name in names:
        columns[name] = _column([each.get(name) for each in data])
    return encode_columns(columns)


def _strings(texts: Sequence[str | None]) -> pa.Array:
    return pa.array(texts, pa.string()).dictionary_encode()


def _column(values: list[Any]) -> pa.Array:
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int}:
        try:
            return pa.array(values, pa.int64())
        except (OverflowError, pa.ArrowInvalid):
            kinds = {Decimal}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds <= {int, Decimal}:
        return pa.array([value if value is None else Decimal(value) for value in values], _DECIMALS)
    return _strings([value if value is None else _text(value) for value in values])


def _text(value: Value) -> str:
    """As the other form of usage events would have it as a dimension."""
    return value if isinstance(value, str) else str(value).lower()
