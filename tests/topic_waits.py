"""Waits for what a broker says of a topic a moment after it was made or deleted."""

import time

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec


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


def await_partitions(admin: AdminClient, topic: str, count: int) -> None:
    """Returns when the broker knows what was just made: it hears of it a moment later than the controller says so."""
    for _ in range(200):
        found = admin.list_topics(timeout=10).topics.get(topic)
        if found is not None and len(found.partitions) == count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{topic} has no {count} partitions")


def await_leaders(brokers: str) -> None:
    """Returns when every partition of every topic answers."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 2})
    topics = admin.list_topics(timeout=30).topics.values()
    asked = {TopicPartition(t.topic, p): OffsetSpec.latest() for t in topics for p in t.partitions}
    for tries_left in reversed(range(100)):
        try:
            for answer in admin.list_offsets(asked).values():
                answer.result()
            return
        except KafkaException:
            if not tries_left:
                raise
            time.sleep(0.1)


def delete(brokers: str, topic: str) -> None:
    """Deletes a topic and returns when the broker no longer knows it."""
    _delete(AdminClient({"bootstrap.servers": brokers, "log_level": 2}), [topic])


def remove_topics(brokers: str) -> None:
    """Deletes all topics but Kafka's own."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 2})
    _delete(admin, [topic for topic in admin.list_topics(timeout=30).topics if not topic.startswith("__")])


def _delete(admin: AdminClient, topics: list[str]) -> None:
    for deleted in admin.delete_topics(topics).values() if topics else ():
        deleted.result()
    for _ in range(100):
        if not admin.list_topics(timeout=10).topics.keys() & set(topics):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {topics}")
