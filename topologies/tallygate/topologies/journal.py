"""The journal in Kafka: one batch appended is one transition, which counts once its place in the log is known.

The writer is aiokafka's, since it alone lets a caller close a batch: the broker appends it whole or not at all. It is
idempotent, so its own retries never write a batch twice and it goes on through a broker's restart. What others have
written comes through a `Lane`, and recovery reads with `replay`, both librdkafka's.
"""

import asyncio
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from tallygate.connectors.consuming import LaneTrouble, broker_watch, record_of, replay
from tallygate.connectors.kafka_security import mechanism_of, protocol_of, ssl_context
from tallygate.connectors.lanes import Lane
from tallygate.schemas.records import Chunk, Record
from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM, JOURNAL, JOURNAL_BATCH_BYTES_MAX
from tallygate.topologies.cluster import Cluster, ClusterTrouble
from tallygate.topologies.ports import AppendUnknown, Pair
from tallygate.topologies.settings import Settings

Answered = asyncio.Future[Any]

#: More would not be faster, since they share one interpreter, and each reads tens of MB ahead.
REPLAYS_AT_ONCE: Final = 2
_AGAIN_SECONDS: Final = 0.5
_REFUSALS: Final = (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)


def producer_options(kafka_config: Mapping[str, str]) -> dict[str, Any]:
    """aiokafka's arguments for the same connection as librdkafka's options describe."""
    protocol = protocol_of(kafka_config)
    options: dict[str, Any] = {"security_protocol": protocol}
    if client_id := kafka_config.get("client.id"):
        options["client_id"] = client_id
    if protocol.startswith("SASL"):
        options["sasl_mechanism"] = mechanism_of(kafka_config)
        options["sasl_plain_username"] = kafka_config["sasl.username"]
        options["sasl_plain_password"] = kafka_config["sasl.password"]
    if protocol.endswith("SSL"):
        options["ssl_context"] = ssl_context(kafka_config)
    return options


class JournalWriter:
    """Appends batches; one for all partitions of a worker."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.append_timeout_ms / 1000
        self._watch = broker_watch(settings.kafka_brokers)
        self._options = {
            "bootstrap_servers": settings.kafka_brokers,
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 0,
            "max_batch_size": JOURNAL_BATCH_BYTES_MAX,
            "max_request_size": 2 * JOURNAL_BATCH_BYTES_MAX,
            "request_timeout_ms": settings.append_timeout_ms,
            "retry_backoff_ms": 20,
            **producer_options(settings.kafka_config),
        }

    async def start(self) -> None:
        """Connects; waits for brokers that are away."""
        while True:
            self._producer = AIOKafkaProducer(**self._options)
            try:
                await self._producer.start()
            except KafkaConnectionError as error:
                self._watch.away("journal writer", str(error))
                await self.stop()
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                self._watch.back("journal writer")
                return

    async def append(self, partition: int, records: Sequence[Pair], term: int, seq: int) -> Answered:
        """Sends all records as one batch; the future is done when the broker has answered."""
        batch = self._producer.create_batch()
        headers = _headers(term, seq)
        for key, value in records:
            taken = batch.append(timestamp=None, key=key, value=value, headers=headers)
            assert taken is not None, "the owner keeps its batches below the limit"
        batch.close()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answered: Answered = await self._producer.send_batch(batch, JOURNAL, partition=partition)
                return answered
        except (KafkaError, TimeoutError) as error:
            raise append_trouble(partition, len(records), error, self._timeout_seconds) from error

    async def stop(self) -> None:
        """Leaves the broker. Nothing is in flight, unless the process is ending for a reason of its own."""
        try:
            async with asyncio.timeout(1):
                await self._producer.stop()
        except TimeoutError:
            return


def append_trouble(partition: int, count: int, error: BaseException, seconds: float) -> Exception:
    """`AppendUnknown`, or `ClusterTrouble` where the broker said no and will say so again."""
    if isinstance(error, _REFUSALS):
        return ClusterTrouble(
            f"{JOURNAL} partition {partition}: the broker refuses an append of {count} records "
            f"({error}): do its settings fit (`tallygate topics` compares them), and may this worker write it?"
        )
    return AppendUnknown(
        f"journal partition {partition}: an append of {count} records was not answered ({_text(error, seconds)})"
    )


class _Own(msgspec.Struct, frozen=True):
    """A batch that was sent: its number of records, its last record, the headers of all, and the broker's answer."""

    count: int
    last: Pair
    headers: list[tuple[str, bytes]]
    answered: Answered

    def ends_at(self, message: Any) -> bool:
        return (message.key(), message.value()) == self.last and message.headers() == self.headers


class JournalReader:
    """Reads the journals of all partitions of a worker, each on from where its owner wants it.

    The broker's answer to an append says where the batch lies. If that is where the reader stands, nothing lies
    between what it has read and the batch, and what the batch holds is known: so it has been read. Only where
    somebody else's records lie before it, or the broker does not know the place any more, a lane reads the log.
    Fetching each batch back cost a request to the broker, two threads' turns, and 2 µs a record.
    """

    def __init__(self, settings: Settings, trouble: Callable[[LaneTrouble], None]) -> None:
        self._settings = settings
        self._timeout_seconds = settings.append_timeout_ms / 1000
        self._next: dict[int, int] = {}
        self._own: dict[int, _Own] = {}
        self._arrived: dict[int, deque[Chunk]] = {}  # of the partitions that the lane reads
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._replaying = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self._lane = Lane(
            settings.kafka_brokers,
            name="journal",
            group=settings.group,
            deliver=self._deliver,
            trouble=trouble,
            loop=asyncio.get_running_loop(),
            client_config=settings.kafka_config,
            record=_message,
        )

    def follow(self, partition: int, begin: int) -> None:
        self._next[partition] = begin

    def leave(self, partition: int) -> None:
        self._stop_lane(partition)
        self._next.pop(partition, None)
        self._own.pop(partition, None)

    def expect(self, partition: int, records: Sequence[Pair], term: int, seq: int, answered: Answered) -> None:
        """This batch was sent: `read` goes on until its last record.

        A batch is in the log whole or not at all, so of it `read` leaves out all but the last record, or raises why it
        was not taken.
        """
        self._own[partition] = _Own(len(records), records[-1], _headers(term, seq), answered)

    async def read(self, partition: int) -> Sequence[Record]:
        """The next records of a partition, after an append, maybe none. Raises `AppendUnknown` when none comes in time,
        and `ClusterTrouble` when the journal was cut back.
        """
        own, place = self._own[partition], (JOURNAL, partition)
        if partition not in self._arrived:
            begin, answer = self._next[partition], await self._answer(partition, own)
            if answer.offset == begin:
                self._next[partition] = begin + own.count
                last = begin + own.count - 1
                at = answer.timestamp if answer.timestamp > 0 else time.time_ns() // 1_000_000
                return [Record(*place, last, at, *own.last, tuple(own.headers))]
            if 0 <= answer.offset < begin:
                raise ClusterTrouble(
                    f"{JOURNAL} partition {partition} was cut back: an append is at offset {answer.offset}, and "
                    f"everything before {begin} was there already"
                )
            self._arrived[partition] = deque()
            self._lane.start({place: begin})
        messages = await self._fetched(partition)
        last = next((each.offset() for each in reversed(messages) if own.ends_at(each)), -1)
        if last >= 0:
            self._next[partition] = messages[-1].offset() + 1
            self._stop_lane(partition)
        return [record_of(place, each) for each in messages if not last - own.count < each.offset() < last]

    async def _answer(self, partition: int, own: _Own) -> Any:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(own.answered)
        except (KafkaError, TimeoutError) as error:
            raise append_trouble(partition, own.count, error, self._timeout_seconds) from error

    async def _fetched(self, partition: int) -> list[Any]:
        arrived = self._arrived[partition]
        if not arrived:
            waiting = self._waiting[partition] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await waiting
            except TimeoutError:
                raise AppendUnknown(
                    f"journal partition {partition}: what was appended did not come back within "
                    f"{self._timeout_seconds:g} s"
                ) from None
            finally:
                del self._waiting[partition]
        chunk = arrived.popleft()
        self._lane.done(chunk)
        return cast(list[Any], chunk.records)

    def _stop_lane(self, partition: int) -> None:
        if self._arrived.pop(partition, None) is not None:
            self._lane.drop([(JOURNAL, partition)])

    async def replay(self, partition: int, begin: int, end: int, take: Callable[[Record], None]) -> None:
        """Hands `[begin, end)` to `take`, in a thread of its own, which is over when this is."""
        cancelled = threading.Event()

        def run() -> None:
            records = replay(
                self._settings.kafka_brokers,
                (JOURNAL, partition),
                begin,
                end,
                group=self._settings.group,
                client_config=self._settings.kafka_config,
            )
            for record in records:
                if cancelled.is_set():
                    return
                take(record)
            _give_memory_back()

        async with self._replaying:
            thread = asyncio.ensure_future(asyncio.to_thread(run))
            try:
                await asyncio.shield(thread)
            except asyncio.CancelledError:
                cancelled.set()
                await thread
                raise

    def close(self) -> None:
        self._lane.close()

    def _deliver(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._arrived[chunk.partition].append(chunk)
            waiting = self._waiting.get(chunk.partition)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)


class KafkaJournal:
    """`ports.Journal` over Kafka."""

    def __init__(self, partition: int, writer: JournalWriter, reader: JournalReader, cluster: Cluster) -> None:
        self._partition = partition
        self._writer = writer
        self._reader = reader
        self._cluster = cluster
        self._left = False

    async def bounds(self) -> tuple[int, int]:
        return await self._cluster.bounds(JOURNAL, self._partition)

    async def replay(self, begin: int, end: int, take: Callable[[Record], None]) -> None:
        if begin < end:
            await self._reader.replay(self._partition, begin, end, take)

    def follow(self, begin: int) -> None:
        if self._left:  # an opening goes on for a moment after its partition was taken away; it is cancelled anyway
            raise asyncio.CancelledError
        self._reader.follow(self._partition, begin)

    async def append(self, records: Sequence[Pair], term: int, seq: int) -> None:
        answered = await self._writer.append(self._partition, records, term, seq)
        self._reader.expect(self._partition, records, term, seq, answered)

    async def read(self) -> Sequence[Record]:
        return await self._reader.read(self._partition)

    def leave(self) -> None:
        self._left = True
        self._reader.leave(self._partition)


def _headers(term: int, seq: int) -> list[tuple[str, bytes]]:
    return [(HEADER_TERM, b"%d" % term), (HEADER_SEQ, b"%d" % seq)]


def _give_memory_back() -> None:
    """What a replay has used is free, and glibc would keep it, in an arena for each thread that took part."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _message(place: tuple[str, int], message: Any) -> Any:
    return message


def _text(error: BaseException, seconds: float) -> str:
    return f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else str(error) or repr(error)
