"""Every interleaving of a few owners, driven by hand: who may decide about one last credit, whatever comes late.

Owners are the production `PartitionOwner`, `Follower` and `Fence`; the rules are put in place by a core of a few lines,
so that hundreds of thousands of runs take seconds. An append is two things that happen at moments of their own: it
leaves its owner, and it lands. The walk is exhaustive: at each moment everything that could happen next is tried, up to
so many moments; from there on a run goes to its end in one order.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from owner_world import START_MS, MemoryTable, Task, pause
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Input, Reply, RequestInput, Route, Rows, Source, Transition
from tallygate.schemas import topics
from tallygate.schemas.catalog import EMPTY, Catalog
from tallygate.schemas.journal import OPEN_KEY, PARTITION_KEY, PartitionRow, decode_record, encode_record, row_key
from tallygate.schemas.records import Chunk, Record
from tallygate.topologies.follower import term_of
from tallygate.topologies.inbox import Inbox, StepLimits
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.owner import PartitionOwner, Ports
from tallygate.topologies.ports import OwnershipLost, Pair
from tallygate.topologies.usage_runs import RunReader

#: The one credit: whose it is. It goes to the first who asks, so two owners that ask in two orders disagree.
CREDIT: Final = row_key("c", "grant", "one")
ROUTE: Final = Route("r", None, b"")
_METRICS: Final = Metrics()


#: Who has opened before, who opens meanwhile, and how many asks each has.
SCENARIOS: Final = (
    ((), ("a", "b"), 1),  # two open at once, and each works
    (("a",), ("b",), 2),  # one is paused somewhere in its work, while another takes over
    ((), ("a", "b", "c"), 0),  # three open at once
)


class Broken(AssertionError):
    """Two owners have both been believed."""


class State:
    """As `PartitionState`, for one row."""

    def __init__(self, rows: Rows) -> None:
        value = rows.get(PARTITION_KEY)
        self.row = PartitionRow({}, 0, 0)
        if value is not None:
            self.row = decode_record(value)  # type: ignore[assignment]
        self.holder = rows.get(CREDIT)

    def commit(self, transition: Transition) -> None:
        assert transition.row is not None
        self.row = transition.row
        self.holder = dict(transition.records).get(CREDIT, self.holder)


class Owner:
    """One owner and its ports; what it does next is `moves`."""

    def __init__(self, model: "Model", name: str, asks: Sequence[Record]) -> None:
        self.name = name
        self._model = model
        self._asks = list(asks)
        self._position = 0
        self._sent: tuple[Sequence[Pair], int, int] | None = None
        self._blocked: Callable[[], bool] | None = None
        self.table = MemoryTable()
        self._inbox = Inbox(_read, StepLimits(1, 1), RunReader(1, Rules()))
        ports = Ports(self, lambda: self.table, self, self, self, self, _METRICS)  # type: ignore[arg-type]
        self.owner = PartitionOwner(0, name, ports, self, self._inbox)  # type: ignore[arg-type]
        self._task: Task | None = Task(self.owner.open())
        self.ended = False

    def moves(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Everything that could happen to it now."""
        if self._sent is not None:
            yield f"{self.name} lands", self._land
        if self._task is not None and not self.ended and not (self._blocked and self._blocked()):
            yield f"{self.name} goes on", self._go_on

    def _go_on(self) -> None:
        assert self._task is not None
        try:
            self._task.once()
        except OwnershipLost:
            self.ended = True
            return
        if self._task.ended:
            self._task = None
            if self._asks:
                self.offer(self._asks.pop(0))

    def offer(self, record: Record) -> None:
        self._inbox.offer(Chunk(record.topic, 0, [record], 0, 1), int)
        self._task = Task(self.owner.step())

    def dismiss(self) -> None:
        if self._task is not None:
            self._task.kill()

    def _land(self) -> None:
        assert self._sent is not None
        self._model.land(*self._sent)
        self._sent = None

    # ---- ports ----

    def wall_ms(self) -> int:
        return START_MS

    def monotonic_us(self) -> int:
        return -1  # so that no tick is due

    async def bounds(self) -> tuple[int, int]:
        await pause()
        return 0, len(self._model.log)

    async def replay(self, begin: int, end: int, take: Callable[[Record], None]) -> None:
        for record in self._model.log[begin:end]:
            take(record)

    def follow(self, begin: int) -> None:
        self._position = begin

    async def append(self, records: Sequence[Pair], term: int, seq: int) -> None:
        await pause()  # the last moment before it leaves
        self._sent = records, term, seq
        self._blocked = lambda: self._sent is not None
        await pause()
        self._blocked = None

    async def read(self) -> Sequence[Record]:
        if self._position == len(self._model.log):
            self._blocked = lambda: self._position == len(self._model.log)
            await pause()
            self._blocked = None
        found = self._model.log[self._position :]
        self._position = len(self._model.log)
        return found

    def send(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self._model.answered(self.name, reply.answer.decode())

    @property
    def newest(self) -> Catalog:
        return EMPTY

    def version(self, number: int) -> Catalog | None:
        return None

    async def reach(self, version: int) -> None:
        return

    def load(self, rows: Rows, partition: int) -> State:
        return State(rows)

    def decide(self, state: State, inputs: Sequence[Input], *rest: Any) -> Transition:
        holder, records, replies = state.holder, [], []
        applied = dict(state.row.applied)
        for each in inputs:
            assert isinstance(each, RequestInput)
            applied[each.source.topic] = each.source.offset
            asker: Any = each.request
            if holder is None:
                holder = asker
                records.append((CREDIT, holder))
            replies.append(Reply(ROUTE, asker + (b" yes" if holder == asker else b" no")))
        row = PartitionRow(applied, 0, 0)
        records.append((PARTITION_KEY, encode_record(row)))
        return Transition(tuple(records), tuple(replies), row=row, writes=tuple(records))


class Model:
    """A journal and its owners; checks every answer when it is given, and everything at the end."""

    def __init__(self, opened: Sequence[str], opening: Sequence[str], asks: int) -> None:
        self.log: list[Record] = []
        self.told: dict[str, str] = {}
        x, y = (Record(topic, 0, 0, START_MS, b"c", name, ()) for topic, name in _ASKS)
        orders = [[x, y], [y, x], [x, y]]
        self.owners = [
            Owner(self, name, order[:asks]) for name, order in zip([*opened, *opening], orders, strict=False)
        ]
        for owner in self.owners[: len(opened)]:
            for _ in range(5):  # to the end of its opening, and into its first step
                next(owner.moves())[1]()
            assert owner.owner.term

    def moves(self) -> list[tuple[str, Callable[[], None]]]:
        return [move for owner in self.owners for move in owner.moves()]

    def land(self, records: Sequence[Pair], term: int, seq: int) -> None:
        headers = ((topics.HEADER_TERM, b"%d" % term), (topics.HEADER_SEQ, b"%d" % seq))
        for key, value in records:
            self.log.append(Record(topics.JOURNAL, 0, len(self.log), START_MS, key, value, headers))

    def answered(self, owner: str, answer: str) -> None:
        asker, _, verdict = answer.partition(" ")
        holder = self.in_force().get(CREDIT)
        if (verdict == "yes") != (holder == asker.encode()):
            raise Broken(f"{owner} answers {answer!r}, and by the journal {holder!r} has the credit")
        if self.told.setdefault(asker, verdict) != verdict:
            raise Broken(f"{asker} is answered in two ways")

    def dismiss(self) -> None:
        for owner in self.owners:
            owner.dismiss()

    def in_force(self) -> dict[bytes, bytes]:
        """The journal read by a rule of its own: of the highest term so far, exactly the next sequence number."""
        rows: dict[bytes, bytes] = {}
        at, batch = (0, 0), (0, 0)
        for record in self.log:
            term, seq = term_of(record)
            assert record.key is not None
            if record.key == OPEN_KEY:
                at = max(at, (term, 0))
            elif (term, seq) in ((at[0], at[1] + 1), batch):
                at = batch = term, seq
                if record.value is not None:
                    rows[record.key] = record.value
                if record.key == PARTITION_KEY:
                    batch = (0, 0)
        return rows

    def close(self) -> None:
        """Whoever was paused has gone on, and everything has landed: one more owner, and all readers agree."""
        last = Owner(self, "last", [])
        self.owners.append(last)
        while moves := list(last.moves()):
            moves[0][1]()
        last.offer(Record(topics.REQUESTS, 0, 1, START_MS, b"c", b"z", ()))
        while moves := list(last.moves()):
            moves[0][1]()
        expected = self.in_force()
        if last.table.rows != expected:
            raise Broken(f"the last owner has {last.table.rows}, and by the journal it is {expected}")
        kept = {record.key: record.value for record in self.log if record.key != OPEN_KEY}
        if kept != expected:
            raise Broken(f"compaction would keep {kept}, and it is {expected}")


def walk(opened: Sequence[str], opening: Sequence[str], asks: int, depth: int) -> int:
    """Every run that differs in its first `depth` moments; returns how many there were."""
    runs, prefix = 0, [0]
    while prefix:
        model, trail = Model(opened, opening, asks), list[tuple[int, int]]()
        names = []
        try:
            while moves := model.moves():
                number = len(trail)
                choice = prefix[number] if number < len(prefix) else 0
                trail.append((choice, len(moves) if number < depth else 1))
                names.append(moves[choice][0])
                moves[choice][1]()
            model.close()
        except Broken as broken:
            raise Broken(f"{broken}; run {runs + 1}: {', '.join(names)}") from None
        finally:
            model.dismiss()
        runs += 1
        while trail and trail[-1][0] + 1 == trail[-1][1]:
            trail.pop()
        prefix = [choice for choice, _ in trail[:-1]] + ([trail[-1][0] + 1] if trail else [])
    return runs


def _read(record: Record) -> Input:
    source = Source(record.topic, record.partition, record.offset, record.timestamp_ms)
    return RequestInput(source, record.value, ROUTE)  # type: ignore[arg-type]


_ASKS: Final = ((topics.REQUESTS, b"x"), (topics.USAGE, b"y"))

if __name__ == "__main__":
    import sys
    import time

    logging.getLogger("tallygate").setLevel(logging.CRITICAL)
    depth = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for scenario in SCENARIOS:
        started = time.process_time()
        print(
            scenario,
            f"depth {depth}:",
            walk(*scenario, depth),
            "runs,",
            round(time.process_time() - started, 1),
            "CPU s",
            flush=True,
        )
