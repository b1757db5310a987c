"""Waits for what a broker says of a topic a moment after it was made or deleted."""

import time

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient


def end_of(consumer: Consumer, topic: str, partition: int) -> int:
    """The offset that the next record will have; a partition that was just made has no leader yet."""
    for tries_left in reversed(range(100)):
        try:
            return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
        except KafkaException:
            if not tries_left:
                raise
            time.sleep(0.1)
    raise AssertionError


def delete(brokers: str, topic: str) -> None:
    """Deletes a topic and returns when the broker no longer knows it."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 2})
    admin.delete_topics([topic])[topic].result()
    for _ in range(100):
        if topic not in admin.list_topics(timeout=10).topics:
            return
        time.sleep(0.1)
    raise AssertionError(f"{topic} is still there")
