"""Usage events are published to a real broker, keyed by customer and confirmed, or the caller hears why not."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from kafka_fixture import PARTITIONS, Broker
from tallygate.connectors.usage_producer import BadEvents, PublishFailed, publish_events, publish_file, read_events
from tallygate.schemas.events import STRUCTURED, UsageEvent, decode_events
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.topics import USAGE
from topic_waits import delete, end_of


class Topic:
    """What came into the usage topic since this was made."""

    def __init__(self, brokers: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": brokers, "group.id": "test", "enable.auto.commit": False, "log_level": 2}
        )
        self._from = self._ends()

    def _ends(self) -> dict[int, int]:
        return {p: end_of(self._consumer, USAGE, p) for p in range(PARTITIONS)}

    def messages(self) -> list[Any]:
        ends = self._ends()
        wanted = sum(ends.values()) - sum(self._from.values())
        self._consumer.assign([TopicPartition(USAGE, p, offset) for p, offset in self._from.items()])
        found: list[Any] = []
        for _ in range(200):
            if len(found) == wanted:
                break
            found += self._consumer.consume(wanted - len(found), 0.1)
        assert len(found) == wanted
        assert not [message.error() for message in found if message.error()]
        return found

    def ids(self) -> list[str]:
        return sorted(decode_events(message.value(), {})[0].id for message in self.messages())

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def topic(module_kafka: Broker) -> Iterator[Topic]:
    made = Topic(module_kafka.bootstrap)
    yield made
    made.close()


@pytest.fixture
def config(module_kafka: Broker) -> dict[str, Any]:
    return {"bootstrap.servers": module_kafka.bootstrap}


def line(id: str, customer: str = "acme") -> bytes:
    event = {"specversion": "1.0", "id": id, "source": "test", "type": "llm", "subject": customer, "extra": 1.50}
    return json.dumps(event).encode()


def test_events_go_to_the_partition_of_their_customer_as_they_were_written(
    topic: Topic, config: dict[str, Any]
) -> None:
    lines = [line(str(i), f"customer-{i}-é") for i in range(50)]
    report = publish_events(config, lines)
    assert (report.events, report.bytes) == (50, sum(map(len, lines)))
    found = topic.messages()
    assert sorted(message.value() for message in found) == sorted(lines)
    for message in found:
        customer = decode_events(message.value(), {})[0].subject
        assert message.key() == customer.encode()
        assert message.partition() == partition_of(customer, PARTITIONS)
        assert message.headers() == [("content-type", STRUCTURED)]


def test_events_are_given_as_objects_too(topic: Topic, config: dict[str, Any]) -> None:
    event = UsageEvent(specversion="1.0", id="1", source="t", type="llm", subject="acme", data={"tokens": 8})
    assert publish_events(config, [event]).events == 1
    assert decode_events(topic.messages()[0].value(), {}) == (event,)


def test_a_queue_that_is_full_is_waited_for(topic: Topic, config: dict[str, Any]) -> None:
    heard: list[int] = []
    small = {**config, "queue.buffering.max.messages": 10}
    assert publish_events(small, (line(str(i)) for i in range(2_000)), heard.append).events == 2_000
    assert len(topic.messages()) == 2_000
    assert heard == sorted(set(heard))
    assert heard[-1] == 2_000


def test_a_file_is_published_whole(topic: Topic, config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(line(str(i)) for i in range(5)))
    assert publish_file(config, path).events == 5
    assert topic.ids() == ["0", "1", "2", "3", "4"]


def test_nothing_of_a_file_with_a_wrong_line_is_sent(topic: Topic, config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line("1") + b"\n" + line("2") + b"\n{}\n")
    with pytest.raises(BadEvents, match=r"^events.jsonl, line 3: no CloudEvent"):
        publish_file(config, path)
    assert topic.messages() == []


def test_of_a_stream_what_came_before_a_wrong_line_is_sent(topic: Topic, config: dict[str, Any]) -> None:
    stream = io.BytesIO(line("1") + b"\n" + line("2") + b"\n{}\n" + line("3"))
    with pytest.raises(BadEvents, match=r"^standard input, line 3: .* \(the 2 events before it were sent\)$"):
        publish_events(config, read_events(stream, "standard input"))
    assert topic.ids() == ["1", "2"]


def test_a_broker_that_goes_away_in_the_middle_is_waited_for(fresh_kafka: Any) -> None:
    topic = Topic(fresh_kafka.bootstrap)
    heard: list[str] = []
    back: list[threading.Thread] = []

    def restarting(count: int, at: int) -> Iterator[bytes]:
        for i in range(count):
            if i == at:
                fresh_kafka.kill()
                back.append(threading.Thread(target=fresh_kafka.start))
                back[0].start()
            yield line(str(i))

    report = publish_events(
        {"bootstrap.servers": fresh_kafka.bootstrap}, restarting(2_000, 1_000), on_wait=heard.append
    )
    back[0].join()
    assert report.events == 2_000
    assert set(topic.ids()) == {str(i) for i in range(2_000)}
    assert heard
    topic.close()


@pytest.fixture
def broken(fresh_kafka: Any) -> Callable[[], Iterator[bytes]]:
    def events() -> Iterator[bytes]:
        yield line("1")
        fresh_kafka.kill()
        yield line("2")

    return events


def test_events_that_are_not_confirmed_are_counted(fresh_kafka: Any, broken: Callable[[], Iterator[bytes]]) -> None:
    with pytest.raises(PublishFailed, match=r"^[01] of 2 events sent to .* were confirmed, then: .*publish them again"):
        publish_events({"bootstrap.servers": fresh_kafka.bootstrap}, broken(), patience_seconds=1.0)


def test_a_missing_topic_is_named_with_its_remedy(fresh_kafka: Any) -> None:
    delete(fresh_kafka.bootstrap, USAGE)
    with pytest.raises(PublishFailed, match=rf"^topic {USAGE} is missing on .*: declare it with `tallygate topics`"):
        publish_events({"bootstrap.servers": fresh_kafka.bootstrap}, [line("1")])
