"""The audit log into ClickHouse, beside the journal: a look at its topic now and then, in the sink's own thread.

Where it stands is what the table holds, so rows and position cannot come apart. What is read twice has the same key.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tallygate.connectors.consuming import PASSING, consumer_config
from tallygate.connectors.kafka_security import said_of
from tallygate.schemas.audit import AuditRecord, decode_audit
from tallygate.schemas.topics import AUDIT, GROUP_SINK

logger = logging.getLogger(__name__)

_RECORDS_MAX: Final = 10_000
_LOOK_SECONDS: Final = 2.0
_ABSENT: Final = frozenset({KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART})
_text = msgspec.json.Encoder().encode


class AuditReader:
    """Belongs to one thread. An audit log that cannot be read is told once, and does not stop the books."""

    def __init__(self, client_config: Mapping[str, Any], next_offset: int) -> None:
        self._consumer = Consumer(
            {
                **consumer_config(client_config["bootstrap.servers"], GROUP_SINK),
                "client.id": "tallygate-sink",
                # A topic that was made anew begins anew; its records have ids of their own.
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 500,
                "queued.max.messages.kbytes": 4 << 10,
                "topic.metadata.refresh.interval.ms": 30_000,  # for a topic, or a right to read it, that comes later
                "error_cb": lambda error: None,  # the journal's reader tells of brokers
                **client_config,
            }
        )
        self._said = ""
        with contextlib.suppress(KafkaException):  # no broker answers just now
            error = self._consumer.list_topics(AUDIT, timeout=_LOOK_SECONDS).topics[AUDIT].error
            if error is not None and error.code() in _ABSENT:
                self._say("is missing: run `tallygate topics`")
            elif error is not None:
                self._trouble(error)
        self._consumer.assign([TopicPartition(AUDIT, 0, next_offset)])

    def read(self) -> list[Sequence[Any]]:
        """What has come, column by column as `Store.insert` takes it; empty where nothing has. Does not wait."""
        rows = []
        for message in self._consumer.consume(_RECORDS_MAX, 0):
            error = message.error()
            if error is None:
                rows.append(audit_row(message.offset() or 0, message.value() or b""))
            else:
                self._trouble(error)
        return list(zip(*rows, strict=True))

    def close(self) -> None:
        self._consumer.close()

    def _trouble(self, error: KafkaError) -> None:
        if error.code() not in (*PASSING, *_ABSENT):
            self._say(f"cannot be read: {said_of(error)}")

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            logger.warning("sink: %s %s; the table `audit` stays behind meanwhile", AUDIT, what)


def audit_row(offset: int, value: bytes) -> tuple[Any, ...]:
    """A record as a row. One that cannot be read is there as it stands, as `unreadable`, under its place."""
    try:
        record = decode_audit(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        record = AuditRecord(id=f"{AUDIT}/0/{offset}", at=0, who="", action="unreadable", outcome="asked")
        details = value.decode("utf-8", "replace")
    else:
        details = _text(record.details).decode()
    return (
        record.id,
        record.at,
        record.who,
        record.action,
        record.outcome,
        record.origin,
        record.customer,
        record.target,
        details,
        record.reason,
        offset,
    )
