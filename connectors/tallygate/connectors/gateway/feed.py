"""Decisions as they are published, handed to whoever listens: one reader a process, begun with the first listener."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tallygate.connectors.consuming import LaneTrouble
from tallygate.connectors.lanes import Lane
from tallygate.schemas.records import Chunk, Record
from tallygate.schemas.topics import DECISIONS, HEADER_RECORD_ID

logger = logging.getLogger(__name__)

#: How many decisions may wait for a listener; one that is further behind is sent away.
QUEUE_MAX: Final = 1_000
_ASK_SECONDS: Final = 5.0


class FeedAway(Exception):
    """The topic cannot be read now; one line."""


class Listener:
    """What came for some customers, or for all of them (`customers` None), in order."""

    def __init__(self, customers: frozenset[str] | None) -> None:
        self.customers = customers
        self.over = False
        self._queue: asyncio.Queue[tuple[str, Record] | None] = asyncio.Queue(QUEUE_MAX + 1)

    async def next(self, seconds: float) -> tuple[str, Record] | None:
        """The next record id and record, or None when none came in time, or the listener was sent away (`over`)."""
        try:
            async with asyncio.timeout(seconds):
                return await self._queue.get()
        except TimeoutError:
            return None

    def put(self, record_id: str, record: Record) -> None:
        if self._queue.qsize() >= QUEUE_MAX:
            self.end()
        elif not self.over:
            self._queue.put_nowait((record_id, record))

    def end(self) -> None:
        if not self.over:
            self.over = True
            self._queue.put_nowait(None)


class DecisionFeed:
    """Belongs to the event loop."""

    def __init__(self, brokers: str, kafka: Mapping[str, str]) -> None:
        self._brokers = brokers
        self._kafka = dict(kafka)
        self._lane: Lane | None = None
        self._starting = asyncio.Lock()
        self._by_customer: dict[str | None, set[Listener]] = {}

    async def listen(self, customers: frozenset[str] | None) -> Listener:
        """From now on the listener hears of these customers. Raises FeedAway."""
        async with self._starting:
            if self._lane is None:
                await self._start()
        listener = Listener(customers)
        for name in (None,) if customers is None else customers:
            self._by_customer.setdefault(name, set()).add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        for name in (None,) if listener.customers is None else listener.customers:
            here = self._by_customer.get(name, set())
            here.discard(listener)
            if not here:
                self._by_customer.pop(name, None)

    def close(self) -> None:
        """Sends every listener away."""
        lane, self._lane = self._lane, None
        for listener in {each for here in self._by_customer.values() for each in here}:
            listener.end()
        if lane is not None:
            lane.close()

    async def _start(self) -> None:
        partitions = await asyncio.to_thread(self._partitions)
        lane = Lane(
            self._brokers,
            name="decisions",
            group="tallygate-gateway",
            deliver=self._deliver,
            trouble=self._trouble,
            loop=asyncio.get_running_loop(),
            client_config=self._kafka,
        )
        try:
            lane.start(await lane.end_offsets((DECISIONS, number) for number in partitions))
        except LaneTrouble as trouble:
            await asyncio.to_thread(lane.close)
            raise FeedAway(str(trouble)) from trouble
        self._lane = lane

    def _partitions(self) -> list[int]:
        admin = AdminClient({"bootstrap.servers": self._brokers, "log_level": "0", **self._kafka})
        try:
            found = admin.list_topics(DECISIONS, timeout=_ASK_SECONDS).topics[DECISIONS]
        except KafkaException as error:
            raise FeedAway(error.args[0].str()) from error
        if found.error is not None:
            raise FeedAway(f"{DECISIONS}: {found.error.str()}")
        return sorted(found.partitions)

    def _deliver(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for record in chunk.records:
                self._hand_out(record)
            if self._lane is not None:
                self._lane.done(chunk)

    def _hand_out(self, record: Record) -> None:
        customer = (record.key or b"").decode(errors="replace")
        listeners = (*self._by_customer.get(customer, ()), *self._by_customer.get(None, ()))
        if listeners and record.value is not None:
            record_id = dict(record.headers).get(HEADER_RECORD_ID, b"").decode(errors="replace")
            for listener in listeners:
                listener.put(record_id, record)

    def _trouble(self, trouble: LaneTrouble) -> None:
        logger.error("decisions cannot be followed any more: %s", trouble)
        self.close()
