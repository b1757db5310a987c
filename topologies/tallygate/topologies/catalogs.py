"""The newest catalog, followed in its topic. A new version is taken by each owner between two of its steps."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from tallygate.connectors.consuming import LaneTrouble
from tallygate.connectors.lanes import Lane
from tallygate.schemas.catalog import EMPTY, Catalog, decode_catalog
from tallygate.schemas.records import Chunk, Record
from tallygate.schemas.topics import CATALOG
from tallygate.topologies.cluster import Cluster
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.settings import Settings

logger = logging.getLogger(__name__)


#: A run of batches goes on under the version it began under; what takes less than a second sees few of them.
VERSIONS_KEPT: Final = 8


class CatalogFollower:
    """`ports.Catalogs` over Kafka: the highest version is the newest, whatever the order of the records."""

    def __init__(
        self, settings: Settings, cluster: Cluster, metrics: Metrics, trouble: Callable[[LaneTrouble], None]
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._newest = EMPTY
        self._versions: dict[int, Catalog] = {}
        self._next_offset = 0
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._lane = Lane(
            settings.kafka_brokers,
            name="catalog",
            group=settings.group,
            deliver=self._deliver,
            trouble=trouble,
            loop=asyncio.get_running_loop(),
            client_config=settings.kafka_config,
        )

    @property
    def newest(self) -> Catalog:
        return self._newest

    def version(self, number: int) -> Catalog | None:
        return self._versions.get(number)

    async def start(self) -> None:
        """Returns when all that was in the topic is known."""
        begin, end = await self._cluster.bounds(CATALOG, 0)
        self._next_offset = begin
        self._lane.start({(CATALOG, 0): begin})
        await self._until(lambda: self._next_offset >= end)

    async def reach(self, version: int) -> None:
        if self._newest.version < version:
            logger.info("waiting for catalog version %d; the newest known is %d", version, self._newest.version)
        await self._until(lambda: self._newest.version >= version)

    def close(self) -> None:
        self._lane.close()

    async def _until(self, reached: Callable[[], bool]) -> None:
        if not reached():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append((reached, waiting))
            await waiting

    def _deliver(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for record in chunk.records:
                self._take(record)
            self._next_offset = chunk.last_offset + 1
            self._lane.done(chunk)
        for reached, waiting in self._waiting:
            if not waiting.done() and reached():
                waiting.set_result(None)
        self._waiting = [each for each in self._waiting if not each[1].done()]

    def _take(self, record: Record) -> None:
        if record.value is None:
            return
        try:
            catalog = decode_catalog(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.error("catalog record %d cannot be read and is not used: %s", record.offset, error)
            return
        self._versions[catalog.version] = catalog
        if len(self._versions) > VERSIONS_KEPT:
            del self._versions[min(self._versions)]
        if catalog.version > self._newest.version:
            self._newest = catalog
            self._metrics.catalog.set(catalog.version)
            logger.info("catalog version %d is known", catalog.version)
