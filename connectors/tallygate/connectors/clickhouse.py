"""ClickHouse, embedded (`chdb:///folder`) or a server: by one client code for both; and the sink's store in it.

Rows go in column by column, as Arrow. Measured for postings, in rows per CPU second, 48 000 rows a batch, the embedded
engine's work included: building the Arrow 1.2 M and inserting it with one thread 1.2 M, so 0.6 M together;
clickhouse-connect's own Native encoder 0.35 to 0.42 M. More threads in the engine cost twice the CPU at this size.
With the mapping from journal records before it (`sink_rows`), 0.25 M (4 legs an entry) to 0.38 M (400 legs). Leaving
JSON and mapping to the engine (`JSONExtract` and `ARRAY JOIN` behind a `Null` table) took 0.6 to 0.85 M all in all, but
moves the mapping into SQL, where it cannot be tested as a pure function.

An embedded engine belongs to one process, in which any number of clients, each in its own thread, may use it at once.
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from tallygate.connectors.clickhouse_tables import (
    AMOUNT,
    AMOUNTS,
    AUDIT,
    BOOLEAN,
    FLAG,
    HOUR,
    INSTANT,
    INTEGER,
    MAPPING,
    MAYBE_INSTANT,
    OFFSETS,
    SCHEMA,
    STRING,
    VERSIONS,
    VIEWS,
    WORD,
    Table,
)

EMBEDDED: Final = "chdb:"

_ARROW: Final[dict[str, Any]] = {
    STRING: pa.string(),
    WORD: pa.string(),
    AMOUNT: pa.decimal128(38, 9),
    INSTANT: pa.timestamp("ms", "UTC"),
    MAYBE_INSTANT: pa.timestamp("ms", "UTC"),
    HOUR: pa.timestamp("s", "UTC"),
    INTEGER: pa.int64(),
    "UInt64": pa.uint64(),
    BOOLEAN: pa.bool_(),
    FLAG: pa.uint8(),
    MAPPING: pa.map_(pa.string(), pa.string()),
    AMOUNTS: pa.map_(pa.string(), pa.decimal128(38, 9)),
}

#: One thread: see above. A batch may touch any number of months.
_INSERT: Final = {"max_threads": 1, "max_insert_threads": 1, "max_partitions_per_insert_block": 0, "async_insert": 0}

#: A server that answers with these (too busy, read-only for a while, cannot reach its own) will do better later.
_PASSING: Final = frozenset({159, 160, 202, 209, 210, 241, 242, 252, 319, 439, 999})
_GATEWAY: Final = re.compile(r"response code (429|502|503|504)\b")


class StoreError(Exception):
    """ClickHouse cannot go on as it is; one clear line."""


class StoreAway(StoreError):
    """A ClickHouse server that does not answer, or not now: the same call may succeed later, and may be repeated."""


class Position(NamedTuple):
    """How far a partition of the journal is in the tables: the next offset, and the fence before it."""

    next_offset: int
    term: int
    seq: int


class Store:
    """The sink's tables in one ClickHouse. Methods raise `StoreAway` (only for a server) or `StoreError`.

    It belongs to one thread. What `insert` and `save` return from is on disk.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.place = place_of(dsn)
        if is_embedded(dsn):
            _claim_folder(embedded_folder(dsn))
        self._client = open_client(dsn)

    def prepare(self) -> None:
        """Makes or updates the tables and views."""
        self._run(SCHEMA.ddl)
        known = int(self._query(f"SELECT max(version) FROM {SCHEMA.name}")[0][0])
        if known > len(VERSIONS):
            raise StoreError(
                f"{self.place} was written by a newer Tallygate (its tables have version {known}, this one knows "
                f"{len(VERSIONS)}): upgrade this one"
            )
        for version, statements in enumerate(VERSIONS[known:], known + 1):
            for statement in statements:
                self._run(statement)
            self.insert(SCHEMA, [[version]])
        for statement in VIEWS:
            self._run(statement)

    def positions(self, journal: str) -> dict[int, Position]:
        """How far each partition has come; `journal` identifies the topic that they belong to."""
        rows = self._query(f"SELECT journal, partition, next_offset, term, seq FROM {OFFSETS.name} FINAL")
        others = sorted({row[0] for row in rows} - {journal})
        if others:
            raise StoreError(
                f"{self.place} holds the figures of another journal ({others[0]}), not of this cluster's ({journal}): "
                "give each journal a ClickHouse database of its own"
            )
        return {partition: Position(*rest) for _, partition, *rest in rows}

    def audit_offset(self) -> int:
        """The offset of the audit log's first record that is not in the table."""
        return int(self._query(f"SELECT if(count() = 0, 0, max(offset) + 1) FROM {AUDIT.name}")[0][0])

    def insert(self, table: Table, columns: Sequence[Sequence[Any]]) -> None:
        """Adds rows, given as one sequence per column in the table's order."""
        data = _stream(table, columns)
        try:
            self._client.raw_insert(table.name, list(table.columns), data, settings=_INSERT, fmt="ArrowStream")
        except (ClickHouseError, OSError) as error:
            raise self._trouble(error) from error

    def save(self, journal: str, positions: Mapping[int, Position], at: int) -> None:
        """Stores how far partitions have come (at: now, in ms), after the rows before it were inserted."""
        rows = [(journal, partition, *position, at) for partition, position in positions.items()]
        self.insert(OFFSETS, list(zip(*rows, strict=True)))

    def cancel_questions(self) -> None:
        """Ends the questions under way in this process's embedded engine."""
        self._run("KILL QUERY WHERE query NOT LIKE 'KILL QUERY%' ASYNC")

    def close(self) -> None:
        self._client.close()

    def _run(self, statement: str) -> None:
        try:
            self._client.command(statement)
        except (ClickHouseError, OSError) as error:
            raise self._trouble(error) from error

    def _query(self, sql: str) -> Sequence[Sequence[Any]]:
        try:
            rows: Sequence[Sequence[Any]] = self._client.query(sql).result_rows
        except (ClickHouseError, OSError) as error:
            raise self._trouble(error) from error
        return rows

    def _trouble(self, error: Exception) -> StoreError:
        return trouble_of(self.dsn, error)


def is_embedded(dsn: str) -> bool:
    return dsn.startswith(EMBEDDED)


def place_of(dsn: str) -> str:
    """Where a DSN leads, for messages: without user and password."""
    if is_embedded(dsn):
        return f"the embedded ClickHouse in {embedded_folder(dsn)}"
    return f"ClickHouse at {re.sub(r'^[^@/]*@', '', dsn.split('://', 1)[-1]).split('?')[0]}"


def embedded_folder(dsn: str) -> str:
    return "/" + dsn.removeprefix(EMBEDDED).split("?")[0].lstrip("/")


def open_client(dsn: str, settings: Mapping[str, Any] | None = None) -> Client:
    try:
        return clickhouse_connect.get_client(dsn=dsn, settings=dict(settings or {}))
    except (ClickHouseError, OSError, ValueError) as error:
        if is_embedded(dsn) and not isinstance(error, OSError):
            raise StoreError(f"{place_of(dsn)} cannot be opened: {one_line(error)}") from error
        raise trouble_of(dsn, error) from error


def _claim_folder(folder: str) -> None:
    """Makes an embedded engine's folder, and refuses one in use, which opening would say less clearly.

    The engine locks the file `status` in its folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, "status"), "rb") as status:
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(
            f"{folder} is in use by another process: an embedded ClickHouse belongs to one sink at a time"
        ) from None
    except OSError as error:
        raise StoreError(f"{folder} cannot be used for the embedded ClickHouse: {error.strerror}") from error


def trouble_of(dsn: str, error: Exception) -> StoreError:
    line = f"{place_of(dsn)}: {one_line(error)}"
    if is_embedded(dsn):
        return StoreError(line)
    code = getattr(error, "code", None)
    passing = isinstance(error, OperationalError) or _GATEWAY.search(str(error)) if code is None else code in _PASSING
    return StoreAway(line) if passing else StoreError(line)


def one_line(error: Exception) -> str:
    """An engine's error in one line, without its stack and version.

    An embedded engine is handed its rows in a temporary file: an `OSError` is about that.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename or tempfile.gettempdir()})"
    text = " ".join(str(error).split())
    text = re.sub(r"(Received ClickHouse exception.*?server response: )?Code: \d+\. DB::Exception: ", "", text)
    text = re.sub(r" ?\(for url [^)]*\)", "", text)
    text = re.sub(r" ?\((?:official build|version [\d.]+[^)]*)\)", "", text)
    return text if len(text) <= 400 else f"{text[:397]}..."


# ---- rows as Arrow ----


def _stream(table: Table, columns: Sequence[Sequence[Any]]) -> bytes:
    arrays = [_array(type, column) for type, column in zip(table.columns.values(), columns, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, list(table.columns))
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = out.getvalue().to_pybytes()
    return data


def _array(type: str, column: Sequence[Any]) -> Any:
    if type == AMOUNT:
        return _amounts(column)
    if type == AMOUNTS:
        ends = [0, *accumulate(len(mapping) for mapping in column)]
        names = pa.array([name for mapping in column for name in mapping], pa.string())
        values = _amounts([nanos for mapping in column for nanos in mapping.values()])
        return pa.MapArray.from_arrays(pa.array(ends, pa.int32()), names, values)
    if type == MAPPING:
        return pa.array([list(mapping.items()) for mapping in column], _ARROW[MAPPING])
    return pa.array(column, _ARROW[type])


def _amounts(column: Sequence[int]) -> Any:
    # A decimal128 of scale 9 is its count of nanos, 16 bytes little-endian: no Decimal is ever made.
    raw = b"".join([nanos.to_bytes(16, "little", signed=True) for nanos in column])
    return pa.Array.from_buffers(_ARROW[AMOUNT], len(column), [None, pa.py_buffer(raw)])
