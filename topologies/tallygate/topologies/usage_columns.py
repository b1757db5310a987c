"""From the bytes of a batch record to columns: `schemas/usage-batch.md`, read strictly.

A batch is Arrow, and its columns are numpy arrays from here on. What depends on the catalog is not looked at yet.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallygate.pipeline.transition import Source
from tallygate.schemas.instants import LATEST, from_datetime
from tallygate.schemas.names import NAME_MAX, has_control
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.usage_batch import BYTES_MAX, COLUMNS_MAX, EVENTS_MAX, SUBJECT, TIME, TYPE, BatchId

Array = np.ndarray[Any, np.dtype[Any]]

#: What a batch may take in memory: Arrow's buffers may come compressed.
_MEMORY_BYTES_MAX: Final = 32 * BYTES_MAX
_UNITS_PER_MS: Final = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
_LATEST_MS: Final = from_datetime(LATEST)
_INT64: Final = np.iinfo(np.int64)
_SCHEMAS_MAX: Final = 64
_PLACES_MAX: Final = 38


class Strings:
    """A column of texts: `texts[codes[row]]`, None where the event does not have it. Every text occurs."""

    __slots__ = ("boolean", "codes", "texts")

    def __init__(self, codes: Array, texts: list[str | None], boolean: bool = False) -> None:
        self.codes = codes
        self.texts = texts
        self.boolean = boolean


class Numbers:
    """A column of numbers: `values[row]` × 10^-places, int64 or, where that is too small, Python's integers.

    `valid` is None where every event has one.
    """

    __slots__ = ("places", "valid", "values")

    def __init__(self, values: Array, places: int, valid: Array | None) -> None:
        self.values = values
        self.places = places
        self.valid = valid

    def strings(self) -> Strings:
        """The same as texts, as JSON would have them."""
        kinds, codes = np.unique(self.values, return_inverse=True)
        texts: list[str | None] = [str(Decimal(int(v)).scaleb(-self.places) if self.places else int(v)) for v in kinds]
        if self.valid is not None:
            codes = np.where(self.valid, codes, len(texts))
            texts.append(None)
        return Strings(codes, texts)


class Columns:
    """One batch. `at` is in ms; where the batch does not say when events happened, they did when it arrived.

    `customer` is each row's customer by number, once somebody has numbered the subjects.
    """

    __slots__ = ("at", "customer", "events", "id", "properties", "source", "subject", "type")

    def __init__(self, source: Source, id: BatchId, events: int, at: Array) -> None:
        self.source = source
        self.id = id
        self.events = events
        self.at = self.customer = at
        self.subject = self.type = Strings(np.zeros(0, np.int64), [])
        self.properties: dict[str, Strings | Numbers] = {}


_Read = Callable[[pa.Array], Strings | Numbers]


class ColumnReader:
    """Reads batches; keeps how it reads each schema that it has met."""

    def __init__(self) -> None:
        self._schemas: list[tuple[pa.Schema, list[tuple[str, _Read]]]] = []

    def read(self, source: Source, id: BatchId, value: bytes | None) -> Columns:
        """The columns of a record's value; `Refused` says what is wrong with it."""
        try:
            return self._read(source, id, _batch_of(value))
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            why = str(error).partition("\n")[0][:200]
            raise Refused(Reason.MALFORMED, f"no Arrow IPC stream of one table: {why}") from None

    def _read(self, source: Source, id: BatchId, batch: pa.RecordBatch) -> Columns:
        columns = Columns(source, id, batch.num_rows, np.full(batch.num_rows, source.at, np.int64))
        for number, (name, read) in enumerate(self._reads(batch.schema)):
            column = read(batch.column(number))
            if name == TIME:
                assert isinstance(column, Numbers)
                columns.at = _instants(column, source.at)
            elif isinstance(column, Strings) and name == SUBJECT:
                columns.subject = column
            elif isinstance(column, Strings) and name == TYPE:
                columns.type = column
                for text in column.texts:
                    checked_name(name, text)
            else:
                columns.properties[name] = column
        return columns

    def _reads(self, schema: pa.Schema) -> list[tuple[str, _Read]]:
        for known, reads in self._schemas:
            if known.equals(schema):
                return reads
        reads = _reads_of(schema)
        self._schemas = [(schema, reads), *self._schemas[: _SCHEMAS_MAX - 1]]
        return reads


def _batch_of(value: bytes | None) -> pa.RecordBatch:
    if value is None:
        raise Refused(Reason.MALFORMED, "the record has no value")
    if len(value) > BYTES_MAX:
        raise Refused(Reason.TOO_LARGE, f"the batch has {len(value)} bytes: at most {BYTES_MAX}")
    stream = pa.ipc.open_stream(value)
    batches = []
    for each in stream:
        each.validate(full=True)  # before anything else touches it: what is broken can end the process
        batches.append(each)
    if len(batches) != 1:
        batches = pa.Table.from_batches(batches, stream.schema).unify_dictionaries().combine_chunks().to_batches()
    if not batches or not batches[0].num_rows:
        raise Refused(Reason.MALFORMED, "the batch has no events")
    batch = batches[0]
    if batch.num_rows > EVENTS_MAX:
        raise Refused(Reason.TOO_LARGE, f"the batch has {batch.num_rows} events: at most {EVENTS_MAX}")
    if batch.nbytes > _MEMORY_BYTES_MAX:
        raise Refused(Reason.TOO_LARGE, f"the batch takes {batch.nbytes} bytes in memory: {_MEMORY_BYTES_MAX}")
    return batch


def _reads_of(schema: pa.Schema) -> list[tuple[str, _Read]]:
    names = schema.names
    if len(names) > COLUMNS_MAX:
        raise Refused(Reason.TOO_LARGE, f"the batch has {len(names)} columns: at most {COLUMNS_MAX}")
    if len(set(names)) != len(names):
        raise Refused(Reason.MALFORMED, "two columns have one name")
    for name in (SUBJECT, TYPE):
        if name not in names:
            reason = Reason.CUSTOMER_MISSING if name == SUBJECT else Reason.MALFORMED
            raise Refused(reason, f"the batch has no column {name!r}")
    return [(field.name, _read_of(field.name, field.type)) for field in schema]


def _read_of(name: str, type: pa.DataType) -> _Read:
    types = pa.types
    if name == TIME:
        if types.is_timestamp(type) and type.tz in ("UTC", "Etc/UTC", "+00:00", "Z"):
            per, divisor = _UNITS_PER_MS[type.unit]
            return lambda column: _times(column, per, divisor)
        raise Refused(Reason.MALFORMED, f"column {name!r} is {type}: a timestamp with the time zone UTC is needed")
    if types.is_dictionary(type) and _is_string(type.value_type):
        return _dictionary
    if _is_string(type):
        return lambda column: _dictionary(column.dictionary_encode())
    if name in (SUBJECT, TYPE):
        raise Refused(Reason.MALFORMED, f"column {name!r} is {type}: a string or a dictionary of strings is needed")
    if types.is_boolean(type):
        return _booleans
    if types.is_integer(type):
        return _integers
    if types.is_decimal128(type) and 0 <= type.scale <= _PLACES_MAX:
        return lambda column: _decimals(column, type.scale)
    why = ": binary fractions do not hold decimal amounts exactly" if types.is_floating(type) else ""
    raise Refused(
        Reason.MALFORMED, f"column {name[:80]!r} is {type}{why}; strings, integers, decimal128 and bool are taken"
    )


def _is_string(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _dictionary(column: Any) -> Strings:
    indices, texts = column.indices, column.dictionary.to_pylist()
    if indices.null_count:
        codes = indices.cast(pa.int64()).fill_null(len(texts)).to_numpy()
        texts.append(None)
    else:
        codes = indices.to_numpy()
    return _occurring(codes, texts)


def _occurring(codes: Array, texts: list[str | None]) -> Strings:
    """Without the texts that no row has: what is not there cannot be wrong."""
    occurs = np.bincount(codes, minlength=len(texts)) > 0
    if not occurs.all():
        codes = (np.cumsum(occurs) - 1)[codes]
        texts = [text for text, does in zip(texts, occurs.tolist(), strict=True) if does]
    return Strings(codes, texts)


def checked_name(column: str, text: str | None) -> str:
    """A subject or type; `Refused` where it cannot be one."""
    if not text:
        reason = Reason.CUSTOMER_MISSING if column == SUBJECT else Reason.MALFORMED
        raise Refused(reason, f"column {column!r} is null or empty in some row")
    if len(text) > NAME_MAX or has_control(text):
        raise Refused(
            Reason.MALFORMED, f"column {column!r}: {text[:80]!r} is longer than {NAME_MAX} or holds control characters"
        )
    return text


def _valid(column: pa.Array) -> Array | None:
    return column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None


def _booleans(column: pa.Array) -> Strings:
    found = _occurring(column.cast(pa.int8()).fill_null(2).to_numpy(), ["false", "true", None])
    found.boolean = True
    return found


def _integers(column: pa.Array) -> Numbers:
    valid = _valid(column)
    values = (column.fill_null(0) if valid is not None else column).to_numpy()
    if values.dtype == np.uint64:
        values = values.astype(object) if values.max() > _INT64.max else values.astype(np.int64)
    return Numbers(values.astype(np.int64, copy=False) if values.dtype != object else values, 0, valid)


def _decimals(column: pa.Array, scale: int) -> Numbers:
    valid = _valid(column)
    halves = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset : 2 * (column.offset + len(column))]
    low, high = halves[0::2], halves[1::2]
    if valid is not None:
        low, high = np.where(valid, low, 0), np.where(valid, high, 0)
    small = (high == low >> 63).all()
    values = low if small else (high.astype(object) << 64) + low.view(np.uint64).astype(object)
    return Numbers(values, scale, valid)


def _times(column: pa.Array, per: int, divisor: int) -> Numbers:
    valid = _valid(column)
    values = column.cast(pa.int64())
    array = (values.fill_null(0) if valid is not None else values).to_numpy()
    bound = _LATEST_MS // per if divisor == 1 else _INT64.max
    if array.min() < 0 or array.max() > bound:
        raise Refused(Reason.MALFORMED, "column 'time' lies outside the years 1970 to 9999 in some row")
    return Numbers(array * per if divisor == 1 else array // divisor, 0, valid)


def _instants(column: Numbers, arrived_at: int) -> Array:
    if column.values.max() > _LATEST_MS:
        raise Refused(Reason.MALFORMED, "column 'time' lies outside the years 1970 to 9999 in some row")
    return column.values if column.valid is None else np.where(column.valid, column.values, arrived_at)
