"""What our librdkafka consumers have in common, and `replay`: a range of one partition, as fast as it comes.

The settings say what Tallygate expects of the log: nothing is committed, checksums are checked, and an offset that the
log does not hold is an error, never a silent jump to another one.
"""

import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from confluent_kafka import Consumer, KafkaError, TopicPartition

from tallygate.connectors.kafka_security import said_of
from tallygate.schemas.records import Record

logger = logging.getLogger(__name__)

Partition: TypeAlias = tuple[str, int]  # topic, number

#: A partition that was just made, or whose broker is just back, has no leader that knows so, for a moment.
ELECTING: Final = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError._NOENT,  # an AdminClient's word for a partition without a leader
    }
)
#: librdkafka gets over these itself; they reach us only as news.
PASSING: Final = ELECTING | frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
        KafkaError._PARTITION_EOF,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
_ABSENT: Final = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART})
AWAY: Final = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL})


class LaneTrouble(Exception):
    """Reading cannot go on without losing or inventing records. The owner ends the process; the log is intact."""


class BrokerWatch:
    """Says once when a broker is away, and once when it is back, however many clients notice."""

    def __init__(self, brokers: str) -> None:
        self._brokers = brokers
        self._missing: set[str] = set()
        self._lock = threading.Lock()

    def away(self, client: str, reason: str) -> None:
        with self._lock:
            if not self._missing:
                logger.warning("broker %s is away (%s); waiting", self._brokers, reason)
            self._missing.add(client)

    def back(self, client: str) -> None:
        with self._lock:
            if client in self._missing:
                self._missing.remove(client)
                if not self._missing:
                    logger.warning("broker %s is back", self._brokers)

    def forget(self, client: str) -> None:
        """The client is closed, whatever it knew."""
        with self._lock:
            self._missing.discard(client)


@functools.cache
def broker_watch(brokers: str) -> BrokerWatch:
    """The process's one watch of these brokers."""
    return BrokerWatch(brokers)


def consumer_config(brokers: str, group: str) -> dict[str, Any]:
    """What every consumer here has in common. It commits nothing, and a missing offset is an error, never a jump."""
    return {
        "bootstrap.servers": brokers,
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_uncommitted",
        "check.crcs": True,
        "fetch.min.bytes": 1,
        "fetch.queue.backoff.ms": 1,
        "socket.nagle.disable": True,
        "reconnect.backoff.max.ms": 1000,
        # Errors come through callbacks, each once and in our words; librdkafka's log would repeat them on stderr.
        "log_level": 2,
    }


def replay(
    brokers: str,
    partition: Partition,
    start: int,
    end: int,
    *,
    group: str,
    patience_seconds: float = 30.0,
    client_config: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """The records of one partition with offsets in `[start, end)`, in order; for a thread, it blocks.

    `end` must not be beyond the log's end. Offsets that compaction has removed are simply not there. Raises
    `LaneTrouble` when nothing has come for `patience_seconds`, or when the log begins after `start`.
    """
    if start >= end:
        return
    topic, number = partition
    consumer = Consumer(
        {
            **consumer_config(brokers, group),
            "enable.partition.eof": True,
            "fetch.message.max.bytes": 8 << 20,
            "fetch.max.bytes": 16 << 20,
            "queued.max.messages.kbytes": 32 << 10,
            **(client_config or {}),
        }
    )
    try:
        consumer.assign([TopicPartition(topic, number, start)])
        due = time.monotonic() + patience_seconds
        while True:
            first = consumer.poll(0.1)
            if first is None:
                if time.monotonic() > due:
                    raise LaneTrouble(
                        f"{topic} partition {number}: no record below offset {end} came for {patience_seconds:g} s; "
                        f"is {brokers} there?"
                    )
                continue
            before = start
            for message in [first, *consumer.consume(4095, 0)]:
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF and message.offset() >= end:
                        return
                    if error.code() not in PASSING and not error.retriable():
                        raise trouble_of(error, message, start)
                    continue
                offset = message.offset()
                if offset >= end:
                    return
                if offset >= start:
                    yield record_of(partition, message)
                    start = offset + 1
            if start > before:
                due = time.monotonic() + patience_seconds
            if start >= end:
                return
    finally:
        consumer.close()


def record_of(partition: Partition, message: Any) -> Record:
    headers = message.headers()
    return Record(
        partition[0],
        partition[1],
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple([(name, content or b"") for name, content in headers]) if headers else (),
    )


def trouble_of(error: KafkaError, message: Any, offset: int | None) -> LaneTrouble:
    where = f"{message.topic()} partition {message.partition()}"
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        return LaneTrouble(
            f"{where}: the log holds no offset {offset} (deleted by retention, or the log was cut back), "
            "and reading on from another one would lose or repeat records"
        )
    if error.code() in _ABSENT:
        return absence_of(message.topic(), message.partition())
    return LaneTrouble(f"{where}: {said_of(error)}")


def absence_of(topic: str, number: int) -> LaneTrouble:
    return LaneTrouble(f"{topic} partition {number}: the broker has no such partition; `tallygate topics` creates it")
