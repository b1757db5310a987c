"""Topics declared on real clusters, of one broker and of three."""

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, ResourceType

from kafka_fixture import BrokerPool, needs_java
from tallygate.connectors.kafka_admin import Difference, KafkaRefused, KafkaUnreachable, TopicReport, declare_topics
from tallygate.connectors.kafka_fetch import fetch_jars, find_java
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas import topics
from tallygate.schemas.topics import TopicSpec, topic_specs
from topic_waits import await_partitions


@pytest.fixture(scope="module")
def one_broker(broker_pool: BrokerPool) -> Iterator[dict[str, str]]:
    """librdkafka's configuration for a broker that has no topics but those of these tests."""
    with broker_pool.borrowed() as kafka:
        yield {"bootstrap.servers": kafka.bootstrap}


def config_of(cluster: dict[str, str], topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient(cluster)  # named: an answer does not outlive its client
    for _ in range(100):
        with contextlib.suppress(KafkaException):  # one of three brokers has not heard of it yet
            entries = admin.describe_configs([resource])[resource].result()
            return {name: entry.value for name, entry in entries.items()}
        time.sleep(0.1)
    raise AssertionError(f"no broker knows {topic}")


def make(cluster: dict[str, str], topic: str, partitions: int, copies: int, config: dict[str, str]) -> None:
    admin = AdminClient(cluster)
    admin.create_topics([NewTopic(topic, partitions, copies, config=config)])[topic].result()
    await_partitions(admin, topic, partitions)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_all_topics_are_made_once_and_as_declared(one_broker: dict[str, str]) -> None:
    specs = topic_specs(4, ("cli", "gateway"))
    assert declare_topics(one_broker, specs) == [TopicReport(s.name, "created") for s in specs]
    assert declare_topics(one_broker, specs) == [TopicReport(s.name, "same") for s in specs]
    cluster = AdminClient(one_broker).list_topics(timeout=10)
    for spec in specs:
        assert len(cluster.topics[spec.name].partitions) == spec.partitions
        assert spec.config.items() <= config_of(one_broker, spec.name).items()
    assert config_of(one_broker, topics.USAGE)["message.timestamp.type"] == "LogAppendTime"
    assert config_of(one_broker, topics.JOURNAL)["cleanup.policy"] == "compact"


def test_what_differs_is_told_and_left_alone(one_broker: dict[str, str]) -> None:
    spec = TopicSpec("differs", 4, {"cleanup.policy": "compact", "max.message.bytes": "8388608", "segment.ms": "1000"})
    make(one_broker, "differs", 2, 1, {"cleanup.policy": "delete", "segment.ms": "1000"})
    before = config_of(one_broker, "differs")
    found = [
        Difference("partitions", "4", "2"),
        Difference("cleanup.policy", "compact", "delete"),
        Difference("max.message.bytes", "8388608", "1048588"),
    ]
    new = TopicSpec("new-beside-it", 1, {})
    reports = [TopicReport("differs", "differs", tuple(found)), TopicReport("new-beside-it", "created")]
    assert declare_topics(one_broker, [spec, new]) == reports
    assert config_of(one_broker, "differs") == before
    assert len(AdminClient(one_broker).list_topics(timeout=10).topics["differs"].partitions) == 2


def test_more_partitions_than_declared_differ(one_broker: dict[str, str]) -> None:
    spec = TopicSpec("grown", 2, {})
    assert declare_topics(one_broker, [spec])[0].outcome == "created"
    admin = AdminClient(one_broker)
    admin.create_partitions([NewPartitions("grown", 3)])["grown"].result()
    await_partitions(admin, "grown", 3)
    assert declare_topics(one_broker, [spec])[0].differences == (Difference("partitions", "2", "3"),)


def test_declared_by_several_at_once(one_broker: dict[str, str]) -> None:
    """Each topic is made by one of them; to the others it is the same."""
    specs = [TopicSpec(f"at-once-{n}", 2, {"retention.ms": "60000"}) for n in range(10)]
    with ThreadPoolExecutor(4) as pool:
        all_reports = list(pool.map(lambda _: declare_topics(one_broker, specs), range(4)))
    for reports in zip(*all_reports, strict=True):
        assert sorted(r.outcome for r in reports) == ["created", "same", "same", "same"]


@pytest.mark.parametrize(
    ("spec", "replication", "said"),
    [
        (TopicSpec("odd", 1, {"no.such.setting": "1"}), None, "topic odd cannot be created: .*no.such.setting"),
        (TopicSpec("odd", 1, {"retention.ms": "soon"}), None, "topic odd cannot be created: .*soon"),
        (TopicSpec("odd name", 1, {}), None, "topic odd name cannot be created: Topic name is invalid"),
        (TopicSpec("odd", 1, {}), 3, "topic odd cannot be created: .*replication factor"),
    ],
)
def test_the_cluster_refuses(one_broker: dict[str, str], spec: TopicSpec, replication: int | None, said: str) -> None:
    with pytest.raises(KafkaRefused, match=said) as error:
        declare_topics(one_broker, [spec], replication)
    assert "\n" not in str(error.value)


def test_nobody_there() -> None:
    where = f"127.0.0.1:{closed_port()}"
    with pytest.raises(KafkaUnreachable) as error:
        declare_topics({"bootstrap.servers": where}, topic_specs(), timeout_seconds=1)
    said = str(error.value)
    assert said.startswith(f"no Kafka answers at {where} within 1 s: ")
    assert "Connection refused" in said
    assert "\n" not in said


def test_somebody_else_there(one_broker: dict[str, str]) -> None:
    """A listener without TLS, asked with TLS: the reason is librdkafka's."""
    for seconds in (1, 5, 20):  # until it is heard of
        with pytest.raises(KafkaUnreachable) as error:
            declare_topics({**one_broker, "security.protocol": "ssl"}, topic_specs(), timeout_seconds=seconds)
        if "SSL" in str(error.value):
            break
    assert re.search("SSL handshake failed|SSL connection closed .*SSL_HANDSHAKE", str(error.value))


def test_no_address() -> None:
    with pytest.raises(KafkaUnreachable, match="no address at all"):
        declare_topics({}, topic_specs(), timeout_seconds=0.2)


def test_a_configuration_that_librdkafka_does_not_know() -> None:
    with pytest.raises(KafkaRefused, match=r"No such configuration property: \"bootstrap\.server\""):
        declare_topics({"bootstrap.server": "127.0.0.1:1"}, topic_specs())


BROKER = """\
process.roles=broker
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:0
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=data
"""


@contextlib.contextmanager
def joined(first: LocalKafka, node: int, folder: Path) -> Iterator[None]:
    """One more broker in the cluster of `first`."""
    folder.mkdir()
    properties = (first.data_dir / "server.properties").read_text().splitlines()
    voters = next(line.split("=", 1)[1] for line in properties if line.startswith("controller.quorum.voters="))
    (folder / "server.properties").write_text(BROKER.format(node=node, voters=voters))
    java = [find_java(), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{fetch_jars()}/*"]
    assert first.cluster_id is not None
    storage = ["kafka.tools.StorageTool", "format", "-t", first.cluster_id, "-c", "server.properties"]
    subprocess.run([*java, *storage], cwd=folder, check=True, capture_output=True)
    with (folder / "out").open("wb") as out:
        broker = subprocess.Popen(
            [*java, "kafka.Kafka", "server.properties"], cwd=folder, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        broker.kill()
        broker.wait()


@needs_java
def test_three_brokers_keep_three_copies(tmp_path: Path) -> None:
    with (
        LocalKafka(heap_mb=256) as first,
        joined(first, 2, tmp_path / "2"),
        joined(first, 3, tmp_path / "3"),
    ):
        cluster = {"bootstrap.servers": first.bootstrap}
        admin = AdminClient(cluster)
        until = time.monotonic() + 60
        while len(admin.list_topics(timeout=10).brokers) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        make(cluster, topics.USAGE, 4, 1, topic_specs(4)[0].config)
        reports = declare_topics(cluster, topic_specs(4))
        assert [r.outcome for r in reports] == ["differs"] + ["created"] * (len(reports) - 1)
        assert set(reports[0].differences) == {
            Difference("replication", "3", "1"),
            Difference("min.insync.replicas", "2", "1"),
        }
        journal = admin.list_topics(timeout=10).topics[topics.JOURNAL]
        assert {len(p.replicas) for p in journal.partitions.values()} == {3}
        assert config_of(cluster, topics.JOURNAL)["min.insync.replicas"] == "2"
        assert [r.outcome for r in declare_topics(cluster, topic_specs(4))][1:] == ["same"] * (len(reports) - 1)
        one_copy = declare_topics(cluster, [TopicSpec("single", 1, {})], replication=1)
        assert one_copy == [TopicReport("single", "created")]
        first.kill()  # in order, it would wait for another to lead
