"""The audit log in ClickHouse: each record once, whatever happens to the sink; what it cannot read or find is told."""

import json
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_fixture import Broker
from sink_world import SinkProcess, make_journal
from tallygate.schemas.audit import encode_audit
from tallygate.schemas.topics import AUDIT, topic_specs
from tallygate.topologies.audit_log import audit_log, audited
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_writing import write
from topic_waits import await_partitions, delete


@pytest.fixture
def brokers(module_kafka: Broker) -> str:
    """A broker with an empty journal and no audit log."""
    delete(module_kafka.bootstrap, AUDIT)
    make_journal(module_kafka.bootstrap)
    return module_kafka.bootstrap


def declare_audit(brokers: str) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    [spec] = [spec for spec in topic_specs() if spec.name == AUDIT]
    admin.create_topics([NewTopic(AUDIT, 1, 1, config=spec.config)])[AUDIT].result()
    await_partitions(admin, AUDIT, 1)


def change(settings: Settings, *numbers: int) -> None:
    for number in numbers:
        with audited(settings, "grant", f"g-{number}", {"amount": number}, "acme"):
            pass


def test_each_record_is_there_once_whenever_the_sink_dies(brokers: str, tmp_path: Path) -> None:
    declare_audit(brokers)
    with SinkProcess(brokers, tmp_path, die_before=1) as sink:
        change(sink.settings, 1)
        assert sink.end() == -9, sink.said
    with SinkProcess(brokers, tmp_path, die_before=2) as sink:
        sink.wait_for(lambda: len(sink.ask("SELECT * FROM audit")) == 1)
        change(sink.settings, 2, 3)
        with pytest.raises(RuntimeError), audited(sink.settings, "budget", "b-1", {}, "acme") as asked:
            raise RuntimeError("it broke")
        with pytest.raises(KeyboardInterrupt), audited(sink.settings, "budget", "b-2", {}, "acme"):
            raise KeyboardInterrupt
        assert sink.end() == -9, sink.said
    assert asked.outcome == "failed"
    with SinkProcess(brokers, tmp_path) as sink:
        # A record that comes twice, and one of a version that is yet to come.
        [first, *_] = audit_log(sink.settings)
        write(sink.settings, AUDIT, [(first.id.encode(), encode_audit(first))])
        write(sink.settings, AUDIT, [(first.id.encode(), b'{"type":"tallygate.audit.v2"}')])
        sink.wait_for(lambda: len(sink.ask("SELECT * FROM audit")) == 6)
        found = sink.ask(
            "SELECT target, action, outcome, reason, details FROM audit WHERE action != 'unreadable' ORDER BY target"
        )
        assert [(r["target"], r["outcome"], r["reason"]) for r in found] == [
            ("b-1", "failed", "it broke"),
            ("b-2", "failed", "KeyboardInterrupt"),
            ("g-1", "done", ""),
            ("g-2", "done", ""),
            ("g-3", "done", ""),
        ]
        assert [json.loads(r["details"]) for r in found[2:]] == [{"amount": n} for n in (1, 2, 3)]
        assert sink.figure("SELECT details FROM audit WHERE action = 'unreadable'") == '{"type":"tallygate.audit.v2"}'
        assert sink.stop() == 0


def test_an_audit_log_that_is_not_there_does_not_stop_the_books(brokers: str, tmp_path: Path) -> None:
    with SinkProcess(brokers, tmp_path) as sink:
        sink.wait_for_line(f"sink: {AUDIT} is missing: run `tallygate topics`")
        sink.wait_for(lambda: sink.ask("SELECT * FROM postings") == [])
        assert sink.ask("SELECT * FROM audit") == []
        declare_audit(brokers)
        change(sink.settings, 1)
        sink.wait_for(lambda: len(sink.ask("SELECT * FROM audit")) == 1)
        assert sink.said.count("\n") == 1
        assert sink.stop() == 0
