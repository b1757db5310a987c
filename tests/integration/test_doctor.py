"""The doctor on a real stack: sound when all is, and each fault made for real and found."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions, ResourceType

from command_line import CommandLine, Said
from kafka_fixture import PARTITIONS, Broker, ContainerKafka
from sink_world import SinkProcess, alter
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas import topics
from tallygate.schemas.topics import DAY_MS
from tallygate.topologies.cluster_facts import gather
from tallygate.topologies.doctor import Finding, Limits, State, examine
from tallygate.topologies.settings import GROUP, Settings, load_settings
from topic_waits import await_partitions, delete
from worker_process import WorkerProcess


@pytest.fixture
def cli(
    fresh_kafka: Broker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> CommandLine:
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", fresh_kafka.bootstrap)
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(tmp_path))
    return CommandLine(monkeypatch, capfd)


def until(true: Callable[[], bool]) -> None:
    for _ in range(150):
        if true():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come about")


def look(settings: Settings, limits: Limits | None = None) -> list[Finding]:
    return examine(gather(settings), GROUP, "on this machine", limits)


def faults(found: list[Finding]) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for each in found:
        if each.state is not State.OK:
            said.setdefault(each.area, []).append(f"{each.state}: {each.said}")
    return said


def test_a_stack_is_sound_and_what_ends_is_found(fresh_kafka: Broker, cli: CommandLine, tmp_path: Path) -> None:
    brokers = fresh_kafka.bootstrap
    nobody = cli("doctor")
    assert (nobody.code, nobody.err) == (1, "")
    assert "broken        ownership    nobody owns partitions 0, 1, 2, 3\n" in nobody.out
    assert f"{'':27}to do: start `tallygate worker`\n" in nobody.out
    settings = load_settings(kafka_brokers=brokers, data_dir=tmp_path)
    with WorkerProcess(brokers, tmp_path / "w", group=GROUP) as worker, SinkProcess(brokers, tmp_path) as sink:
        said: list[Said] = []
        until(lambda: said.append(cli("doctor")) or said[-1].code == 0)  # type: ignore[func-returns-value]
        assert [line.split()[0] for line in said[-1].out.splitlines()] == ["ok"] * 9
        assert "1 worker owns all 4 partitions; the oldest tick is " in said[-1].out
        assert "one copy on one broker: fine on a laptop" in said[-1].out
        plain = json.loads(cli("doctor", "--json").out)
        assert {each["area"] for each in plain} == {
            *("topics", "replication", "lag", "compaction", "clock", "disk", "ownership")
        }

        worker.signal(signal.SIGSTOP)  # its session lasts 6 s: it owns, and does not tick
        quick = Limits(tick_ms=1_000, waiting_ms=1_000)
        until(lambda: "have not ticked for" in str(faults(look(settings, quick)).get("ownership")))
        worker.signal(signal.SIGCONT)
        sink.kill()
        until(lambda: "the sink: " in str(faults(look(settings, quick)).get("lag")))
        admin = AdminClient({"bootstrap.servers": brokers})
        alter(admin, ResourceType.TOPIC, topics.JOURNAL, {"min.compaction.lag.ms": "1000"})
        until(lambda: "broken: the sink is " in str(faults(look(settings)).get("compaction")))
        alter(admin, ResourceType.TOPIC, topics.JOURNAL, {"min.compaction.lag.ms": str(DAY_MS)})
        worker.kill()
    until(lambda: "nobody owns partitions" in str(faults(look(settings, quick)).get("ownership")))


def test_topics_that_are_not_as_declared(
    fresh_kafka: LocalKafka | ContainerKafka, cli: CommandLine, tmp_path: Path
) -> None:
    brokers = fresh_kafka.bootstrap
    admin = AdminClient({"bootstrap.servers": brokers})
    delete(brokers, topics.ALERTS)
    alter(admin, ResourceType.TOPIC, topics.USAGE, {"message.timestamp.type": "CreateTime"})
    alter(admin, ResourceType.TOPIC, topics.JOURNAL, {"max.message.bytes": "1000000"})
    admin.create_partitions([NewPartitions(topics.REQUESTS, PARTITIONS + 1)])[topics.REQUESTS].result()
    await_partitions(admin, topics.REQUESTS, PARTITIONS + 1)
    found = faults(look(load_settings(kafka_brokers=brokers, data_dir=tmp_path)))["topics"]
    assert found == [
        "look at this: topic tallygate.alerts.v1 is missing",
        "broken: the inputs and the journal must have equally many partitions: tallygate.usage.v1 has 4, "
        "tallygate.requests.v1 has 5, tallygate.journal.v1 has 4",
        "broken: message.timestamp.type of tallygate.usage.v1 is CreateTime, and is to be LogAppendTime",
        "broken: max.message.bytes of tallygate.journal.v1 is 1000000, and is to be 8388608",
    ]
    said = cli("doctor")
    assert (said.code, said.err) == (1, "")
    assert "to do: run `tallygate topics`, which makes what is missing" in said.out


def test_no_broker_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    away = CommandLine(monkeypatch, capfd)("doctor", "--brokers", "127.0.0.1:1")
    assert (away.code, away.out, away.err.count("\n")) == (3, "", 1)
    assert away.err.startswith("tallygate: no Kafka answers at 127.0.0.1:1 ")
