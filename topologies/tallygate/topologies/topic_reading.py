"""Topics read once from begin to end, for commands: no group is joined, nothing is waited for beyond the end."""

import time
from collections.abc import Iterator
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tallygate.connectors.consuming import LaneTrouble, consumer_config, replay
from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.connectors.kafka_security import Heard, said_of
from tallygate.schemas.records import Record
from tallygate.schemas.topics import GROUP_READER
from tallygate.topologies.settings import Settings

TIMEOUT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 2.0


class Bounds(dict[int, tuple[int, int]]):
    """By partition: the first offset there is, and the one that the next record will have."""


def bounds(settings: Settings, topic: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Bounds:
    """Where a topic begins and ends now. Raises KafkaUnreachable, KafkaRefused."""
    heard = Heard()
    consumer = Consumer(
        {**consumer_config(settings.kafka_brokers, GROUP_READER), **settings.kafka_config, "error_cb": heard}
    )
    until = time.monotonic() + timeout_seconds
    try:
        while True:
            try:
                return _look(consumer, settings, topic)
            except KafkaException as error:
                consumer.poll(0)  # delivers what was heard
                if heard.refused:
                    raise KafkaRefused(
                        f"Kafka at {settings.kafka_brokers} does not let this client in: {heard.refused}"
                    ) from error
                if time.monotonic() >= until:
                    raise KafkaUnreachable(
                        f"no Kafka answers at {settings.kafka_brokers} within {timeout_seconds:g} s: "
                        f"{heard.last or error.args[0].str()}; is the address right, does it run, and are the "
                        "security settings right?"
                    ) from error
    finally:
        consumer.close()


def _look(consumer: Consumer, settings: Settings, topic: str) -> Bounds:
    found = consumer.list_topics(topic, timeout=_LOOK_SECONDS).topics[topic]
    if found.error is not None:
        if found.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise KafkaRefused(f"topic {topic} is missing on {settings.kafka_brokers}: run `tallygate topics`")
        if found.error.retriable():
            raise KafkaException(found.error)
        raise KafkaRefused(f"topic {topic} on {settings.kafka_brokers} cannot be read: {said_of(found.error)}")
    return Bounds(
        (number, consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_LOOK_SECONDS, cached=False))
        for number in sorted(found.partitions)
    )


def records(settings: Settings, topic: str, number: int, begin: int, end: int) -> Iterator[Record]:
    """The records of a partition in `[begin, end)`, in order. Raises KafkaUnreachable."""
    try:
        yield from replay(
            settings.kafka_brokers,
            (topic, number),
            begin,
            end,
            group=GROUP_READER,
            patience_seconds=TIMEOUT_SECONDS,
            client_config={**settings.kafka_config, "error_cb": lambda error: None},
        )
    except LaneTrouble as trouble:
        raise KafkaUnreachable(str(trouble)) from trouble
