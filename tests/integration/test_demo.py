"""The demo as a newcomer runs it, and the parts of it that must be able to say no."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from kafka_fixture import Broker, BrokerPool, java_and_maven
from tallygate.schemas.journal import (
    OPEN_KEY,
    PARTITION_KEY,
    Cause,
    Entry,
    OpenRow,
    PartitionRow,
    UsageDelta,
    encode_record,
    entry_key,
)
from tallygate.schemas.topics import JOURNAL, USAGE
from tallygate.topologies.demo_cluster import start_stack
from tallygate.topologies.demo_ledger import LedgerReader
from tallygate.topologies.demo_trace import Totals
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.settings import load_settings

needs_java = pytest.mark.skipif(not java_and_maven(), reason="starts a local Kafka: needs Java 17+ and Maven")
TOTALS = {"calls": 28_185, "input_tokens": 40_421_844, "output_tokens": 4_334_561}


@needs_java
@pytest.mark.timeout(400)
def test_the_demo(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYGATE_K")}
    ran = subprocess.run(
        [sys.executable, "-m", "tallygate.topologies.cli", "demo", "--json", str(tmp_path / "demo.json")],
        env={**environment, "TMPDIR": str(tmp_path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=360,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["trace"] == figures["ledger"] == figures["clickhouse"] == TOTALS
    assert figures["runaway"] == {"asked": 20, "allowed": 6}
    assert list(figures) == ["trace", "ledger", "clickhouse", "runaway", "latency_ms", "seconds"]
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"]
    assert "Trace, ledger and ClickHouse agree." in ran.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_a_named_kafka_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, broker_pool: BrokerPool) -> None:
    with broker_pool.borrowed() as kafka:
        monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", kafka.bootstrap)
        with ExitStack() as ends:
            stack = start_stack(ends, lambda line: None)
            assert stack.settings.kafka_brokers == kafka.bootstrap
            assert any(name.startswith("tallygate.") for name in _topics(kafka.bootstrap))
        assert not any(name.startswith("tallygate.") for name in _topics(kafka.bootstrap))


def test_a_kafka_with_figures_of_others_is_not_touched(module_kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", module_kafka.bootstrap)
    before = _topics(module_kafka.bootstrap)
    with pytest.raises(Trouble, match="has Tallygate's topics already") as told, ExitStack() as ends:
        start_stack(ends, lambda line: None)
    assert told.value.code is Exit.WRONG
    assert _topics(module_kafka.bootstrap) == before


def test_the_ledger_reader_counts_what_the_owner_wrote(module_kafka: Broker, tmp_path: Path) -> None:
    """An entry of a former owner that lands behind the fence does not count; the next one of the new owner does."""
    journal = _Journal(module_kafka.bootstrap)
    journal.open(term=1)
    journal.entry(term=1, seq=1, calls=1, tokens=100)
    journal.open(term=2)
    journal.entry(term=1, seq=2, calls=7, tokens=700)  # stale
    journal.entry(term=2, seq=1, calls=1, tokens=30)
    reader = LedgerReader(load_settings(kafka_brokers=module_kafka.bootstrap, data_dir=tmp_path))
    try:
        reader.read_to_end()
        assert reader.totals == Totals(2, 130, 0)
        assert reader.usage_applied == {0: 1}
        journal.entry(term=2, seq=2, calls=1, tokens=5)
        reader.read_to_end()
        assert reader.totals == Totals(3, 135, 0)
        assert reader.usage_applied == {0: 2}
    finally:
        reader.close()


class _Journal:
    """Writes partition 0 of the journal as owners do."""

    def __init__(self, brokers: str) -> None:
        self._producer = Producer({"bootstrap.servers": brokers, "linger.ms": 0})

    def open(self, term: int) -> None:
        self._write(OPEN_KEY, encode_record(OpenRow(f"owner-{term}", 0)), term, 0)

    def entry(self, term: int, seq: int, calls: int, tokens: int) -> None:
        nanos = 1_000_000_000
        usage = tuple(
            UsageDelta(meter, 0, {}, units * nanos, 1, 0, 0)
            for meter, units in (("calls", calls), ("input_tokens", tokens))
        )
        entry = Entry(customer="acme", at=0, catalog=1, causes=(Cause(USAGE, 0, seq, "e"),), usage=usage)
        self._write(entry_key("acme"), encode_record(entry), term, seq)
        self._write(PARTITION_KEY, encode_record(PartitionRow({USAGE: seq}, 0, 1)), term, seq)

    def _write(self, key: bytes, value: bytes, term: int, seq: int) -> None:
        self._producer.produce(JOURNAL, value, key, partition=0, headers=[("term", b"%d" % term), ("seq", b"%d" % seq)])
        assert self._producer.flush(30) == 0


def _topics(brokers: str) -> set[str]:
    return set(AdminClient({"bootstrap.servers": brokers}).list_topics(timeout=10).topics)
