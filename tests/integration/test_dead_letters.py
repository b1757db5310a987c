"""Dead letters on a real broker: a record that cannot be taken is listed, shown, and once its cause is gone sent again
and counted once.
"""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from asker import Asker, counted, records
from command_line import CommandLine
from kafka_fixture import PARTITIONS, Broker
from tallygate.connectors.usage_batches import encode_batch
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import Balance, encode_request
from tallygate.schemas.usage_batch import BatchId, batch_headers
from worker_process import WorkerProcess


def catalog(version: int, value: str) -> Catalog:
    return Catalog(
        version=version,
        meters=(Meter("tokens", "llm.call", "sum", value),),
        features=(Feature("llm", ("credits",), ("tokens",)),),
    )


def event(id: str, customer: str, **data: Any) -> bytes:
    body = {"specversion": "1.0", "id": id, "source": "t", "type": "llm.call", "subject": customer, "data": data}
    return msgspec.json.encode(body)


@pytest.fixture
def cli(module_kafka: Broker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", module_kafka.bootstrap)
    return CommandLine(monkeypatch, capfd)


@pytest.fixture
def asker(module_kafka: Broker) -> Iterator[Asker]:
    asker = Asker(module_kafka.bootstrap)
    yield asker
    asker.close()


def put(brokers: str, topic: str, value: bytes, key: bytes | None, partition: int, *headers: tuple[str, bytes]) -> str:
    """Puts a record; its place."""
    places: list[str] = []
    producer = Producer({"bootstrap.servers": brokers})
    producer.produce(
        topic,
        value,
        key,
        partition,
        lambda error, message: places.append(f"{message.topic()}/{message.partition()}/{message.offset()}"),
        headers=list(headers),
    )
    assert producer.flush(30) == 0
    return places[0]


def listed(cli: CommandLine, *words: str) -> list[dict[str, Any]]:
    said = cli("dead-letters", "list", "--json", *words)
    assert said.code == 0, said
    found: list[dict[str, Any]] = json.loads(said.out)
    return found


#: One customer in each partition.
MARKERS = {partition_of(f"marker-{n}", PARTITIONS): f"marker-{n}" for n in range(40)}


def all_decided(brokers: str, asker: Asker) -> None:
    """Returns when whatever was put before is decided: a request and an event behind it are, in every partition."""
    id = uuid.uuid4().hex
    asker.ask(*(Balance(id=f"{id}-{number}", customer=customer) for number, customer in MARKERS.items()))
    before = counted(brokers)
    for number, customer in MARKERS.items():
        put(brokers, topics.USAGE, event(id, customer, tokens=1, n=1), customer.encode(), number)
    for _ in range(300):
        now = counted(brokers)
        if all(now.get(customer, 0) > before.get(customer, 0) for customer in MARKERS.values()):
            return
        time.sleep(0.1)
    raise AssertionError("not all was decided")


def test_a_poison_record_is_listed_shown_and_after_its_cause_is_gone_counted_once(
    module_kafka: Broker, asker: Asker, cli: CommandLine, tmp_path: Path
) -> None:
    brokers = module_kafka.bootstrap
    assert cli("dead-letters").out == "no dead letters\n"
    asker.apply(catalog(1, "tokens"))
    home = partition_of("acme", PARTITIONS)
    elsewhere = (home + 1) % PARTITIONS
    poison = event("poison", "acme", tokens="many", n=5)
    lost = event("lost", "acme", tokens=3, n=3)
    garbage = b"\xff\x00not json"
    places = {
        "poison": put(brokers, topics.USAGE, poison, b"acme", home, ("trace", b"t-1")),
        "lost": put(brokers, topics.USAGE, lost, b"wrong key", elsewhere),
        "garbage": put(brokers, topics.USAGE, garbage, None, home, ("binary", b"\xff")),
        "spy": put(
            brokers,
            topics.REQUESTS,
            encode_request(Balance(id="spy", customer="acme")),
            b"acme",
            home,
            (topics.HEADER_REPLY_TO, topics.JOURNAL.encode()),
        ),
    }
    # The first worker dies between the dead letter and its transition: the letter is written twice.
    with WorkerProcess(brokers, tmp_path, group="dead", crash=("dead_lettered", 1)) as dying:
        assert dying.ended() == -9
    with WorkerProcess(brokers, tmp_path, group="dead") as worker:
        all_decided(brokers, asker)
        assert len(list(records(brokers, topics.DEAD_LETTERS))) > 4
        letters = {letter["place"]: letter for letter in listed(cli)}
        assert letters.keys() == set(places.values())
        reasons = {name: letters[place]["reason"] for name, place in places.items()}
        assert reasons == {
            "poison": "quantity_invalid",
            "lost": "wrong_partition",
            "garbage": "malformed",
            "spy": "reply_topic_not_allowed",
        }
        assert letters[places["poison"]]["customers"] == ["acme"]
        assert counted(brokers).get("acme", 0) == 0

        table = cli("dead-letters").out
        assert table.startswith("4 dead letters\n")
        assert all(place in table for place in places.values())
        assert [each["place"] for each in listed(cli, "--reason", "malformed")] == [places["garbage"]]
        assert [each["place"] for each in listed(cli, "--topic", topics.REQUESTS)] == [places["spy"]]
        assert listed(cli, "--since", "2999-01-01T00:00:00Z") == []
        assert len(listed(cli, "--limit", "2")) == 2
        assert [each["at"] for each in listed(cli)] == sorted((each["at"] for each in listed(cli)), reverse=True)

        shown = cli("dead-letters", "show", places["poison"]).out
        assert '"tokens": "many"' in shown
        assert "header      trace: t-1\n" in shown
        assert "ff 00 6e 6f" in cli("dead-letters", "show", places["garbage"]).out
        whole = msgspec.json.decode(cli("dead-letters", "show", places["poison"], "--json").out)
        assert msgspec.convert(whole["value"], bytes, strict=False) == poison

        # What is still wrong is put aside again, and says where it came from.
        assert cli("dead-letters", "replay", places["garbage"]).code == 0
        asker.apply(catalog(2, "n"))
        cli("dead-letters", "replay", places["poison"], "--dry-run")
        assert not [each for each in listed(cli) if each["sent_again"] and each["place"] == places["poison"]]
        sent = cli("dead-letters", "replay", places["poison"])
        assert (sent.code, sent.err) == (0, "")
        assert sent.out.startswith(f"{places['poison']} -> {topics.USAGE}/{home}/")
        assert "0 records sent again\n1 record sent again before" in cli("dead-letters", "replay", places["poison"]).out
        assert cli("dead-letters", "replay", places["poison"], "--again").out.startswith(f"{places['poison']} -> ")
        assert cli("dead-letters", "replay", "--reason", "wrong_partition").code == 2  # nobody is there to be asked
        moved = cli("dead-letters", "replay", "--reason", "wrong_partition", "--yes")
        audited = cli("audit", "--action", "dead-letters.replay", "--json").out.splitlines()
        assert [json.loads(line)["outcome"] for line in audited] == ["asked", "done"] * 4
        assert json.loads(audited[2])["details"] == {"letters": 1, "first": [places["poison"]]}
        arrived = f"{topics.USAGE}/{home}/{_end(brokers, home) - 1}"
        assert moved.out == f"{places['lost']} -> {arrived}\n1 record sent again\n"
        all_decided(brokers, asker)
        assert counted(brokers)["acme"] == 2
        again = [each for each in listed(cli) if each["place"] not in places.values()]
        assert [each["reason"] for each in again] == ["malformed"]
        came_from = cli("dead-letters", "show", again[0]["place"]).out
        assert f"header      {topics.HEADER_REPLAYED_FROM}: {places['garbage']}\n" in came_from
        assert {each["place"]: bool(each["sent_again"]) for each in listed(cli)} == {
            places["poison"]: True,
            places["lost"]: True,
            places["garbage"]: True,
            places["spy"]: False,
            again[0]["place"]: False,
        }
        assert worker.stop() == 0
    usage = [record for record in records(brokers, topics.USAGE) if record.partition == home]
    [resent] = [record for record in usage if record.value == lost]
    assert resent.key == b"acme"
    assert resent.headers == ((topics.HEADER_REPLAYED_FROM, places["lost"].encode()),)


def _end(brokers: str, partition: int) -> int:
    return max(r.offset for r in records(brokers, topics.USAGE) if r.partition == partition) + 1


def test_a_batch_that_was_put_aside_counts_though_its_producer_went_on(
    module_kafka: Broker, asker: Asker, cli: CommandLine, tmp_path: Path
) -> None:
    brokers = module_kafka.bootstrap
    asker.apply(catalog(3, "n"))
    home = partition_of("batched", PARTITIONS)

    def batch(sequence: int, partition: int, events: int) -> str:
        value = encode_batch([("batched", "llm.call", None, {"n": 1})] * events)
        return put(brokers, topics.USAGE, value, None, partition, *batch_headers(BatchId("meter", 1, sequence)))

    place = batch(1, (home + 1) % PARTITIONS, 5)
    batch(2, home, 3)
    with WorkerProcess(brokers, tmp_path, group="batches") as worker:
        all_decided(brokers, asker)
        [letter] = [each for each in listed(cli, "--reason", "wrong_partition") if each["place"] == place]
        assert letter["customers"] == ["batched"]
        assert counted(brokers)["batched"] == 3
        for words in ((), ("--again",)):
            sent = cli("dead-letters", "replay", place, *words)
            assert sent.out.startswith(f"{place} -> {topics.USAGE}/{home}/"), sent
            all_decided(brokers, asker)
            assert counted(brokers)["batched"] == 8
        assert worker.stop() == 0


def test_the_original_bytes_come_out_as_they_were(
    module_kafka: Broker, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    import sys

    from tallygate.topologies.cli import main

    brokers, value = module_kafka.bootstrap, bytes(range(256))
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", brokers)
    place = f"{topics.USAGE}/0/9999"
    put(brokers, topics.DEAD_LETTERS, value, place.encode(), 0, (topics.HEADER_DEAD_SOURCE, place.encode()))
    monkeypatch.setattr(sys, "argv", ["tallygate", "dead-letters", "show", place, "--raw"])
    with pytest.raises(SystemExit):
        main()
    assert capfdbinary.readouterr().out == value


def test_what_cannot_be_sent_again_is_said(module_kafka: Broker, cli: CommandLine) -> None:
    brokers = module_kafka.bootstrap
    names = {partition_of(f"name-{n}", PARTITIONS): f"name-{n}" for n in range(40)}
    batch = b"[" + event("1", names[0], n=1) + b"," + event("2", names[1], n=1) + b"]"
    place = f"{topics.USAGE}/2/8888"
    source = (topics.HEADER_DEAD_SOURCE, place.encode())
    put(brokers, topics.DEAD_LETTERS, batch, place.encode(), 0, source, (topics.HEADER_DEAD_REASON, b"wrong_partition"))
    before = len(list(records(brokers, topics.USAGE)))
    said = cli("dead-letters", "replay", place)
    assert said.code == 1
    assert said.err == f"{place} is left: it holds events of customers in 2 partitions: send them one by one\n"
    assert len(list(records(brokers, topics.USAGE))) == before
    for words, line in {
        ("show", f"{topics.USAGE}/0/123456"): "there is no dead letter of tallygate.usage.v1/0/123456: `tallygate dead",
        ("replay", f"{topics.USAGE}/0/123456"): "there is no dead letter of",
        ("show", "17"): "'17' is no place: write topic/partition/offset, like tallygate.usage.v1/3/17",
    }.items():
        said = cli("dead-letters", *words)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
        assert line in said.err
