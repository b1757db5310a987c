"""What the sink's tests share: a story that the real core decided, its journal on a broker, a sink that reads it."""

import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from partition import T0, Partition, event
from tallygate.connectors.clickhouse_questions import QuestionError
from tallygate.schemas.instants import HOUR_MS, to_datetime
from tallygate.schemas.journal import OPEN_KEY, Entry, OpenRow, encode_record
from tallygate.schemas.requests import GiveGrant, Release, Request, Reserve, SetBudget, Settle
from tallygate.schemas.topics import DAY_MS, HEADER_SEQ, HEADER_TERM, JOURNAL, topic_specs
from tallygate.topologies.settings import Settings, load_settings
from tallygate.topologies.sql_server import ask
from topic_waits import await_partitions

D = Decimal

PATIENCE_SECONDS = 40.0
#: Of the journal.
PARTITIONS = 2

Rows = list[tuple[bytes, bytes | None]]


class JournalWriter:
    """Writes journal records, with the headers of a term."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})

    def open(self, partition: int, term: int) -> None:
        self.write(partition, term, 0, [(OPEN_KEY, encode_record(OpenRow(f"owner-{term}", 0)))])

    def write(self, partition: int, term: int, seq: int, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        headers = [(HEADER_TERM, b"%d" % term), (HEADER_SEQ, b"%d" % seq)]
        for key, value in records:
            self._producer.produce(JOURNAL, value, key, partition, self._arrived, headers=headers)
        assert self._producer.flush(30) == 0

    def append(self, partition: int, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """A record with any headers."""
        self._producer.produce(JOURNAL, value, key, partition, self._arrived, headers=headers)
        assert self._producer.flush(30) == 0

    @staticmethod
    def _arrived(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise KafkaException(error)

    def tell(self, partition: int, story: "Story", term: int = 1) -> None:
        """The whole story under one term, a transition a step."""
        self.open(partition, term)
        for seq, records in enumerate(story.transitions, 1):
            self.write(partition, term, seq, records)


class Story:
    """What happened to one customer: grants, holds settled, released and denied, usage by hour, overage, an expiry."""

    def __init__(self, customer: str, rounds: int = 3) -> None:
        self.customer = customer
        self.world = Partition()
        soon = to_datetime(T0 + HOUR_MS)
        self._ask(GiveGrant(id="trial", customer=customer, amount=D(100), category="trial", expires_at=soon))
        self._ask(GiveGrant(id="paid", customer=customer, amount=D(400), priority=2, price=D("0.01")))
        self._ask(SetBudget(id="b", customer=customer, name="agents", limit=D(50), scope={"agent": "*"}))
        for number in range(rounds):
            self.round(str(number))

    def round(self, name: str) -> None:
        customer, scope = self.customer, {"team": "research", "agent": f"agent {name}"}
        for hold, tokens in ((f"h{name}", 9000), (f"r{name}", 10), (f"x{name}", 900_000)):
            quantities = {"input_tokens": D(tokens)}
            self._ask(Reserve(id=hold, customer=customer, feature="llm", quantities=quantities, dimensions=scope))
        self._ask(Settle(id=f"s{name}", customer=customer, hold=f"h{name}", quantities={"input_tokens": D("7500.5")}))
        self._ask(Release(id=f"l{name}", customer=customer, hold=f"r{name}"))
        self._ask(Reserve(id=f"o{name}", customer=customer, feature="owing", credits=D(500)))
        self._ask(Settle(id=f"p{name}", customer=customer, hold=f"o{name}", credits=D("3.25")))
        used = {"input_tokens": 17, "output_tokens": 3, "team": "research", "model": "large"}
        self.world.use(*(event(f"e{name}-{i}", customer, **used) for i in range(5)))
        self.world.tick(1800)

    def _ask(self, request: Request) -> None:
        self.world.ask(request)

    @property
    def transitions(self) -> list[Rows]:
        return [list(transition.records) for transition in self.world.transitions]

    @property
    def entries(self) -> list[Entry]:
        return self.world.entries()


class ClickHouseServer:
    """ClickHouse's HTTP interface on a port and folder of its own; can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self.dsn = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        script = Path(__file__).parent / "clickhouse_front.py"
        self._process = subprocess.Popen([sys.executable, str(script), str(self._folder), str(self.port)])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def ledger_sums(stories: Iterable[Story]) -> dict[tuple[str, str, str], int]:
    """Nanos by customer, asset and account."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for story in stories:
        for entry in story.entries:
            for leg in entry.postings:
                sums[entry.customer, leg.asset, leg.account] += leg.amount_nanos
    return dict(sums)


class SinkProcess:
    """A running sink. `stop` and `kill` end it; leaving the block kills it."""

    def __init__(self, bootstrap: str, data_dir: Path, *, dsn: str = "", **given: Any) -> None:
        chosen = {
            "kafka_brokers": bootstrap,
            "data_dir": str(data_dir),
            "clickhouse_dsn": dsn,
            "sql_address": "127.0.0.1:0",
            "metrics_address": given.pop("metrics_address", ""),
            **given.pop("settings", {}),
        }
        self.settings: Settings = load_settings(**{**chosen, "data_dir": data_dir})
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed with the process
        script = Path(__file__).parent / "sink_process.py"
        with open(self._said.name, "ab") as said:  # a place of its own in the file, which reading does not move
            self.process = subprocess.Popen(
                [sys.executable, str(script), json.dumps({"settings": chosen, **given})], stderr=said
            )

    @property
    def said(self) -> str:
        return Path(self._said.name).read_text()

    def ask(self, sql: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in ask(self.settings, sql, "jsonl").splitlines()]

    def sums(self) -> dict[tuple[str, str, str], int]:
        rows = self.ask("SELECT customer, asset, account, sum(amount) AS amount FROM postings GROUP BY ALL")
        return {(r["customer"], r["asset"], r["account"]): int(Decimal(r["amount"]).scaleb(9)) for r in rows}

    def figure(self, sql: str) -> Any:
        [row] = self.ask(sql)
        return next(iter(row.values()))

    def wait_for(self, true: Callable[[], bool]) -> None:
        """Asks until it is so; a table that is not there yet, or nobody who answers yet, is not so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if true():
                    return
            except QuestionError as refused:
                found: object = refused
            else:
                found = "not so yet"
            assert self.process.poll() is None, f"the sink ended with {self.process.returncode}: {self.said}"
            assert time.monotonic() < deadline, f"{found}; the sink said: {self.said}"
            time.sleep(0.05)

    def wait_for_sums(self, stories: Iterable[Story]) -> None:
        """Until postings and decisions are all there; then the sums are the ledger's, or the test fails."""
        stories = list(stories)
        legs = sum(len(entry.postings) for story in stories for entry in story.entries)
        decisions = sum(len(entry.decisions) for story in stories for entry in story.entries)
        self.wait_for(
            lambda: (
                int(self.figure("SELECT count() FROM postings")) >= legs
                and int(self.figure("SELECT count() FROM decisions")) >= decisions
            )
        )
        assert int(self.figure("SELECT count() FROM postings")) == legs
        assert int(self.figure("SELECT count() FROM decisions")) == decisions
        assert self.sums() == ledger_sums(stories)

    def wait_for_line(self, words: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while words not in self.said:
            assert self.process.poll() is None, f"the sink ended with {self.process.returncode}: {self.said}"
            assert time.monotonic() < deadline, f"it did not say {words!r} but: {self.said}"
            time.sleep(0.05)

    def end(self) -> int:
        """Waits until it ends by itself; its exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._said.close()


def make_journal(bootstrap: str) -> None:
    """A new, empty journal in place of the old one."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    [spec] = [spec for spec in topic_specs(PARTITIONS) if spec.name == JOURNAL]
    if JOURNAL in admin.list_topics(timeout=10).topics:
        admin.delete_topics([JOURNAL])[JOURNAL].result()
    deadline = time.monotonic() + 20
    while True:
        try:
            admin.create_topics([NewTopic(JOURNAL, PARTITIONS, 1, config=spec.config)])[JOURNAL].result()
        except KafkaException:  # still being deleted
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            break
    await_partitions(admin, JOURNAL, PARTITIONS)


def compact(bootstrap: str, writer: JournalWriter) -> None:
    """Makes the broker compact partition 0 of the journal now, and waits until records are gone."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    patient = {"min.compaction.lag.ms": str(DAY_MS), "max.compaction.lag.ms": str(2**63 - 1), "segment.ms": str(DAY_MS)}
    for broker in admin.list_topics(timeout=10).brokers:
        alter(admin, ResourceType.BROKER, str(broker), {"log.cleaner.backoff.ms": "100"})
    alter(admin, ResourceType.TOPIC, JOURNAL, dict.fromkeys(patient, "1"))
    for _ in range(100):
        writer.write(0, 1, 10_000, [(b"\0partition", b"{}")])  # rolls the segment
        if holes(bootstrap):
            return alter(admin, ResourceType.TOPIC, JOURNAL, patient)
        time.sleep(0.2)
    raise AssertionError("the broker did not compact")


def holes(bootstrap: str) -> int:
    """How many offsets of partition 0 have no record."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "looking", "enable.partition.eof": True})
    consumer.assign([TopicPartition(JOURNAL, 0, 0)])
    try:
        records = 0
        while (message := consumer.poll(10)) is not None:
            if message.error() is not None:
                return int(message.offset()) - records
            records += 1
        raise AssertionError("the broker does not answer")
    finally:
        consumer.close()


def alter(admin: AdminClient, kind: Any, name: str, entries: dict[str, str]) -> None:
    changes = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in entries.items()]
    [done] = admin.incremental_alter_configs([ConfigResource(kind, name, incremental_configs=changes)]).values()
    done.result()


def metric(port: int, name: str) -> float:
    """A figure of the metrics page; -1 while it is not there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        found = re.search(rf"^{re.escape(name)} (\S+)$", page.read().decode(), re.MULTILINE)
    return float(found[1]) if found else -1.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def nanos(amount: str) -> int:
    return int(Decimal(amount).scaleb(9))
