"""The journal as the sink reads it: every partition, from positions kept elsewhere, no record unseen.

Compaction does not move the log's start, it makes holes. The journal's writers leave none (no transactions, one batch
at a time), so offsets that do not follow each other are exactly what compaction or retention took away before the sink
had read it, entries perhaps among it. That cannot happen to a sink that lags less than the journal's
`min.compaction.lag.ms`: alert when `tallygate_sink_behind_seconds` passes half of it. Where it has happened, the sink
stops, and goes on only when told to accept the gap: balances and hourly usage are absolute and come right with the rows
that are left, postings and decisions of the gap are missing for good.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from tallygate.connectors.clickhouse import Position
from tallygate.connectors.consuming import AWAY, PASSING, consumer_config
from tallygate.connectors.kafka_security import FORBIDDEN, Heard, said_of
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas.topics import GROUP_SINK, HEADER_SEQ, HEADER_TERM, JOURNAL
from tallygate.topologies.sink_rows import UnreadableRecord

logger = logging.getLogger(__name__)

_QUERY_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0
_QUEUE_KIB: Final = 16 << 10

#: Takes an accepted record: partition, offset, term, seq, key, value.
Take = Callable[[int, int, int, int, bytes, bytes | None], None]


class JournalTrouble(Exception):
    """The journal cannot be read on without losing or inventing records; one clear line."""


class Track:
    """How far one partition is read."""

    __slots__ = ("at", "fence", "next_offset", "partition", "saved")

    def __init__(self, partition: int, position: Position) -> None:
        self.partition = partition
        self.next_offset = position.next_offset
        self.fence = Fence(position.term, position.seq)
        self.saved = position
        self.at = 0  # the last record's timestamp, ms

    @property
    def position(self) -> Position:
        return Position(self.next_offset, self.fence.term, self.fence.seq)


class JournalTopic(NamedTuple):
    """`id` tells a journal from every other, also from one of the same name made anew."""

    id: str
    partitions: list[int]


def find_journal(client_config: Mapping[str, Any], stop: threading.Event) -> JournalTopic | None:
    """The journal of a cluster, however long it takes to appear; None when told to stop. Raises `JournalTrouble`."""
    brokers = client_config["bootstrap.servers"]
    heard = Heard()
    admin = AdminClient({**client_config, "error_cb": heard, "log_level": 2})
    said = ""
    while not stop.is_set():
        try:
            found = admin.describe_topics(TopicCollection([JOURNAL]), request_timeout=_QUERY_SECONDS)
            topic = found[JOURNAL].result()
        except KafkaException as error:
            admin.poll(0)  # delivers what was heard
            if heard.refused:
                raise JournalTrouble(f"Kafka at {brokers} does not let this client in: {heard.refused}") from error
            if error.args[0].code() in FORBIDDEN:
                raise JournalTrouble(f"{JOURNAL} on {brokers}: {said_of(error.args[0])}") from error
            said = _say_once(said, _waiting_line(error.args[0], brokers))
            stop.wait(_RETRY_SECONDS)
            continue
        if said:
            logger.warning("sink: the journal is there")
        return JournalTopic(str(topic.topic_id), sorted(partition.id for partition in topic.partitions))
    return None


class JournalReader:
    """Reads partitions of the journal; belongs to one thread. A broker that is away is waited for, with one message."""

    def __init__(self, client_config: Mapping[str, Any], *, accept_gap: bool, stop: threading.Event) -> None:
        self.brokers = str(client_config["bootstrap.servers"])
        self.tracks: dict[int, Track] = {}
        self.stale_records = 0
        self.missing_records = 0
        self.away = False
        self._headers: Any = ()
        self._term_and_seq = 0, 0
        self._accept_gap = accept_gap
        self._stop = stop
        self._consumer = Consumer(
            {
                **consumer_config(self.brokers, GROUP_SINK),
                "client.id": "tallygate-sink",
                # Nobody waits for a single record: under a few requests a second each, every answered fetch of the sink
                # would cost broker and sink as much as the request itself.
                "fetch.min.bytes": 1 << 20,
                "fetch.wait.max.ms": 250,
                "fetch.max.bytes": 8 << 20,
                "queued.max.messages.kbytes": _QUEUE_KIB,
                "error_cb": self._on_news,
                **client_config,
            }
        )

    def start(self, partitions: Iterable[int], positions: Mapping[int, Position]) -> None:
        """Reads these partitions on from their positions, and from the journal's beginning where there is none."""
        for partition in partitions:
            track = Track(partition, positions.get(partition, Position(0, 0, 0)))
            marks = self._marks(partition)
            if marks is None:
                return
            self._check(track, *marks)
            self.tracks[partition] = track
        self._consumer.assign([TopicPartition(JOURNAL, t.partition, t.next_offset) for t in self.tracks.values()])

    def read(self, take: Take, records_max: int, seconds: float) -> tuple[int, int]:
        """Hands accepted records to `take`, in order within a partition; how many were read, and their bytes."""
        messages = self._consumer.consume(records_max, seconds)
        count = size = 0
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_error(error, message)
                continue
            value = message.value()
            self._judge(message, value, take)
            count += 1
            size += len(value) if value else 0
        if self.away and count:
            self._note_back()
        return count, size

    def probe(self) -> None:
        """While the broker is away: asks whether it is back, since an idle journal brings no records."""
        if self.away:
            try:
                self._consumer.list_topics(JOURNAL, timeout=0.2)
            except KafkaException:
                return
            self._note_back()

    def lags(self) -> Iterable[tuple[int, int]]:
        """Per partition, how many offsets lie between what is read and the journal's end, as last heard."""
        for partition, track in self.tracks.items():
            _, end = self._consumer.get_watermark_offsets(TopicPartition(JOURNAL, partition), cached=True)
            yield partition, max(0, end - track.next_offset)

    def note(self, positions: Mapping[int, Position]) -> None:
        """Tells the group how far the sink is: a hint for lag tools and `tallygate doctor`; nobody reads on there."""
        offsets = [TopicPartition(JOURNAL, partition, p.next_offset) for partition, p in positions.items()]
        self._consumer.commit(offsets=offsets, asynchronous=True)

    def close(self) -> None:
        self._consumer.close()

    def _judge(self, message: Message, value: bytes | None, take: Take) -> None:
        partition, offset, key = message.partition(), message.offset(), message.key()
        assert partition is not None
        assert offset is not None
        track = self.tracks[partition]
        if offset < track.next_offset:
            return
        if offset > track.next_offset:
            self._miss(track, offset)
        headers = message.headers()
        if headers != self._headers:  # those of one batch are alike, and read once
            try:
                by_name = dict(headers or ())
                self._term_and_seq = int(by_name[HEADER_TERM]), int(by_name[HEADER_SEQ])
                self._headers = headers
            except (KeyError, ValueError, TypeError):
                key = None
        if key is None:
            raise JournalTrouble(
                f"{JOURNAL} partition {partition} offset {offset} is no journal record: something else writes there"
            )
        term, seq = self._term_and_seq
        verdict = track.fence.judge(term, seq, key)
        track.next_offset = offset + 1
        track.at = message.timestamp()[1]
        if verdict is Verdict.ACCEPTED:
            try:
                take(partition, offset, term, seq, key, value)
            except UnreadableRecord as error:
                raise JournalTrouble(
                    f"{JOURNAL} partition {partition} offset {offset} cannot be read ({error}): "
                    "if a newer worker wrote it, upgrade the sink"
                ) from error
        elif verdict is Verdict.STALE:
            self.stale_records += 1

    def _check(self, track: Track, begin: int, end: int) -> None:
        if track.next_offset > end:
            raise JournalTrouble(
                f"{JOURNAL} partition {track.partition} ends at {end}, before the sink's position {track.next_offset}: "
                "it was cut back or made anew; the figures belong to a journal that is gone, begin with a new database"
            )
        if track.next_offset < begin:
            self._miss(track, begin)

    def _miss(self, track: Track, offset: int) -> None:
        """Offsets up to `offset` are not there any more."""
        gap = f"{JOURNAL} partition {track.partition}: the records from {track.next_offset} to {offset - 1} are gone"
        if not self._accept_gap:
            raise JournalTrouble(
                f"{gap}, compacted or deleted before the sink read them; postings and decisions among them would be "
                "missing. To go on without them: tallygate sink --accept-gap"
            )
        if not self.missing_records:
            logger.warning("sink: %s; going on without them, and without others like them", gap)
        self.missing_records += offset - track.next_offset
        track.next_offset = offset

    def _marks(self, partition: int) -> tuple[int, int] | None:
        said = ""
        while not self._stop.is_set():
            try:
                marks = self._consumer.get_watermark_offsets(TopicPartition(JOURNAL, partition), timeout=_QUERY_SECONDS)
            except KafkaException as error:
                said = _say_once(said, _waiting_line(error.args[0], self.brokers))
                self._stop.wait(_RETRY_SECONDS)
                continue
            if marks is not None:
                return int(marks[0]), int(marks[1])
        return None

    def _on_error(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code in PASSING or (error.retriable() and not error.fatal()):
            return
        partition = message.partition()
        if code == KafkaError._AUTO_OFFSET_RESET and partition in self.tracks:
            track = self.tracks[partition]
            marks = self._marks(partition)
            if marks is not None:
                self._check(track, *marks)
                self._consumer.seek(TopicPartition(JOURNAL, partition, track.next_offset))
            return
        raise JournalTrouble(f"{JOURNAL} partition {partition}: {said_of(error)}")

    def _on_news(self, error: KafkaError) -> None:
        """librdkafka's news about the whole client; arrives inside its calls."""
        if error.fatal():
            raise JournalTrouble(f"Kafka at {self.brokers}: {error.str()}")
        if error.code() in AWAY and self.tracks and not self.away:
            self.away = True
            logger.warning("sink: Kafka at %s is away (%s); waiting", self.brokers, error.str())

    def _note_back(self) -> None:
        self.away = False
        logger.warning("sink: Kafka at %s is back", self.brokers)


def _say_once(said: str, line: str) -> str:
    if line != said:
        logger.warning("sink: %s", line)
    return line


def _waiting_line(error: KafkaError, brokers: str) -> str:
    if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return f"Kafka at {brokers} has no topic {JOURNAL}; waiting for `tallygate topics` to declare it"
    return f"Kafka at {brokers} does not answer ({error.str()}); waiting"


def behind_seconds(track: Track, lag: int) -> float:
    """How old the last record read is, where others wait behind it."""
    return max(0.0, time.time() - track.at / 1000) if lag and track.at else 0.0
