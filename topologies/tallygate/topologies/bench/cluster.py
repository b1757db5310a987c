"""Where the bench runs: a stack of its own in a temporary folder, or, when told so, the cluster that is configured."""

import asyncio
import secrets
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import msgspec

from tallygate.connectors.client import Tallygate
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.catalog import Plan
from tallygate.schemas.topics import JOURNAL
from tallygate.topologies.bench.decision_load import FEATURE, PLAN, POOR_PLAN, SERVICE
from tallygate.topologies.catalog_topic import newest_catalog
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.local_stack import LocalStack, Say
from tallygate.topologies.running import connect_settings
from tallygate.topologies.settings import Settings, load_settings
from tallygate.topologies.topic_reading import bounds

_SUBSCRIBE_AT_ONCE: Final = 256
_TIMEOUT_SECONDS: Final = 60.0


class BenchCluster(msgspec.Struct):
    """`stack` is the bench's own; None: somebody else's cluster. `prefix` begins the names of this run's customers."""

    settings: Settings
    stack: LocalStack | None
    folder: Path
    prefix: str
    plans: dict[str, Plan]
    partitions: int

    @property
    def kafka(self) -> dict[str, str]:
        return dict(self.settings.librdkafka)

    def settings_json(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    def check(self) -> None:
        """Raises StackError where a part of the own stack has ended for good."""
        if self.stack is not None:
            self.stack.check()


def start(
    ends: ExitStack, say: Say, *, given: bool = False, partitions: int | None = None, workers: int = 1
) -> BenchCluster:
    """A cluster that answers; `ends` stops what was started and removes it.

    Raises Trouble where the `given` one is not made ready for a bench, and whatever `LocalStack` raises.
    """
    folder = Path(
        ends.enter_context(tempfile.TemporaryDirectory(prefix="tallygate-bench-", ignore_cleanup_errors=True))
    )
    prefix = f"bench-{secrets.token_hex(4)}"
    if given:
        return _given(folder, prefix)
    # Tuning by environment variables counts; where things are does not: nothing outside the folder is written to.
    settings = load_settings(
        kafka_brokers="127.0.0.1:9",
        kafka_config={},
        data_dir=folder,
        clickhouse_dsn="",
        sql_address="127.0.0.1:0",
        metrics_address="",
        instance_id="",
        partitions=partitions,
    )
    catalog = ends.enter_context(as_file(files("tallygate.topologies.bench").joinpath("data", "bench.yaml")))
    kafka = LocalKafka(folder / "kafka", on_progress=say)
    stack = LocalStack(settings, kafka, example=catalog, catalog=catalog, services=(SERVICE,), say=say, workers=workers)
    ends.enter_context(stack)
    stack.wait_ready()
    plans = {plan.name: plan for plan in stack.catalog.plans}
    return BenchCluster(stack.settings, stack, folder, prefix, plans, settings.partitions)


def _given(folder: Path, prefix: str) -> BenchCluster:
    settings = connect_settings()
    if "kafka_brokers" not in settings.model_fields_set:
        raise Trouble(
            Exit.WRONG, "--cluster runs against the Kafka of TALLYGATE_KAFKA_BROKERS: set it, or leave --cluster out"
        )
    catalog = newest_catalog(settings)
    plans = {plan.name: plan for plan in catalog.plans}
    if PLAN not in plans or POOR_PLAN not in plans or FEATURE not in {each.name for each in catalog.features}:
        raise Trouble(
            Exit.WRONG,
            f"the catalog in force at {settings.kafka_brokers} does not have the bench's meters and plans: put "
            "`tallygate bench catalog` beside your catalog's files, apply them, and declare "
            f"`tallygate topics --service {SERVICE}`",
        )
    return BenchCluster(settings, None, folder, prefix, plans, len(bounds(settings, JOURNAL)))


def subscribe(cluster: BenchCluster, plans_by_customer: dict[str, str], on_done: Callable[[], None]) -> None:
    """Puts customers on plans. Raises TallygateError."""
    asyncio.run(_subscribe(cluster, plans_by_customer, on_done))


async def _subscribe(cluster: BenchCluster, plans_by_customer: dict[str, str], on_done: Callable[[], None]) -> None:
    waiting = iter(plans_by_customer.items())
    settings = cluster.settings
    async with Tallygate(
        settings.kafka_brokers, service=SERVICE, timeout=_TIMEOUT_SECONDS, kafka=settings.kafka_config
    ) as client:

        async def work() -> None:
            for customer, plan in waiting:
                answer = await client.subscribe(customer, plan)
                if not answer.allowed:
                    raise Trouble(Exit.NO, f"{customer} could not be put on plan {plan}: {answer.reason}")
                on_done()

        await asyncio.gather(*(work() for _ in range(_SUBSCRIBE_AT_ONCE)))
