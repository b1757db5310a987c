"""The relay: decisions, postings and alerts of the accepted journal, published for everybody else, at least once.

It runs inside the sink and has no position of its own: the sink stores how far it has come only when the broker has
confirmed every record up to there. So after a crash records may come again, with the same id and the same bytes, and
none is missing. A customer's records lie in one partition, in the journal's order.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tallygate.connectors.kafka_security import said_of
from tallygate.schemas.journal import Entry, ShownEntry
from tallygate.schemas.published import encode_published
from tallygate.schemas.topics import HEADER_RECORD_ID, RECORD_BYTES_MAX
from tallygate.topologies.relay_records import TOPICS, Relayed
from tallygate.topologies.sink_metrics import SinkMetrics

logger = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 0.2
_QUERY_SECONDS: Final = 5.0
_SAY_SECONDS: Final = 2.0
_STOP_SECONDS: Final = 5.0
_ABSENT: Final = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART})


class RelayTrouble(Exception):
    """A record cannot be published; one clear line."""


class Stopped(Exception):
    """Told to stop while waiting."""


class Relay:
    """Publishes entries; belongs to one thread. Brokers that are away are waited for. Methods raise RelayTrouble and
    Stopped."""

    def __init__(
        self, client_config: Mapping[str, Any], kinds: Iterable[str], stop: threading.Event, metrics: SinkMetrics
    ) -> None:
        self._topics = {kind: topic for kind, topic in TOPICS.items() if kind in kinds}
        self._counts = {kind: metrics.relayed.labels(topic) for kind, topic in self._topics.items()}
        self._brokers = str(client_config["bootstrap.servers"])
        self._stop = stop
        self._metrics = metrics
        self._failed = ""
        self._producer = Producer(
            {
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.max.bytes": RECORD_BYTES_MAX,
                "message.timeout.ms": 0,  # no time limit: a broker that is away comes back
                "partitioner": "murmur2_random",
                "log_level": 2,
                "error_cb": lambda error: None,
                **client_config,
                "delivery.report.only.error": True,
                "on_delivery": self._delivered,
            }
        )

    def wait_for_topics(self) -> None:
        """Returns when every topic is there."""
        said = ""
        while missing := self._missing():
            if missing != said:
                logger.warning("sink: %s", missing)
                said = missing
            self._metrics.note_error("relay")
            if self._stop.wait(1.0):
                raise Stopped

    def publish(self, entry: Entry | ShownEntry, partition: int, offset: int, term: int, seq: int) -> None:
        """Hands an entry's records over; `flush` returns when they are there."""
        relayed = Relayed(entry, partition, offset, term, seq)
        key = entry.customer.encode()
        for kind, topic in self._topics.items():
            count = 0
            for record in relayed.of(kind):
                self._produce(topic, key, encode_published(record), record.entry.record_id.encode())
                count += 1
            if count:
                self._counts[kind].inc(count)

    def flush(self) -> None:
        """Returns when the broker has confirmed everything."""
        began, said = time.monotonic(), False
        stopped = 0.0
        while self._producer.flush(_PAUSE_SECONDS):
            self._check()
            now = time.monotonic()
            if now - began > _SAY_SECONDS and not said:
                logger.warning("sink: Kafka at %s does not take what is to be relayed; waiting", self._brokers)
                said = True
            self._metrics.note_error("relay")
            if self._stop.is_set():
                stopped = stopped or now
                if now - stopped > _STOP_SECONDS:
                    raise Stopped
        self._check()
        if said:
            logger.warning("sink: what is to be relayed is in Kafka again")

    def close(self) -> None:
        """Gives up what is under way: it will come again."""
        self._producer.purge()
        self._producer.flush(_PAUSE_SECONDS)

    def _produce(self, topic: str, key: bytes, value: bytes, id: bytes) -> None:
        while True:
            self._check()
            try:
                self._producer.produce(topic, value, key, headers=[(HEADER_RECORD_ID, id)])
            except BufferError:
                self._producer.poll(_PAUSE_SECONDS)
                if self._stop.is_set():
                    raise Stopped from None
            except KafkaException as error:
                raise RelayTrouble(self._line(topic, error.args[0])) from error
            else:
                return

    def _missing(self) -> str:
        try:
            found = self._producer.list_topics(timeout=_QUERY_SECONDS).topics
        except KafkaException as error:
            return f"Kafka at {self._brokers} does not answer ({error.args[0].str()}); waiting"
        missing = [topic for topic in self._topics.values() if topic not in found]
        if not missing:
            return ""
        return f"Kafka at {self._brokers} has no topic {missing[0]}; waiting for `tallygate topics` to declare it"

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and not self._failed:
            self._failed = self._line(message.topic() or "", error)

    def _check(self) -> None:
        if self._failed:
            raise RelayTrouble(self._failed)

    def _line(self, topic: str, error: KafkaError) -> str:
        advice = ": run `tallygate topics`" if error.code() in _ABSENT else ""
        return f"{topic} on {self._brokers} takes no records ({said_of(error)}){advice}"
