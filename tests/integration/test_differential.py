"""The worker on a real broker and the core in memory: the same inputs, the same answers, the same books.

A worker takes a few hundred random inputs from Kafka, in whatever chunks come about. Then the core takes the same
records one by one, at the broker's own timestamps, in the order and with the ticks and catalogs that the journal's
partition rows tell. How inputs were cut into chunks, journaled, read back and answered must make no difference.
"""

import os
import random
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from heapq import merge
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asker import Asker, accepted, records
from kafka_fixture import PARTITIONS, Broker
from partition import Partition
from simulation.money_world import AMOUNTS, CATALOGS, DIMENSIONS, POOLS, SCOPES
from tallygate.pipeline.intake import Intake
from tallygate.pipeline.replay import table_writes
from tallygate.pipeline.rows import MemoryRows
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Tick
from tallygate.schemas import topics
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.events import UsageEvent, encode_event
from tallygate.schemas.journal import (
    ENTRY_KIND,
    OPEN_KEY,
    PARTITION_KEY,
    Entry,
    PartitionRow,
    decode_record,
    split_key,
)
from tallygate.schemas.records import Record
from tallygate.schemas.requests import (
    Balance,
    Extend,
    GiveGrant,
    Override,
    Recurring,
    Release,
    Request,
    Reserve,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Settle,
    Subscribe,
    VoidGrant,
)
from worker_process import WorkerProcess

SEED = int(os.environ.get("SEED", "20260101"))
INPUTS = 400
BURSTS = 16
CUSTOMERS = tuple(f"differential-{n}" for n in range(6))
FEATURES = tuple(feature.name for feature in CATALOGS[0].features)
VERSIONS = {
    number: msgspec.structs.replace(CATALOGS[variant], version=number) for number, variant in enumerate((0, 1, 3), 1)
}


class Inputs:
    """Random requests and events; what they name need not be there."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._number = 0
        self._holds: list[tuple[str, str]] = [("nothing", CUSTOMERS[0])]
        self._grants: list[tuple[str, str]] = [("nothing", CUSTOMERS[0])]
        self._events: list[UsageEvent] = []
        self._requests: list[Request] = []

    def next(self) -> Request | UsageEvent:
        make = self._rng.choices(
            (self.grant, self.reserve, self.settle, self.release, self.extend, self.administer, self.again, self.use,
             self.change),
            (5, 10, 6, 2, 1, 5, 2, 9, 4),
        )[0]  # fmt: skip
        made = make()
        if isinstance(made, UsageEvent):
            self._events.append(made)
        else:
            self._requests.append(made)
        return made

    def _id(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    def grant(self) -> Request:
        pick, now = self._rng.choice, datetime.now(UTC)
        request = GiveGrant(
            id=self._id("g"),
            customer=pick(CUSTOMERS),
            amount=pick(AMOUNTS[4:]),
            pool=pick(POOLS),
            priority=pick((0, 1, 2)),
            effective_at=pick((None, None, now + timedelta(seconds=1))),
            expires_at=pick((None, None, now + timedelta(seconds=2))),
            category=pick(("paid", "trial")),
            price=pick((Decimal(0), Decimal("0.5"))),
            recurrence=pick((None, Recurring("PT1M", now - timedelta(seconds=58)))),
            rollover_max=pick((Decimal(0), Decimal(5))),
        )
        self._grants.append((request.id, request.customer))
        return request

    def reserve(self) -> Request:
        pick, feature = self._rng.choice, self._rng.choice(FEATURES)
        amount = pick(AMOUNTS[:-1])
        request = Reserve(
            id=self._id("h"),
            customer=pick(CUSTOMERS),
            feature=feature,
            quantities={f"{feature}_units": amount} if pick((True, False)) else {},
            credits=amount,
            dimensions=pick(DIMENSIONS),
            at_least={"credits": amount / 10} if pick((True, False)) and amount >= 1 else {},
            ttl_seconds=pick((None, 1, 60)),
            explain=pick((True, False)),
        )
        self._holds.append((request.id, request.customer))
        return request

    def settle(self) -> Request:
        hold, customer = self._rng.choice(self._holds[-12:])
        credits = self._rng.choice((None, *AMOUNTS))
        return Settle(id=self._id("t"), customer=customer, hold=hold, credits=credits)

    def release(self) -> Request:
        hold, customer = self._rng.choice(self._holds[-12:])
        return Release(id=self._id("l"), customer=customer, hold=hold)

    def extend(self) -> Request:
        hold, customer = self._rng.choice(self._holds[-12:])
        return Extend(id=self._id("e"), customer=customer, hold=hold, ttl_seconds=2)

    def administer(self) -> Request:
        pick = self._rng.choice
        who: dict[str, Any] = {"id": self._id("a"), "customer": pick(CUSTOMERS)}
        grant, owner = pick(self._grants)
        override = {"work": Override("metered", meter="work_units", limit=Decimal(4), period="hour", beyond="credits")}
        return pick(
            (
                VoidGrant(id=who["id"], customer=owner, grant=grant),
                ResetPool(**who, pool=pick(POOLS), preserve_overage=pick((True, False))),
                SetBudget(**who, name=pick(("one", "plan")), limit=pick(AMOUNTS), scope=pick(SCOPES),
                          period=pick(("hour", "lifetime")), hard=pick((True, False)), thresholds=(50, 100)),
                SetRateLimit(**who, name="own", limit=Decimal(2), per_seconds=1, scope=pick(SCOPES)),
                Subscribe(**who, plan=pick(("free", "pro")), overrides=pick(({}, override))),
                SetCustomer(**who, suspended=pick((False, False, True))),
            )
        )  # fmt: skip

    def again(self) -> Request:
        return self._rng.choice(self._requests[-20:]) if self._requests else self.grant()

    def use(self) -> UsageEvent:
        pick = self._rng.choice
        if self._events and pick(range(8)) == 0:
            return pick(self._events[-8:])
        return UsageEvent(
            specversion="1.0",
            id=self._id("u"),
            source="differential",
            type=pick(("work", "owing", "both", "bothcapped", "message", "unheard-of")),
            subject=pick(CUSTOMERS),
            time=pick((None, datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) - timedelta(hours=30))),
            data={"units": str(pick((*AMOUNTS, -1))), **pick(DIMENSIONS)},
        )

    def change(self) -> UsageEvent:
        pick = self._rng.choice
        if not self._events:
            return self.use()
        of = pick(self._events[-8:])
        kind = pick(("voided", "corrected"))
        data: dict[str, Any] = {"source": of.source, "id": of.id, "data": {"units": "3", **pick(DIMENSIONS)}}
        return UsageEvent(
            specversion="1.0",
            id=self._id("w"),
            source="differential",
            type=f"tallygate.usage.{kind}",
            subject=of.subject,
            data=data,
        )


@pytest.fixture
def asker(module_kafka: Broker) -> Any:
    asker = Asker(module_kafka.bootstrap)
    yield asker
    asker.close()


def test_the_worker_and_the_core_agree(module_kafka: Broker, asker: Asker, tmp_path: Path) -> None:
    print(f"SEED={SEED}")
    asker.apply(VERSIONS[1])
    with WorkerProcess(module_kafka.bootstrap, tmp_path, group="differential") as worker:
        asker.ask(Balance(id="ready", customer=CUSTOMERS[0]))
        asked = drive(asker, SEED)
        wait_for_answers(asker, asked)
        asker.poll(1.5)  # the owner's ticks go on: what is due by now is done
        last = [Balance(id=f"last-{customer}", customer=customer) for customer in CUSTOMERS]
        asker.ask(*last)
        assert worker.stop() == 0

    core = Replayed(module_kafka.bootstrap)
    answers = {
        id: [at_any_time(answer, id) for answer in found] for id, found in asker.answers.items() if id != "ready"
    }
    expected = {id: [at_any_time(answer, id) for answer in core.answers[id]] for id in answers}
    assert answers == expected
    assert {id for id, found in core.answers.items() if found} - {"ready"} == set(answers)
    assert dead_letters(module_kafka.bootstrap) == core.dead_letters
    theirs, ours = Books(core.journaled), Books(core.entries)
    assert theirs.postings == ours.postings
    assert theirs.decisions == ours.decisions
    assert theirs.usage == ours.usage
    assert theirs.alerts == ours.alerts
    assert rows_of(core.table) == rows_of(*(each.rows for each in core.partitions.values()))
    # It was worth comparing.
    reasons = {answer.reason for found in asker.answers.values() for answer in found}
    assert {"allowed", "budget_exhausted", "credits_exhausted", "id_conflict", "hold_unknown"} <= reasons
    assert len(core.dead_letters) > 10
    assert {entry.catalog for entry in core.entries} == set(VERSIONS)
    assert len({customer for customer, found in ours.postings.items() if len(found) > 20}) == len(CUSTOMERS)


def drive(asker: Asker, seed: int) -> dict[str, int]:
    """Sends everything in bursts, so that chunks are large and time passes between; how often each id was asked."""
    inputs, asked = Inputs(seed), defaultdict[str, int](int)
    for burst in range(BURSTS):
        for _ in range(INPUTS // BURSTS):
            made = inputs.next()
            if isinstance(made, UsageEvent):
                asker.put(topics.USAGE, encode_event(made), made.subject)
            else:
                asker.send(made)
                asked[made.id] += 1
        asker.poll(0.2)
        if burst in (BURSTS // 3, 2 * BURSTS // 3):
            asker.apply(VERSIONS[2 if burst == BURSTS // 3 else 3])
            asker.poll(0.5)
    for credits in (1, 2):  # one id for two requests
        asker.send(GiveGrant(id="twice", customer=CUSTOMERS[0], amount=Decimal(credits)))
        asked["twice"] += 1
    return asked


def wait_for_answers(asker: Asker, asked: dict[str, int]) -> None:
    until = time.monotonic() + 60
    while any(len(asker.answers.get(id, ())) < count for id, count in asked.items()):
        assert time.monotonic() < until, "some requests were never answered"
        asker.poll(0.1)


class Replayed:
    """The core over the very records that the worker took, in the steps that the journal tells of."""

    def __init__(self, brokers: str) -> None:
        self.partitions = {number: _partition(number) for number in range(PARTITIONS)}
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.dead_letters: set[tuple[str, int, int, str]] = set()
        self.journaled: list[Entry] = []
        self.table = MemoryRows()
        self._intake = Intake(PARTITIONS)
        self._inputs = {
            topic: {(record.partition, record.offset): record for record in records(brokers, topic)}
            for topic in (topics.USAGE, topics.REQUESTS)
        }
        for record in accepted(records(brokers, topics.JOURNAL)):
            self._take(record)
        for number, partition in self.partitions.items():  # questions after the last step
            last = {
                topic: max((o for p, o in found if p == number), default=-1) for topic, found in self._inputs.items()
            }
            row = msgspec.structs.replace(partition.state.row, applied=last)
            self._step(partition, number, row)

    @property
    def entries(self) -> list[Entry]:
        return [entry for each in self.partitions.values() for entry in each.entries()]

    def _take(self, record: Record) -> None:
        """One record of the journal: rows and entries as they were written, a partition row as the next step."""
        key = record.key or b""
        if key == OPEN_KEY:
            return
        if key != PARTITION_KEY:
            self.table.apply(table_writes(key, record.value))
            if split_key(key)[1] == ENTRY_KIND:
                assert record.value is not None
                entry = decode_record(record.value)
                assert isinstance(entry, Entry)
                self.journaled.append(entry)
            return
        assert record.value is not None
        row = decode_record(record.value)
        assert isinstance(row, PartitionRow)
        self._step(self.partitions[record.partition], record.partition, row)

    def _step(self, partition: Partition, number: int, row: PartitionRow) -> None:
        partition.catalog = VERSIONS[row.catalog]
        before = partition.state.row.applied
        usage, requests = (
            [
                self._inputs[topic][number, offset]
                for offset in range(before.get(topic, -1) + 1, row.applied.get(topic, -1) + 1)
            ]
            for topic in (topics.USAGE, topics.REQUESTS)
        )
        found = [self._intake.read(record) for record in merge(usage, requests, key=lambda each: each.timestamp_ms)]
        if found:
            # As one step, like the worker's: how much of a customer's usage is booked together depends on it.
            transition = partition.apply(*found)
            if not transition.records:  # questions; the next step comes after them
                applied = {**before, **{each.source.topic: each.source.offset for each in found}}
                partition.state.row = msgspec.structs.replace(partition.state.row, applied=applied)
            for reply in transition.replies:
                answer = decode_answer(reply.answer)
                self.answers[answer.id].append(answer)
            for letter in transition.dead_letters:
                source = letter.source
                self.dead_letters.add((source.topic, source.partition, source.offset, str(letter.reason)))
        partition.apply(Tick(row.stream_at))


def _partition(number: int) -> Partition:
    partition = Partition(Catalog(version=0))
    partition.state = PartitionState.load(partition.rows, number)
    return partition


class Books:
    """What entries say of each customer, in order, whichever entry it is in."""

    def __init__(self, entries: list[Entry]) -> None:
        self.postings: dict[str, list[tuple[object, ...]]] = defaultdict(list)
        self.decisions: dict[str, list[tuple[object, ...]]] = defaultdict(list)
        self.usage: dict[str, list[tuple[object, ...]]] = defaultdict(list)
        self.alerts: dict[str, list[tuple[object, ...]]] = defaultdict(list)
        for entry in entries:
            who, causes = entry.customer, (*entry.causes, None)  # -1 is stream time alone
            self.postings[who] += [
                (
                    p.asset,
                    p.account,
                    p.amount_nanos,
                    p.at,
                    causes[p.cause],
                    p.grant,
                    p.category,
                    p.price_nanos,
                    p.feature,
                )
                for p in entry.postings
            ]
            self.decisions[who] += [
                (causes[d.cause], msgspec.structs.replace(d, cause=0), entry.catalog) for d in entry.decisions
            ]
            self.usage[who] += [(causes[u.cause], msgspec.structs.replace(u, cause=0)) for u in entry.usage]
            self.alerts[who] += [(causes[a.cause], msgspec.structs.replace(a, cause=0)) for a in entry.alerts]


def at_any_time(answer: Answer, id: str) -> Answer:
    """An answer; the instant of a question is that of the last input or tick, which the journal does not tell."""
    return msgspec.structs.replace(answer, at="") if id.startswith("last-") else answer


def rows_of(*tables: MemoryRows) -> dict[bytes, bytes]:
    """Customers' rows, but for when an account is next looked at: that depends on the way to it."""
    return {
        key: value
        for table in tables
        for key, value in table.items()
        if key[:1] != b"\0" and split_key(key)[1] != "account"
    }


def dead_letters(brokers: str) -> set[tuple[str, int, int, str]]:
    found = set()
    for letter in records(brokers, topics.DEAD_LETTERS):
        headers = dict(letter.headers)
        topic, partition, offset = headers[topics.HEADER_DEAD_SOURCE].decode().rsplit("/", 2)
        found.add((topic, int(partition), int(offset), headers[topics.HEADER_DEAD_REASON].decode()))
    return found
