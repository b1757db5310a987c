"""What lies in Kafka and in ClickHouse at the end, read without any of the readers that run in production.

The journal's rule is written down here once more, and stricter than production's, which must bear compaction: only an
*open* record whose term is higher than all before begins a term, only records of the term that is open count, and
within a term transitions are numbered 1, 2, 3 … without a gap and each ends with its partition row.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from chaos.load import Record
from chaos.supervised import Life
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.journal import Entry, PartitionRow, Row, decode_record
from tallygate.schemas.topics import DEAD_LETTERS, DECISIONS, JOURNAL, REQUESTS, USAGE, reply_topic

_SILENCE_SECONDS: Final = 30.0


class Raw(NamedTuple):
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class Reply(NamedTuple):
    """An answer as it lies in the reply topic; `at_ms`: when its sender handed it to its own producer."""

    at_ms: int
    value: bytes
    answer: Answer


@dataclass
class Transition:
    """One accepted batch of the journal."""

    partition: int
    term: int
    seq: int
    entries: list[Entry] = field(default_factory=list)
    rows: list[tuple[bytes, Row | None]] = field(default_factory=list)
    end: PartitionRow | None = None


@dataclass
class Journal:
    """`opened`: by partition, the terms and when each began; `broken`: where it is not as a journal must be."""

    transitions: list[Transition] = field(default_factory=list)
    opened: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    stale: int = 0
    broken: list[str] = field(default_factory=list)


@dataclass
class Books:
    """What one ClickHouse holds; amounts in nanos."""

    name: str
    decisions: list[tuple[str, str, str, bool]] = field(default_factory=list)  # customer, op, id, allowed
    postings: dict[tuple[str, str, str], int] = field(default_factory=dict)  # by customer, pool and account
    usage: dict[str, list[int]] = field(default_factory=dict)  # tokens, by the event that is named as the cause
    hourly: dict[tuple[str, str], int] = field(default_factory=dict)  # by customer and meter
    balances: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # by customer and grant


@dataclass
class Killed:
    """A worker's life that was ended by SIGKILL, and the terms that it had opened by then."""

    worker: str
    life: Life
    terms: list[tuple[int, int]]  # partition, term


@dataclass
class Evidence:
    partitions: int
    record: Record
    replies: list[Reply]
    journal: Journal
    dead_letters: list[Raw]
    input_ends: dict[tuple[str, int], int]
    books: list[Books]
    published: list[Raw] = field(default_factory=list)  # the topic of decisions
    killed: list[Killed] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)  # what `tallygate ledger verify` found
    troubles: list[str] = field(
        default_factory=list
    )  # what went otherwise than it should without being one of the five


def topic_records(brokers: str, topic: str) -> Iterator[Raw]:
    """Everything in a topic as of now, partition by partition."""
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": "chaos-evidence", "enable.auto.commit": False, "log_level": 0}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        for number in sorted(partitions):
            begin, end = bounds_of(consumer, topic, number)
            due = begin
            consumer.assign([TopicPartition(topic, number, begin)])
            while due < end:
                message = consumer.poll(_SILENCE_SECONDS)
                assert message is not None, f"{topic} partition {number} ends at {end}, and nothing came after {due}"
                if message.error() is None and message.offset() < end:
                    due = message.offset() + 1
                    headers = {name: value or b"" for name, value in message.headers() or ()}
                    at = message.timestamp()[1]
                    yield Raw(number, message.offset(), at, message.key(), message.value(), headers)
    finally:
        consumer.close()


def bounds_of(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The first offset and the one after the last; a client that has just connected may not know the partition yet."""
    for tries_left in reversed(range(100)):
        try:
            begin, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
            return int(begin), int(end)
        except KafkaException:
            if not tries_left:
                raise
            time.sleep(0.2)
    raise AssertionError


def ends_of(brokers: str, topic: str, partitions: int) -> dict[tuple[str, int], int]:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "chaos-evidence", "log_level": 0})
    try:
        return {(topic, number): bounds_of(consumer, topic, number)[1] for number in range(partitions)}
    finally:
        consumer.close()


def read_journal(records: Iterator[Raw]) -> Journal:
    journal = Journal()
    open_terms: dict[int, int] = {}
    last: dict[int, Transition] = {}
    for record in records:
        where = f"journal {record.partition}@{record.offset}"
        term, seq = int(record.headers["term"]), int(record.headers["seq"])
        current = open_terms.get(record.partition, 0)
        if record.key == b"\0open":
            if term <= current:
                journal.stale += 1
                continue
            _close(last.pop(record.partition, None), journal)
            open_terms[record.partition] = term
            journal.opened.setdefault(record.partition, []).append((term, record.at_ms))
            continue
        if term > current:
            journal.broken.append(f"{where}: a record of term {term}, which nobody opened")
        if term != current:
            journal.stale += 1
            continue
        now = last.get(record.partition)
        if now is None or now.seq != seq:
            _close(now, journal)
            before = now.seq if now else 0
            if seq != before + 1:
                journal.broken.append(f"{where}: transition {seq} of term {term} follows {before}")
            now = last[record.partition] = Transition(record.partition, term, seq)
            journal.transitions.append(now)
        _add(now, record, where, journal)
    for each in last.values():
        _close(each, journal)
    return journal


def _close(transition: Transition | None, journal: Journal) -> None:
    if transition is not None and transition.end is None:
        journal.broken.append(f"term {transition.term}, transition {transition.seq}: has no partition row")


def _add(transition: Transition, record: Raw, where: str, journal: Journal) -> None:
    if transition.end is not None:
        journal.broken.append(f"{where}: follows its transition's partition row")
    assert record.key is not None
    value = None if record.value is None else decode_record(record.value)
    match value:
        case PartitionRow():
            transition.end = value
        case Entry():
            transition.entries.append(value)
        case _:
            transition.rows.append((record.key, value))  # type: ignore[arg-type]


def read_replies(brokers: str, service: str) -> list[Reply]:
    found = []
    for raw in topic_records(brokers, reply_topic(service)):
        assert raw.value is not None
        found.append(Reply(raw.at_ms, raw.value, decode_answer(raw.value)))
    return found


def read_kafka(brokers: str, partitions: int, service: str, record: Record) -> Evidence:
    inputs = {**ends_of(brokers, USAGE, partitions), **ends_of(brokers, REQUESTS, partitions)}
    return Evidence(
        partitions,
        record,
        read_replies(brokers, service),
        read_journal(topic_records(brokers, JOURNAL)),
        list(topic_records(brokers, DEAD_LETTERS)),
        inputs,
        [],
        list(topic_records(brokers, DECISIONS)),
    )


_QUESTIONS: Final = {
    "decisions": "SELECT customer, op, id, allowed FROM decisions",
    "postings": "SELECT customer, asset, account, toString(sum(amount)) AS total FROM postings GROUP BY ALL",
    "usage": "SELECT cause_id, toString(quantity) AS quantity FROM usage WHERE meter = 'tokens'",
    "hourly": "SELECT customer, meter, toString(sum(quantity)) AS total FROM usage_hourly GROUP BY ALL",
    "balances": "SELECT customer, grant, toString(balance) AS b, toString(held) AS h FROM balances WHERE grant != ''",
}
_SCRIPT: Final = """
import json, sys, chdb
connection = chdb.connect(sys.argv[1])
for name, question in json.loads(sys.argv[2]).items():
    for line in connection.query(question, "JSONEachRow").data().splitlines():
        print(json.dumps([name, json.loads(line)]))
"""


def read_books(name: str, folder: Path) -> Books:
    """Of a ClickHouse folder that no process uses any more; the engine is asked in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder), json.dumps(_QUESTIONS)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, f"{folder} cannot be read: {ran.stderr[-2000:]}"
    books = Books(name)
    for line in ran.stdout.splitlines():
        kind, row = json.loads(line)
        _book(books, kind, row)
    return books


def _book(books: Books, kind: str, row: dict[str, Any]) -> None:
    match kind:
        case "decisions":
            books.decisions.append((row["customer"], row["op"], row["id"], bool(row["allowed"])))
        case "postings":
            books.postings[row["customer"], row["asset"], row["account"]] = nanos(row["total"])
        case "usage":
            books.usage.setdefault(row["cause_id"], []).append(nanos(row["quantity"]))
        case "hourly":
            books.hourly[row["customer"], row["meter"]] = nanos(row["total"])
        case "balances":
            books.balances[row["customer"], row["grant"]] = (nanos(row["b"]), nanos(row["h"]))


def nanos(text: str) -> int:
    """Of a decimal string, exactly."""
    whole, _, rest = text.partition(".")
    sign = -1 if whole.startswith("-") else 1
    return int(whole) * 10**9 + sign * int(rest.ljust(9, "0") or "0")
