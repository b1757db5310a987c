"""The newest records of the usage topic, as far back as is asked for: for those who look whether their events came."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tallygate.connectors.consuming import consumer_config, record_of
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.records import Record
from tallygate.schemas.topics import USAGE

#: How much one look reads at most, of all partitions together.
RECORDS_MAX: Final = 2_000
BYTES_MAX: Final = 16 << 20
_ASK_SECONDS: Final = 5.0


class TailAway(Exception):
    """The topic cannot be read now; one line."""


def newest_usage(
    brokers: str, kafka: Mapping[str, str], customers: Sequence[str], seconds: float, group: str
) -> list[Record]:
    """The newest records of these customers' partitions, or of all: at most `RECORDS_MAX`. Blocks; raises TailAway."""
    config = {**consumer_config(brokers, group), "queued.max.messages.kbytes": BYTES_MAX >> 10, **kafka}
    consumer = Consumer(config)
    try:
        ends = _ends(consumer, customers)
        return _read(consumer, ends, time.monotonic() + seconds) if ends else []
    except KafkaException as error:
        raise TailAway(error.args[0].str()) from error
    finally:
        consumer.close()


def _ends(consumer: Consumer, customers: Sequence[str]) -> dict[int, int]:
    """Where each partition that has something to read ends; the consumer is set so far before it."""
    found = consumer.list_topics(USAGE, timeout=_ASK_SECONDS).topics[USAGE]
    if found.error is not None:
        raise TailAway(f"{USAGE}: {found.error.str()}")
    numbers = {partition_of(each, len(found.partitions)) for each in customers} or set(found.partitions)
    each_max = max(1, RECORDS_MAX // len(numbers))
    starts, ends = [], {}
    for number in sorted(numbers):
        low, high = consumer.get_watermark_offsets(TopicPartition(USAGE, number), timeout=_ASK_SECONDS)
        if high > low:
            starts.append(TopicPartition(USAGE, number, max(low, high - each_max)))
            ends[number] = high
    consumer.assign(starts)
    return ends


def _read(consumer: Consumer, ends: dict[int, int], until: float) -> list[Record]:
    found: list[Record] = []
    size = 0
    while ends and size < BYTES_MAX:
        left = until - time.monotonic()
        if left <= 0:
            raise TailAway("Kafka did not answer in time")
        for message in consumer.consume(500, min(left, 0.1)):
            if message.error() is not None:
                raise TailAway(message.error().str())
            record = record_of((USAGE, message.partition()), message)
            size += len(record.value or b"")
            found.append(record)
            if record.offset >= ends.get(record.partition, 0) - 1:
                ends.pop(record.partition, None)
    return found
