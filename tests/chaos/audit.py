"""The end of a run: everything at rest, `ledger verify` asked, the processes ended in order, and all of it read."""

import json
import os
import subprocess
import sys
import time

from confluent_kafka import Consumer, TopicPartition

from chaos.evidence import Evidence, bounds_of, ends_of, read_books, read_kafka
from chaos.fleet import Fleet, Sink
from chaos.load import Record
from tallygate.schemas.journal import PARTITION_KEY, PartitionRow, decode_record
from tallygate.schemas.topics import JOURNAL, REQUESTS, USAGE

_LAST_RECORDS = 100
_SINK_SECONDS = 120


def until_applied(brokers: str, partitions: int, seconds: float) -> None:
    """Until the newest partition rows say that all inputs are applied; after so many seconds it is left as it is."""
    inputs = {**ends_of(brokers, USAGE, partitions), **ends_of(brokers, REQUESTS, partitions)}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        applied = _applied(brokers, partitions)
        if all(applied.get(place, -1) >= end - 1 for place, end in inputs.items()):
            return
        time.sleep(0.5)


def _applied(brokers: str, partitions: int) -> dict[tuple[str, int], int]:
    found = {}
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "chaos-audit", "log_level": 0})
    try:
        for number in range(partitions):
            place = TopicPartition(JOURNAL, number)
            begin, end = bounds_of(consumer, JOURNAL, number)
            due = place.offset = max(begin, end - _LAST_RECORDS)
            consumer.assign([place])
            while due < end and (message := consumer.poll(10)) is not None:
                if message.error() is None:
                    due = message.offset() + 1
                    if message.key() == PARTITION_KEY:
                        row = decode_record(message.value())
                        assert isinstance(row, PartitionRow)
                        found.update({(topic, number): offset for topic, offset in row.applied.items()})
    finally:
        consumer.close()
    return found


def gather(fleet: Fleet, partitions: int, service: str, record: Record) -> Evidence:
    disagreements = [line for sink in fleet.sinks for line in _verify(fleet, sink)]
    fleet.stop_all()
    if fleet.server is not None:
        fleet.server.kill()
    evidence = read_kafka(fleet.broker.bootstrap, partitions, service, record)
    evidence.books = [read_books(sink.name, sink.database) for sink in fleet.sinks]
    evidence.killed = fleet.killed()
    evidence.disagreements = disagreements
    return evidence


def _verify(fleet: Fleet, sink: Sink) -> list[str]:
    """What `tallygate ledger verify` finds wrong; that it cannot say anything is wrong, too."""
    arguments = ["ledger", "verify", "--json", "--wait", str(_SINK_SECONDS)]
    where = ["--brokers", fleet.broker.bootstrap, "--data-dir", str(sink.settings.data_dir)]
    ran = subprocess.run(
        [sys.executable, "-m", "tallygate.topologies.cli", *arguments, *where],
        env={**os.environ, "TALLYGATE_CLICKHOUSE_DSN": sink.settings.clickhouse_dsn},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if ran.returncode == 0 and json.loads(ran.stdout)["agrees"]:
        return []
    return [f"{sink.name}: ledger verify ended with {ran.returncode}: {ran.stdout.strip()} {ran.stderr.strip()}"]
