"""Reading partitions of the log, from exact offsets, in runs of records.

A `Lane` is one librdkafka consumer in one thread. It belongs to no group: somebody else decides which partitions are
read and from where. Lanes share nothing, so a backlog on one never stands in front of another. What a lane promises:

* Each assignment of a partition delivers every record from its start offset on, in order, once. It never jumps: a
  start offset that the log does not hold is trouble.
* After `drop` has returned, nothing of that partition is delivered any more. Each assignment has a generation, and
  whatever is still under way with an older one is thrown away on the event loop.
* Memory is bounded: what is delivered counts as unfinished until `done`, and the lane stops taking at its limits.
* A broker that is away is waited for, with one line when it goes and one when it is back.

Why a thread, and why librdkafka: a consumer that shares the event loop's thread costs milliseconds a record under
load. Here the thread sleeps in `poll`, takes all that has come with `consume(n, 0)`, and crosses to the event loop
once a round.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tallygate.connectors.consuming import (
    AWAY,
    PASSING,
    LaneTrouble,
    Partition,
    absence_of,
    broker_watch,
    consumer_config,
    record_of,
    trouble_of,
)
from tallygate.schemas.records import Chunk, Record

logger = logging.getLogger(__name__)

#: How long the thread sleeps in `poll`: the longest time until it notices `start`, `drop` and `close`.
POLL_SECONDS: Final = 0.05
#: A full partition that finishes nothing for so long is paused, and the lane's other partitions go on without it.
STALL_SECONDS: Final = 0.25
QUERY_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 0.2
#: How long a partition may be unknown to the broker, as a topic is that was created just now.
ABSENT_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How much a lane delivers at once, and how much may be unfinished before it stops taking.

    The limits on what is unfinished may be passed by one round of `records_per_chunk_max` records.
    """

    records_per_chunk_max: int = 4096
    bytes_per_chunk_max: int = 1 << 20
    partition_records_max: int = 16_384
    partition_bytes_max: int = 8 << 20
    lane_records_max: int = 65_536
    lane_bytes_max: int = 32 << 20


class _Run:
    """One assignment of one partition. `taken_*` is written by the thread, `done_*` by the event loop."""

    __slots__ = (
        "done_bytes",
        "done_records",
        "generation",
        "held",
        "next_offset",
        "stalled",
        "taken_bytes",
        "taken_records",
    )

    def __init__(self, generation: int, offset: int) -> None:
        self.generation = generation
        self.next_offset = offset
        self.taken_records = self.taken_bytes = self.done_records = self.done_bytes = 0
        self.held = self.stalled = False  # paused by the owner; paused because it does not move

    @property
    def records(self) -> int:
        return self.taken_records - self.done_records

    @property
    def bytes(self) -> int:
        return self.taken_bytes - self.done_bytes


class Lane:
    """A reader of partitions in a thread of its own. All methods belong to the event loop's thread.

    `deliver` receives the chunks of one round; `trouble` is called once, with what stopped the lane. Both run on the
    event loop. `client_config` is librdkafka's own (security settings, for instance) and wins over the lane's.
    `record` makes what a chunk holds of a client's message, in the lane's thread.
    """

    def __init__(
        self,
        brokers: str,
        *,
        name: str,
        group: str,
        deliver: Callable[[list[Chunk]], None],
        trouble: Callable[[LaneTrouble], None],
        loop: asyncio.AbstractEventLoop,
        limits: LaneLimits | None = None,
        client_config: Mapping[str, Any] | None = None,
        record: Callable[[Partition, Any], Any] = record_of,
    ) -> None:
        self.name = name
        self._brokers = brokers
        self._group = group
        self._deliver_to = deliver
        self._trouble_to = trouble
        self._loop = loop
        self._limits = limits or LaneLimits()
        self._client_config = dict(client_config or {})
        self._record = record
        self._generations = itertools.count(1)
        self._current: dict[Partition, _Run] = {}  # the event loop's view; what is not here is not delivered
        self._runs: dict[Partition, _Run] = {}  # the thread's view
        self._unseen: dict[Partition, float] = {}  # nothing came yet, and by when the broker must know the partition
        self._commands: deque[Callable[[], None]] = deque()
        self._room = threading.Event()  # set when something is done, or there is a command
        self._closing = False
        self._away = False
        self._watch = broker_watch(brokers)
        self._watch_name = f"{name} {id(self)}"
        self._admin: AdminClient | None = None
        self._consumer = self._open()
        self._thread = threading.Thread(target=self._work, name=f"lane-{name}", daemon=True)
        self._thread.start()

    # The event loop's side.

    def start(self, offsets: Mapping[Partition, int]) -> None:
        """Reads these partitions, besides those it reads already, from exactly these offsets."""
        runs = {}
        for partition, offset in offsets.items():
            assert partition not in self._current, f"{self.name}: {partition} is read already"
            assert offset >= 0, f"{self.name}: {partition} has no offset {offset}"
            runs[partition] = _Run(next(self._generations), offset)
        self._current.update(runs)
        self._command(lambda: self._assign(runs))

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Reads these partitions no more; from now on nothing of them is delivered. Unknown ones are ignored."""
        gone = [partition for partition in partitions if self._current.pop(partition, None) is not None]
        if gone:
            self._command(lambda: self._unassign(gone))

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Goes on from these offsets instead; nothing from before is delivered any more."""
        self.drop(offsets)
        self.start(offsets)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Fetches no more of these partitions until `resume`; what was taken before may still be delivered."""
        paused = [partition for partition in partitions if partition in self._current]
        self._command(lambda: self._set_held(paused, True))

    def resume(self, partitions: Iterable[Partition]) -> None:
        resumed = [partition for partition in partitions if partition in self._current]
        self._command(lambda: self._set_held(resumed, False))

    def done(self, chunk: Chunk) -> None:
        """The chunk is finished with: it makes room for others."""
        run = self._current.get((chunk.topic, chunk.partition))
        if run is not None and run.generation == chunk.generation:
            run.done_records += len(chunk.records)
            run.done_bytes += chunk.value_bytes
            self._room.set()

    def is_current(self, chunk: Chunk) -> bool:
        """Whether the partition is still read under the assignment that the chunk came from."""
        run = self._current.get((chunk.topic, chunk.partition))
        return run is not None and run.generation == chunk.generation

    @property
    def unfinished_records(self) -> int:
        return sum(run.records for run in list(self._current.values()))

    @property
    def unfinished_bytes(self) -> int:
        """Of values; like `unfinished_records` it may be asked for in any thread."""
        return sum(run.bytes for run in list(self._current.values()))

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset that the next record of each partition will have, asked of the broker now.

        Raises `LaneTrouble` when no answer comes within 10 seconds.
        """
        # A client of its own: a confluent_kafka.Consumer that one thread polls hangs when another asks it something.
        if self._admin is None:
            names = {"bootstrap.servers": self._brokers, "client.id": f"tallygate-{self.name}-ends", "log_level": 2}
            self._admin = AdminClient({**names, **self._client_config})
        asked = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
        answers = self._admin.list_offsets(asked, request_timeout=QUERY_SECONDS)
        ends = {}
        for partition, answer in answers.items():
            try:
                ends[partition.topic, partition.partition] = (await asyncio.wrap_future(answer)).offset
            except KafkaException as error:
                where = f"{partition.topic} partition {partition.partition}"
                raise LaneTrouble(f"{where}: cannot ask for its end: {error.args[0].str()}") from error
        return ends

    def close(self) -> None:
        """Stops the thread and leaves the broker; nothing is delivered afterwards. Blocks, for about `POLL_SECONDS`."""
        self._current.clear()
        self._closing = True
        self._room.set()
        self._thread.join(CLOSE_SECONDS)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._room.set()

    def _deliver(self, chunks: list[Chunk]) -> None:
        wanted = [chunk for chunk in chunks if self.is_current(chunk)]
        if wanted:
            self._deliver_to(wanted)

    # The thread's side.

    def _open(self) -> Consumer:
        return Consumer(
            {
                **consumer_config(self._brokers, self._group),
                "client.id": f"tallygate-{self.name}",
                # A fetch of partitions added later waits for the one under way, so that one must end soon.
                "fetch.wait.max.ms": 100,
                "fetch.max.bytes": 8 << 20,
                "queued.max.messages.kbytes": 8 << 10,
                "error_cb": self._on_client_error,
                **self._client_config,
            }
        )

    def _work(self) -> None:
        try:
            while not self._closing:
                while self._commands:
                    self._commands.popleft()()
                if self._has_room():
                    self._take()
        except LaneTrouble as trouble:
            self._to_loop(self._trouble_to, trouble)
        except Exception as error:  # noqa: BLE001  # whatever it is, the owner hears of it and ends the process
            broken = LaneTrouble(f"lane {self.name} broke: {error!r}")
            broken.__cause__ = error
            self._to_loop(self._trouble_to, broken)
        finally:
            self._consumer.close()
            self._watch.forget(self._watch_name)

    def _take(self) -> None:
        first = self._consumer.poll(POLL_SECONDS)
        if first is None:
            if self._away or self._unseen:
                self._look_around()
            return
        rest = self._consumer.consume(self._limits.records_per_chunk_max - 1, 0)
        chunks = self._cut([first, *rest])
        if chunks:
            self._note_back()
            self._to_loop(self._deliver, chunks)

    def _cut(self, messages: list[Any]) -> list[Chunk]:
        """Records of one round as chunks, each partition's in order."""
        chunks: list[Chunk] = []
        open_chunks: dict[Partition, tuple[_Run, list[Record], int]] = {}
        bytes_max = self._limits.bytes_per_chunk_max
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_message_error(error, message)
                continue
            partition = (message.topic(), message.partition())
            offset = message.offset()
            run = self._runs.get(partition)
            if run is None or offset < run.next_offset:
                continue  # of a dropped assignment, or of the part of a batch before the start offset
            record = self._record(partition, message)
            run.next_offset = offset + 1
            size = len(message)
            _, records, total = open_chunks.get(partition) or (run, [], 0)
            if records and total + size > bytes_max:
                chunks.append(self._chunk(partition, run, records, total))
                records, total = [], 0
            records.append(record)
            open_chunks[partition] = (run, records, total + size)
        for partition, (run, records, total) in open_chunks.items():
            chunks.append(self._chunk(partition, run, records, total))
        return chunks

    @staticmethod
    def _chunk(partition: Partition, run: _Run, records: list[Record], value_bytes: int) -> Chunk:
        run.taken_records += len(records)
        run.taken_bytes += value_bytes
        return Chunk(partition[0], partition[1], records, value_bytes, run.generation)

    def _has_room(self) -> bool:
        """Whether to take more; waits a while for room if there is none.

        The lane waits, rather than pauses, while things get done: a pause throws away what librdkafka has fetched.
        """
        limits = self._limits
        self._room.clear()
        full = []
        records = size = 0
        for partition, run in self._runs.items():
            records += run.records
            size += run.bytes
            if run.stalled:
                if run.records * 2 <= limits.partition_records_max and run.bytes * 2 <= limits.partition_bytes_max:
                    self._set_stalled([partition], False)
            elif run.records >= limits.partition_records_max or run.bytes >= limits.partition_bytes_max:
                full.append(partition)
        if not full and records < limits.lane_records_max and size < limits.lane_bytes_max:
            return True
        if not self._commands and not self._room.wait(STALL_SECONDS):
            self._set_stalled(full, True)
        return False

    def _set_stalled(self, partitions: list[Partition], stalled: bool) -> None:
        for partition in partitions:
            self._runs[partition].stalled = stalled
        self._apply_pauses(partitions)

    def _set_held(self, partitions: list[Partition], held: bool) -> None:
        known = [partition for partition in partitions if partition in self._runs]
        for partition in known:
            self._runs[partition].held = held
        self._apply_pauses(known)

    def _apply_pauses(self, partitions: list[Partition]) -> None:
        for partition in partitions:
            run = self._runs[partition]
            if run.held or run.stalled:
                self._consumer.pause([TopicPartition(*partition)])
            else:
                self._consumer.resume([TopicPartition(*partition)])

    def _assign(self, runs: dict[Partition, _Run]) -> None:
        self._runs.update(runs)
        self._unseen.update(dict.fromkeys(runs, time.monotonic() + ABSENT_SECONDS))
        self._consumer.incremental_assign(
            [TopicPartition(topic, number, run.next_offset) for (topic, number), run in runs.items()]
        )

    def _unassign(self, partitions: list[Partition]) -> None:
        for partition in partitions:
            del self._runs[partition]
            self._unseen.pop(partition, None)
        self._consumer.incremental_unassign([TopicPartition(*partition) for partition in partitions])

    def _on_client_error(self, error: KafkaError) -> None:
        """librdkafka's news about the whole client; runs in the thread, inside `poll`."""
        if error.fatal():
            raise LaneTrouble(f"lane {self.name}: {error.str()}")
        if error.code() in AWAY:
            self._away = True
            self._watch.away(self._watch_name, error.str())

    def _on_message_error(self, error: KafkaError, message: Any) -> None:
        code = error.code()
        if code in PASSING or (error.retriable() and not error.fatal()):
            logger.debug("lane %s: %s", self.name, error.str())
            return
        run = self._runs.get((message.topic(), message.partition()))
        raise trouble_of(error, message, run.next_offset if run else None)

    def _look_around(self) -> None:
        """While nothing comes: is the broker back, and do the partitions exist? librdkafka does not tell."""
        topic = next((topic for topic, _ in (*self._unseen, *self._runs)), None)
        try:
            found = self._consumer.list_topics(topic, timeout=PROBE_SECONDS).topics
        except KafkaException:
            return
        self._note_back()
        for partition, due in list(self._unseen.items()):
            if partition[0] == topic and partition[1] in found[topic].partitions:
                del self._unseen[partition]
            elif partition[0] == topic and time.monotonic() > due:
                raise absence_of(*partition)

    def _note_back(self) -> None:
        if self._away:
            self._away = False
            self._watch.back(self._watch_name)

    def _to_loop(self, call: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, argument)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            self._closing = True  # nobody is left to deliver to
