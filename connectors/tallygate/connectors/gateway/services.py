"""What the routes work with: the client to the workers, writers with confirmation, what is known of keys and catalog.

Built by the command line (`topologies/gateway.py`), which also connects it; until `ready` is set, calls are answered
503. Nothing here survives the process, and nothing needs to.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from tallygate.connectors.client_async import Tallygate
from tallygate.connectors.gateway.audit import AuditLog
from tallygate.connectors.gateway.confirmed import ConfirmedProducer
from tallygate.connectors.gateway.feed import DecisionFeed
from tallygate.connectors.gateway.figures import Figures
from tallygate.connectors.gateway.keys import KeyRing
from tallygate.connectors.gateway.limits import CallRates
from tallygate.schemas.catalog import EMPTY, Catalog
from tallygate.schemas.catalog_file import CatalogFile

SERVICE = "gateway"


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`timeout_seconds`: how long a worker's answer, and Kafka's confirmation, is waited for.

    `calls_per_second`: of each key without a limit of its own; 0: any number. `url`: where the gateway is reached, for
    its description of itself. `otlp_customer_attribute` is where spans say the customer, `otlp_event_type` what they
    become.
    """

    brokers: str
    kafka: Mapping[str, str] = {}
    timeout_seconds: float = 5.0
    calls_per_second: int = 1_000
    url: str = ""
    otlp_customer_attribute: str = "tallygate.customer"
    otlp_event_type: str = "llm.call"


class Applied(NamedTuple):
    """What became of a catalog: the version in force, and whether it is a new one."""

    catalog: Catalog
    changed: bool


#: Asks ClickHouse one reading question; the answer is a JSON object a line. Raises what `read_rows` knows.
AskSql = Callable[[str], Awaitable[bytes]]
#: Puts a catalog in force. Raises KafkaRefused, KafkaUnreachable.
ApplyCatalog = Callable[[CatalogFile], Awaitable[Applied]]


class NewestCatalog:
    """The catalog in force, as whoever follows the topic says."""

    def __init__(self) -> None:
        self.catalog = EMPTY
        self.published_at = 0  # in milliseconds

    def fails_open(self, feature: str) -> bool:
        """Whether work under this feature goes on when nobody answers."""
        return any(each.name == feature and each.fail == "open" for each in self.catalog.features)


class Gateway:
    """All of one gateway process. Belongs to the event loop."""

    def __init__(self, config: GatewayConfig, *, ask_sql: AskSql, apply_catalog: ApplyCatalog) -> None:
        self.config = config
        self.ask_sql = ask_sql
        self.apply_catalog = apply_catalog
        self.keys = KeyRing()
        self.newest = NewestCatalog()
        self.rates = CallRates(config.calls_per_second)
        self.figures = Figures()
        self.client = Tallygate(config.brokers, service=SERVICE, timeout=config.timeout_seconds, kafka=config.kafka)
        self.producer = ConfirmedProducer(config.brokers, config.kafka)
        self.audit = AuditLog(self.producer, config.timeout_seconds)
        self.feed = DecisionFeed(config.brokers, config.kafka)
        self.ready = False
        self.streams = 0
        self._random = random.Random()  # seeded by the system
        self._behind: set[asyncio.Task[Any]] = set()

    def new_id(self) -> str:
        """128 random bits, for a request that names none."""
        return f"{self._random.getrandbits(128):032x}"

    def behind(self, work: Awaitable[Any]) -> None:
        """Goes on with work that no caller waits for."""
        task = asyncio.ensure_future(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def close(self) -> None:
        """Gives everything back; calls in flight fail."""
        self.ready = False
        self.feed.close()
        for task in list(self._behind):
            task.cancel()
        await self.client.close()
        await self.producer.close()
