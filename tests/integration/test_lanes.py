"""Lanes on a real broker: everything once, in order, from exactly where it was asked; nothing after `drop`."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_fixture import Broker
from tallygate.connectors.consuming import LaneTrouble, Partition, replay
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.connectors.lanes import Lane, LaneLimits
from tallygate.schemas.records import Chunk, Record

WAIT_SECONDS = 60


def new_topic(brokers: str, partitions: int = 3, **config: str) -> str:
    topic = f"lanes.{uuid.uuid4().hex[:10]}"
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(30)
    return topic


def fill(brokers: str, topic: str, numbers: range, partitions: int = 3, size: int = 0) -> None:
    """Record n of each partition has the value n, padded to `size`."""
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5, "acks": "all", "enable.idempotence": True})
    for number in numbers:
        for partition in range(partitions):
            producer.produce(topic, str(number).zfill(size), partition=partition)
        producer.poll(0)
    assert producer.flush(WAIT_SECONDS) == 0


class Taken:
    """What a lane delivered, in order."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.troubles: list[LaneTrouble] = []
        self._more = asyncio.Event()

    def deliver(self, chunks: list[Chunk]) -> None:
        self.chunks.extend(chunks)
        self._more.set()

    def trouble(self, trouble: LaneTrouble) -> None:
        self.troubles.append(trouble)
        self._more.set()

    def values(self, partition: int) -> list[int]:
        return [int(r.value or 0) for chunk in self.chunks if chunk.partition == partition for r in chunk.records]

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not reached():
                self._more.clear()
                await self._more.wait()


@contextlib.asynccontextmanager
async def lane_of(brokers: str, taken: Taken, limits: LaneLimits | None = None) -> AsyncIterator[Lane]:
    lane = Lane(
        brokers,
        name="test",
        group="lane-tests",
        deliver=taken.deliver,
        trouble=taken.trouble,
        loop=asyncio.get_running_loop(),
        limits=limits,
    )
    try:
        yield lane
    finally:
        await asyncio.to_thread(lane.close)


def starts(topic: str, *offsets: int) -> dict[Partition, int]:
    return {(topic, partition): offset for partition, offset in enumerate(offsets)}


async def test_every_record_once_in_order_from_the_exact_offset(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap)
    fill(kafka.bootstrap, topic, range(5000))
    taken = Taken()
    async with lane_of(kafka.bootstrap, taken) as lane:
        lane.start(starts(topic, 0, 1234, 4999))
        wanted = 5000 + 3766 + 1
        await taken.until(lambda: sum(len(chunk.records) for chunk in taken.chunks) >= wanted)
        fill(kafka.bootstrap, topic, range(5000, 5010))
        await taken.until(lambda: sum(len(chunk.records) for chunk in taken.chunks) >= wanted + 30)
    assert [taken.values(p) for p in range(3)] == [list(range(first, 5010)) for first in (0, 1234, 4999)]
    assert not taken.troubles


async def test_chunks_are_bounded_in_records_and_bytes_and_counted(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 1)
    fill(kafka.bootstrap, topic, range(200), 1, size=10)
    fill(kafka.bootstrap, topic, range(200, 210), 1, size=900)
    taken = Taken()
    limits = LaneLimits(records_per_chunk_max=64, bytes_per_chunk_max=1000)
    async with lane_of(kafka.bootstrap, taken, limits) as lane:
        lane.start(starts(topic, 0))
        await taken.until(lambda: len(taken.values(0)) >= 210)
    assert taken.values(0) == list(range(210))
    for chunk in taken.chunks:
        assert 1 <= len(chunk.records) <= 64
        assert chunk.value_bytes == sum(len(record.value or b"") for record in chunk.records)
        assert chunk.value_bytes <= 1000


async def test_a_record_comes_whole(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    producer.produce(topic, key=b"k", value=b"v", timestamp=1_700_000_000_123, headers=[("a", b"1"), ("a", None)])
    producer.produce(topic, key=b"gone", value=None, timestamp=5)
    producer.produce(topic, key=None, value=b"", timestamp=5)
    assert producer.flush(WAIT_SECONDS) == 0
    taken = Taken()
    async with lane_of(kafka.bootstrap, taken) as lane:
        lane.start(starts(topic, 0))
        await taken.until(lambda: sum(len(chunk.records) for chunk in taken.chunks) >= 3)
    assert [record for chunk in taken.chunks for record in chunk.records] == [
        Record(topic, 0, 0, 1_700_000_000_123, b"k", b"v", (("a", b"1"), ("a", b""))),
        Record(topic, 0, 1, 5, b"gone", None),
        Record(topic, 0, 2, 5, None, b""),
    ]


async def test_nothing_comes_after_drop_and_seek_goes_on_exactly_there(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap)
    fill(kafka.bootstrap, topic, range(3000))
    taken = Taken()
    async with lane_of(kafka.bootstrap, taken, LaneLimits(records_per_chunk_max=50)) as lane:
        for _ in range(20):
            lane.start(starts(topic, 0, 0, 0))
            await taken.until(lambda: taken.values(0) and taken.values(2))
            lane.drop([(topic, 0), (topic, 2)])
            before = [taken.values(0), taken.values(2)]
            old = taken.chunks[0]
            lane.seek({(topic, 1): 2990})
            assert not lane.is_current(old)
            taken.chunks = [chunk for chunk in taken.chunks if chunk.partition != 1]
            await taken.until(lambda: len(taken.values(1)) >= 10)
            assert [taken.values(0), taken.values(2)] == before
            assert taken.values(1) == list(range(2990, 3000))
            lane.drop([(topic, 1)])
            taken.chunks.clear()


async def test_a_paused_partition_waits_and_the_others_go_on(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 2)
    taken = Taken()
    async with lane_of(kafka.bootstrap, taken) as lane:
        lane.start(starts(topic, 0, 0))
        fill(kafka.bootstrap, topic, range(10), 2)
        await taken.until(lambda: len(taken.values(0)) >= 10 and len(taken.values(1)) >= 10)
        lane.pause([(topic, 0)])
        await asyncio.sleep(0.3)  # until the thread has heard of it
        fill(kafka.bootstrap, topic, range(10, 20), 2)
        await taken.until(lambda: len(taken.values(1)) >= 20)
        await asyncio.sleep(0.3)
        assert taken.values(0) == list(range(10))
        lane.resume([(topic, 0)])
        await taken.until(lambda: len(taken.values(0)) >= 20)
    assert taken.values(0) == taken.values(1) == list(range(20))


async def test_a_partition_that_stands_still_is_bounded_and_does_not_hold_up_the_others(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 2)
    fill(kafka.bootstrap, topic, range(3000), 2)
    taken = Taken()
    limits = LaneLimits(records_per_chunk_max=50, partition_records_max=200)
    async with lane_of(kafka.bootstrap, taken, limits) as lane:

        def finish(partition: int) -> None:
            for chunk in taken.chunks:
                if chunk.partition == partition and id(chunk) not in finished:
                    finished.add(id(chunk))
                    lane.done(chunk)

        def all_of(partition: int) -> bool:
            finish(partition)
            return len(taken.values(partition)) >= 3000

        finished: set[int] = set()
        lane.start(starts(topic, 0, 0))
        await taken.until(lambda: all_of(1))
        assert 0 < len(taken.values(0)) <= 250  # a round of 50 may pass the limit
        assert lane.unfinished_records == len(taken.values(0))
        await taken.until(lambda: all_of(0))
        assert lane.unfinished_records == 0
    assert taken.values(0) == taken.values(1) == list(range(3000))


async def test_a_full_lane_stops_taking_whatever_its_partitions_hold(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 3)
    fill(kafka.bootstrap, topic, range(1000), 3, size=100)
    taken = Taken()
    limits = LaneLimits(records_per_chunk_max=50, lane_bytes_max=20_000)
    async with lane_of(kafka.bootstrap, taken, limits) as lane:
        lane.start(starts(topic, 0, 0, 0))
        await taken.until(lambda: lane.unfinished_records >= 200)
        await asyncio.sleep(1)
        assert lane.unfinished_records <= 250
        taken_before = list(taken.chunks)
        for chunk in taken_before:
            lane.done(chunk)
        await taken.until(lambda: len(taken.chunks) > len(taken_before))


async def said(words: str, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not any(words in line for line in caplog.messages):  # noqa: ASYNC110  # logging wakes nobody
            await asyncio.sleep(0.1)


async def test_a_broker_that_goes_and_comes_back_costs_nothing(
    fresh_kafka: LocalKafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tallygate.connectors")
    topic = new_topic(fresh_kafka.bootstrap)
    fill(fresh_kafka.bootstrap, topic, range(2000))
    taken = Taken()
    async with lane_of(fresh_kafka.bootstrap, taken, LaneLimits(records_per_chunk_max=100)) as lane:
        lane.start(starts(topic, 0, 0, 0))
        await taken.until(lambda: len(taken.values(0)) >= 500)
        await asyncio.to_thread(fresh_kafka.kill)
        await said("is away", caplog)
        await asyncio.sleep(1)
        await asyncio.to_thread(fresh_kafka.start)
        await said("is back", caplog)
        await asyncio.to_thread(fill, fresh_kafka.bootstrap, topic, range(2000, 2500))
        await taken.until(lambda: all(len(taken.values(p)) >= 2500 for p in range(3)))
    assert [taken.values(p) for p in range(3)] == [list(range(2500))] * 3
    assert not taken.troubles
    assert len([line for line in caplog.messages if "is away" in line]) == 1
    assert len([line for line in caplog.messages if "is back" in line]) == 1


@pytest.mark.parametrize(
    ("offset", "partition", "words"),
    [(99, 0, "holds no offset 99"), (3, 0, "holds no offset 3"), (0, 7, "has no such partition")],
    ids=["beyond the end", "deleted", "no such partition"],
)
async def test_what_is_not_in_the_log_is_trouble_and_never_a_jump(
    kafka: Broker, offset: int, partition: int, words: str
) -> None:
    topic = new_topic(kafka.bootstrap, 1)
    fill(kafka.bootstrap, topic, range(10), 1)
    delete_below(kafka.bootstrap, topic, 5)
    taken = Taken()
    async with lane_of(kafka.bootstrap, taken) as lane:
        lane.start({(topic, partition): offset})
        await taken.until(lambda: taken.troubles)
    assert not taken.chunks
    assert len(taken.troubles) == 1
    assert words in str(taken.troubles[0])
    assert "\n" not in str(taken.troubles[0])


async def test_end_offsets_are_the_brokers(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap)
    fill(kafka.bootstrap, topic, range(7), 2)
    taken = Taken()
    async with lane_of(kafka.bootstrap, taken) as lane:
        lane.start(starts(topic, 0))  # a query beside a working thread
        assert await lane.end_offsets([(topic, 0), (topic, 2)]) == {(topic, 0): 7, (topic, 2): 0}
        with pytest.raises(LaneTrouble, match=r"lanes\.none partition 0: cannot ask for its end"):
            await lane.end_offsets([("lanes.none", 0)])


def test_replay_gives_exactly_the_range(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 1)
    fill(kafka.bootstrap, topic, range(10_000), 1)

    def values(start: int, end: int) -> list[int]:
        return [int(r.value or 0) for r in replay(kafka.bootstrap, (topic, 0), start, end, group="lane-tests")]

    assert values(0, 10_000) == list(range(10_000))
    assert values(17, 5000) == list(range(17, 5000))
    assert values(10_000, 10_000) == []


def test_replay_ends_though_the_last_offset_holds_no_record(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": topic})
    producer.init_transactions(WAIT_SECONDS)
    producer.begin_transaction()
    producer.produce(topic, b"0", partition=0)
    producer.commit_transaction(WAIT_SECONDS)  # its marker takes offset 1
    got = list(replay(kafka.bootstrap, (topic, 0), 0, 2, group="lane-tests"))
    assert [record.offset for record in got] == [0]


def test_replay_of_what_is_gone_is_trouble(kafka: Broker) -> None:
    topic = new_topic(kafka.bootstrap, 1)
    fill(kafka.bootstrap, topic, range(10), 1)
    delete_below(kafka.bootstrap, topic, 5)
    with pytest.raises(LaneTrouble, match="holds no offset 0"):
        drain(replay(kafka.bootstrap, (topic, 0), 0, 10, group="lane-tests"))


def test_replay_gives_up_when_nothing_comes() -> None:
    with pytest.raises(LaneTrouble, match=r"came for 0\.5 s; is 127\.0\.0\.1:1 there"):
        drain(replay("127.0.0.1:1", ("journal", 0), 0, 10, group="lane-tests", patience_seconds=0.5))


def drain(records: Iterator[Record]) -> None:
    for _ in records:
        pass


def delete_below(brokers: str, topic: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    for answer in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        answer.result(30)
