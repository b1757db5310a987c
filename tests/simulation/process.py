"""A worker process of the simulation: the production owner, inbox, follower and rules, over ports that misbehave.

It runs as a plain coroutine. Every await of a port is a place where the story may stop it for a while, or for good; so
is every named crash point.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from owner_world import Crash, MemoryTable, Task, pause
from simulation.books import Books, Table
from simulation.journal_log import TOMBSTONES_MS, JournalLog
from tallygate.pipeline import decide as core
from tallygate.pipeline.intake import Intake
from tallygate.pipeline.replay import Write
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Input, Reply, Rows, Transition
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Chunk, Record
from tallygate.topologies.inbox import Inbox, StepLimits
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.owner import OwnerLimits, PartitionOwner, Ports
from tallygate.topologies.ports import AppendUnknown, CrashPoint, OwnershipLost, Pair
from tallygate.topologies.tables import Position
from tallygate.topologies.usage_runs import RunReader

TOPICS: Final = (topics.USAGE, topics.REQUESTS)
LIMITS: Final = OwnerLimits(fresh_ms=5_000, resume_ms_max=TOMBSTONES_MS // 2)
#: Nobody looks at the figures, and registering them anew for every process would take longer than its life.
_METRICS: Final = Metrics()
_INTAKE: Final = Intake(1)


class Weather(msgspec.Struct, frozen=True):
    """How rough a story is: chances of what a port or the machine does, drawn once a story."""

    late: float  # an append lands only later
    unanswered: float  # an append lands, or does not, and its writer never hears of it
    doubled: float  # an append lands twice
    crash: float  # the process ends at a crash point
    power_cut: float  # a process that ends loses the last writes of its table
    again: float  # a lane delivers once more what it delivered before
    held_up: float  # a lane stands still for a while
    frozen: float  # the process is stopped where it awaits nothing, and the world goes on


CALM: Final = Weather(*[0.0] * 8)


class Disk(MemoryTable):
    """A local table that outlives its process; `cut` takes the last writes away, as a power cut may."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = 0  # the journal's offset up to which it was ever written
        self.watch: Callable[[Table], int] = lambda rows: 0
        self._before: deque[tuple[Table, Position, int]] = deque([({}, self.position, 0)], maxlen=6)

    def apply(self, writes: list[Write], position: Position, forget: tuple[bytes, bytes] | None = None) -> None:
        super().apply(writes, position, forget)
        self.reached = max(self.reached, self.watch(self.rows))
        self._before.append((dict(self.rows), position, self.reached))

    def wipe(self, why: str) -> None:
        super().wipe(why)
        self.reached = 0
        self._before.clear()
        self._before.append(({}, self.position, 0))

    def cut(self, chance: random.Random) -> None:
        rows, self.position, self.reached = chance.choice(self._before)
        self.rows = dict(rows)
        self._before.clear()
        self._before.append((rows, self.position, self.reached))


class Scene(Protocol):
    """What a process sees of its story."""

    chance: random.Random
    weather: Weather
    log: JournalLog
    books: Books
    now_ms: int
    inputs: dict[str, list[Record]]
    catalogs: dict[int, Catalog]
    newest: int

    def append(self, process: "Process", records: Sequence[Pair], term: int, seq: int) -> "Append": ...

    def meanwhile(self, process: "Process") -> None: ...

    def note(self, *what: object) -> None: ...


class Append(msgspec.Struct):
    """A batch on its way to the broker."""

    records: Sequence[Pair]
    term: int
    seq: int
    writer_ms: int
    landed: bool = False


class Process:
    """One life of a worker that believes in owning the partition: opens, works, and ends one way or another."""

    def __init__(
        self, scene: Scene, name: str, disk: Disk, limits: OwnerLimits, steps: StepLimits, rules: Rules
    ) -> None:
        self.name = name
        self.disk = disk
        self.asleep = 0
        self.clock_ms = 0  # how far its clock is ahead
        self.working = self.closing = self.ended = False
        self._scene = scene
        self._version = scene.newest if scene.chance.random() < 0.5 else scene.chance.randint(1, scene.newest)
        self._position = 0
        self._delivered = 0
        self._fetched: dict[str, int] = {}
        self._held_up: dict[str, int] = {}
        self._inbox = Inbox(_INTAKE.read, steps, RunReader(1, rules))
        ports = Ports(self, self._open_table, self, self, self, self, _METRICS, self._at)
        self.owner = PartitionOwner(0, name, ports, self, self._inbox, rules, limits)
        self._task: Task | None = None

    # ---- its life ----

    def go_on(self) -> None:
        """One await further; `ended` when there is nothing more."""
        if self._task is None:
            self._task = self._next()
            if self._task is None:
                return
        try:
            self._task.once()
        except (Crash, OwnershipLost) as why:
            self._scene.note(self.name, "ends:", type(why).__name__)
            self.end()
            return
        if self._task.ended:
            if not self.working:
                self._begin(self._task.result)
            self._task = None

    def _begin(self, offsets: dict[str, int]) -> None:
        self.working = True
        self._fetched = {topic: offsets.get(topic, 0) for topic in TOPICS}
        self._held_up = dict.fromkeys(TOPICS, 0)
        self._scene.note(self.name, "has opened term", self.owner.term)

    def _next(self) -> Task | None:
        if not self.working:
            return Task(self.owner.open())
        if not self.closing:
            self._fetch()
        elif not self._inbox.asks:
            self._scene.note(self.name, "lets go")
            self.owner.close()
            self.ended = True
            return None
        return Task(self.owner.step())

    def _fetch(self) -> None:
        """The two lanes deliver, each in its own order, neither waiting for the other."""
        scene, chance = self._scene, self._scene.chance
        for topic in TOPICS:
            if self._held_up[topic]:
                self._held_up[topic] -= 1
                continue
            if chance.random() < scene.weather.held_up:
                self._held_up[topic] = chance.randint(1, 30)
            held, begin = scene.inputs[topic], self._fetched[topic]
            if chance.random() < scene.weather.again:
                begin = max(0, begin - chance.randint(1, 6))
            end = min(len(held), begin + chance.randint(1, 8))
            if begin < end:
                self._inbox.offer(Chunk(topic, 0, held[begin:end], 0, 1), int)
                self._fetched[topic] = max(end, self._fetched[topic])

    def let_go(self) -> None:
        """The group takes the partition away in good order: what was taken in is answered."""
        if self.working:
            self.closing = True
        else:
            self.end()

    def end(self) -> None:
        """The process is gone, wherever it was; its disk stays."""
        if self._task is not None:
            self._task.kill()
        self.ended = True
        if self._scene.chance.random() < self._scene.weather.power_cut:
            self._scene.note(self.name, "loses its last writes")
            self.disk.cut(self._scene.chance)

    @property
    def idle(self) -> bool:
        fetched = all(self._fetched.get(topic, -1) >= len(self._scene.inputs[topic]) for topic in TOPICS)
        return self.working and self._task is None and fetched and not self._inbox

    def _at(self, point: CrashPoint) -> None:
        if self._scene.chance.random() < self._scene.weather.crash:
            self._scene.note(self.name, "crashes:", point)
            raise Crash
        self._freeze()

    def _freeze(self) -> None:
        if self._scene.chance.random() < self._scene.weather.frozen:
            self._scene.meanwhile(self)

    def _open_table(self) -> Disk:
        self.disk.watch = self._written
        return self.disk

    def _written(self, rows: Table) -> int:
        """The local table was written: it must be as the journal is, up to where this process has read it."""
        end = self._delivered
        log = self._scene.log
        # Who reads what was compacted meanwhile has the journal's state again when it has read on to the end.
        whole = end == log.end or (end >= log.cleaned and (self.working or not log.cleaned))
        if whole and end >= self.disk.reached and end in self._scene.books.before:
            self._scene.books.compare(rows, end, f"the table of {self.name}", self._scene.now_ms)
        return end

    # ---- ports.Clock ----

    def wall_ms(self) -> int:
        return self._scene.now_ms + self.clock_ms

    def monotonic_us(self) -> int:
        return self._scene.now_ms * 1000

    # ---- ports.Journal ----

    async def bounds(self) -> tuple[int, int]:
        await pause()
        return 0, self._scene.log.end

    async def replay(self, begin: int, end: int, take: Callable[[Record], None]) -> None:
        self._delivered = begin
        while begin < end:
            await pause()
            run_of = self._scene.log.between(begin, min(end, begin + 40))
            for record in run_of:
                self._delivered = record.offset + 1
                take(record)
            begin = min(end, begin + 40)
        self._delivered = end

    def follow(self, begin: int) -> None:
        self._position = begin

    async def append(self, records: Sequence[Pair], term: int, seq: int) -> None:
        await pause()  # the last moment before it leaves
        sent = self._scene.append(self, records, term, seq)
        unanswered = self._scene.chance.random() < self._scene.weather.unanswered
        for _ in range(self._scene.chance.randint(1, 3) if unanswered else 1_000_000):
            if sent.landed and not unanswered:
                break
            await pause()
        else:
            raise AppendUnknown("no answer in time")
        await pause()

    async def read(self) -> Sequence[Record]:
        while True:
            if self._position < self._scene.log.end:
                most = self._scene.chance.choice((1, 3, 8, None, None, None))
                found = self._scene.log.read(self._position, most)
                if found:
                    self._position = self._delivered = found[-1].offset + 1
                    return found
            await pause()

    # ---- ports.DeadLetters ----

    async def put(self, letters: Sequence[tuple[Record, Reason, str]]) -> None:
        await pause()
        if self._scene.chance.random() < self._scene.weather.unanswered:
            raise AppendUnknown("no answer in time")
        self._scene.books.dead |= {(record.topic, record.offset) for record, _, _ in letters}
        await pause()

    # ---- ports.Replies ----

    def send(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            told = self._scene.books.answered(reply.answer, self._delivered, self._scene.now_ms)
            self._scene.note(self.name, "answers", told)

    # ---- ports.Catalogs ----

    @property
    def newest(self) -> Catalog:
        if self._version < self._scene.newest and self._scene.chance.random() < 0.1:
            self._version = self._scene.newest
        return self._scene.catalogs[self._version]

    def version(self, number: int) -> Catalog | None:
        return self._scene.catalogs.get(number)

    async def reach(self, version: int) -> None:
        while self._version < version:
            await pause()
            self._version += 1

    # ---- ports.Core ----

    def load(self, rows: Rows, partition: int) -> PartitionState:
        return PartitionState.load(rows, partition)

    def decide(self, state: Any, inputs: Sequence[Input], catalog: Catalog, rules: Rules) -> Transition:
        transition = core.decide(state, inputs, catalog, rules)
        self._freeze()
        return transition
