"""What `tallygate doctor` looks at: the cluster's topics, offsets, group and clock, and this machine's disks.

Nothing is changed. One request is sent that only asks (a check for a customer of a name of its own), because the time
stamp that a broker puts on a record is the only way to see its clock. What may not be looked at is a `Hidden` that says
why, so that one missing permission hides one thing.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import TopicCollection as Names
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from tallygate.connectors.clickhouse import embedded_folder, is_embedded
from tallygate.connectors.consuming import Partition, consumer_config, record_of
from tallygate.connectors.kafka_admin import connect
from tallygate.connectors.kafka_security import FORBIDDEN, said_of
from tallygate.schemas import topics
from tallygate.schemas.journal import PARTITION_KEY, PartitionRow, decode_record
from tallygate.schemas.records import Record
from tallygate.schemas.requests import Check, encode_request
from tallygate.topologies.settings import Settings

ASK_SECONDS: Final = 10.0
#: In the name of this customer the doctor asks; nobody is of that name.
ASKING: Final = "tallygate-doctor"
#: How many records of a journal partition are read from its end, to find its partition row; then more, in steps.
_TAILS: Final = (200, 20_000, 1_000_000)

_T = TypeVar("_T")


class Hidden(msgspec.Struct, frozen=True):
    """Something that could not be looked at, and why; `absent`: it is not there."""

    why: str
    absent: bool = False


class Copies(msgspec.Struct, frozen=True):
    """A partition: whether it has a leader, how many copies there should be, how many are in step."""

    leader: bool
    replicas: int
    in_sync: int


class Topic(msgspec.Struct, frozen=True):
    partitions: dict[int, Copies]
    config: dict[str, str] | Hidden


class Tail(msgspec.Struct, frozen=True):
    """The end of a partition of the journal: its last record's time by the broker, and the row in force."""

    at: int
    row: PartitionRow | None


class Group(msgspec.Struct, frozen=True):
    """`owners`: by partition, who has it."""

    state: str
    owners: dict[int, str]


class Disk(msgspec.Struct, frozen=True):
    place: str
    free: int
    size: int


class Clock(msgspec.Struct, frozen=True):
    """How far a broker's clock is ahead of this machine's, give or take."""

    ahead_ms: int
    give_or_take_ms: int


Ends: TypeAlias = dict[Partition, int]


class Facts(msgspec.Struct, frozen=True):
    """`ends`: where inputs and journal end. `waiting`: by partition of an input, or of the journal for the sink, when
    the first record was put there that is not applied yet.
    """

    now: int
    brokers: int
    topics: dict[str, Topic | Hidden]
    ends: Ends
    tails: dict[int, Tail] | Hidden
    group: Group | Hidden
    sink: dict[int, int] | Hidden
    waiting: dict[Partition, int] | Hidden
    clock: Clock | Hidden
    disks: list[Disk]


def gather(settings: Settings) -> Facts:
    """Looks at everything. Raises KafkaUnreachable, and KafkaRefused where the broker does not let this client in."""
    admin, cluster = connect(settings.librdkafka)
    found = _topics(admin, _wanted(settings))
    ends = _ends(admin, found)
    journal = {place: end for place, end in ends.items() if place[0] == topics.JOURNAL}
    tails = _seen(lambda: _tails(settings, journal))
    sink = _seen(lambda: _sink(admin))
    waiting = _seen(lambda: _waiting(settings, ends, tails, sink))
    clock = _seen(lambda: _clock(settings)) if topics.REQUESTS in {name for name, _ in ends} else _NO_REQUESTS
    return Facts(
        now=time.time_ns() // 1_000_000,
        brokers=len(cluster.brokers),
        topics=found,
        ends=ends,
        tails=tails,
        group=_seen(lambda: _group(admin, settings.group)),
        sink=sink,
        waiting=waiting,
        clock=clock,
        disks=_disks(settings),
    )


_NO_REQUESTS: Final = Hidden(f"there is no topic {topics.REQUESTS}", absent=True)


def _wanted(settings: Settings) -> list[str]:
    relayed = {"decisions": topics.DECISIONS, "postings": topics.POSTINGS, "alerts": topics.ALERTS}
    left_out = {topic for kind, topic in relayed.items() if kind not in settings.relay}
    return [spec.name for spec in topics.topic_specs() if spec.name not in left_out]


def _seen(look: Callable[[], _T]) -> _T | Hidden:
    try:
        return look()
    except KafkaException as error:
        return _hidden(error.args[0])


def _hidden(error: KafkaError) -> Hidden:
    absent = error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
    return Hidden(said_of(error) if error.code() in FORBIDDEN else error.str(), absent)


def _topics(admin: AdminClient, names: list[str]) -> dict[str, Topic | Hidden]:
    found: dict[str, Topic | Hidden] = {}
    described = admin.describe_topics(Names(names), request_timeout=ASK_SECONDS)
    configs = _configs(admin, names)
    for name, future in described.items():
        try:
            partitions = future.result().partitions
        except KafkaException as error:
            found[name] = _hidden(error.args[0])
            continue
        copies = {p.id: Copies(p.leader is not None, len(p.replicas), len(p.isr)) for p in partitions}
        found[name] = Topic(copies, configs[name])
    return found


def _configs(admin: AdminClient, names: list[str]) -> dict[str, dict[str, str] | Hidden]:
    found: dict[str, dict[str, str] | Hidden] = {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    asked = admin.describe_configs(resources, request_timeout=ASK_SECONDS)
    for resource, future in asked.items():
        try:
            found[resource.name] = {name: entry.value or "" for name, entry in future.result().items()}
        except KafkaException as error:
            found[resource.name] = _hidden(error.args[0])
    return found


def _ends(admin: AdminClient, found: Mapping[str, Topic | Hidden]) -> Ends:
    """Of the partitions that have a leader and may be asked for."""
    asked = {
        TopicPartition(name, number): OffsetSpec.latest()
        for name in (topics.USAGE, topics.REQUESTS, topics.JOURNAL)
        if isinstance(topic := found[name], Topic)
        for number, copies in topic.partitions.items()
        if copies.leader
    }
    ends: Ends = {}
    for place, future in (admin.list_offsets(asked, request_timeout=ASK_SECONDS) if asked else {}).items():
        try:
            ends[place.topic, place.partition] = future.result().offset
        except KafkaException:
            continue  # its leader went away just now: what has no end is not looked into
    return ends


def _tails(settings: Settings, journal: Ends) -> dict[int, Tail]:
    tails: dict[int, Tail] = {}
    for count in _TAILS:
        left = {place: end for place, end in journal.items() if end and place[1] not in tails}
        starts = {place: max(0, end - count) for place, end in left.items()}
        for (_, number), records in _read(settings, starts, left).items():
            row = _row_in_force(records)
            if records and (row is not None or count == _TAILS[-1] or starts[topics.JOURNAL, number] == 0):
                tails[number] = Tail(records[-1].timestamp_ms, row)
    return tails


def _row_in_force(records: Iterable[Record]) -> PartitionRow | None:
    """The last partition row of the highest term: rows of lower ones are no one's any more."""
    newest: tuple[int, PartitionRow | None] = (0, None)
    for record in records:
        term = int(dict(record.headers).get(topics.HEADER_TERM, b"0"))
        if record.key == PARTITION_KEY and record.value is not None and term >= newest[0]:
            row = decode_record(record.value)
            assert isinstance(row, PartitionRow)
            newest = term, row
    return newest[1]


def _group(admin: AdminClient, name: str) -> Group:
    described = admin.describe_consumer_groups([name], request_timeout=ASK_SECONDS)[name].result()
    owners = {
        place.partition: f"{member.client_id} on {member.host.lstrip('/')}"
        for member in described.members
        for place in member.assignment.topic_partitions
    }
    return Group(described.state.name, owners)


def _sink(admin: AdminClient) -> dict[int, int]:
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(topics.GROUP_SINK)])
    places = asked[topics.GROUP_SINK].result().topic_partitions
    failed = next((place.error for place in places if place.error is not None), None)
    if failed is not None:
        raise KafkaException(failed)
    return {place.partition: place.offset for place in places if place.topic == topics.JOURNAL and place.offset >= 0}


def _waiting(
    settings: Settings, ends: Ends, tails: dict[int, Tail] | Hidden, sink: dict[int, int] | Hidden
) -> dict[Partition, int]:
    starts: dict[Partition, int] = {}
    if isinstance(tails, dict):
        for topic, number in ends:
            tail = tails.get(number)
            if topic != topics.JOURNAL:
                starts[topic, number] = tail.row.applied.get(topic, -1) + 1 if tail and tail.row else 0
    if isinstance(sink, dict):
        starts |= {(topics.JOURNAL, number): offset for number, offset in sink.items()}
    behind = {place: start for place, start in starts.items() if start < ends.get(place, 0)}
    first = _read(settings, behind, {place: start + 1 for place, start in behind.items()})
    return {place: records[0].timestamp_ms for place, records in first.items() if records}


def _read(
    settings: Settings, starts: Mapping[Partition, int], ends: Mapping[Partition, int]
) -> dict[Partition, list[Record]]:
    """The records from each start to its end; at least the first there is, where offsets are missing."""
    found: dict[Partition, list[Record]] = {place: [] for place in starts}
    left = set(starts)
    if not left:
        return found
    own = {"auto.offset.reset": "earliest", "enable.partition.eof": True, "error_cb": lambda error: None}
    group = consumer_config(settings.kafka_brokers, topics.GROUP_READER)
    consumer = Consumer({**group, **settings.kafka_config, **own})
    until = time.monotonic() + ASK_SECONDS
    try:
        consumer.assign([TopicPartition(topic, number, offset) for (topic, number), offset in starts.items()])
        while left and time.monotonic() < until:
            for message in consumer.consume(1_000, 0.1):
                place = (message.topic(), message.partition())
                if (error := message.error()) is not None:
                    if error.code() in FORBIDDEN:
                        raise KafkaException(error)
                    if error.code() == KafkaError._PARTITION_EOF:
                        left.discard(place)
                elif place in left:
                    found[place].append(record_of(place, message))
                    if message.offset() >= ends[place] - 1:
                        left.discard(place)
    finally:
        consumer.close()
    return found


def _clock(settings: Settings) -> Clock:
    producer = Producer(
        {
            **settings.librdkafka,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
            "message.timeout.ms": int(ASK_SECONDS * 1000),
            "log_level": 2,
            "error_cb": lambda error: None,
        }
    )
    producer.list_topics(topics.REQUESTS, timeout=ASK_SECONDS)  # the connection is there before the clock is looked at
    answers: list[Any] = []
    clocks: list[Clock] = []
    for _ in range(3):  # the first may wait for a connection to its partition's leader
        request = encode_request(Check(id=uuid.uuid4().hex, customer=ASKING, feature="none"))
        before = time.time_ns()
        producer.produce(topics.REQUESTS, request, ASKING, on_delivery=lambda error, m: answers.append(error or m))
        while len(answers) <= len(clocks):
            producer.poll(ASK_SECONDS)
        after = time.time_ns()
        if isinstance(answers[-1], KafkaError):
            raise KafkaException(answers[-1])
        half = (after - before) // 2
        stamped_ns = answers[-1].timestamp()[1] * 1_000_000
        clocks.append(Clock((stamped_ns - before - half) // 1_000_000, half // 1_000_000 + 1))
    return min(clocks, key=lambda clock: clock.give_or_take_ms)


def _disks(settings: Settings) -> list[Disk]:
    """Of the data folder, and of the embedded ClickHouse where that is on another one."""
    places = [settings.data_dir]
    if is_embedded(settings.clickhouse):
        places.append(Path(embedded_folder(settings.clickhouse)))
    found: dict[int, Disk] = {}
    for place in places:
        there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        usage = shutil.disk_usage(there)
        found.setdefault(there.stat().st_dev, Disk(str(place), usage.free, usage.total))
    return list(found.values())
