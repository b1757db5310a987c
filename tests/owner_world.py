"""A world without Kafka for partition owners: one log, one clock, no threads, no event loop.

Owners run as plain coroutines; every await of a port is a place where a test may stop one for a while, or for good.
"""

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

import msgspec

from tallygate.pipeline.decide import decide
from tallygate.pipeline.intake import Intake
from tallygate.pipeline.replay import Write
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Input, Reply, Rows, Transition
from tallygate.schemas import topics
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.catalog import Catalog, Feature, Meter
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Chunk, Record
from tallygate.schemas.requests import Request, encode_request
from tallygate.topologies.batch_lane import Pace
from tallygate.topologies.inbox import Inbox, StepLimits
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.owner import OwnerLimits, PartitionOwner, Ports
from tallygate.topologies.ports import CrashPoint, Pair
from tallygate.topologies.tables import Position
from tallygate.topologies.usage_runs import RunReader

DAY_MS = topics.DAY_MS
START_MS = 20_000 * DAY_MS
REPLY_TO = topics.reply_topic("test")
CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",)),),
)


class Crash(Exception):
    """The process is gone."""


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield


class Task:
    """A coroutine that a test drives: `run` to its end, or `until` something holds."""

    def __init__(self, work: Coroutine[Any, None, Any]) -> None:
        self._work = work
        self.ended = False
        self.result: Any = None

    def once(self) -> bool:
        """On to the next await; whether there is one."""
        try:
            self._work.send(None)
        except StopIteration as end:
            self.ended, self.result = True, end.value
        except BaseException:
            self.ended = True
            raise
        return not self.ended

    def until(self, holds: Callable[[], bool]) -> "Task":
        for _ in range(10_000):
            if holds():
                return self
            assert self.once(), "it ended before"
        raise AssertionError("it does not come to that")

    def run(self) -> Any:
        for _ in range(10_000):
            if not self.once():
                return self.result
        raise AssertionError("it does not end")

    def kill(self) -> None:
        self._work.close()
        self.ended = True


def run(work: Coroutine[Any, None, Any]) -> Any:
    return Task(work).run()


class MemoryTable:
    """`tables.Table` without a disk; survives its owner as a folder would."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.position = Position()
        self.wiped: list[str] = []

    def get(self, key: bytes, /) -> bytes | None:
        return self.rows.get(key)

    def get_many(self, keys: list[bytes], /) -> list[bytes | None]:
        return [self.rows.get(key) for key in keys]

    def scan(self, begin: bytes, end: bytes, most: int = 0, /) -> list[tuple[bytes, bytes]]:
        found = sorted((key, value) for key, value in self.rows.items() if begin <= key < end)
        return found[:most] if most else found

    def apply(self, writes: list[Write], position: Position, forget: tuple[bytes, bytes] | None = None) -> None:
        if forget is not None:
            for key, _ in self.scan(*forget):
                del self.rows[key]
        for key, value in writes:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        self.position = position

    def wipe(self, why: str) -> None:
        self.rows.clear()
        self.position = Position()
        self.wiped.append(why)

    def close(self) -> None:
        pass


class World:
    """The log of one partition's journal, its clock, and what came out."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.first_offset = 0
        self.log: list[Record] = []
        self.replies: list[tuple[str, Reply]] = []
        self.dead: list[tuple[str, Record, Reason, str]] = []
        self.newest = CATALOG
        self.inputs: dict[str, list[Record]] = {topics.USAGE: [], topics.REQUESTS: []}

    def land(self, records: Sequence[Pair], term: int, seq: int) -> None:
        headers = ((topics.HEADER_TERM, b"%d" % term), (topics.HEADER_SEQ, b"%d" % seq))
        for key, value in records:
            offset = self.first_offset + len(self.log)
            self.log.append(Record(topics.JOURNAL, 0, offset, self.now_ms, key, value, headers))

    def ask(self, *requests: Request) -> Chunk:
        return self.arrive(
            topics.REQUESTS,
            *(encode_request(request) for request in requests),
            headers=((topics.HEADER_REPLY_TO, REPLY_TO.encode()), (topics.HEADER_CORRELATION, b"c")),
        )

    def use(self, *ids: str, customer: str = "acme", tokens: int = 1) -> Chunk:
        events = [
            {
                "specversion": "1.0",
                "id": i,
                "source": "t",
                "type": "llm.call",
                "subject": customer,
                "data": {"tokens": tokens},
            }
            for i in ids
        ]
        return self.arrive(topics.USAGE, *(msgspec.json.encode(event) for event in events))

    def arrive(self, topic: str, *values: bytes | None, headers: tuple[tuple[str, bytes], ...] = ()) -> Chunk:
        """Records in an input topic, as one chunk."""
        held = self.inputs[topic]
        begin = len(held)
        held.extend(Record(topic, 0, begin + n, self.now_ms, b"k", value, headers) for n, value in enumerate(values))
        return Chunk(topic, 0, held[begin:], 0, 1)

    def answers(self) -> list[Answer]:
        return [decode_answer(reply.answer) for _, reply in self.replies]

    def keys(self) -> list[bytes | None]:
        return [record.key for record in self.log]


class Life:
    """One process that owns the partition: an owner and its ports. `name` differs for each."""

    def __init__(
        self,
        world: World,
        name: str,
        table: MemoryTable | None = None,
        *,
        limits: OwnerLimits | None = None,
        rules: Rules | None = None,
        steps: StepLimits | None = None,
        at: Callable[[CrashPoint], None] = lambda point: None,
    ) -> None:
        self.world = world
        self.name = name
        self.table = table or MemoryTable()
        self.appends_lost = False
        self.metrics = Metrics()
        self._position = 0
        self.done: list[str] = []
        pace = Pace(lambda: 0, rest_us_max=0)
        pace.asked()  # so that parts of runs are small
        self.inbox = Inbox(Intake(1).read, steps or StepLimits(), RunReader(1, rules or Rules()), pace=pace)
        ports = Ports(self, lambda: self.table, self, self, self, self, self.metrics, at)
        self.owner = PartitionOwner(0, name, ports, self, self.inbox, rules, limits)

    def opened(self) -> "Life":
        run(self.owner.open())
        return self

    def offer(self, *chunks: Chunk) -> "Life":
        for chunk in chunks:
            self.inbox.offer(chunk, lambda chunk=chunk: self.done.append(chunk.topic))  # type: ignore[misc]
        return self

    def step(self) -> "Life":
        run(self.owner.step())
        return self

    def work(self) -> "Life":
        while self.inbox:
            self.step()
        return self

    # ports.Clock

    def wall_ms(self) -> int:
        return self.world.now_ms

    def monotonic_us(self) -> int:
        return self.world.now_ms * 1000

    # ports.Journal

    async def bounds(self) -> tuple[int, int]:
        await pause()
        return self.world.first_offset, self.world.first_offset + len(self.world.log)

    async def replay(self, begin: int, end: int, take: Callable[[Record], None]) -> None:
        assert begin >= self.world.first_offset
        for record in self.world.log[begin - self.world.first_offset : end - self.world.first_offset]:
            take(record)
            await pause()

    def follow(self, begin: int) -> None:
        self._position = begin

    async def append(self, records: Sequence[Pair], term: int, seq: int) -> None:
        await pause()
        self.world.land(records, term, seq)
        await pause()

    async def read(self) -> Sequence[Record]:
        while True:
            run_of = self.world.log[self._position - self.world.first_offset :]
            if run_of:
                self._position += len(run_of)
                return run_of
            await pause()

    # ports.DeadLetters

    async def put(self, letters: Sequence[tuple[Record, Reason, str]]) -> None:
        await pause()
        self.world.dead.extend((self.name, *letter) for letter in letters)
        await pause()

    # ports.Replies

    def send(self, replies: Sequence[Reply]) -> None:
        self.world.replies.extend((self.name, reply) for reply in replies)

    # ports.Catalogs

    @property
    def newest(self) -> Catalog:
        return self.world.newest

    def version(self, number: int) -> Catalog | None:
        return self.world.newest if self.world.newest.version == number else None

    async def reach(self, version: int) -> None:
        while self.world.newest.version < version:
            await pause()

    # ports.Core

    def load(self, rows: Rows, partition: int) -> PartitionState:
        return PartitionState.load(rows, partition)

    def decide(self, state: PartitionState, inputs: Sequence[Input], catalog: Catalog, rules: Rules) -> Transition:
        return decide(state, inputs, catalog, rules)
