"""`tallygate doctor`: what the facts of a cluster mean, in plain words, and what to do about each.

A function of the facts: one finding or more for each of topics, replication, lag, compaction, clock, disk, ownership.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from tallygate.schemas import topics
from tallygate.schemas.instants import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from tallygate.topologies.cluster import NEEDED
from tallygate.topologies.cluster_facts import Copies, Disk, Facts, Group, Hidden, Tail, Topic

_GIB: Final = 1024**3
_INPUTS: Final = (topics.USAGE, topics.REQUESTS)
_CO_PARTITIONED: Final = (*_INPUTS, topics.JOURNAL)
_MIN_LAG: Final = "min.compaction.lag.ms"
#: Without these as declared, money is at stake: state deleted, transitions refused, time moved by a producer's clock.
_VITAL: Final = ("cleanup.policy", "message.timestamp.type", "max.message.bytes")

#: More than declared does no harm.
_AT_LEAST: Final = ("max.message.bytes", "retention.ms", "delete.retention.ms", _MIN_LAG)
_ENDLESS: Final = "-1"


class State(StrEnum):
    OK = "ok"
    LOOK = "look at this"
    BROKEN = "broken"


class Finding(msgspec.Struct, frozen=True):
    """`area` is one of the seven; `todo` is empty where there is nothing to do."""

    area: str
    state: State
    said: str
    todo: str = ""


class Limits(msgspec.Struct, frozen=True):
    """From where on something is worth a look, or worse."""

    waiting_ms: int = MINUTE_MS
    tick_ms: int = 15 * SECOND_MS
    clock_ms: int = 2 * SECOND_MS
    clock_broken_ms: int = 5 * MINUTE_MS
    disk_free: int = 2 * _GIB
    disk_free_broken: int = 64 * 1024**2


def examine(facts: Facts, group: str, data_lives: str, limits: Limits | None = None) -> list[Finding]:
    """`group`: the workers' group; `data_lives`: whose disks were looked at, for the sentence about them."""
    limits = limits or Limits()
    areas = {
        "topics": _topics(facts),
        "replication": _replication(facts),
        "lag": _lag(facts, limits),
        "compaction": _compaction(facts),
        "clock": _clock(facts, limits),
        "disk": _disk(facts.disks, data_lives, limits),
        "ownership": _ownership(facts, group, limits),
    }
    return [Finding(area, *each) for area, found in areas.items() for each in found]


_Found = Iterator[tuple[State, str, str]]


def _topics(facts: Facts) -> _Found:
    sound = True
    there = {name: topic for name, topic in facts.topics.items() if isinstance(topic, Topic)}
    for name, topic in facts.topics.items():
        if isinstance(topic, Hidden):
            sound = False
            if topic.absent:
                state = State.BROKEN if name in NEEDED else State.LOOK
                yield state, f"topic {name} is missing", "run `tallygate topics`, which makes what is missing"
            else:
                yield State.LOOK, f"topic {name} cannot be looked at: {topic.why}", "run this as an operator"
    counts = {name: len(there[name].partitions) for name in _CO_PARTITIONED if name in there}
    if len(set(counts.values())) > 1:
        sound = False
        shown = ", ".join(f"{name} has {count}" for name, count in counts.items())
        yield (
            State.BROKEN,
            f"the inputs and the journal must have equally many partitions: {shown}",
            "make new topics with equal counts: partitions added later would part customers from their state",
        )
    for spec in topics.topic_specs():
        if spec.name in there:
            for finding in _config(spec, there[spec.name].config):
                sound = False
                yield finding
    if sound:
        partitions = max(counts.values(), default=0)
        yield State.OK, f"all {len(there)} are there, {partitions} partitions of inputs and journal, as declared", ""


def _config(spec: topics.TopicSpec, config: Mapping[str, str] | Hidden) -> _Found:
    if isinstance(config, Hidden):
        todo = "allow DESCRIBE_CONFIGS, as `tallygate acls --operator` does"
        yield State.LOOK, f"the settings of {spec.name} cannot be looked at: {config.why}", todo
        return
    for name, wanted in spec.config.items():
        found = config.get(name, "")
        if found == wanted or (name in _AT_LEAST and (found == _ENDLESS or int(found or "0") >= int(wanted))):
            continue
        yield (
            State.BROKEN if name in _VITAL else State.LOOK,
            f"{name} of {spec.name} is {found or 'not known there'}, and is to be {wanted}",
            f"kafka-configs.sh --alter --topic {spec.name} --add-config {name}={wanted}",
        )


class _Part(NamedTuple):
    topic: str
    number: int
    copies: Copies
    needed: int  # in step, before a record counts

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


def _replication(facts: Facts) -> _Found:
    parts = [
        _Part(name, number, copies, _insync(topic.config))
        for name, topic in facts.topics.items()
        if isinstance(topic, Topic)
        for number, copies in topic.partitions.items()
    ]
    if not parts:
        yield State.LOOK, "no topic can be looked at", "see topics"
        return
    faults = list(_copy_faults(parts))
    yield from faults
    fewest = min(part.copies.replicas for part in parts)
    if fewest >= 3:
        if weak := sorted({part.topic for part in parts if part.needed == 1}):
            todo = "kafka-configs.sh --alter --topic … --add-config min.insync.replicas=2"
            yield State.LOOK, f"one copy in step is enough for {_some(weak)}: it may be lost with its broker", todo
        elif not faults:
            yield State.OK, f"{fewest} copies of everything on {facts.brokers} brokers, all in step", ""
    elif facts.brokers > 1:
        copies = "1 copy" if fewest == 1 else f"{fewest} copies"
        todo = "three copies survive the loss of a broker: kafka-reassign-partitions.sh adds them"
        yield State.LOOK, f"there are partitions with {copies}, on {facts.brokers} brokers", todo
    elif not faults:
        yield State.OK, "one copy on one broker: fine on a laptop; production wants three brokers", ""


def _copy_faults(parts: list[_Part]) -> _Found:
    away = [part for part in parts if not part.copies.leader]
    refusing = [part for part in parts if part.copies.leader and part.copies.in_sync < part.needed]
    behind = [
        part for part in parts if part.copies.leader and part.needed <= part.copies.in_sync < part.copies.replicas
    ]
    if away:
        yield (
            State.BROKEN,
            f"{_some(away)} have no leader: nothing is written or read there",
            "start the brokers of these",
        )
    if refusing:
        todo = "start the brokers that are away, or look at their disks"
        yield State.BROKEN, f"{_some(refusing)} have too few copies in step: nothing is written there", todo
    if behind:
        yield (
            State.LOOK,
            f"{_some(behind)} have copies that are not in step",
            "look at the brokers that are away or behind",
        )


def _insync(config: Mapping[str, str] | Hidden) -> int:
    return int(config.get("min.insync.replicas", "1")) if not isinstance(config, Hidden) else 1


def _lag(facts: Facts, limits: Limits) -> _Found:
    if isinstance(facts.tails, Hidden) or isinstance(facts.waiting, Hidden):
        hidden = facts.tails if isinstance(facts.tails, Hidden) else facts.waiting
        assert isinstance(hidden, Hidden)
        yield State.LOOK, f"how far the workers are cannot be seen: {hidden.why}", "run this as an operator"
        return
    applied = {number: tail.row.applied for number, tail in facts.tails.items() if tail.row is not None}
    for topic in _INPUTS:
        if not any(name == topic for name, _ in facts.ends):
            yield State.LOOK, f"how much of {topic} waits cannot be seen", "see topics and replication"
            continue
        lags = {
            number: end - applied.get(number, {}).get(topic, -1) - 1
            for (name, number), end in facts.ends.items()
            if name == topic
        }
        yield _one_lag(facts, topic, topic, {n: lag for n, lag in lags.items() if lag > 0}, "the workers", limits)
    if isinstance(facts.sink, Hidden):
        yield State.LOOK, f"how far the sink is cannot be seen: {facts.sink.why}", "run this as an operator"
    elif not facts.sink:
        if any(end for (name, _), end in facts.ends.items() if name == topics.JOURNAL):
            yield State.LOOK, "no sink has ever noted how far it is", "start `tallygate sink`, if ClickHouse is wanted"
    else:
        lags = {n: facts.ends.get((topics.JOURNAL, n), 0) - offset for n, offset in facts.sink.items()}
        lags = {number: lag for number, lag in lags.items() if lag > 0}
        yield _one_lag(facts, "the journal", topics.JOURNAL, lags, "the sink", limits)


def _one_lag(
    facts: Facts, what: str, topic: str, lags: Mapping[int, int], who: str, limits: Limits
) -> tuple[State, str, str]:
    assert isinstance(facts.waiting, dict)
    age = max((_now(facts) - facts.waiting[place] for place in facts.waiting if place[0] == topic), default=0)
    text = f"{who}: {sum(lags.values())} records of {what} wait, the oldest since {_span(age)}"
    if not lags:
        return State.OK, f"{who}: nothing of {what} waits", ""
    if age <= limits.waiting_ms:
        return State.OK, text, ""
    kept = _retention(facts.topics.get(topic))
    worst = State.BROKEN if kept and age > kept // 2 else State.LOOK
    gone = f", before Kafka deletes it after {_span(kept)}" if worst is State.BROKEN and kept else ""
    command = "tallygate sink" if who == "the sink" else "tallygate worker"
    return (
        worst,
        f"{text} (partitions {_some(lags)})",
        f"look whether `{command}` runs and what it says{gone}",
    )


def _retention(topic: Topic | Hidden | None) -> int:
    """How long records of an input are kept; 0 where that is not known, or does not matter."""
    if (
        not isinstance(topic, Topic)
        or isinstance(topic.config, Hidden)
        or topic.config.get("cleanup.policy") != "delete"
    ):
        return 0
    return max(0, int(topic.config.get("retention.ms", "0")))


def _compaction(facts: Facts) -> _Found:
    journal = facts.topics[topics.JOURNAL]
    config = journal.config if isinstance(journal, Topic) else journal
    if isinstance(config, Hidden):
        yield State.LOOK, f"the journal's settings cannot be looked at: {config.why}", "run this as an operator"
        return
    kept = int(config.get(_MIN_LAG, "0"))
    if isinstance(facts.sink, Hidden) or isinstance(facts.waiting, Hidden) or not facts.sink:
        if not facts.ends or facts.sink == {}:
            yield State.OK, f"entries are kept for {_span(kept)}; no sink is behind, as none has run yet", ""
        else:
            yield State.LOOK, f"entries are kept for {_span(kept)}; how far the sink is cannot be seen", "see lag"
        return
    behind = max((_now(facts) - at for (topic, _), at in facts.waiting.items() if topic == topics.JOURNAL), default=0)
    left = kept - behind
    if left <= 0:
        yield (
            State.BROKEN,
            f"the sink is {_span(behind)} behind, and the journal keeps entries for {_span(kept)}: some may be gone",
            "start the sink: it says what is missing; `tallygate sink --accept-gap` goes on without it",
        )
    elif 2 * left < kept:
        todo = "start the sink, or raise min.compaction.lag.ms of the journal meanwhile"
        yield State.LOOK, f"the sink may be down for {_span(left)} more before it misses entries", todo
    else:
        yield State.OK, f"a sink may be down for {_span(left)} before it misses entries", ""


def _clock(facts: Facts, limits: Limits) -> _Found:
    clock = facts.clock
    if isinstance(clock, Hidden):
        yield State.LOOK, f"the broker's clock cannot be seen: {clock.why}", "run this as an operator"
        return
    ahead = clock.ahead_ms
    off = max(0, abs(ahead) - clock.give_or_take_ms)
    how = f"{_span(abs(ahead))} {'behind' if ahead > 0 else 'ahead of'} the broker's"
    if off > limits.clock_ms:
        state = State.BROKEN if off > limits.clock_broken_ms else State.LOOK
        yield state, f"this machine's clock is {how}", "let both machines take their time from NTP"
    else:
        yield State.OK, f"this machine's clock and the broker's agree to {_span(off + clock.give_or_take_ms)}", ""
    broker_now = facts.now + ahead
    stream = [tail.row.stream_at for tail in _tails(facts) if tail.row is not None]
    early = max((at - broker_now for at in stream), default=0) - clock.give_or_take_ms
    if early > limits.clock_ms:
        state = State.BROKEN if early > limits.clock_broken_ms else State.LOOK
        todo = "set that worker's clock by NTP; stream time stands until real time has caught up"
        yield state, f"a worker's clock has moved stream time {_span(early)} ahead of the broker's", todo


def _disk(disks: Iterable[Disk], whose: str, limits: Limits) -> _Found:
    for disk in disks:
        text = f"{_bytes(disk.free)} of {_bytes(disk.size)} are free at {disk.place}, {whose}"
        if disk.free < limits.disk_free_broken:
            yield State.BROKEN, text, "make room: workers and sink end on a full disk, and go on where they were"
        elif disk.free < limits.disk_free:
            yield State.LOOK, text, "make room before it is full"
        else:
            yield State.OK, text, ""


def _ownership(facts: Facts, name: str, limits: Limits) -> _Found:
    numbers = sorted(number for topic, number in facts.ends if topic == topics.JOURNAL)
    if not numbers:
        yield State.LOOK, "who owns partitions cannot be seen without a journal", "see topics"
        return
    tails = facts.tails if isinstance(facts.tails, dict) else {}
    ages = {number: _now(facts) - tails[number].at if number in tails else None for number in numbers}
    stale = [n for n, age in ages.items() if age is None or age > limits.tick_ms]
    group = facts.group
    if isinstance(group, Hidden):
        yield State.LOOK, f"group {name} cannot be looked at: {group.why}", "run this as an operator"
        owned = set(numbers)
    else:
        owned = set(group.owners)
        yield from _unowned(group, name, [n for n in numbers if n not in owned], stale)
    if isinstance(facts.tails, Hidden):
        yield State.LOOK, f"the owners' ticks cannot be read: {facts.tails.why}", "run this as an operator"
        return
    silent = [number for number in stale if number in owned]
    if silent:
        oldest = max((ages[n] or 0) for n in silent)
        who = sorted({group.owners[n] for n in silent}) if isinstance(group, Group) else []
        whose = f" (owned by {_some(who)})" if who else ""
        since = f"for {_span(oldest)}" if oldest else "yet"
        yield (
            State.BROKEN,
            f"partitions {_some(silent)}{whose} have not ticked {since}",
            "look at that worker's log: it may be recovering, paused, or cut off; if it does not go on, end it",
        )
    elif isinstance(group, Group) and owned >= set(numbers) and group.state == "STABLE":
        last = max(age for age in ages.values() if age is not None)
        members = len(set(group.owners.values()))
        workers = "1 worker owns" if members == 1 else f"{members} workers own"
        yield State.OK, f"{workers} all {len(numbers)} partitions; the oldest tick is {_span(max(0, last))} old", ""


def _unowned(group: Group, name: str, free: list[int], stale: list[int]) -> _Found:
    if free and set(free) <= set(stale):
        todo = (
            "start `tallygate worker`" if not group.owners else "wait a moment; if it stays, look at the workers' logs"
        )
        yield State.BROKEN, f"nobody owns partitions {_some(free)}", todo
    elif free:
        todo = "is TALLYGATE_GROUP here the one of the workers?"
        yield State.LOOK, f"nobody in group {name} owns partitions {_some(free)}, and yet they tick", todo
    elif group.state != "STABLE":
        yield State.LOOK, f"group {name} is sharing out its partitions anew", "ask again in a moment"


def _now(facts: Facts) -> int:
    """By the broker's clock, as far as it is known: it stamps the journal."""
    return facts.now + (0 if isinstance(facts.clock, Hidden) else facts.clock.ahead_ms)


def _tails(facts: Facts) -> list[Tail]:
    return [] if isinstance(facts.tails, Hidden) else list(facts.tails.values())


def _some(things: Iterable[object], shown: int = 8) -> str:
    names = [str(thing) for thing in things]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _span(ms: int) -> str:
    """How long, in the two largest units that say it."""
    for unit, name, smaller, less in (
        (DAY_MS, "d", HOUR_MS, "h"),
        (HOUR_MS, "h", MINUTE_MS, "min"),
        (MINUTE_MS, "min", SECOND_MS, "s"),
        (SECOND_MS, "s", 1, "ms"),
    ):
        if ms >= unit:
            rest = ms % unit // smaller
            return f"{ms // unit} {name} {rest} {less}" if rest else f"{ms // unit} {name}"
    return f"{ms} ms"


def _bytes(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
