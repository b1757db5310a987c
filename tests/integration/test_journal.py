"""The journal over a real broker: its answer says where an append lies; the log is read where that leaves questions."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.structs import RecordMetadata
from confluent_kafka.admin import AdminClient, NewTopic

from asker import records
from kafka_fixture import Broker
from sink_world import JournalWriter as Somebody
from tallygate.connectors.consuming import LaneTrouble
from tallygate.schemas.journal import PARTITION_KEY
from tallygate.schemas.records import Record
from tallygate.schemas.topics import JOURNAL
from tallygate.topologies.cluster import ClusterTrouble
from tallygate.topologies.journal import JournalReader, JournalWriter
from tallygate.topologies.settings import load_settings
from topic_waits import await_partitions, delete

OWN = [(b"acme\0account\0", b"{}"), (PARTITION_KEY, b"mine")]


Answered = Callable[[RecordMetadata], RecordMetadata]


@dataclass
class World:
    brokers: str
    writer: JournalWriter
    reader: JournalReader

    async def append(
        self, seq: int, answered: Callable[[RecordMetadata], RecordMetadata] = lambda answer: answer
    ) -> None:
        """Appends `OWN`; `answered` may tell the reader another story than the broker did."""
        future = await self.writer.append(0, OWN, 1, seq)
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        told.set_result(answered(await future))
        self.reader.expect(0, OWN, 1, seq, told)

    async def read(self) -> list[tuple[int, bytes | None]]:
        """Until the own batch is there, as an owner does."""
        found: list[Record] = []
        while not found or found[-1].value != b"mine":
            found += await self.reader.read(0)
        return [(record.offset, record.value) for record in found]


@pytest.fixture
async def world(module_kafka: Broker) -> AsyncIterator[World]:
    brokers = module_kafka.bootstrap
    admin = AdminClient({"bootstrap.servers": brokers})
    if JOURNAL in admin.list_topics(timeout=10).topics:
        delete(brokers, JOURNAL)
    admin.create_topics([NewTopic(JOURNAL, 1, 1, config={"message.timestamp.type": "LogAppendTime"})])[JOURNAL].result()
    await_partitions(admin, JOURNAL, 1)
    settings = load_settings(kafka_brokers=brokers)
    troubles: list[LaneTrouble] = []
    world = World(brokers, JournalWriter(settings), JournalReader(settings, troubles.append))
    await world.writer.start()
    world.reader.follow(0, 0)
    yield world
    world.reader.leave(0)
    world.reader.close()
    await world.writer.stop()
    assert not troubles


async def test_the_brokers_answer_is_the_records_place_and_time(world: World) -> None:
    for seq in (1, 2):
        await world.append(seq)
        [record] = await world.reader.read(0)
        written = list(records(world.brokers, JOURNAL))
        assert record == written[-1]
        assert (len(written), record.offset) == (2 * seq, 2 * seq - 1)


async def test_what_somebody_else_wrote_before_is_read(world: World) -> None:
    await world.append(1)
    assert await world.read() == [(1, b"mine")]
    Somebody(world.brokers).write(0, 2, 7, [(b"a", b"theirs"), (b"b", b"theirs")])
    await world.append(2)
    assert await world.read() == [(2, b"theirs"), (3, b"theirs"), (5, b"mine")]
    await world.append(3)
    assert await world.read() == [(7, b"mine")]


async def test_an_answer_without_a_place_is_looked_up(world: World) -> None:
    await world.append(1)
    await world.read()
    await world.append(2, lambda answer: answer._replace(offset=-1, timestamp=-1))  # what a repeated append may get
    assert await world.read() == [(3, b"mine")]
    await world.append(3)
    assert await world.read() == [(5, b"mine")]


async def test_a_journal_that_was_cut_back_is_trouble(world: World) -> None:
    await world.append(1)
    await world.read()
    await world.append(2, lambda answer: answer._replace(offset=1))
    with pytest.raises(ClusterTrouble, match=r"partition 0 was cut back: an append is at offset 1, and .* before 2"):
        await world.reader.read(0)
