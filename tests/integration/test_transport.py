"""The Faust transport on a real broker, its members as processes: who reads what, from where, and who closed first."""

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_fixture import Broker
from tallygate.connectors.kafka_local import LocalKafka

PARTITIONS = 4
WAIT_SECONDS = 60
MEMBER = Path(__file__).with_name("transport_member.py")


class Group:
    """Two input topics, a group and a folder of its own; and its members."""

    def __init__(self, brokers: str, folder: Path, partitions: int = PARTITIONS) -> None:
        self.brokers = brokers
        self.folder = folder
        name = uuid.uuid4().hex[:10]
        self.id = f"group.{name}"
        self.topics = [f"usage.{name}", f"requests.{name}"]
        admin = AdminClient({"bootstrap.servers": brokers})
        for made in admin.create_topics([NewTopic(topic, partitions, 1) for topic in self.topics]).values():
            made.result(30)
        self.members: list[Member] = []
        self._numbers = itertools.count()
        self._producer = Producer({"bootstrap.servers": brokers, "linger.ms": 2, "acks": "all"})

    def fill(self, count: int) -> None:
        """Appends the next `count` numbers to every partition of every topic; a number is its record's offset."""
        for number in itertools.islice(self._numbers, count):
            for topic in self.topics:
                for partition in range(PARTITIONS):
                    self._producer.produce(topic, b"%d" % number, partition=partition)
            self._producer.poll(0)
        assert self._producer.flush(WAIT_SECONDS) == 0

    def join(self, **options: Any) -> "Member":
        base = {"brokers": self.brokers, "group": self.id, "topics": self.topics, "folder": str(self.folder)}
        member = Member({**base, **options})
        self.members.append(member)
        return member

    def taken(self, topic: str, partition: int) -> list[int]:
        took = [line for member in self.members for line in member.said("took", topic=topic, partition=partition)]
        return [value for line in sorted(took, key=lambda line: line["at"]) for value in line["values"]]

    def has_taken(self, count: int) -> Callable[[], bool]:
        return lambda: all(len(self.taken(t, p)) >= count for t in self.topics for p in range(PARTITIONS))

    def committed(self) -> dict[str, list[int]]:
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": self.id})
        try:
            asked = [TopicPartition(topic, p) for topic in self.topics for p in range(PARTITIONS)]
            found = {(each.topic, each.partition): each.offset for each in consumer.committed(asked, timeout=30)}
            return {topic: [found[topic, p] for p in range(PARTITIONS)] for topic in self.topics}
        finally:
            consumer.close()


class Member:
    def __init__(self, options: dict[str, Any]) -> None:
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, str(MEMBER), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def said(self, what: str, **more: Any) -> list[dict[str, Any]]:
        return [each for each in list(self.lines) if {"what": what, **more}.items() <= each.items()]

    def opened(self) -> list[int]:
        """The partitions that are open now."""
        now: set[int] = set()
        for line in list(self.lines):
            if line["what"] == "opened":
                now.add(line["partition"])
            elif line["what"] == "closing":
                now.discard(line["partition"])
        return sorted(now)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        code = self.process.wait(WAIT_SECONDS)
        for reader in self._readers:
            reader.join(WAIT_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.exit_code()


def wait(reached: Callable[[], Any], group: Group) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not reached():
        if time.monotonic() > until:
            told = "\n".join(
                f"{m.process.pid}: {m.lines[-5:]!s:.2000} {''.join(m.errors[-20:])}" for m in group.members
            )
            told += f"\ntaken: { {(t, p): len(group.taken(t, p)) for t in group.topics for p in range(PARTITIONS)} }"
            raise AssertionError(f"not reached within {WAIT_SECONDS} s; the members' last words:\n{told}")
        time.sleep(0.05)


@pytest.fixture
def group(kafka: Broker, tmp_path: Path) -> Iterator[Group]:
    with contextlib.ExitStack() as stack:
        made = Group(kafka.bootstrap, tmp_path)
        stack.callback(lambda: [member.end() for member in made.members])
        yield made


def test_one_member_takes_everything_in_order_and_commits(group: Group) -> None:
    group.fill(500)
    member = group.join()
    wait(group.has_taken(500), group)
    group.fill(20)
    wait(group.has_taken(520), group)
    member.signal(signal.SIGTERM)
    assert member.exit_code() == 0
    assert {(t, p): group.taken(t, p) for t in group.topics for p in range(PARTITIONS)} == {
        (t, p): list(range(520)) for t in group.topics for p in range(PARTITIONS)
    }
    assert group.committed() == {topic: [520] * PARTITIONS for topic in group.topics}
    assert len(member.said("closed")) == PARTITIONS


def test_delivery_starts_where_opening_says_and_not_at_the_committed_offset(group: Group) -> None:
    group.fill(100)
    with contextlib.closing(Consumer({"bootstrap.servers": group.brokers, "group.id": group.id})) as other:
        other.commit(
            offsets=[TopicPartition(t, p, 90) for t in group.topics for p in range(PARTITIONS)], asynchronous=False
        )
    group.join(first=40)
    wait(group.has_taken(60), group)
    assert [group.taken(t, p) for t in group.topics for p in range(PARTITIONS)] == [list(range(40, 100))] * 8
    wait(lambda: group.committed() == {topic: [100] * PARTITIONS for topic in group.topics}, group)


def test_two_members_share_and_nobody_opens_what_the_other_has_not_closed(group: Group) -> None:
    slow = {"closing_seconds": 0.3, "opening_seconds": 0.1}
    first = group.join(**slow)
    wait(lambda: first.opened() == [0, 1, 2, 3], group)
    group.fill(50)
    second = group.join(**slow)
    wait(lambda: len(first.opened()) == 2 and len(second.opened()) == 2, group)
    assert sorted(first.opened() + second.opened()) == [0, 1, 2, 3]
    group.fill(50)
    wait(group.has_taken(100), group)
    for member in (first, second):  # the same numbers of both topics
        mine = {(line["topic"], line["partition"]) for line in member.said("took") if line["values"][-1] >= 50}
        assert mine == {(topic, p) for topic in group.topics for p in member.opened()}
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0
    group.fill(50)
    wait(group.has_taken(150), group)
    assert [group.taken(t, p) for t in group.topics for p in range(PARTITIONS)] == [list(range(150))] * 8
    in_turn(group)


def test_a_member_that_comes_or_goes_moves_only_what_it_must(group: Group) -> None:
    first = group.join()
    wait(lambda: first.opened() == [0, 1, 2, 3], group)
    second = group.join()
    wait(lambda: len(first.opened()) == 2 and len(second.opened()) == 2, group)
    kept, moved = first.opened(), second.opened()
    group.fill(50)
    second.signal(signal.SIGTERM)
    assert second.exit_code() == 0
    wait(lambda: first.opened() == [0, 1, 2, 3], group)
    group.fill(50)
    wait(group.has_taken(100), group)
    assert [group.taken(t, p) for t in group.topics for p in range(PARTITIONS)] == [list(range(100))] * 8
    assert {p: len(first.said("opening", partition=p)) for p in range(PARTITIONS)} == {
        p: 1 if p in kept else 2 for p in range(PARTITIONS)
    }
    assert sorted(line["partition"] for line in first.said("closing")) == moved
    in_turn(group)


def test_a_member_with_a_name_finds_its_partitions_waiting(group: Group) -> None:
    """A rolling restart moves nothing: the others neither close nor open anything, and what was its own is so again."""
    one, two = group.join(instance_id="one"), group.join(instance_id="two")
    wait(lambda: len(one.opened()) == 2 and len(two.opened()) == 2, group)
    mine = one.opened()
    openings, closings = len(two.said("opening")), len(two.said("closing"))
    one.signal(signal.SIGTERM)
    assert one.exit_code() == 0
    group.fill(50)
    again = group.join(instance_id="one")
    wait(group.has_taken(50), group)
    assert again.opened() == mine
    assert (len(two.said("opening")), len(two.said("closing"))) == (openings, closings)
    in_turn(group)


def in_turn(group: Group) -> None:
    """For each partition: opening, closed, opening, closed, …, whoever it is."""
    for partition in range(PARTITIONS):
        lines = [line for m in group.members for w in ("opening", "closed") for line in m.said(w, partition=partition)]
        told = [line["what"] for line in sorted(lines, key=lambda line: line["at"])]
        assert told == ["opening", "closed"] * (len(told) // 2) + ["opening"] * (len(told) % 2), partition


def test_a_member_without_a_partition_takes_over(kafka: Broker, tmp_path: Path) -> None:
    group = Group(kafka.bootstrap, tmp_path, partitions=1)
    first, second = group.join(), group.join()
    try:
        wait(lambda: first.opened() == [0] or second.opened() == [0], group)
        owner, spare = (first, second) if first.opened() else (second, first)
        owner.signal(signal.SIGTERM)
        assert owner.exit_code() == 0
        wait(lambda: spare.opened() == [0], group)
        spare.signal(signal.SIGTERM)
        assert spare.exit_code() == 0
    finally:
        first.end()
        second.end()


def test_a_member_waits_for_a_broker_that_is_not_there_and_can_be_stopped(group: Group) -> None:
    member = group.join(brokers="127.0.0.1:1")
    wait(lambda: any("is away" in line for line in member.errors), group)
    time.sleep(2)
    member.signal(signal.SIGTERM)
    assert member.exit_code() == 0
    assert len([line for line in member.errors if "is away" in line]) == 1


def test_a_member_that_is_killed_is_replaced(group: Group) -> None:
    first, second = group.join(), group.join()
    wait(lambda: len(first.opened()) == 2 and len(second.opened()) == 2, group)
    group.fill(50)
    wait(group.has_taken(50), group)
    first.signal(signal.SIGKILL)
    group.fill(50)
    wait(lambda: second.opened() == [0, 1, 2, 3], group)
    wait(group.has_taken(100), group)
    assert [group.taken(t, p) for t in group.topics for p in range(PARTITIONS)] == [list(range(100))] * 8


def test_a_member_that_sleeps_through_its_session_ends(group: Group) -> None:
    sleeper, other = group.join(), group.join()
    wait(lambda: len(sleeper.opened()) == 2 and len(other.opened()) == 2, group)
    group.fill(10)
    wait(group.has_taken(10), group)
    before = len(sleeper.said("took"))
    sleeper.signal(signal.SIGSTOP)
    wait(lambda: other.opened() == [0, 1, 2, 3], group)
    sleeper.signal(signal.SIGCONT)
    assert sleeper.exit_code() == 70
    assert len(sleeper.said("lost")) == 1
    assert len(sleeper.said("took")) == before
    assert any("ending this process" in line for line in sleeper.errors)


def test_a_member_stays_while_the_broker_is_away_for_longer_than_its_session(
    fresh_kafka: LocalKafka, tmp_path: Path
) -> None:
    group = Group(fresh_kafka.bootstrap, tmp_path)
    group.fill(50)
    member = group.join(stays=True)
    try:
        wait(group.has_taken(50), group)
        fresh_kafka.kill()
        wait(lambda: member.said("lost"), group)
        fresh_kafka.start()
        wait(lambda: len(member.said("opened")) == 2 * PARTITIONS, group)
        group.fill(50)
        wait(group.has_taken(100), group)
        assert [group.taken(t, p) for t in group.topics for p in range(PARTITIONS)] == [list(range(100))] * 8
        assert len([line for line in member.errors if "is away" in line]) == 1
    finally:
        member.end()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"agent_fails": True}, "the agent failed"),
        ({"opening_fails": True}, "the opening failed"),
        ({"first": 7000}, "holds no offset 7000"),
    ],
    ids=["agent", "opening", "offset"],
)
def test_what_fails_ends_the_process(group: Group, options: dict[str, Any], words: str) -> None:
    group.fill(10)
    member = group.join(**options)
    assert member.exit_code() not in (0, -signal.SIGKILL)
    assert words in "".join(member.errors)


def test_a_closing_that_takes_too_long_ends_the_process(group: Group) -> None:
    member = group.join(closing_seconds=60, closing_seconds_max=2)
    wait(lambda: member.opened() == [0, 1, 2, 3], group)
    member.signal(signal.SIGTERM)
    assert member.exit_code() == 70
    assert any("closing partitions took longer than 2 s" in line for line in member.errors)
    assert not member.said("closed")


def test_a_rebalance_in_the_middle_of_an_opening_closes_it(group: Group) -> None:
    first = group.join(opening_seconds=3600)
    wait(lambda: len(first.said("opening")) == PARTITIONS, group)
    second = group.join()
    wait(lambda: len(second.opened()) == 2, group)
    assert [line["partition"] for line in first.said("closed")] == second.opened()
    assert len(first.said("opening")) == PARTITIONS
    assert not first.opened()


def test_an_opening_does_not_go_on_beside_its_closing(group: Group) -> None:
    """What it would open then would never be closed."""
    member = group.join(opening_ends_with_closing=True, closing_seconds=0.5)
    wait(lambda: len(member.said("opening")) == PARTITIONS, group)
    member.signal(signal.SIGTERM)
    assert member.exit_code() == 0
    assert len(member.said("closed")) == PARTITIONS
    assert not member.said("opened")


def test_topics_that_do_not_fit_are_refused(group: Group) -> None:
    admin = AdminClient({"bootstrap.servers": group.brokers})
    odd = f"odd.{uuid.uuid4().hex[:10]}"
    admin.create_topics([NewTopic(odd, 3, 1)])[odd].result(30)
    unequal = group.join(topics=[group.topics[0], odd])
    absent = group.join(topics=[group.topics[0], "there.is.no.such.topic"])
    assert unequal.exit_code() != 0
    assert absent.exit_code() != 0
    assert "need equal partition counts" in "".join(unequal.errors)
    assert "topic there.is.no.such.topic cannot be read" in "".join(absent.errors)
