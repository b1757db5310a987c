"""A Kafka that asks who is there: the whole path works with exactly the rules of `tallygate acls`, over SCRAM and over
client certificates; a stranger is refused with one line, and nobody but the worker writes the journal.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from command_line import CommandLine, Said
from kafka_fixture import needs_java
from secured_kafka import PASSPHRASE, SecuredKafka, as_file, missing_tools, password_of, secured_kafka
from sink_world import SinkProcess
from tallygate.connectors.client import NotConnected, Tallygate
from tallygate.schemas import topics
from tallygate.topologies.demo_trace import data_path
from tallygate.topologies.settings import GROUP
from worker_process import WorkerProcess

pytestmark = [needs_java, pytest.mark.skipif(bool(missing_tools()), reason=missing_tools()), pytest.mark.timeout(300)]

ROLES = ("worker", "sink", "producer", "operator", "analyst")
CHECKOUT = topics.reply_topic("checkout")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, _nothing_left_behind: None) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as kafka:
        for name in (*ROLES, "checkout", "stranger"):
            kafka.add_user(name)
        yield kafka


class As:
    """The command line of somebody."""

    def __init__(self, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._cli = cli
        self._monkeypatch = monkeypatch
        self._folder = folder
        monkeypatch.setenv("TALLYGATE_DATA_DIR", str(folder))

    def __call__(self, brokers: str, options: dict[str, str], *words: str) -> Said:
        self._monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", brokers)
        self._monkeypatch.setenv("TALLYGATE_KAFKA_CONFIG_FILE", as_file(self._folder, options) if options else "")
        return self._cli(*words)


@pytest.fixture
def run_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> As:
    monkeypatch.delenv("TALLYGATE_KAFKA_CONFIG", raising=False)
    return As(CommandLine(monkeypatch, capfd), monkeypatch, tmp_path)


@pytest.fixture
def allowed(secured: SecuredKafka, run_as: As) -> SecuredKafka:
    """The rules of `tallygate acls` are in force, and the topics there: made by the operator."""
    who = [word for role in ROLES for word in (f"--{role}", f"User:{role}")]
    done = run_as(secured.plain, {}, "acls", *who, "--service", "checkout=User:checkout", "--apply")
    assert (done.code, done.err) == (0, "")
    made = run_as(secured.sasl, secured.user("operator"), "topics", "--partitions", "2", "--service", "checkout")
    assert (made.code, made.err) == (0, ""), made
    return secured


def worker(at: str, options: dict[str, str], folder: Path) -> WorkerProcess:
    return WorkerProcess(at, folder, group=GROUP, kafka_config_file=as_file(folder.parent, options))


def sink(at: str, options: dict[str, str], folder: Path) -> SinkProcess:
    return SinkProcess(at, folder, settings={"kafka_config_file": as_file(folder.parent, options)})


EVENT = {"specversion": "1.0", "source": "/t", "type": "llm.call", "data": {"input_tokens": 1000, "model": "code"}}


@pytest.mark.parametrize("how", ["scram", "certificates"])
async def test_the_whole_path_with_the_rules_and_no_more(
    allowed: SecuredKafka, run_as: As, tmp_path: Path, how: str
) -> None:
    at = allowed.sasl if how == "scram" else allowed.mtls
    options = allowed.user if how == "scram" else allowed.certificate
    customer = f"acme-{how}"
    with worker(at, options("worker"), tmp_path / "w") as running, sink(at, options("sink"), tmp_path) as stored:
        with data_path("catalog.yaml") as example:
            applied = run_as(at, options("operator"), "catalog", "apply", str(example))
        assert (applied.code, applied.err) == (0, "")
        granted = run_as(at, options("operator"), "grant", customer, "100", "--timeout", "60")
        assert (granted.code, granted.err) == (0, "")
        async with Tallygate(at, service="checkout", kafka=options("checkout")) as client:
            async with client.reserve(customer, feature="llm", credits=10) as hold:
                await hold.settle(credits=7)
            assert (await client.balance(customer)).pools[0].balance == "93"
        (tmp_path / "events.json").write_text(json.dumps([{**EVENT, "id": how, "subject": customer}]))
        sent = run_as(at, options("producer"), "produce", str(tmp_path / "events.json"))
        assert (sent.code, sent.err) == (0, "")
        count = f"SELECT count() FROM usage WHERE customer = '{customer}'"
        stored.wait_for(lambda: int(stored.figure(count)) == 1)
        assert {d["op"] for d in decisions(at, options("analyst"), customer)} >= {"grant", "reserve", "settle"}
        verified = run_as(at, options("operator"), "ledger", "verify", "--customer", customer)
        assert verified.out.startswith("the ledger agrees: customers 1"), verified
        assert (running.stop(), stored.stop()) == (0, 0)
        said = running.log() + stored.said
    assert not re.search("secret|open-sesame|Traceback", said)
    assert "authorization failed" not in said.lower()


def decisions(at: str, options: dict[str, str], customer: str) -> list[dict[str, Any]]:
    consumer = Consumer(
        {"bootstrap.servers": at, "group.id": "tallygate-analyst-1", "auto.offset.reset": "earliest",
         "enable.partition.eof": True, **options}
    )  # fmt: skip
    consumer.subscribe([topics.DECISIONS])
    found, ends = [], 0
    while ends < 2:
        message = consumer.poll(20)
        assert message is not None
        if message.error() is None:
            if message.key() == customer.encode():
                found.append(json.loads(message.value()))
        else:
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            ends += 1
    consumer.close()
    return found
