"""A topic of one partition, followed from its beginning: what is in it is known before `start` returns."""

import asyncio
from collections.abc import Callable

from tallygate.connectors.consuming import LaneTrouble
from tallygate.connectors.lanes import Lane
from tallygate.schemas.records import Chunk, Record
from tallygate.topologies.cluster import Cluster
from tallygate.topologies.settings import Settings


class FollowedTopic:
    """Hands every record to `take`, in order, on the event loop; `trouble` hears of what ends that."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        topic: str,
        take: Callable[[Record], None],
        trouble: Callable[[LaneTrouble], None],
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._take = take
        self._next_offset = 0
        self._moved = asyncio.Event()
        self._lane = Lane(
            settings.kafka_brokers,
            name=topic.removeprefix("tallygate.").removesuffix(".v1"),
            group=settings.group,
            deliver=self._deliver,
            trouble=trouble,
            loop=asyncio.get_running_loop(),
            client_config=settings.kafka_config,
        )

    async def start(self) -> None:
        """Returns when all that was in the topic has been taken. Raises `ClusterTrouble`."""
        begin, end = await self._cluster.bounds(self._topic, 0)
        self._next_offset = begin
        self._lane.start({(self._topic, 0): begin})
        while self._next_offset < end:
            self._moved.clear()
            await self._moved.wait()

    def close(self) -> None:
        self._lane.close()

    def _deliver(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for record in chunk.records:
                self._take(record)
            self._next_offset = chunk.last_offset + 1
            self._lane.done(chunk)
        self._moved.set()
