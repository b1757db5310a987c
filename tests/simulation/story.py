"""One seed, one story: owners of a partition that die, sleep and overlap over a journal, while customers go on asking.

No thread, no clock, no event loop: a story is a sequence of small steps, all drawn from its seed, so that it can be
told again word for word. `Story(seed).run()` returns its figures; what must not happen raises `Violation`.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Final
from unittest.mock import patch

import msgspec

from owner_world import REPLY_TO, START_MS, MemoryTable
from simulation.books import Asked, Books, Violation, must
from simulation.journal_log import LAG_MS, JournalLog
from simulation.process import CALM, LIMITS, TOPICS, Append, Disk, Process, Weather
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.pipeline.memory import digest
from tallygate.pipeline.rules import Rules
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Entitlement, Feature, Meter, Plan, PlanBudget, Rate
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import Entry, decode_record
from tallygate.schemas.records import Record
from tallygate.schemas.requests import (
    OPS,
    Balance,
    Check,
    GiveGrant,
    Release,
    Request,
    Reserve,
    Settle,
    encode_request,
)
from tallygate.topologies import owner
from tallygate.topologies.follower import Follower
from tallygate.topologies.inbox import StepLimits
from tallygate.topologies.ports import Pair

CUSTOMERS: Final = ("acme", "zeta")
TEAMS: Final = ("x", "y")
NANO: Final = 10**9
STEPS: Final = (300, 700)
PROCESSES_MAX: Final = 4
HEADERS: Final = ((topics.HEADER_REPLY_TO, REPLY_TO.encode()), (topics.HEADER_CORRELATION, b"c"))


def catalog(version: int) -> Catalog:
    """Prices and limits move to and fro with the version."""
    odd = version % 2
    meters = (
        Meter("tokens", "llm.call", "sum", "tokens"),
        Meter("calls", "call", "sum", "calls"),
    )
    features = (
        Feature("llm", ("credits",), ("tokens",), (Rate("tokens", (1 + odd) * NANO, NANO),)),
        Feature("calls", ("credits",), ("calls",)),
    )
    plan = Plan(
        "basic",
        entitlements=(
            Entitlement("llm", "credit"),
            Entitlement("calls", "metered", meter="calls", limit_nanos=(8 + 2 * odd) * NANO, period="lifetime"),
        ),
        budgets=(PlanBudget("team", (250 - 50 * odd) * NANO, {"team": "*"}),),
    )
    return Catalog(version, meters, features, (plan,), default_plan="basic")


#: Of each trouble in `Weather`, where a story has it at all.
_OFTEN: Final = (0.15, 0.04, 0.08, 0.01, 0.5, 0.05, 0.1, 0.01)
_CATALOGS: Final = {version: catalog(version) for version in range(1, 12)}


class Told(msgspec.Struct):
    """The figures of a story."""

    seed: int
    digest: str
    steps: int
    counts: dict[str, int]


class Story:
    """The scene, and who acts in it. `trace` keeps what happens as lines.

    `long`: days pass in it, clocks are off by days, and compaction is busy; else only in some.
    """

    def __init__(self, seed: int, *, trace: bool = False, long: bool = False) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.log = JournalLog()
        self.catalogs = _CATALOGS
        self.newest = 1
        self.now_ms = START_MS
        self.inputs: dict[str, list[Record]] = {topic: [] for topic in TOPICS}
        self.books = Books(self.catalogs, LIMITS.fresh_ms)
        self.lines: list[str] | None = [] if trace else None
        self.counts: Counter[str] = Counter()
        self._digest = blake2b(digest_size=8)
        self.weather = Weather(*(chance.choice((0.0, often)) for often in _OFTEN))
        self._rules = Rules(due_per_tick_max=chance.choice((2, 1_000)))
        self._limits = msgspec.structs.replace(LIMITS, batch_bytes_max=chance.choice((6_000, 12_000, 8 << 20)))
        self._steps = StepLimits(chance.choice((1, 4, 50)), chance.choice((1, 4, 50)))
        self._long = chance.random() < 0.4 or long  # days pass in it
        self._clocks = 2 if long else chance.choice((0, 1, 1, 2))  # all right; off by seconds or hours; by days
        self._processes: list[Process] = []
        self._frozen: Process | None = None
        self._disks: list[Disk] = []
        self._on_the_way: list[Append] = []
        self._asked: list[tuple[int, Request]] = []
        self._born = self._events = 0
        self._sink = Fence()
        self._sunk: Counter[str] = Counter()
        self._acts, self._weights = self._draw_acts()

    def run(self) -> Told:
        """From an empty journal to a quiet end. Raises `Violation`, also for whatever the owner itself trips over."""
        try:
            self._ask(GiveGrant(id="g0", customer="acme", amount=Decimal(500)))
            steps = self.chance.randint(*STEPS)
            with patch.object(owner, "RECOVERY_WRITES_MAX", self.chance.choice((30, 20_000))):
                for _ in range(steps):
                    self._act()
                self._end()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"a process broke: {type(error).__name__}: {error}") from error
        return Told(self.seed, self._digest.hexdigest(), steps, dict(self.counts))

    def _act(self) -> None:
        self.counts["steps"] += 1
        self.chance.choices(self._acts, cum_weights=self._weights)[0]()

    def note(self, *what: object) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now_ms - START_MS:>12} ms  " + " ".join(map(str, what)))

    # ---- what may happen ----

    def _draw_acts(self) -> tuple[list[Callable[[], None]], list[float]]:
        """Each story has its own mix: what is rare everywhere is common somewhere."""
        chance = self.chance
        acts: dict[Callable[[], None], float] = {
            self._work: 100,
            self._ask_something: 6,
            self._use: 3,
            self._garbage: 0.3,
            self._time_passes: 8,
            self._start: chance.choice((0.3, 1, 3)),
            self._let_go: chance.choice((0, 1)),
            self._kill: chance.choice((0, 0.5, 3)),
            self._sleep: chance.choice((0, 1, 4)),
            self._land_late: 5,
            self._publish: chance.choice((0, 0.5)),
            self._compact: 4 if self._long else 1,
            self._jump: (0, 1, 2)[self._clocks],
            self._days_pass: 1.2 if self._long else 0,
        }
        weights, total = [], 0.0
        for weight in acts.values():
            total += weight
            weights.append(total)
        return list(acts), weights

    def _work(self) -> None:
        """One process goes on by one await."""
        awake = [process for process in self._processes if not process.asleep]
        for process in self._processes:
            process.asleep = max(0, process.asleep - 1)
        if awake:
            process = awake[0] if len(awake) == 1 else self.chance.choice(awake)
            self._go_on(process)
        elif not self._processes:
            self._start()

    def _go_on(self, process: Process) -> None:
        self._digest.update(process.name.encode())
        process.go_on()
        if process.ended:
            self._processes.remove(process)

    def _ask_something(self) -> None:
        chance, number = self.chance, len(self._asked)
        customer = chance.choice(CUSTOMERS)
        roll = chance.random()
        reserved = [r for _, r in self._asked[-40:] if isinstance(r, Reserve) and r.customer == customer]
        request: Request
        if roll < 0.15:  # a caller that has waited too long
            request = chance.choice(self._asked)[1]
        elif roll < 0.2:
            request = GiveGrant(id=f"g{number}", customer=customer, amount=Decimal(chance.randint(1, 300)))
        elif roll < 0.25:
            request = Balance(id=f"b{number}", customer=customer)
        elif roll < 0.3:
            request = Check(id=f"c{number}", customer=customer, feature="llm", credits=Decimal(chance.randint(1, 300)))
        elif reserved and roll < 0.55:
            hold = chance.choice(reserved).id
            request = chance.choice((self._settle, self._release))(number, customer, hold)
        else:
            request = self._reserve(number, customer)
        self._ask(request)

    def _settle(self, number: int, customer: str, hold: str) -> Request:
        credits = self.chance.choice((None, Decimal(self.chance.randint(0, 120))))
        return Settle(id=f"s{number}", customer=customer, hold=hold, credits=credits)

    def _release(self, number: int, customer: str, hold: str) -> Request:
        return Release(id=f"x{number}", customer=customer, hold=hold)

    def _reserve(self, number: int, customer: str) -> Request:
        chance = self.chance
        ttl = chance.choice((None, 1, 30))
        if chance.random() < 0.3:
            calls = {"calls": Decimal(chance.randint(1, 4))}
            return Reserve(id=f"r{number}", customer=customer, feature="calls", quantities=calls, ttl_seconds=ttl)
        return Reserve(
            id=f"r{number}",
            customer=customer,
            feature="llm",
            credits=Decimal(chance.randint(20, 160)),
            dimensions={"team": chance.choice(TEAMS)} if chance.random() < 0.7 else {},
            ttl_seconds=ttl,
        )

    def _ask(self, request: Request) -> None:
        self.counts["requests"] += 1
        self._asked.append((self.now_ms, request))
        op = OPS[type(request)]
        asked = Asked((digest(request.customer, op, request.id),))
        if op in ("check", "balance"):
            self.books.questions.setdefault((request.customer, request.id), self.now_ms)
        self.note("asked:", op, request.id, "of", request.customer)
        self._arrive(topics.REQUESTS, encode_request(request), asked, HEADERS)

    def _use(self) -> None:
        """One to three events; some were sent before."""
        chance = self.chance
        for _ in range(chance.randint(1, 3)):
            again = self._events and chance.random() < 0.2
            number = chance.randrange(self._events) if again else self._events
            self._events += not again
            customer = CUSTOMERS[number % 2]
            event = {
                "specversion": "1.0",
                "id": f"e{number}",
                "source": "t",
                "type": "llm.call",
                "subject": customer,
                "data": {"tokens": number % 40},
            }
            self.counts["events"] += 1
            asked = Asked((digest(customer, "event", "t", f"e{number}"),))
            self._arrive(topics.USAGE, msgspec.json.encode(event), asked)

    def _garbage(self) -> None:
        topic = self.chance.choice(TOPICS)
        self._arrive(topic, self.chance.choice((b"{", b'{"type":"no"}')), Asked(garbage=True))

    def _arrive(self, topic: str, value: bytes, asked: Asked, headers: tuple[tuple[str, bytes], ...] = ()) -> None:
        held = self.inputs[topic]
        held.append(Record(topic, 0, len(held), self.now_ms, b"k", value, headers))
        self.books.inputs[topic].append(asked)

    def _time_passes(self) -> None:
        self.now_ms += self.chance.choice((1, 40, 400, 1_100, 1_100, 6_000, 40_000))

    def _start(self) -> None:
        """The group gives the partition to one more process, whatever the former owner thinks of that."""
        if len(self._processes) < PROCESSES_MAX:
            self._launch()

    def _launch(self) -> None:
        used = [process.disk for process in (*self._processes, self._frozen) if process is not None]
        free = [disk for disk in self._disks if all(disk is not other for other in used)]
        if free and self.chance.random() < 0.8:
            disk = self.chance.choice((free[0], free[-1], free[-1]))  # the last left, or one from long ago
            self._disks.remove(disk)
        else:
            disk = Disk()
        self._disks.append(disk)
        self._born += 1
        process = Process(self, f"p{self._born}", disk, self._limits, self._steps, self._rules)
        self.note(process.name, "starts", "with a table" if disk.position.offset else "without a table")
        self.counts["overlaps"] += bool(self._processes)
        self.counts["starts"] += 1
        self._processes.append(process)

    def meanwhile(self, process: Process) -> None:
        """A process is frozen in the middle of its work: anything may happen before it goes on."""
        if self._frozen is not None:
            return
        self.note(process.name, "is frozen")
        self.counts["freezes"] += 1
        self._frozen = process
        self._processes.remove(process)
        for _ in range(self.chance.randint(1, 80)):
            self._act()
        self._frozen = None
        self._processes.append(process)
        self.note(process.name, "goes on")

    def _let_go(self) -> None:
        if self._processes:
            process = self.chance.choice(self._processes)
            process.let_go()
            if process.ended:
                self._processes.remove(process)

    def _kill(self) -> None:
        if self._processes:
            process = self.chance.choice(self._processes)
            self.note(process.name, "is killed")
            self.counts["kills"] += 1
            process.end()
            self._processes.remove(process)

    def _sleep(self) -> None:
        if self._processes:
            process = self.chance.choice(self._processes)
            process.asleep = self.chance.choice((5, 30, 120))
            self.counts["pauses"] += 1
            self.note(process.name, "sleeps")

    def _jump(self) -> None:
        if self._processes:
            spans = (0, -40_000, 40_000, 2 * HOUR_MS, -2 * HOUR_MS)
            if self._clocks == 2:
                spans += (-2 * topics.DAY_MS, 2 * topics.DAY_MS, -9 * topics.DAY_MS)
            process = self.chance.choice(self._processes)
            process.clock_ms = self.chance.choice(spans)
            self.counts["clock_jumps"] += 1
            self.note("the clock of", process.name, "is off by", process.clock_ms)

    def _publish(self) -> None:
        if self.newest < len(self.catalogs):
            self.newest += 1
            self.counts["catalogs"] += 1
            self.note("catalog", self.newest)

    # ---- the journal ----

    def append(self, process: Process, records: Sequence[Pair], term: int, seq: int) -> Append:
        sent = Append(records, term, seq, process.wall_ms())
        self.counts["appends"] += 1
        if self.chance.random() < self.weather.late:
            self.counts["late_appends"] += 1
            self.note(process.name, "appends", f"{term}.{seq}, which is on its way")
            self._on_the_way.append(sent)
        else:
            self._land(sent)
        return sent

    def _land(self, sent: Append) -> None:
        sent.landed = True
        batch = self.log.land(sent.records, sent.term, sent.seq, self.now_ms, sent.writer_ms)
        self.note(f"the journal takes {sent.term}.{sent.seq} at {batch[0].offset} to {batch[-1].offset}")
        for record in batch:
            self._digest.update(record.value or b"-")
        before = self.books.stale
        self.books.land(batch, sent.term, sent.seq, self.now_ms)
        self.counts["stale_records"] += self.books.stale - before
        self._sink_takes(batch, sent)
        if self.chance.random() < self.weather.doubled:
            self.counts["doubled_appends"] += 1
            copy = Append(sent.records, sent.term, sent.seq, sent.writer_ms)
            if self.chance.random() < 0.5:
                self._land(copy)
            else:
                self._on_the_way.append(copy)

    def _sink_takes(self, batch: Sequence[Record], sent: Append) -> None:
        """What a sink adds up behind the production fence is what the auditor has: nothing twice, nothing stale."""
        for record in batch:
            key = record.key or b""
            if self._sink.judge(sent.term, sent.seq, key) is Verdict.ACCEPTED and b"\0entry\0" in key and record.value:
                entry = decode_record(record.value)
                assert isinstance(entry, Entry)
                self._sunk["entries"] += 1
                self._sunk["events"] += sum(delta.events for delta in entry.usage)
        told = (self._sunk["entries"], self._sunk["events"])
        must(told == (self.books.entries, self.books.events), "a sink counts otherwise than the auditor:", told)

    def _land_late(self) -> None:
        if self._on_the_way:
            self._land(self._on_the_way.pop(self.chance.randrange(len(self._on_the_way))))

    def _compact(self) -> None:
        if self.chance.random() < 0.3:
            self.log.roll(self.now_ms)
        gone = self.log.compact(self.now_ms, self.chance.choice((1, 3, 1_000)))
        self.counts["compactions"] += gone > 0
        self.counts["compacted_records"] += gone
        if gone:
            self.note("compaction takes", gone, "records")
        if gone or self.chance.random() < 0.2:
            self._read_afresh()

    def _read_afresh(self) -> None:
        """A reader that begins now and knows only what compaction has left."""
        table = MemoryTable()
        follower = Follower(table, lambda: self.now_ms)
        for record in self.log.records:
            follower.take(record)
        follower.flush()
        self.books.compare(table.rows, self.log.end, "a reader from the beginning", self.now_ms)

    def _days_pass(self) -> None:
        """Longer than the journal's lag: by then an owner has been at work, as it is elsewhere unless all is down."""
        while self._on_the_way:
            self._land_late()
        self._calm(30)
        self.log.roll(self.now_ms)
        self.now_ms += self.chance.choice((LAG_MS + HOUR_MS, 8 * topics.DAY_MS))
        self.note("days pass")
        self.counts["days"] += 1
        self._compact()

    def _calm(self, ticks: int) -> None:
        """One process after the other, until one has worked undisturbed for a while."""
        weather, self.weather = self.weather, CALM
        for process in self._processes:
            process.asleep += 1
        while True:
            if not any(process.working and not process.asleep for process in self._processes):
                self._launch()
            process = self._processes[-1]
            if self._works(process, ticks):
                break
        self.weather = weather

    def _works(self, process: Process, ticks: int) -> bool:
        """It takes in all there is, and so many ticks after that; False when it turns out not to be the owner."""
        for _ in range(20_000):
            if process.ended:
                return False
            if process.idle:
                if not ticks:
                    return True
                ticks -= 1
                self.now_ms += 1_000
            self._go_on(process)
        raise Violation(f"{process.name} does not come to an end of its work")

    # ---- the end ----

    def _end(self) -> None:
        """All troubles over, every caller asks once more, one owner does the work: then all must be right."""
        while self._on_the_way:
            self._land_late()
        for process in self._processes:
            process.end()
        self._processes.clear()
        lately = [request for at, request in self._asked if self.now_ms - at < HOUR_MS]
        for request in lately:
            self._ask(request)
        self._calm(3)
        rows = {record.key: record.value for record in self.log.records if record.key and record.key[:1] != b"\0"}
        for key, value in rows.items():
            if b"\0entry\0" not in (key or b"") and self.books.table.get(key or b"") != value:
                raise Violation(f"compaction would bring back a row that is over: {key!r}")
        self._read_afresh()
        last = self._processes[-1]
        self.books.compare(last.disk.rows, self.log.end, "the last owner's table", self.now_ms, at_rest=True)
        applied = {topic: self.books.row.applied.get(topic, -1) + 1 for topic in TOPICS}
        held = {topic: len(self.inputs[topic]) for topic in TOPICS}
        must(applied == held, "not everything was taken in:", applied, held)
        self.counts["records"] = self.log.end
        self.counts["entries"] = self.books.entries


def tell(seed: int, *, long: bool = False) -> Story:
    """The same story again, with its lines."""
    story = Story(seed, trace=True, long=long)
    try:
        story.run()
    except Violation as violation:
        story.note("VIOLATION:", violation)
    return story
