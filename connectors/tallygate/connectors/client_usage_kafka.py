"""Usage events over Kafka: columnar batches, one partition each.

A batch carries the buffer's own name, its start as the epoch, and a number that rises; the name is never used again, so
that what a restarted program sends is never taken for what it had sent before. librdkafka's idempotent producer keeps
batches in order and repeats them until the broker has them.
"""

import itertools
import time
import uuid
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tallygate.connectors.client_errors import NotConnected
from tallygate.connectors.client_usage import BUFFER_EVENTS_DEFAULT, LINGER_SECONDS_DEFAULT, UsageBuffer
from tallygate.connectors.usage_batches import BatchTooLarge, Event, encode_batch
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.topics import USAGE
from tallygate.schemas.usage_batch import BatchId, batch_headers

_ROOM_SECONDS: Final = 0.005
_PRODUCER: Final[dict[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 0,  # events have lingered here
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 64 * 1024,
    "reconnect.backoff.max.ms": 1_000,
    "log_level": 2,  # what matters comes through callbacks, once and in our words
}


class KafkaUsage(UsageBuffer):
    """A lane is a partition of the usage topic."""

    def __init__(
        self,
        config: Mapping[str, Any],
        service: str,
        linger: float = LINGER_SECONDS_DEFAULT,
        buffer_events: int = BUFFER_EVENTS_DEFAULT,
    ) -> None:
        super().__init__(linger, buffer_events)
        self._config = dict(config)
        self._name = f"{service}-{uuid.uuid4().hex[:16]}"
        self._epoch = time.time_ns() // 1_000_000
        self._sequences = itertools.count(1)

    def _connect(self, timeout: float) -> None:
        try:
            self._producer = Producer({**_PRODUCER, **self._config})
            topic = self._producer.list_topics(timeout=timeout).topics.get(USAGE)
        except (KafkaException, TypeError, ValueError) as error:
            raise NotConnected(f"usage cannot be sent to {self._config.get('bootstrap.servers')}: {error}") from None
        if topic is None:
            raise NotConnected(f"topic {USAGE} is missing: declare it with `tallygate topics`")
        partitions = len(topic.partitions)
        self._partition_of = lru_cache(maxsize=100_000)(lambda customer: partition_of(customer, partitions))

    def _lane_of(self, customer: str) -> int:
        return self._partition_of(customer)

    def _poll(self, seconds: float) -> None:
        self._producer.poll(seconds)

    def _disconnect(self) -> None:
        self._producer.purge()

    def _send(self, lane: int, events: list[Event]) -> None:
        try:
            value = encode_batch(events)
        except BatchTooLarge as error:
            if len(events) > 1:
                half = len(events) // 2
                self._send(lane, events[:half])
                self._send(lane, events[half:])
            else:
                self._done(lane, 1, str(error))
            return
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            self._done(lane, len(events), f"they cannot be encoded: {error}")
            return
        headers = batch_headers(BatchId(self._name, self._epoch, next(self._sequences)))
        delivered = partial(self._delivered, lane, len(events))
        while True:
            try:
                self._producer.produce(USAGE, value, partition=lane, headers=headers, on_delivery=delivered)
                return
            except BufferError:
                self._producer.poll(_ROOM_SECONDS)
            except KafkaException as error:  # the producer is in a state that it does not leave
                self._done(lane, len(events), str(error.args[0].str()))
                return

    def _delivered(self, lane: int, events: int, error: KafkaError | None, message: Message) -> None:
        self._done(lane, events, error.str() if error is not None else "")
