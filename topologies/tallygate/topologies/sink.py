"""The sink: journal → ClickHouse, exactly once (`connectors/clickhouse_tables.py` says how); and the relay's topics.

One loop in one thread: read, publish, map, and when a batch is full or half a second old, wait until what was published
is confirmed, insert the batch's rows, then the offsets.
Between batches, the audit log (`sink_audit`).
Beside it, for an embedded engine, a server that answers `tallygate sql`, and the metrics.
"""

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, TypeVar

from tallygate.connectors.clickhouse import Store, StoreAway, StoreError, is_embedded, place_of
from tallygate.connectors.clickhouse_tables import AUDIT
from tallygate.schemas.topics import JOURNAL
from tallygate.topologies.metrics import MetricsError
from tallygate.topologies.relay import Relay, RelayTrouble, Stopped
from tallygate.topologies.settings import ENV_PREFIX, Settings
from tallygate.topologies.sink_audit import AuditReader
from tallygate.topologies.sink_journal import JournalReader, JournalTrouble, behind_seconds, find_journal
from tallygate.topologies.sink_metrics import MetricsPage, SinkMetrics
from tallygate.topologies.sink_rows import Batch
from tallygate.topologies.sql_server import SqlServer, SqlServerError

logger = logging.getLogger(__name__)

RECORDS_MAX: Final = 50_000
BYTES_MAX: Final = 8 << 20
BATCH_SECONDS: Final = 0.5
#: What changes nothing in the tables (ticks, mostly) moves the offsets only this often.
QUIET_SECONDS: Final = 10.0
_READ_SECONDS: Final = 0.1
_READ_RECORDS: Final = 5_000
_RETRY_SECONDS: Final = 1.0
_OBSERVE_SECONDS: Final = 0.5

T = TypeVar("T")


class Sink:
    """Moves the journal into the store and the relay until `stop` is set. All belong to the caller, who closes them."""

    def __init__(
        self,
        store: Store,
        reader: JournalReader,
        relay: Relay,
        audit: AuditReader,
        journal: str,
        metrics: SinkMetrics,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._reader = reader
        self._relay = relay
        self._audit = audit
        self._journal = journal
        self._metrics = metrics
        self._stop = stop
        self._observed = 0.0
        self._batch = Batch()
        self._records = self._bytes = 0
        self._since = 0.0  # when the batch's first record was read; 0: it has none

    def run(self) -> None:
        """Raises `StoreError`, `JournalTrouble` or `RelayTrouble` when it cannot go on; what is stored is right."""
        while not self._stop.is_set():
            count, size = self._reader.read(self._take, _READ_RECORDS, _READ_SECONDS)
            self._records += count
            self._bytes += size
            if count and not self._since:
                self._since = time.monotonic()
            if self._is_due():
                self._flush()
            if not count:
                self._reader.probe()
            self._observe()
        self._flush()

    def _take(self, partition: int, offset: int, term: int, seq: int, key: bytes, value: bytes | None) -> None:
        entry = self._batch.add(partition, offset, term, seq, key, value)
        if entry is not None:
            self._relay.publish(entry, partition, offset, term, seq)

    def _is_due(self) -> bool:
        if not self._since:
            return False
        age = time.monotonic() - self._since
        full = self._records >= RECORDS_MAX or self._bytes >= BYTES_MAX
        return full or age >= (BATCH_SECONDS if self._batch.has_rows else QUIET_SECONDS)

    def _flush(self) -> None:
        moved = {t.partition: t.position for t in self._reader.tracks.values() if t.position != t.saved}
        if not moved:
            return
        self._relay.flush()
        started = time.perf_counter()
        for table, columns in self._batch.filled():
            persist(partial(self._store.insert, table, columns), self._stop, self._metrics)
            self._metrics.rows.labels(table.name.removeprefix("sink_")).inc(len(columns[0]))
        persist(lambda: self._store.save(self._journal, moved, time.time_ns() // 1_000_000), self._stop, self._metrics)
        self._metrics.insert_seconds.observe(time.perf_counter() - started)
        self._metrics.records.inc(self._records)
        for partition, position in moved.items():
            self._reader.tracks[partition].saved = position
        self._reader.note(moved)
        self._batch = Batch()
        self._records = self._bytes = 0
        self._since = 0.0

    def _observe(self) -> None:
        now = time.monotonic()
        if now - self._observed < _OBSERVE_SECONDS:
            return
        self._observed = now
        self._move_audit()
        metrics, reader = self._metrics, self._reader
        metrics.stale.set(reader.stale_records)
        metrics.missing.set(reader.missing_records)
        if reader.away:
            metrics.note_error("kafka")
        for partition, lag in reader.lags():
            metrics.lag.labels(str(partition)).set(lag)
            metrics.behind_seconds.labels(str(partition)).set(behind_seconds(reader.tracks[partition], lag))

    def _move_audit(self) -> None:
        columns = self._audit.read()
        if columns:
            persist(partial(self._store.insert, AUDIT, columns), self._stop, self._metrics)
            self._metrics.rows.labels("audit").inc(len(columns[0]))


def persist(call: Callable[[], T], stop: threading.Event, metrics: SinkMetrics) -> T:
    """The call's result, however long ClickHouse is away; said once. Told to stop meanwhile: `Stopped`.

    It is called once even where the stop came before: the last batch gets its chance.
    """
    said = False
    while True:
        try:
            result = call()
        except StoreAway as away:
            metrics.note_error("clickhouse")
            if not said:
                logger.warning("sink: %s; waiting", away)
                said = True
            if stop.wait(_RETRY_SECONDS):
                raise Stopped from away
            continue
        if said:
            logger.warning("sink: ClickHouse is back")
        return result


def run_sink(
    settings: Settings,
    *,
    accept_gap: bool = False,
    partitions: Sequence[int] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Runs a sink until SIGTERM, SIGINT or `stop`; the exit code: 0, or 1 after one line that says what is wrong.

    `partitions`: the journal's partitions to read, all of them by default. `accept_gap`: see `sink_journal`.
    """
    stop = stop or threading.Event()
    try:
        with ExitStack() as running, _stop_on_signals(stop):
            _run(settings, accept_gap, partitions, stop, running)
    except Stopped:
        return 0
    except (StoreError, JournalTrouble, RelayTrouble, SqlServerError, MetricsError) as error:
        logger.error("sink: %s", error)
        return 1
    return 0


def _run(
    settings: Settings, accept_gap: bool, partitions: Sequence[int] | None, stop: threading.Event, running: ExitStack
) -> None:
    metrics = SinkMetrics()
    try:
        running.callback(MetricsPage(settings.metrics_address, metrics.registry).close)
    except OSError as error:
        raise MetricsError(
            f"metrics cannot be served on {settings.metrics_address} ({error.strerror}): "
            f"set {ENV_PREFIX}METRICS_ADDRESS (port 0 takes a free one, empty serves none)"
        ) from error
    store = persist(lambda: Store(settings.clickhouse), stop, metrics)
    running.callback(store.close)
    persist(store.prepare, stop, metrics)
    if is_embedded(settings.clickhouse):
        server = SqlServer(settings.clickhouse, settings.sql_address, settings.data_dir, store)
        running.callback(server.close)
    journal = find_journal(settings.librdkafka, stop)
    if journal is None:
        return
    wanted = journal.partitions if partitions is None else partitions
    if unknown := set(wanted) - set(journal.partitions):
        raise JournalTrouble(f"{JOURNAL} has the partitions 0 to {journal.partitions[-1]}, and no {min(unknown)}")
    relay = Relay(settings.librdkafka, settings.relay, stop, metrics)
    running.callback(relay.close)
    relay.wait_for_topics()
    positions = persist(lambda: store.positions(journal.id), stop, metrics)
    reader = JournalReader(settings.librdkafka, accept_gap=accept_gap, stop=stop)
    running.callback(reader.close)
    reader.start(wanted, positions)
    audit = AuditReader(settings.librdkafka, persist(store.audit_offset, stop, metrics))
    running.callback(audit.close)
    logger.info("sink: %d partitions of %s → %s", len(reader.tracks), JOURNAL, place_of(settings.clickhouse))
    if threading.current_thread() is threading.main_thread():  # a process of the sink's own
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # rows are no cycles: mapping them is 1.5 times as fast without looking
    Sink(store, reader, relay, audit, journal.id, metrics, stop).run()


@contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`, where signals arrive at all: in a program's main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
