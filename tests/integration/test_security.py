"""A Kafka that asks who is there: the whole path works with exactly the rules of `tallygate acls`, over SCRAM and over
client certificates; a stranger is refused with one line, and nobody but the worker writes the journal.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from asker import records
from command_line import CommandLine, Said
from gateway_process import GatewayProcess
from kafka_fixture import needs_java
from secured_kafka import SecuredKafka, as_file, missing_tools, secured_kafka
from sink_world import SinkProcess
from tallygate.connectors.client import NotConnected, Tallygate
from tallygate.schemas import topics
from tallygate.schemas.keys import SCOPES
from tallygate.schemas.requests import Balance, encode_request
from tallygate.topologies.demo_trace import data_path
from tallygate.topologies.keys_topic import create_key
from tallygate.topologies.settings import GROUP, load_settings
from worker_process import WorkerProcess

pytestmark = [needs_java, pytest.mark.skipif(bool(missing_tools()), reason=missing_tools()), pytest.mark.timeout(300)]

ROLES = ("worker", "sink", "gateway", "producer", "operator", "analyst")
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
    services = ("--service", "checkout", "--service", "gateway")
    made = run_as(secured.sasl, secured.user("operator"), "topics", "--partitions", "2", *services)
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
        looked = run_as(at, options("operator"), "doctor")
        assert "cannot be" not in looked.out + looked.err, looked
        assert "1 worker owns all 2 partitions" in looked.out
        assert verified.out.startswith("the ledger agrees: customers 1"), verified
        assert (running.stop(), stored.stop()) == (0, 0)
        said = running.log() + stored.said
    assert not re.search("secret|open-sesame|Traceback", said)
    assert "authorization failed" not in said.lower()


def test_the_gateway_with_its_rules(allowed: SecuredKafka, tmp_path: Path) -> None:
    at = allowed.sasl
    known_as = as_file(tmp_path, allowed.user("operator"))
    operator = load_settings(kafka_brokers=at, kafka_config_file=known_as, data_dir=tmp_path)
    given = as_file(tmp_path, allowed.user("gateway"))
    with (
        worker(at, allowed.user("worker"), tmp_path / "w") as running,
        GatewayProcess(at, tmp_path / "g", wait=False, kafka_config_file=given, gateway_timeout_ms=20_000) as gateway,
    ):
        running.wait_for("worker is ready")
        gateway.wait_for("gateway is ready")
        gateway.admin = create_key(operator, SCOPES, name="admin").text
        gateway.await_key(gateway.admin)
        applied = gateway.call("POST", "/v1/catalog", {"features": {"llm": {}}})
        status = gateway.call("POST", "/v1/customers/acme/status", {})
        assert (applied.status, status.status) == (200, 200), (applied, status)
        assert gateway.stop() == 0
        assert not re.search("secret|Traceback|authorization failed", gateway.log(), re.IGNORECASE)
    assert list(records(allowed.plain, topics.AUDIT))


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


@pytest.mark.parametrize("who", ["with a wrong password", "who may do nothing", "without a certificate"])
async def test_a_stranger_is_refused_with_one_line(allowed: SecuredKafka, run_as: As, tmp_path: Path, who: str) -> None:
    at, options, said = {
        "with a wrong password": (
            allowed.sasl,
            {**allowed.user("operator"), "sasl.password": "a guess"},
            r"does not let .* in: .*Authentication failed.*: are sasl.username, sasl.password and .* right\?$",
        ),
        "who may do nothing": (
            allowed.sasl,
            allowed.user("stranger"),
            r"[Aa]uthorization failed.?; `tallygate acls` shows what each process must be allowed$",
        ),
        "without a certificate": (
            allowed.mtls,
            allowed.no_certificate(),
            r"does not let .* in: .*: it wants another client certificate, or one at all: ssl.certificate.location",
        ),
    }[who]
    (tmp_path / "events.json").write_text(json.dumps([{**EVENT, "id": "1", "subject": "acme"}]))
    commands = ("balance acme", "topics", f"produce {tmp_path / 'events.json'}", "catalog show", "ledger verify")
    for command in commands:
        refused = run_as(at, options, *command.split())
        assert (refused.code, refused.out, refused.err.count("\n")) == (3, "", 1), refused
        assert re.search(said, refused.err), refused
        assert not re.search("guess|secret", refused.err)
    with worker(at, options, tmp_path / "w") as running, sink(at, options, tmp_path) as stored:
        with pytest.raises(NotConnected, match=said):
            await Tallygate(at, service="checkout", kafka=options).start()
        assert (running.ended(), stored.end()) == (1, 1)
        for line in (running.log().splitlines()[-1], stored.said.splitlines()[-1]):
            assert re.search(said, line), line
        assert not re.search("Traceback|guess|secret", running.log() + stored.said)


def test_the_doctor_says_which_permission_is_missing(allowed: SecuredKafka, run_as: As) -> None:
    looked = run_as(allowed.sasl, allowed.user("stranger"), "doctor")
    assert (looked.code, looked.err) == (1, "")
    hint = "; `tallygate acls` shows what each process must be allowed\n"
    assert f"topic tallygate.journal.v1 cannot be looked at: Broker: Topic authorization failed{hint}" in looked.out
    partly = run_as(allowed.sasl, allowed.user("sink"), "doctor").out
    assert f"group tallygate-workers cannot be looked at: Broker: Group authorization failed{hint}" in partly
    # It may read the journal, but not under the name that the doctor reads under: whichever is noticed first.
    assert re.search(r"(how much of tallygate\.usage\.v1 waits|how far the workers are) cannot be seen", partly)
    assert "topic tallygate.usage.v1 cannot be looked at: Broker: Topic authorization failed" in partly


def write(at: str, options: dict[str, str], topic: str) -> str:
    """What the broker says to a record; empty when it takes it."""
    said: list[str] = []
    producer = Producer({"bootstrap.servers": at, "log_level": 0, "message.timeout.ms": 20_000, **options})
    producer.produce(topic, b"{}", b"acme", on_delivery=lambda error, _: said.append(error.name() if error else ""))
    assert producer.flush(30) == 0
    return said[0]


def read(at: str, options: dict[str, str], topic: str) -> str:
    """What the broker says to a reader; empty when it gives records, or would."""
    consumer = Consumer({"bootstrap.servers": at, "group.id": "tallygate-client-checkout", "log_level": 0, **options})
    try:
        if error := consumer.list_topics(topic, timeout=20).topics[topic].error:
            return str(error.name())
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(20)
        return str(message.error().name()) if message is not None and message.error() else ""
    finally:
        consumer.close()


def test_the_broker_lets_nobody_but_the_worker_write_the_journal(allowed: SecuredKafka) -> None:
    refused = "TOPIC_AUTHORIZATION_FAILED"
    for name in ("checkout", "sink", "producer", "operator", "analyst", "stranger"):
        assert write(allowed.sasl, allowed.user(name), topics.JOURNAL) == refused, name
        assert write(allowed.mtls, allowed.certificate(name), topics.JOURNAL) == refused, name
    for name in ("worker", "producer", "checkout", "analyst"):  # only the sink
        assert write(allowed.sasl, allowed.user(name), topics.DECISIONS) == refused, name
    for topic in (topics.JOURNAL, topics.REQUESTS, topics.DEAD_LETTERS, topics.reply_topic("cli")):
        assert read(allowed.sasl, allowed.user("checkout"), topic) == refused, topic
    for topic in (topics.USAGE, topics.CATALOG, topics.DEAD_LETTERS, CHECKOUT):
        assert write(allowed.sasl, allowed.user("checkout"), topic) == refused, topic
    assert (
        write(allowed.sasl, allowed.user("producer"), topics.USAGE) == ""
    )  # the rules are in force, not everything shut


def test_a_request_that_names_a_foreign_reply_topic_is_put_aside(
    allowed: SecuredKafka, run_as: As, tmp_path: Path
) -> None:
    """The worker may write the journal, so it must not be talked into answering there."""
    customer = "foreign-reply"
    request = encode_request(Balance(id="spy", customer=customer))
    foreign = (topics.JOURNAL, topics.USAGE, "tallygate.replies.checkout.v1.x", "payroll")
    producer = Producer(
        {"bootstrap.servers": allowed.sasl, "partitioner": "murmur2_random", "log_level": 0, **allowed.user("checkout")}
    )
    for topic in foreign:
        headers = [(topics.HEADER_REPLY_TO, topic.encode()), (topics.HEADER_CORRELATION, b"spy")]
        producer.produce(topics.REQUESTS, request, customer, headers=headers)
    assert producer.flush(30) == 0
    with worker(allowed.sasl, allowed.user("worker"), tmp_path / "w") as running:
        # Whoever is answered now was behind them in the same partition.
        asked = run_as(allowed.sasl, allowed.user("operator"), "balance", customer, "--timeout", "60")
        assert "Traceback" not in asked.err
        assert running.stop() == 0
    letters = [dict(record.headers) for record in records(allowed.plain, topics.DEAD_LETTERS)]
    refused = [h for h in letters if h["tallygate-reason"] == b"reply_topic_not_allowed"]
    assert sorted(h["original-" + topics.HEADER_REPLY_TO].decode() for h in refused) == sorted(foreign)
    operator = allowed.user("operator")
    listed = run_as(allowed.sasl, operator, "dead-letters", "list", "--topic", topics.REQUESTS, "--json")
    places = [letter["place"] for letter in json.loads(listed.out)]
    assert len(places) == len(foreign)
    again = run_as(allowed.sasl, operator, "dead-letters", "replay", places[0])  # the rules allow it
    assert (again.code, again.err) == (0, "")
    journal = list(records(allowed.plain, topics.JOURNAL))
    assert all(topics.HEADER_TERM in dict(record.headers) for record in journal)
    assert not any(topics.HEADER_CORRELATION in dict(record.headers) for record in journal)
