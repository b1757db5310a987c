"""Topics declared on a cluster: what is missing is made, what is there is compared and left as it is."""

import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, NewTopic, ResourceType

from tallygate.connectors.kafka_security import Heard, said_of
from tallygate.schemas.topics import TopicSpec

REPLICATION_MAX: Final = 3
TIMEOUT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 1.0


class KafkaUnreachable(Exception):
    """No broker answered in time; the message is one line that says where and why."""


class KafkaRefused(Exception):
    """The cluster answered and said no; the message is one line that says to what and why."""


class Difference(NamedTuple):
    """`what` is `partitions`, `replication` or one of Kafka's names of a topic configuration."""

    what: str
    wanted: str
    found: str


class TopicReport(NamedTuple):
    name: str
    outcome: Literal["created", "same", "differs"]
    differences: tuple[Difference, ...] = ()


def declare_topics(
    admin_config: Mapping[str, str],
    specs: Sequence[TopicSpec],
    replication: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[TopicReport]:
    """Makes the topics that are missing and compares the others; one report a topic, in the order of `specs`.

    Nothing that exists is changed, so the same call twice is harmless. `admin_config` is librdkafka's. `replication`
    None is three, or as many as there are brokers if fewer; with three copies, two must hold a record before it counts
    (`min.insync.replicas`). More copies than wanted are no difference. Raises KafkaUnreachable, KafkaRefused.
    """
    admin, cluster = connect(admin_config, timeout_seconds)
    copies = replication or min(REPLICATION_MAX, len(cluster.brokers))
    if copies >= REPLICATION_MAX:
        specs = [TopicSpec(s.name, s.partitions, {"min.insync.replicas": "2", **s.config}) for s in specs]
    created: set[str] = set()
    missing = [s for s in specs if s.name not in cluster.topics]
    if missing:
        created = _create(admin, missing, copies, timeout_seconds)
        cluster = _seen(admin, specs, timeout_seconds)
    existing = [s for s in specs if s.name not in created]
    configs = _configs(admin, [s.name for s in existing], timeout_seconds)
    reports = []
    for spec in specs:
        if spec.name in created:
            reports.append(TopicReport(spec.name, "created"))
            continue
        differences = tuple(_differences(spec, copies, cluster, configs[spec.name]))
        reports.append(TopicReport(spec.name, "differs" if differences else "same", differences))
    return reports


def connect(
    admin_config: Mapping[str, str], timeout_seconds: float = TIMEOUT_SECONDS
) -> tuple[AdminClient, ClusterMetadata]:
    """An administrator's client, and what it sees of the cluster. Raises KafkaUnreachable, KafkaRefused."""
    heard = Heard()
    where = admin_config.get("bootstrap.servers") or "no address at all"
    try:
        admin = AdminClient({"log_level": "0", **admin_config, "error_cb": heard})
    except KafkaException as error:
        raise KafkaRefused(f"the Kafka client does not take its configuration: {error.args[0].str()}") from error
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            return admin, admin.list_topics(timeout=min(_LOOK_SECONDS, timeout_seconds))
        except KafkaException as error:
            admin.poll(0)  # delivers what was heard
            if heard.refused:
                raise KafkaRefused(f"Kafka at {where} does not let this client in: {heard.refused}") from error
            if time.monotonic() >= until:
                raise KafkaUnreachable(
                    f"no Kafka answers at {where} within {timeout_seconds:g} s: {heard.last or error.args[0].str()}; "
                    "is the address right, does it run, and are the security settings right?"
                ) from error


def _create(admin: AdminClient, missing: Sequence[TopicSpec], copies: int, timeout_seconds: float) -> set[str]:
    """The names that this call made; those that another process made in the meantime are not among them."""
    new = [NewTopic(s.name, num_partitions=s.partitions, replication_factor=copies, config=s.config) for s in missing]
    created = set()
    for name, future in admin.create_topics(new, request_timeout=timeout_seconds).items():
        try:
            future.result()
            created.add(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _refusal(f"topic {name} cannot be created", error) from error
    return created


def _seen(admin: AdminClient, specs: Sequence[TopicSpec], timeout_seconds: float) -> ClusterMetadata:
    """The cluster once all topics are in it: brokers learn of a new topic a moment after it was made."""
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            cluster = admin.list_topics(timeout=timeout_seconds)
        except KafkaException as error:
            raise KafkaUnreachable(f"Kafka went away while topics were declared: {error.args[0].str()}") from error
        unseen = [s.name for s in specs if s.name not in cluster.topics]
        if not unseen:
            return cluster
        if time.monotonic() > until:
            raise KafkaRefused(f"topic {unseen[0]} was created but did not show up within {timeout_seconds:g} s")
        time.sleep(0.02)


def _configs(admin: AdminClient, names: Sequence[str], timeout_seconds: float) -> dict[str, dict[str, str]]:
    """By topic. All of them exist: a broker that does not know one has only not heard of it yet."""
    until = time.monotonic() + timeout_seconds
    configs: dict[str, dict[str, str]] = {}
    while unread := [ConfigResource(ResourceType.TOPIC, name) for name in names if name not in configs]:
        for resource, future in admin.describe_configs(unread, request_timeout=timeout_seconds).items():
            try:
                configs[resource.name] = {name: entry.value or "" for name, entry in future.result().items()}
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART or time.monotonic() > until:
                    raise _refusal(f"topic {resource.name} cannot be read", error) from error
                time.sleep(0.02)
    return configs


def _refusal(what: str, error: KafkaException) -> KafkaUnreachable | KafkaRefused:
    why: KafkaError = error.args[0]
    if why.retriable() or why.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
        return KafkaUnreachable(f"{what}: Kafka does not answer: {why.str()}")
    return KafkaRefused(f"{what}: {said_of(why)}")


def _differences(spec: TopicSpec, copies: int, cluster: ClusterMetadata, config: dict[str, str]) -> list[Difference]:
    partitions = cluster.topics[spec.name].partitions
    fewest = min((len(p.replicas) for p in partitions.values()), default=0)
    found = []
    if len(partitions) != spec.partitions:
        found.append(Difference("partitions", str(spec.partitions), str(len(partitions))))
    if fewest < copies:
        found.append(Difference("replication", str(copies), str(fewest)))
    for name, wanted in spec.config.items():
        if config.get(name) != wanted:
            found.append(Difference(name, wanted, config.get(name, "not known there")))
    return found
