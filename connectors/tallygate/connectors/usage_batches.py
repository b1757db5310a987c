"""Usage batches as bytes: columns in, one Arrow IPC stream out. `schemas/usage-batch.md` specifies the format."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from tallygate.schemas.usage_batch import BYTES_MAX, EVENTS_MAX

STRINGS = pa.dictionary(pa.int32(), pa.string())
UTC_MS = pa.timestamp("ms", tz="UTC")


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
