"""What a worker sends besides the journal: answers, without waiting, and dead letters, with."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from tallygate.pipeline.transition import Reply
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record
from tallygate.schemas.topics import (
    DEAD_LETTERS,
    DEAD_ORIGINAL_PREFIX,
    HEADER_CORRELATION,
    HEADER_DEAD_KEY,
    HEADER_DEAD_MESSAGE,
    HEADER_DEAD_REASON,
    HEADER_DEAD_SOURCE,
)
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.ports import AppendUnknown
from tallygate.topologies.settings import Settings

logger = logging.getLogger(__name__)

#: An answer that could not be sent for so long is no longer waited for: the caller has asked again.
_REPLY_MS_MAX: Final = 5_000
_REPLY_QUEUE_KBYTES_MAX: Final = 64 * 1024
_DEAD_LETTER_BYTES_MAX: Final = 4 * 1024 * 1024

_COMMON: Final[dict[str, Any]] = {
    "linger.ms": 0,
    "socket.nagle.disable": True,
    "log_level": 2,
    "error_cb": lambda error: None,
}


class ReplySender:
    """Answers, by librdkafka: handed over in microseconds, never waited for. Failures are counted."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._producer = Producer(
            {
                **settings.librdkafka,
                **_COMMON,
                "acks": 1,  # an answer lost with its broker is asked for again
                "message.timeout.ms": _REPLY_MS_MAX,
                "queue.buffering.max.kbytes": _REPLY_QUEUE_KBYTES_MAX,
                "delivery.report.only.error": True,
                "on_delivery": self._delivered,
            }
        )

    def send(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            route = reply.route
            try:
                self._producer.produce(
                    route.topic,
                    reply.answer,
                    partition=-1 if route.partition is None else route.partition,
                    headers=[(HEADER_CORRELATION, route.correlation)],
                )
            except (BufferError, KafkaException) as error:
                self._failed(route.topic, str(error))
        self._metrics.replies.inc(len(replies))
        self._producer.poll(0)

    async def close(self) -> None:
        """Waits a little for answers under way."""
        await asyncio.to_thread(self._producer.flush, 2.0)

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._failed(message.topic(), error.str())

    def _failed(self, topic: str, why: str) -> None:
        self._metrics.replies_failed.inc()
        logger.warning("an answer on %s was not delivered: %s", topic, why)


class DeadLetterWriter:
    """Puts records aside in the dead-letter topic: the original bytes, and why.

    The key is `topic/partition/offset`, so that one that is written twice, by a worker that ended in between, is known.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout_seconds = settings.append_timeout_ms / 1000
        self._producer = Producer(
            {
                **settings.librdkafka,
                **_COMMON,
                "acks": "all",
                "enable.idempotence": True,
                "message.max.bytes": _DEAD_LETTER_BYTES_MAX,
                "message.timeout.ms": settings.append_timeout_ms,
            }
        )

    async def put(self, letters: Sequence[tuple[Record, Reason, str]]) -> None:
        failed: list[str] = []

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failed.append(error.str())

        for record, reason, message in letters:
            place = f"{record.topic}/{record.partition}/{record.offset}"
            self._producer.produce(
                DEAD_LETTERS,
                record.value,
                place.encode(),
                headers=dead_letter_headers(record, reason, message, place),
                on_delivery=delivered,
            )
        left = await asyncio.to_thread(self._producer.flush, self._timeout_seconds)
        if failed or left:
            why = failed[0] if failed else f"no answer within {self._timeout_seconds:g} s"
            raise AppendUnknown(f"{len(failed) or left} dead letters were not taken by the broker: {why}")


def dead_letter_headers(record: Record, reason: Reason, message: str, place: str) -> list[tuple[str, bytes]]:
    headers = [
        (HEADER_DEAD_REASON, reason.value.encode()),
        (HEADER_DEAD_MESSAGE, message.encode()),
        (HEADER_DEAD_SOURCE, place.encode()),
    ]
    if record.key is not None:
        headers.append((HEADER_DEAD_KEY, record.key))
    return headers + [(DEAD_ORIGINAL_PREFIX + name, value) for name, value in record.headers]
