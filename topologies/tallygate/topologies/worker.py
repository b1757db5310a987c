"""The worker: a Faust app over chunks, and one owner for each partition that the group gives to this process.

    topics ─▶ lanes ─▶ agent "accounts" ─▶ inbox of the partition ─▶ its owner ─▶ journal, table, answers

How it ends, by exit code:

    0   asked to (SIGTERM, SIGINT): requests taken in are answered, the partitions let go, the group left
    1   trouble that a restart alone may not end: topics missing, a log cut back, an address taken, a bug
    3   ownership lost or not known: another owner opened a partition, the group gave it away, or an append was not
        answered within `append_timeout_ms`. Start it again at once: what was not answered will be asked again
    70  as 3, found by the group's thread: the session ended, or letting go took too long

A broker that is away is waited for, at the start and later: an append under way goes on when the broker comes back
within `append_timeout_ms`, and the place in the group is kept for `session_timeout_ms`. After that nobody can tell
whether the append will still land, or who owns the partitions, so the process ends (3); its successor waits, with one
line, until the broker is back.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import faust
import uvloop
from filelock import FileLock, Timeout

from tallygate.connectors.consuming import LaneTrouble
from tallygate.connectors.lanes import LaneLimits
from tallygate.pipeline.decide import decide
from tallygate.pipeline.intake import Intake
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Rows, Transition
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.topics import JOURNAL, REQUESTS, USAGE, topic_specs
from tallygate.topologies.batch_lane import Pace, run_bytes_max
from tallygate.topologies.catalogs import CatalogFollower
from tallygate.topologies.cluster import Cluster, ClusterTrouble
from tallygate.topologies.inbox import Inbox, StepLimits
from tallygate.topologies.journal import JournalReader, JournalWriter, KafkaJournal
from tallygate.topologies.metrics import Metrics, MetricsError
from tallygate.topologies.outbox import DeadLetterWriter, ReplySender
from tallygate.topologies.owned import OwnedPartition
from tallygate.topologies.owner import OwnerLimits, PartitionOwner, Ports
from tallygate.topologies.ports import CrashPoint, OwnershipLost
from tallygate.topologies.settings import Settings
from tallygate.topologies.standby import Standby
from tallygate.topologies.tables import RocksTable, TableBroken, TableMemory
from tallygate.topologies.transport import Transport, app_settings, chunk_events, chunk_topic, transport_of
from tallygate.topologies.usage_runs import Run, RunReader

logger = logging.getLogger(__name__)

EXIT_OK: Final = 0
EXIT_TROUBLE: Final = 1
EXIT_LOST: Final = 3

#: How long a thread may keep the interpreter while another waits. Records and answers cross threads all the time, and
#: the default of 5 ms is more than a whole decision takes.
SWITCH_SECONDS: Final = 0.0005
_SLOTS_MAX: Final = 256
#: Threads that read usage batches: most of their work is numpy's and Arrow's, outside the interpreter's lock.
_READERS: Final = 2
#: What needs no explanation beyond its own words.
_PLAIN: Final = (OwnershipLost, LaneTrouble, ClusterTrouble, MetricsError, TableBroken)

#: How old a local table may be that is read on with: the journal keeps tombstones for twice as long, and an older one
#: has missed some; the other half is for reading on.
RESUME_MS_MAX: Final = (
    next(int(spec.config["delete.retention.ms"]) for spec in topic_specs() if spec.name == JOURNAL) // 2
)

AtPoint = Callable[[CrashPoint], None]


class SystemClock:
    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1_000


class Rulebook:
    """`ports.Core`: the rules of `pipeline`. `accounts_max`: how many customers of a partition stay in memory."""

    def __init__(self, accounts_max: int) -> None:
        self._accounts_max = accounts_max

    def load(self, rows: Rows, partition: int, /) -> PartitionState:
        return PartitionState.load(rows, partition, self._accounts_max)

    def decide(self, state: PartitionState, inputs: Any, catalog: Catalog, rules: Rules, /) -> Transition:
        return decide(state, inputs, catalog, rules)


class Worker:
    """Everything of one process, and the hooks that the transport calls. Belongs to the event loop."""

    def __init__(self, settings: Settings, at: AtPoint) -> None:
        self._settings = settings
        self._at = at
        self._clock = SystemClock()
        self._owned: dict[int, OwnedPartition] = {}
        self._memory = TableMemory(settings.table_memory_mb)
        self._standby: Standby | None = None
        self._ends: list[Callable[[], Any]] = []  # in the order in which things were begun
        self._pace = Pace(self._clock.monotonic_us)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="batches")
        self._ends.append(partial(self._readers.shutdown, wait=True, cancel_futures=True))
        self.metrics = Metrics()
        self.app: Any = None

    async def start(self) -> None:
        """Connects, waiting for the broker, and joins the group."""
        settings = self._settings
        url = self.metrics.serve(settings.metrics_address)
        self._ends.append(self.metrics.close)
        if url:
            logger.info("metrics on %s", url)
        self._cluster = Cluster(settings)
        self._layout = await self._cluster.layout()
        self._folder = self._take_slot()
        self._replies = ReplySender(settings, self.metrics)
        self._ends.append(self._replies.close)
        self._dead_letters = DeadLetterWriter(settings)
        self._writer = JournalWriter(settings)
        await self._writer.start()
        self._ends.append(self._writer.stop)
        self._reader = JournalReader(settings, self.fail)
        self._ends.append(self._reader.close)
        self._catalogs = CatalogFollower(settings, self._cluster, self.metrics, self.fail)
        self._ends.append(self._catalogs.close)
        await self._catalogs.start()
        if settings.standby:
            self._standby = Standby(settings, self._open_table, RESUME_MS_MAX)
            self._ends.append(self._standby.close)
            self._standby.follow(range(self._layout.partitions))
            self.metrics.standby.set_function(lambda: self._standby.caught_up if self._standby else 0)
        self.app = self._build_app()
        self._ends.append(self.app.stop)
        for topic in (USAGE, REQUESTS):
            self.metrics.watch_unfinished(topic, self.app.consumer.unfinished)
        await self.app.start()
        logger.info(
            "worker is ready: %s, %d partitions, %s", settings.kafka_brokers, self._layout.partitions, self._folder
        )

    async def stop(self) -> None:
        """Ends what was begun, the last first."""
        while self._ends:
            ending = self._ends.pop()()
            if asyncio.iscoroutine(ending):
                await ending

    def _build_app(self) -> Any:
        settings = self._settings
        app = faust.App(
            settings.group,
            **app_settings(
                brokers=settings.kafka_brokers,
                data_dir=self._folder.parent / "faust",
                session_timeout_ms=settings.session_timeout_ms,
                instance_id=settings.instance_id or None,
            ),
        )
        transport = transport_of(app)
        transport.hooks = self
        transport.client_config = dict(settings.kafka_config)
        # All of a run of batches that a former owner has begun must fit, for every partition at once.
        run = run_bytes_max(self._layout.partitions)
        room = LaneLimits().lane_bytes_max + self._layout.partitions * run
        transport.limits = {USAGE: LaneLimits(partition_bytes_max=2 * run, lane_bytes_max=room)}
        # Nobody waits for one event: what trickles in is fetched together, which costs the broker much less.
        transport.lane_config = {USAGE: {"fetch.min.bytes": 64 << 10, "fetch.wait.max.ms": 50}}
        # Letting go may wait for one step: its dead letters, its append, and reading that back.
        transport.closing_seconds = 3 * settings.append_timeout_ms / 1000 + 10

        @app.agent(chunk_topic(app, USAGE, REQUESTS), name="accounts")  # type: ignore[untyped-decorator]
        async def accounts(stream: Any) -> None:
            async for event in chunk_events(app, stream):
                chunk = event.value
                self.metrics.chunk_records.labels(chunk.topic).observe(len(chunk.records))
                self._owned[chunk.partition].offer(chunk, event.ack)

        return app

    def _take_slot(self) -> Path:
        """A folder for the tables of this process alone: the first that no running process holds.

        A worker that is started again finds its tables there. They lie under the journal's own id, so that tables of
        another cluster, or of topics made anew, are never taken for this one's.
        """
        for number in range(_SLOTS_MAX):
            folder = self._settings.data_dir / "workers" / str(number)
            try:
                (folder / "faust").mkdir(parents=True, exist_ok=True)
                lock = FileLock(folder / "lock")
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except OSError as error:
                raise TableBroken(f"{folder}: {error.strerror}: choose another TALLYGATE_DATA_DIR") from None
            self._ends.append(lock.release)
            tables = folder / self._layout.journal_id
            tables.mkdir(exist_ok=True)
            return tables
        raise TableBroken(f"{self._settings.data_dir}: {_SLOTS_MAX} workers have their tables there already")

    # The transport's hooks

    async def opening(self, partition: int) -> Mapping[str, int]:
        owned = self._owned[partition] = self._owner_of(partition)
        try:
            if self._standby is not None:
                await self._standby.release(partition)
            found = await owned.open()
            offsets = {topic: await self._begin(topic, partition, found.get(topic)) for topic in (USAGE, REQUESTS)}
        except Exception as error:  # noqa: BLE001  # whatever it is, the partition cannot be served
            self.fail(error)
        self._count_owned()
        return offsets

    async def closing(self, partition: int) -> None:
        await self._owned.pop(partition).close()
        self._count_owned()
        self.metrics.forget(partition)
        if self._standby is not None:
            self._standby.follow([partition])

    async def lost(self, partitions: Collection[int]) -> None:
        self.fail(OwnershipLost(f"the group has given partitions {sorted(partitions)} away: the session ended"))

    def _count_owned(self) -> None:
        self.metrics.owned.set(sum(owned.working for owned in self._owned.values()))

    async def _begin(self, topic: str, partition: int, following: int | None) -> int:
        """Where to read on: at the offset that follows the last applied one, if the topic still holds it."""
        begin, end = await self._cluster.bounds(topic, partition)
        if following is None:
            return begin
        if following > end:
            raise ClusterTrouble(
                f"{topic} partition {partition} ends at offset {end}, and the journal has applied {following - 1} "
                "already: the topic was made anew or cut back, and what is in it now cannot be told from what was"
            )
        if following < begin:
            lost = f"{topic} partition {partition}: {begin - following} records were deleted before they were read"
            if not self._settings.skip_deleted_inputs:
                raise ClusterTrouble(f"{lost}; to go on without them, set TALLYGATE_SKIP_DELETED_INPUTS=true once")
            logger.error("%s; going on without them", lost)
        return max(begin, following)

    def _open_table(self, partition: int) -> RocksTable:
        return RocksTable(self._folder / str(partition), self._memory)

    def _owner_of(self, partition: int) -> OwnedPartition:
        settings, rules = self._settings, Rules()
        journal = KafkaJournal(partition, self._writer, self._reader, self._cluster)
        inbox = Inbox(
            Intake(self._layout.partitions, settings.reply_topics).read,
            StepLimits(settings.step_events_max, settings.step_requests_max, settings.step_calm_events_max),
            RunReader(self._layout.partitions, rules),
            lambda call: self._read_batches(partition, call),
            run_bytes_max(self._layout.partitions),
            self._pace,
        )
        ports = Ports(
            journal=journal,
            open_table=lambda: self._open_table(partition),
            dead_letters=self._dead_letters,
            replies=self._replies,
            catalogs=self._catalogs,
            clock=self._clock,
            metrics=self.metrics,
            at=self._at,
        )
        limits = OwnerLimits(
            tick_ms=settings.tick_ms,
            fresh_ms=settings.session_timeout_ms // 2,
            resume_ms_max=RESUME_MS_MAX,
        )
        core = Rulebook(max(1, settings.accounts_cached_max // self._layout.partitions))
        owner = PartitionOwner(partition, uuid.uuid4().hex, ports, core, inbox, rules, limits)
        return OwnedPartition(owner, inbox, journal, self._clock, self.fail)

    def _read_batches(self, partition: int, call: Callable[[], Run]) -> Future[Run]:
        """Reads a run of batches in a thread and wakes the partition's owner when that is done."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if (owned := self._owned.get(partition)) is not None:
                owned.wake()

        reading = self._readers.submit(call)
        reading.add_done_callback(lambda _: loop.call_soon_threadsafe(wake))
        return reading

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the process here and now: what is not answered will be asked again, the journal knows the rest."""
        logger.critical("ending: %s", _line(error))
        logger.debug("what ended it", exc_info=error)
        logging.shutdown()
        os._exit(exit_code(error))


def run_worker(settings: Settings, at: AtPoint = lambda point: None) -> int:
    """Runs a worker until it is asked to end; returns the exit code, or ends the process with it.

    `at` hears of every crash point that an owner passes, for tests that end the process there.
    """
    for noisy in ("faust", "mode", "aiokafka", Transport.__module__):  # the last logs as a Faust service
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what matters, we say
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(Worker(settings, at)))


def exit_code(error: BaseException) -> int:
    return EXIT_LOST if isinstance(error, OwnershipLost) else EXIT_TROUBLE


async def _serve(worker: Worker) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    waiting = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(worker.start())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
    elif starting.exception() is None:
        gc.freeze()  # what is there now stays: no collection needs to look at it again
        gc.set_threshold(20_000, 20, 50)  # rows and drafts are no cycles: the core alone is 15 % faster without looking
        crashed = asyncio.create_task(worker.app._crashed.wait())
        await asyncio.wait({crashed, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if crashed.done():
            worker.fail(worker.app.crash_reason)
    logger.info("ending as asked" if asked.is_set() else "ending")
    await worker.stop()
    waiting.cancel()
    error = None if starting.cancelled() else starting.exception()
    if error is None:
        return EXIT_OK
    logger.critical("%s", _line(error))
    logger.debug("what ended it", exc_info=error)
    return exit_code(error)


def _line(error: BaseException) -> str:
    if isinstance(error, _PLAIN):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {Path(f.filename).name}:{f.lineno}" for f in frame)
    return f"a bug{where}: {type(error).__name__}: {error}"
