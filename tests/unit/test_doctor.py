"""What the doctor says of a cluster, a fault a line: a sound one, and what is different."""

from typing import Any

import pytest
from msgspec.structs import replace

from tallygate.schemas import topics
from tallygate.schemas.instants import DAY_MS, HOUR_MS, MINUTE_MS
from tallygate.schemas.journal import PartitionRow
from tallygate.topologies.cluster_facts import Clock, Copies, Disk, Facts, Group, Hidden, Tail, Topic
from tallygate.topologies.doctor import Finding, State, examine

NOW = 1_800_000_000_000
PARTITIONS = 2
GIB = 1024**3
HIDDEN = Hidden("Broker: Group authorization failed")


IN_STEP = Copies(True, 3, 3)
LOOK, BROKEN = State.LOOK, State.BROKEN


def topic_facts(copies: Copies = IN_STEP, **insync: str) -> dict[str, Topic | Hidden]:
    config = {"min.insync.replicas": "2", "cleanup.policy": "delete"}
    return {
        spec.name: Topic(dict.fromkeys(range(spec.partitions), copies), {**config, **spec.config, **insync})
        for spec in topics.topic_specs(PARTITIONS)
    }


def changed(name: str, **config: str) -> dict[str, Topic | Hidden]:
    found = topic_facts()
    topic = found[name]
    assert isinstance(topic, Topic)
    assert isinstance(topic.config, dict)
    found[name] = replace(topic, config={**topic.config, **{key.replace("_", "."): v for key, v in config.items()}})
    return found


def tail(age_ms: int = 400, applied: int = 9, stream_at: int = NOW - 400) -> Tail:
    return Tail(NOW - age_ms, PartitionRow({topics.USAGE: applied, topics.REQUESTS: applied}, stream_at, 1))


ENDS = {(name, n): 10 for name in (topics.USAGE, topics.REQUESTS, topics.JOURNAL) for n in range(PARTITIONS)}
SOUND = Facts(
    now=NOW,
    brokers=3,
    topics=topic_facts(),
    ends=ENDS,
    tails={n: tail() for n in range(PARTITIONS)},
    group=Group("STABLE", {0: "worker a", 1: "worker b"}),
    sink=dict.fromkeys(range(PARTITIONS), 8),
    waiting={(topics.JOURNAL, n): NOW - 1500 for n in range(PARTITIONS)},
    clock=Clock(3, 2),
    disks=[Disk("/data", 50 * GIB, 100 * GIB)],
)


def look(**different: Any) -> list[Finding]:
    return examine(replace(SOUND, **different), "tallygate-workers", "on this machine")


def test_a_sound_cluster_has_one_line_for_each_area() -> None:
    found = look()
    assert [each.area for each in found] == [
        *("topics", "replication", "lag", "lag", "lag", "compaction", "clock", "disk", "ownership")
    ]
    assert {each.state for each in found} == {State.OK}
    assert not any(each.todo for each in found)
    assert (
        found[0].said == f"all {len(topics.topic_specs())} are there, 2 partitions of inputs and journal, as declared"
    )
    assert found[-1].said == "2 workers own all 2 partitions; the oldest tick is 403 ms old"
    laptop = look(brokers=1, topics=topic_facts(Copies(True, 1, 1), **{"min.insync.replicas": "1"}))
    assert {each.state for each in laptop} == {State.OK}
    assert "fine on a laptop; production wants three brokers" in laptop[1].said


def test_more_than_declared_does_no_harm() -> None:
    kept = changed(topics.USAGE, retention_ms="-1", max_message_bytes="9000000")
    longer = changed(topics.JOURNAL, min_compaction_lag_ms=str(2 * DAY_MS), delete_retention_ms=str(9 * DAY_MS))
    assert {each.state for different in (kept, longer) for each in look(topics=different)} == {State.OK}


def uneven() -> dict[str, Topic | Hidden]:
    found = topic_facts()
    found[topics.REQUESTS] = Topic(dict.fromkeys(range(3), Copies(True, 3, 3)), found[topics.REQUESTS].config)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize(
    ("different", "area", "state", "said", "todo"),
    [
        ({"topics": {**topic_facts(), topics.CATALOG: Hidden("unknown", True)}}, "topics", BROKEN,
         "topic tallygate.catalog.v1 is missing", "`tallygate topics`"),
        ({"topics": {**topic_facts(), topics.ALERTS: Hidden("unknown", True)}}, "topics", LOOK,
         "topic tallygate.alerts.v1 is missing", "`tallygate topics`"),
        ({"topics": {**topic_facts(), topics.ALERTS: HIDDEN}}, "topics", LOOK,
         "tallygate.alerts.v1 cannot be looked at: Broker: Group auth", "operator"),
        ({"topics": uneven()}, "topics", BROKEN, "tallygate.requests.v1 has 3", "equal counts"),
        ({"topics": changed(topics.USAGE, message_timestamp_type="CreateTime")}, "topics", BROKEN,
         "message.timestamp.type of tallygate.usage.v1 is CreateTime, and is to be LogAppendTime",
         "kafka-configs.sh --alter --topic tallygate.usage.v1 --add-config message.timestamp.type=LogAppendTime"),
        ({"topics": changed(topics.JOURNAL, cleanup_policy="delete")}, "topics", BROKEN, "is to be compact", "--add"),
        ({"topics": changed(topics.JOURNAL, max_message_bytes="1000")}, "topics", BROKEN, "max.message.bytes", "--add"),
        ({"topics": changed(topics.USAGE, retention_ms="1000")}, "topics", LOOK, "retention.ms", "--add"),
        ({"topics": topic_facts(Copies(False, 3, 0))}, "replication", BROKEN, "have no leader", "start the brokers"),
        ({"topics": topic_facts(Copies(True, 3, 1))}, "replication", BROKEN, "too few copies in step", "brokers"),
        ({"topics": topic_facts(Copies(True, 3, 2))}, "replication", LOOK, "not in step", "brokers"),
        ({"topics": topic_facts(**{"min.insync.replicas": "1"})}, "replication", LOOK, "one copy in step", "=2"),
        ({"topics": topic_facts(Copies(True, 2, 2))}, "replication", LOOK, "2 copies, on 3 brokers", "three"),
        ({"tails": {0: tail(applied=4), 1: tail()}, "waiting": {(topics.USAGE, 0): NOW - 5 * MINUTE_MS}}, "lag",
         LOOK, "the workers: 5 records of tallygate.usage.v1 wait, the oldest since 5 min", "tallygate worker"),
        ({"tails": {0: tail(applied=4), 1: tail()}, "waiting": {(topics.USAGE, 0): NOW - 4 * DAY_MS}}, "lag", BROKEN,
         "the oldest since 4 d", "before Kafka deletes it after 7 d"),
        ({"tails": HIDDEN}, "lag", LOOK, "how far the workers are cannot be seen", "operator"),
        ({"ends": {place: 10 for place in ENDS if place[0] != topics.USAGE}}, "lag", LOOK,
         "how much of tallygate.usage.v1 waits cannot be seen", "see topics"),
        ({"sink": HIDDEN}, "lag", LOOK, "how far the sink is cannot be seen", "operator"),
        ({"sink": {}}, "lag", LOOK, "no sink has ever noted", "tallygate sink"),
        ({"waiting": {(topics.JOURNAL, 1): NOW - HOUR_MS}}, "lag", LOOK, "the sink: 4 records", "tallygate sink"),
        ({"waiting": {(topics.JOURNAL, 1): NOW - 20 * HOUR_MS}}, "compaction", LOOK, "for 3 h 59 min", "raise"),
        ({"waiting": {(topics.JOURNAL, 1): NOW - 25 * HOUR_MS}}, "compaction", BROKEN, "1 d 1 h", "--accept-gap"),
        ({"clock": Clock(10_000, 2)}, "clock", LOOK, "this machine's clock is 10 s behind the broker's", "NTP"),
        ({"clock": Clock(-600_000, 2)}, "clock", BROKEN, "is 10 min ahead of the broker's", "NTP"),
        ({"tails": {0: tail(stream_at=NOW + HOUR_MS), 1: tail()}}, "clock", BROKEN, "stream time 59 min 59 s", "NTP"),
        ({"clock": HIDDEN}, "clock", LOOK, "the broker's clock cannot be seen", "operator"),
        ({"disks": [Disk("/data", GIB, 100 * GIB)]}, "disk", LOOK, "1.0 GiB of 100.0 GiB are free", "room"),
        ({"disks": [Disk("/data", 1000, 100 * GIB)]}, "disk", BROKEN, "0.0 GiB of 100.0 GiB are free", "room"),
        ({"group": Group("EMPTY", {}), "tails": {}}, "ownership", BROKEN, "nobody owns partitions 0, 1",
         "start `tallygate worker`"),
        ({"group": Group("EMPTY", {})}, "ownership", LOOK, "and yet they tick", "TALLYGATE_GROUP"),
        ({"group": Group("PREPARING_REBALANCING", {0: "a", 1: "a"})}, "ownership", LOOK, "anew", "again"),
        ({"tails": {0: tail(age_ms=MINUTE_MS), 1: tail()}}, "ownership", BROKEN,
         "partitions 0 (owned by worker a) have not ticked for 1 min", "log"),
        ({"tails": {1: tail()}}, "ownership", BROKEN, "partitions 0 (owned by worker a) have not ticked yet", "log"),
        ({"group": HIDDEN}, "ownership", LOOK, "group tallygate-workers cannot be looked at", "operator"),
    ],
)  # fmt: skip
def test_a_fault_and_what_to_do(different: dict[str, Any], area: str, state: State, said: str, todo: str) -> None:
    found = look(**different)
    matching = [each for each in found if (each.area, each.state) == (area, state)]
    assert any(said in each.said and todo in each.todo for each in matching), found
    for each in found:
        assert "\n" not in each.said + each.todo
        assert bool(each.todo) == (each.state is not State.OK)
