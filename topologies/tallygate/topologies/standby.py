"""Warm standby: a worker that reads the journals of partitions it does not own into its local tables.

A table is a cache of the journal, so whoever reads the journal through the fence may keep one. When the group gives the
partition to this worker, its owner finds a table that lacks only the tail. One thread reads all of them, in small
portions, since the partitions that are owned share the interpreter with it. What goes wrong here is never the owners'
trouble: a table that cannot be kept is left to the next opening, which builds it anew if it must.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection
from queue import Empty, SimpleQueue
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tallygate.connectors.consuming import PASSING, consumer_config, record_of
from tallygate.pipeline.fence import Verdict
from tallygate.pipeline.replay import forgotten_range
from tallygate.schemas.journal import PARTITION_KEY, PartitionRow, decode_record
from tallygate.schemas.topics import JOURNAL
from tallygate.topologies.follower import Follower
from tallygate.topologies.settings import Settings
from tallygate.topologies.tables import RocksTable, TableBroken, cannot_resume

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
ASK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 1.0
#: How many records are read, and how many writes go into a table, at once: less than half a millisecond.
PORTION: Final = 200


class _Followed:
    """A partition's table on its way along the journal. Belongs to the thread."""

    def __init__(self, partition: int, table: RocksTable, end: int, resume_ms_max: int) -> None:
        self.partition = partition
        self.table = table
        self.end = end  # of the journal, when this began
        self.caught_up = False
        self.sound_at = time.monotonic()  # when the table was last known to lack nothing but the tail
        self.follower = Follower(table, self._table_time)
        self._resume_ms_max = resume_ms_max
        self._resumed_ms = table.position.at
        self._row: bytes | None = None
        self._remembered_from = b""

    def _table_time(self) -> int:
        """A table is no younger than when it was left, until it has been read to the end: tombstones may be gone."""
        return time.time_ns() // 1_000_000 if self.caught_up or not self._resumed_ms else self._resumed_ms

    @property
    def too_old(self) -> bool:
        return (time.monotonic() - self.sound_at) * 1000 > self._resume_ms_max

    def take(self, message: Any) -> None:
        record = record_of((JOURNAL, self.partition), message)
        if self.follower.take(record) is Verdict.ACCEPTED and record.key == PARTITION_KEY:
            self._row = record.value
        if self.follower.pending_writes >= PORTION:
            self.flush()

    def at_end(self) -> None:
        self.sound_at = time.monotonic()
        if not self.caught_up:
            self.caught_up = True
            logger.info("partition %d: standby, up to offset %d", self.partition, self.end)

    def flush(self) -> None:
        """Writes what was read; ids that are past remembering go as they do at the partition's owner."""
        gone = None
        if self._row is not None:
            row = decode_record(self._row)
            assert isinstance(row, PartitionRow)
            gone = forgotten_range(row.stream_at)
            self._row = None
            if gone[1] == self._remembered_from:
                gone = None
            else:
                self._remembered_from = gone[1]
        self.follower.flush(gone)


class Standby:
    """Follows partitions between `follow` and `release`, which belong to the event loop.

    `open_table` opens the table of a partition; a table older than `resume_ms_max` is built anew.
    """

    def __init__(self, settings: Settings, open_table: Callable[[int], RocksTable], resume_ms_max: int) -> None:
        self._open_table = open_table
        self._resume_ms_max = resume_ms_max
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._followed: dict[int, _Followed] = {}
        self._wanted: set[int] = set()  # the thread's, as all from here on
        self._again_at = 0.0
        self._closing = threading.Event()
        self._consumer = Consumer(
            {
                **consumer_config(settings.kafka_brokers, settings.group),
                "client.id": "tallygate-standby",
                "enable.partition.eof": True,
                "fetch.max.bytes": 4 << 20,
                "queued.max.messages.kbytes": 4 << 10,
                "error_cb": lambda error: None,
                **settings.kafka_config,
            }
        )
        self._thread = threading.Thread(target=self._work, name="standby", daemon=True)
        self._thread.start()

    def follow(self, partitions: Collection[int]) -> None:
        self._commands.put(lambda: self._wanted.update(partitions))

    async def release(self, partition: int) -> None:
        """Returns when the partition's table is closed, and holds what has been read."""
        loop = asyncio.get_running_loop()
        released: asyncio.Future[None] = loop.create_future()

        def told() -> None:
            if not released.done():
                released.set_result(None)

        def release() -> None:
            self._wanted.discard(partition)
            self._leave(partition)
            loop.call_soon_threadsafe(told)

        self._commands.put(release)
        await released

    @property
    def caught_up(self) -> int:
        """How many partitions lack nothing but the tail."""
        return sum(each.caught_up for each in list(self._followed.values()))

    def close(self) -> None:
        """Closes the tables; blocks for about `POLL_SECONDS`."""
        self._closing.set()
        self._thread.join(ASK_SECONDS + 10)

    # The thread.

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                self._obey()
                self._join()
                self._read()
        except Exception as error:  # owners go on without a standby
            logger.warning("the standby has ended: %s", error)
            logger.debug("what ended it", exc_info=error)
        finally:
            for partition in list(self._followed):
                self._leave(partition)
            self._consumer.close()
        while not self._closing.is_set():  # nobody waits for it in vain
            self._obey()
            self._closing.wait(POLL_SECONDS)

    def _obey(self) -> None:
        try:
            while True:
                self._commands.get_nowait()()
        except Empty:
            return

    def _join(self) -> None:
        """Begins with the next partition that is wanted and not followed yet; a broker that is away is asked again."""
        missing = self._wanted - self._followed.keys()
        if not missing or time.monotonic() < self._again_at:
            return
        partition = min(missing)
        try:
            place = TopicPartition(JOURNAL, partition)
            begin, end = self._consumer.get_watermark_offsets(place, timeout=ASK_SECONDS)
            table = self._open_table(partition)
        except (KafkaException, TableBroken) as error:
            logger.debug("partition %d cannot be followed now: %s", partition, error)
            self._again_at = time.monotonic() + AGAIN_SECONDS
            return
        why = cannot_resume(table.position, begin, end, time.time_ns() // 1_000_000, self._resume_ms_max)
        if why:
            table.wipe(why)
        followed = self._followed[partition] = _Followed(partition, table, end, self._resume_ms_max)
        start = max(begin, table.position.offset)
        if start >= end:
            followed.at_end()
        self._consumer.incremental_assign([TopicPartition(JOURNAL, partition, start)])

    def _read(self) -> None:
        first = self._consumer.poll(POLL_SECONDS)
        if first is None:
            return
        touched: dict[int, _Followed] = {}
        for message in [first, *self._consumer.consume(PORTION - 1, 0)]:
            followed = self._followed.get(message.partition())
            if followed is None:
                continue
            error = message.error()
            try:
                if error is None:
                    followed.take(message)
                    touched[followed.partition] = followed
                elif error.code() == KafkaError._PARTITION_EOF:
                    followed.at_end()
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    self._leave(followed.partition)  # cut back; `_join` sees to it
                elif error.code() not in PASSING and not error.retriable():
                    raise KafkaException(error)
            except TableBroken as broken:
                self._give_up(followed.partition, broken)
        for followed in touched.values():
            if followed.partition in self._followed:
                self._flush(followed)

    def _flush(self, followed: _Followed) -> None:
        try:
            if followed.too_old:
                followed.table.wipe("its standby was held up for so long that the journal may have dropped tombstones")
                self._leave(followed.partition)
            else:
                followed.flush()
        except TableBroken as broken:
            self._give_up(followed.partition, broken)

    def _give_up(self, partition: int, broken: TableBroken) -> None:
        logger.warning("%s; partition %d is not followed any more", broken, partition)
        self._wanted.discard(partition)
        self._leave(partition)

    def _leave(self, partition: int) -> None:
        followed = self._followed.pop(partition, None)
        if followed is not None:
            self._consumer.incremental_unassign([TopicPartition(JOURNAL, partition)])
            followed.table.close()
