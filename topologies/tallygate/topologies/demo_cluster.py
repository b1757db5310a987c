"""Where the demo runs: everything in one temporary folder, on a Kafka of its own or on an empty one that is named."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.topics import topic_specs
from tallygate.topologies.demo_trace import data_path
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.local_stack import LocalStack, Say
from tallygate.topologies.settings import Settings, load_settings
from tallygate.topologies.topic_reading import TIMEOUT_SECONDS

SERVICE: Final = "demo"
PARTITIONS: Final = 4


def start_stack(ends: ExitStack, say: Say) -> LocalStack:
    """A stack that answers; `ends` stops it and removes what it kept. Raises Trouble and what `LocalStack` raises."""
    folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="tallygate-demo-", ignore_cleanup_errors=True)))
    settings, given = demo_settings(folder)
    kafka = None
    if given:
        _borrow(settings, ends)
    else:
        kafka = LocalKafka(folder / "kafka", on_progress=say)
    example = ends.enter_context(data_path("catalog.yaml"))
    stack = ends.enter_context(LocalStack(settings, kafka, example=example, services=(SERVICE,), say=say))
    stack.wait_ready()
    return stack


def demo_settings(folder: Path) -> tuple[Settings, bool]:
    """Default settings in a folder, and whether the environment names a Kafka; it has a say in nothing else."""
    found = load_settings()
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    defaults |= {"data_dir": folder, "partitions": PARTITIONS, "sql_address": "127.0.0.1:0", "metrics_address": ""}
    given = "kafka_brokers" in found.model_fields_set
    if given:
        defaults |= {"kafka_brokers": found.kafka_brokers, "kafka_config": found.kafka_config}
    return load_settings(**defaults), given


def _borrow(settings: Settings, ends: ExitStack) -> None:
    """Uses a named Kafka only where nobody else's figures are, and removes the demo's topics from it again."""
    names = [spec.name for spec in topic_specs(PARTITIONS, (SERVICE,))]
    admin = AdminClient({**settings.librdkafka, "log_level": "0", "error_cb": lambda error: None})
    try:
        known = admin.list_topics(timeout=TIMEOUT_SECONDS).topics
    except KafkaException as error:
        raise KafkaUnreachable(
            f"no Kafka answers at {settings.kafka_brokers} within {TIMEOUT_SECONDS:g} s: {error.args[0].str()}; it is "
            "named by TALLYGATE_KAFKA_BROKERS: unset that, and the demo starts its own"
        ) from error
    if found := sorted(known.keys() & set(names)):
        raise Trouble(
            Exit.WRONG,
            f"{settings.kafka_brokers} has Tallygate's topics already ({found[0]}) and the demo needs a Kafka without: "
            "unset TALLYGATE_KAFKA_BROKERS, and it starts its own",
        )
    ends.callback(_remove, admin, names)


def _remove(admin: AdminClient, names: list[str]) -> None:
    known = admin.list_topics(timeout=TIMEOUT_SECONDS).topics
    made = [name for name in names if name in known]
    if made:
        for future in admin.delete_topics(made, operation_timeout=TIMEOUT_SECONDS).values():
            try:
                future.result()
            except KafkaException as error:
                raise KafkaRefused(f"the demo's topics could not be removed: {error.args[0].str()}") from error
