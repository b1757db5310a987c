"""The relay against a real broker: whatever happens to the sink, every record is there, and the same each time."""

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic, ResourceType

from asker import records
from kafka_fixture import PARTITIONS as TOPIC_PARTITIONS
from kafka_fixture import Broker
from partition import Partition
from sink_world import D, JournalWriter, SinkProcess, Story, alter, make_journal
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.published import encode_published
from tallygate.schemas.records import Record
from tallygate.schemas.requests import GiveGrant, Reserve, SetBudget, Settle
from tallygate.schemas.topics import ALERTS, DECISIONS, HEADER_RECORD_ID, POSTINGS, topic_specs
from tallygate.topologies.relay import Relay, Stopped
from tallygate.topologies.relay_records import TOPICS, Relayed
from tallygate.topologies.sink_metrics import SinkMetrics
from topic_waits import delete


@pytest.fixture
def journal(module_kafka: Broker) -> str:
    """A broker with a new, empty journal; what was relayed of earlier ones stays."""
    make_journal(module_kafka.bootstrap)
    return module_kafka.bootstrap


class Tapped:
    """What is published of one customer."""

    def __init__(self, brokers: str, customer: str) -> None:
        self._brokers = brokers
        self._customer = customer

    def of(self, topic: str) -> Iterator[tuple[str, bytes]]:
        """Id and value, in the topic's order; each record lies where Kafka's own clients would put its key."""
        for record in records(self._brokers, topic):
            if record.key == self._customer.encode():
                assert record.partition == partition_of(self._customer, TOPIC_PARTITIONS)
                assert record.value is not None
                yield _id(record), record.value

    def once(self, topic: str) -> dict[str, bytes]:
        """Value by id: one that came again must be the same."""
        found: dict[str, bytes] = {}
        for id, value in self.of(topic):
            assert found.setdefault(id, value) == value
        return found


def _id(record: Record) -> str:
    return dict(record.headers)[HEADER_RECORD_ID].decode()


def due(world: Partition, kind: str, term: int = 1) -> dict[str, bytes]:
    """What must be published of a world whose journal was told to partition 0, a transition a step."""
    found: dict[str, bytes] = {}
    offset = 1  # after the open record
    entries = iter(world.entries())
    for seq, transition in enumerate(world.transitions, 1):
        for key, _ in transition.records:
            if b"\0entry\0" in key:
                for record in Relayed(next(entries), 0, offset, term, seq).of(kind):
                    found[record.entry.record_id] = encode_published(record)
            offset += 1
    return found


def test_everything_is_there_once_and_in_order(journal: str, tmp_path: Path) -> None:
    story = Story("once", rounds=2)
    JournalWriter(journal).tell(0, story)
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        assert sink.stop() == 0
    tapped = Tapped(journal, "once")
    for kind in ("decisions", "postings"):
        expected = due(story.world, kind)
        assert len(expected) > 10
        assert list(tapped.of(TOPICS[kind])) == list(expected.items())
    sums: dict[str, Any] = {}
    for value in tapped.once(POSTINGS).values():
        leg = json.loads(value)
        sums[leg["account"]] = sums.get(leg["account"], 0) + D(leg["amount"])
    assert sum(sums.values()) == 0
    [pool] = story.entries[-1].balances
    assert sums["grant:paid"] == D(pool.balance_nanos).scaleb(-9)


def test_a_threshold_is_an_alert_once_a_period(journal: str, tmp_path: Path) -> None:
    """On the topic and in ClickHouse: 50 and 80 per cent of 10 credits a day, by agent."""
    world = Partition()
    world.ask(GiveGrant(id="g", customer="alert", amount=D(1000)))
    budget = SetBudget(
        id="b", customer="alert", name="agents", limit=D(10), scope={"agent": "*"}, period="day", thresholds=(50, 80)
    )
    world.ask(budget)

    def work(id: str, credits: int, agent: str) -> None:
        who = {"agent": agent}
        assert world.ask(Reserve(id=id, customer="alert", feature="llm", credits=D(credits), dimensions=who)).allowed, (
            id
        )
        world.ask(Settle(id=f"s{id}", customer="alert", hold=id, credits=D(credits)))

    for number, (agent, credits) in enumerate([("a", 6), ("a", 1), ("a", 2), ("b", 5), ("a", 1), ("b", 1)]):
        work(f"first-{number}", credits, agent)
    world.tick(86_400)
    for number, (agent, credits) in enumerate([("a", 4), ("a", 4), ("a", 1)]):
        work(f"second-{number}", credits, agent)
    expected = [
        ("a", 50, "6", "2026-01-01T00:00:00Z"),
        ("a", 80, "9", "2026-01-01T00:00:00Z"),
        ("b", 50, "5", "2026-01-01T00:00:00Z"),
        ("a", 50, "8", "2026-01-02T00:00:00Z"),
        ("a", 80, "8", "2026-01-02T00:00:00Z"),
    ]
    writer = JournalWriter(journal)
    writer.open(0, 1)
    for seq, transition in enumerate(world.transitions, 1):
        writer.write(0, 1, seq, transition.records)
    rows = "SELECT scope['agent'] AS agent, threshold, used, period_at FROM alerts ORDER BY at, offset, number"
    for _ in range(2):
        with SinkProcess(journal, tmp_path) as sink:
            sink.wait_for(lambda: len(sink.ask(rows)) == len(expected))
            found = [(row["agent"], row["threshold"], row["used"], row["period_at"][:10]) for row in sink.ask(rows)]
            assert found == [(agent, at, used, day[:10]) for agent, at, used, day in expected]
            assert sink.stop() == 0
    alerts = [json.loads(value) for _, value in Tapped(journal, "alert").of(ALERTS)]
    assert [(a["scope"]["agent"], a["threshold"], a["used"], a["period_at"]) for a in alerts] == expected
    assert {(a["budget"], a["limit"], a["unit"], a["type"]) for a in alerts} == {
        ("agents", "10", "credits", "tallygate.alert.v1")
    }


def test_killed_at_every_place_of_a_batch(journal: str, tmp_path: Path) -> None:
    """Records come again where the sink died before it stored how far it was: the same ones, under the same ids."""
    story = Story("killed", rounds=1)
    writer = JournalWriter(journal)
    writer.tell(0, story)
    for insert in range(1, 7):
        told = len(story.transitions)
        story.round(f"more {insert}")
        for seq, steps in enumerate(story.transitions[told:], told + 1):
            writer.write(0, 1, seq, steps)
        with SinkProcess(journal, tmp_path, die_before=insert) as sink:
            assert sink.end() < 0
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        assert sink.stop() == 0
    tapped = Tapped(journal, "killed")
    for kind in ("decisions", "postings"):
        expected = due(story.world, kind)
        assert tapped.once(TOPICS[kind]) == expected
        assert len(list(tapped.of(TOPICS[kind]))) > len(expected)  # some came again


def test_nothing_is_behind_what_the_sink_has_stored(journal: str, tmp_path: Path) -> None:
    """A producer in no hurry at all, and a sink that dies as soon as it has stored how far it is."""
    story = Story("behind", rounds=1)
    JournalWriter(journal).tell(0, story)
    count = 1 + sum(map(len, story.transitions))
    slow = {"kafka_config": {"linger.ms": "600000"}}
    with SinkProcess(journal, tmp_path, settings=slow) as sink:
        stored = "SELECT sum(next_offset) AS n FROM sink_offsets FINAL WHERE partition = 0"
        sink.wait_for(lambda: int(sink.figure(stored)) == count)
        sink.kill()
    tapped = Tapped(journal, "behind")
    for kind in ("decisions", "postings"):
        assert tapped.once(TOPICS[kind]) == due(story.world, kind)


def test_killed_at_random_while_it_publishes(journal: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    story = Story("random", rounds=3)
    writer = JournalWriter(journal)
    writer.tell(0, story)
    told = len(story.transitions)
    for number in range(4):
        with SinkProcess(journal, tmp_path) as sink:
            if not number:
                sink.wait_for_sums([story])
            story.round(f"more {number}")
            for seq, records_ in enumerate(story.transitions[told:], told + 1):
                writer.write(0, 1, seq, records_)
            told = len(story.transitions)
            time.sleep(chance.random() * 2)
            sink.kill()
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        assert sink.stop() == 0
    for kind in ("decisions", "postings"):
        assert Tapped(journal, "random").once(TOPICS[kind]) == due(story.world, kind), f"seed {seed}"


def test_only_what_is_wanted(journal: str, tmp_path: Path) -> None:
    story = Story("wanted", rounds=1)
    JournalWriter(journal).tell(0, story)
    with SinkProcess(journal, tmp_path, settings={"relay": "decisions"}) as sink:
        sink.wait_for_sums([story])
        assert sink.stop() == 0
    tapped = Tapped(journal, "wanted")
    assert tapped.once(DECISIONS) == due(story.world, "decisions")
    assert list(tapped.of(POSTINGS)) == []


def test_topics_are_waited_for(journal: str, tmp_path: Path) -> None:
    story = Story("waited", rounds=1)
    JournalWriter(journal).tell(0, story)
    delete(journal, ALERTS)
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_line(f"has no topic {ALERTS}; waiting for `tallygate topics` to declare it")
        make(journal, ALERTS)
        sink.wait_for_sums([story])
        assert sink.said.count("has no topic") == 1


def make(brokers: str, topic: str) -> None:
    [spec] = [spec for spec in topic_specs(TOPIC_PARTITIONS) if spec.name == topic]
    admin = AdminClient({"bootstrap.servers": brokers})
    for tries_left in reversed(range(100)):
        try:
            admin.create_topics([NewTopic(topic, spec.partitions, 1, config=spec.config)])[topic].result()
        except KafkaException:  # still being deleted
            if not tries_left:
                raise
            time.sleep(0.1)
        else:
            return


def test_a_record_that_the_broker_refuses_stops_it_in_one_line(journal: str, tmp_path: Path) -> None:
    story = Story("refused", rounds=1)
    JournalWriter(journal).tell(0, story)
    admin = AdminClient({"bootstrap.servers": journal})
    [spec] = [spec for spec in topic_specs(TOPIC_PARTITIONS) if spec.name == DECISIONS]
    alter(admin, ResourceType.TOPIC, DECISIONS, {"max.message.bytes": "100"})
    try:
        with SinkProcess(journal, tmp_path) as sink:
            assert sink.end() == 1
            [line] = sink.said.splitlines()
            assert line.startswith(f"sink: {DECISIONS} on {journal} takes no records (")
    finally:
        alter(admin, ResourceType.TOPIC, DECISIONS, {"max.message.bytes": spec.config["max.message.bytes"]})
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
    assert Tapped(journal, "refused").once(DECISIONS) == due(story.world, "decisions")


def test_a_broker_away_is_waited_for(fresh_kafka: Any) -> None:
    story = Story("away", rounds=1)
    stop = threading.Event()
    relay = Relay({"bootstrap.servers": fresh_kafka.bootstrap}, ["decisions"], stop, SinkMetrics())
    relay.wait_for_topics()
    entries = iter(story.entries)
    relay.publish(next(entries), 0, 0, 1, 1)
    relay.flush()
    fresh_kafka.kill()
    for offset, entry in enumerate(entries, 1):
        relay.publish(entry, 0, offset, 1, 1)
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(relay.flush)
        time.sleep(3)
        assert not flushed.done()
        fresh_kafka.start()
        flushed.result(60)
    relay.close()
    tapped = list(Tapped(fresh_kafka.bootstrap, "away").of(DECISIONS))
    assert len(tapped) == sum(len(entry.decisions) for entry in story.entries)
    assert len(dict(tapped)) == len(tapped)


def test_told_to_stop_while_the_broker_is_away(fresh_kafka: Any) -> None:
    stop = threading.Event()
    relay = Relay({"bootstrap.servers": fresh_kafka.bootstrap}, ["decisions", "postings"], stop, SinkMetrics())
    relay.wait_for_topics()
    fresh_kafka.kill()
    relay.publish(Story("stopped", rounds=1).entries[0], 0, 0, 1, 1)
    stop.set()
    with pytest.raises(Stopped):
        relay.flush()
    with pytest.raises(Stopped):
        relay.wait_for_topics()
    relay.close()
