"""Fills a cluster's journal with customers: production core and `JournalWriter`, without a worker between them.

Each customer is given a grant that ends in a year and has one usage event counted. That makes five journal records:
the account, the grant, its pool, an hour of usage, and the entry with the ids it has seen. Customers fall to partitions
by the hash of their names; the input topics stay empty, so that nothing of them is applied.
"""

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal

from rich.progress import Progress

from tallygate.pipeline.decide import decide
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Input, RequestInput, Source, Tick, UsageInput
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import DAY_MS, to_datetime
from tallygate.schemas.journal import OPEN_KEY, OpenRow, PartitionRow, encode_record
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import GiveGrant
from tallygate.topologies.journal import JournalWriter
from tallygate.topologies.settings import Settings

CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",)),),
)
CUSTOMERS_PER_BATCH = 200


class _Nothing:
    """Rows of customers whom nobody has met: there are none."""

    def get(self, key: bytes, /) -> bytes | None:
        return None

    def scan(self, begin: bytes, end: bytes, most: int = 0, /) -> list[tuple[bytes, bytes]]:
        return []


def customer(number: int) -> str:
    return f"customer-{number:07d}"


async def fill(settings: Settings, partitions: int, customers: int) -> int:
    """Writes the journal of all partitions; returns how many records that made."""
    writer = JournalWriter(settings)
    await writer.start()
    now = time.time_ns() // 1_000_000
    groups: dict[int, list[str]] = {number: [] for number in range(partitions)}
    for number in range(customers):
        name = customer(number)
        groups[partition_of(name, partitions)].append(name)
    written = 0
    try:
        with Progress() as progress:
            bar = progress.add_task("customers into the journal", total=customers)
            for partition, names in groups.items():
                opened = encode_record(OpenRow("growth_fill", now))
                await writer.append(partition, [(OPEN_KEY, opened)], 1, 0)
                state = PartitionState(partition, _Nothing(), PartitionRow({}, now, CATALOG.version), accounts_max=1000)
                for seq, at in enumerate(range(0, len(names), CUSTOMERS_PER_BATCH), 1):
                    some = names[at : at + CUSTOMERS_PER_BATCH]
                    transition = decide(state, list(_inputs(partition, some, now)), CATALOG)
                    # The inputs lie in no topic: the worker that opens the partition must find nothing applied.
                    row = PartitionRow({}, now, CATALOG.version)
                    records = [*transition.records[:-1], (transition.records[-1][0], encode_record(row))]
                    await writer.append(partition, records, 1, seq)
                    state.commit(transition)
                    state.row = row
                    written += len(records)
                    progress.advance(bar, len(some))
    finally:
        await writer.stop()
    return written


def _inputs(partition: int, names: list[str], now: int) -> Iterator[Input]:
    for number, name in enumerate(names):
        grant = GiveGrant(
            id=f"g-{name}", customer=name, amount=Decimal(1000), expires_at=to_datetime(now + 365 * DAY_MS)
        )
        yield RequestInput(Source(topics.REQUESTS, partition, number, now), grant, None)
        event = UsageEvent(
            specversion="1.0", id=f"e-{name}", source="growth", type="llm.call", subject=name, data={"tokens": 10}
        )
        yield UsageInput(Source(topics.USAGE, partition, number, now), (event,))
    yield Tick(now)


def run_fill(settings: Settings, partitions: int, customers: int) -> int:
    return asyncio.run(fill(settings, partitions, customers))
