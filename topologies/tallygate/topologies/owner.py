"""The owner of one partition: decides, journals, reads back, and only then lets anything be seen.

    inputs ─▶ decide ─▶ dead letters ─▶ append one batch ─▶ read it back ─▶ answers ─▶ local table ─▶ state

The journal decides who owns a partition. An owner opens it with a record of a higher term; from there on every reader
drops what former owners append. So a pause of any length, a second owner, or a lost acknowledgement can delay an
answer and never make a wrong one: whoever cannot read its own batch back has decided nothing, and ends. After an
exception an owner is of no more use.

It knows no event loop, no thread and no clock but its ports, so that a simulation drives the very same code.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.batches import duplicates
from tallygate.pipeline.fence import Verdict
from tallygate.pipeline.replay import forgotten_range, table_writes
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Input, RefusedInput, RequestInput, Tick, Transition, UsageRunInput
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.journal import OPEN_KEY, PARTITION_KEY, OpenRow, encode_record
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record
from tallygate.schemas.topics import DAY_MS, JOURNAL_BATCH_BYTES_MAX
from tallygate.topologies.batch_lane import Standing
from tallygate.topologies.follower import Follower, term_of
from tallygate.topologies.inbox import Inbox, Taken
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.ports import (
    Catalogs,
    Clock,
    Core,
    CrashPoint,
    DeadLetters,
    Fenced,
    Journal,
    OwnershipLost,
    Pair,
    Replies,
)
from tallygate.topologies.tables import Table, cannot_resume

logger = logging.getLogger(__name__)

#: How many writes of a recovery go into the table at once: rocksdict keeps the interpreter to itself meanwhile (2 µs
#: each), and other partitions of this process are at work.
RECOVERY_WRITES_MAX: Final = 1_000
#: The most that a record and a batch take besides keys and values: lengths, offsets, and the two headers.
RECORD_OVERHEAD_BYTES: Final = 96
BATCH_OVERHEAD_BYTES: Final = 64


class OwnerLimits(msgspec.Struct, frozen=True):
    """`fresh_ms`: how old an owner's knowledge of its journal's end may be when it answers without an append.
    `resume_ms_max`: an older table is built anew. `batch_bytes_max`: of one transition in the journal.
    """

    tick_ms: int = 1_000
    fresh_ms: int = 5_000
    resume_ms_max: int = 7 * DAY_MS
    batch_bytes_max: int = JOURNAL_BATCH_BYTES_MAX


class Ports(msgspec.Struct, frozen=True):
    """The outside of one owner. `open_table` is called when it opens; `at` when a crash point is passed."""

    journal: Journal
    open_table: Callable[[], Table]
    dead_letters: DeadLetters
    replies: Replies
    catalogs: Catalogs
    clock: Clock
    metrics: Metrics
    at: Callable[[CrashPoint], None] = lambda point: None


class PartitionOwner:
    """`open`, then `step` again and again, then `close`. `owner_id` differs for every opening, anywhere, ever."""

    def __init__(
        self,
        partition: int,
        owner_id: str,
        ports: Ports,
        core: Core,
        inbox: Inbox,
        rules: Rules | None = None,
        limits: OwnerLimits | None = None,
    ) -> None:
        self.partition = partition
        self.term = 0
        self._seq = 0
        self._owner_id = owner_id
        self._ports = ports
        self._core = core
        self._inbox = inbox
        self._rules = rules or Rules()
        self._limits = limits or OwnerLimits()
        self._table: Table | None = None
        self._known_us = 0  # the owner's journal was its own at least until then
        self._tick_us = 0
        self._decide_us = 0
        self._resumed: Catalog | None = None
        self._remembered_from = b""
        self._step: tuple[Sequence[Taken], Sequence[Record]] = (), ()  # under way: the inputs, and the run's records

    # Opening

    async def open(self) -> dict[str, int]:
        """Recovers the state and takes the partition over; returns the next offset to read of each topic seen so far.

        It may be cancelled at every await: an open record that nobody works under does no harm.
        """
        ports = self._ports
        started = ports.clock.monotonic_us()
        begin, end = await ports.journal.bounds()
        table = self._table = ports.open_table()
        why = cannot_resume(table.position, begin, end, ports.clock.wall_ms(), self._limits.resume_ms_max)
        if why:
            table.wipe(why)
            ports.metrics.rebuilds.inc()
        begin = max(begin, table.position.offset)
        self._opening_us, self._resumed_ms = started, table.position.at
        self._follower = Follower(table, self._table_time)
        await ports.journal.replay(begin, end, self._recover)
        self._flush_recovered()
        ports.journal.follow(end)
        self.term = await self._take_over()
        self._state = self._core.load(table, self.partition)
        self._forget()
        await ports.catalogs.reach(self._state.row.catalog)
        self._resume()
        seconds = (ports.clock.monotonic_us() - started) / 1e6
        number = str(self.partition)
        ports.metrics.recovery_seconds.labels(number).set(seconds)
        ports.metrics.recovery_records.labels(number).set(end - begin)
        ports.metrics.term.labels(number).set(self.term)
        logger.info("partition %s opened: term %d, %d records in %.2f s", number, self.term, end - begin, seconds)
        ports.at("opened")
        return {topic: offset + 1 for topic, offset in self._state.row.applied.items()}

    def _resume(self) -> None:
        """A run of batches that is in force in part goes on under the catalog that it began under."""
        run = self._state.row.run
        if run is not None:
            self._resumed = self._ports.catalogs.version(run.catalog)
            if self._resumed is None:
                logger.warning("partition %d: catalog version %d is gone", self.partition, run.catalog)

    def _recover(self, record: Record) -> None:
        self._follower.take(record)
        if self._follower.pending_writes >= RECOVERY_WRITES_MAX:
            self._flush_recovered()

    def _flush_recovered(self) -> None:
        self._stop_if_old((self._ports.clock.monotonic_us() - self._opening_us) // 1000)
        self._follower.flush()
        self._ports.at("recovering")

    def _table_time(self) -> int:
        """A table is no younger than when it was left, until an owner has opened with it."""
        return self._ports.clock.wall_ms() if self.term or not self._resumed_ms else self._resumed_ms

    def _stop_if_old(self, age_ms: int) -> None:
        """Ends an opening in which tombstones may have gone between the first and the last record that it read."""
        if age_ms > self._limits.resume_ms_max:
            assert self._table is not None
            why = f"{age_ms // 3_600_000} h lie between the first and the last that was read of the journal"
            self._table.wipe(why)
            raise OwnershipLost(f"partition {self.partition}: {why}, which may have dropped tombstones meanwhile")

    async def _take_over(self) -> int:
        """Appends open records until one is the first of its term; whatever lies before it is the state."""
        while True:
            term = self._follower.fence.term + 1
            row = encode_record(OpenRow(self._owner_id, self._ports.clock.wall_ms()))
            self._known_us = self._ports.clock.monotonic_us()
            await self._ports.journal.append([(OPEN_KEY, row)], term, 0)
            if await self._read_until(term, 0, row) is Verdict.OPENED:
                self._stop_if_old((self._ports.clock.monotonic_us() - self._opening_us) // 1000)
                if self._resumed_ms:  # by the journal's clock: a worker's own may be wrong
                    self._stop_if_old(self._opened_ms - self._resumed_ms)
                self._follower.flush()
                return term
            logger.info("partition %d: another owner opened term %d first", self.partition, term)

    def close(self) -> None:
        """Closes the table. Nothing is in flight: a step is over before this is called."""
        if self._table is not None:
            self._table.close()
            self._table = None

    # Working

    @property
    def tick_due_us(self) -> int:
        """When the next tick is due, on the monotonic clock."""
        return self._tick_us

    async def step(self) -> bool:
        """Puts the next waiting inputs in force, and a tick if one is due; whether there was any input."""
        clock, metrics = self._ports.clock, self._ports.metrics
        started = clock.monotonic_us()
        step = self._inbox.take(self._applied, self._standing())
        inputs: list[Input] = [taken.input for taken in step.taken]
        if started >= self._tick_us:
            self._tick_us = started + self._limits.tick_ms * 1000
            inputs.append(self._tick())
        if inputs:
            part = step.part
            self._step = step.taken, part.records if part is not None else ()
            catalog = part.catalog if part is not None else self._ports.catalogs.newest
            await self._transit(inputs, self._rules, catalog)
            self._inbox.took(step, self._decide_us)
        for done in step.finished:
            done()
        if step.taken:
            metrics.step_inputs.observe(len(step.taken))
            metrics.step_seconds.observe((clock.monotonic_us() - started) / 1e6)
            self._observe_lag(step.taken)
        return bool(step.taken or step.finished)

    def _standing(self) -> Standing:
        """The catalog to decide under; of a run that a former owner has begun, the one that it began under."""
        run = self._state.row.run
        if run is None:
            self._resumed = None
        catalog = self._resumed or self._ports.catalogs.newest
        return Standing(catalog, run, lambda batches: duplicates(self._state, batches))

    def _applied(self, topic: str) -> int:
        return self._state.row.applied.get(topic, -1)

    def _tick(self) -> Tick:
        return Tick(max(self._state.row.stream_at, self._ports.clock.wall_ms()))

    async def _transit(self, inputs: Sequence[Input], rules: Rules, catalog: Catalog) -> None:
        """Decides these inputs and puts what follows in force: in one transition if it fits into one batch."""
        started = self._ports.clock.monotonic_us()
        transition = self._core.decide(self._state, inputs, catalog, rules)
        self._decide_us = self._ports.clock.monotonic_us() - started
        self._ports.metrics.decide_seconds.observe(self._decide_us / 1e6)
        if batch_bytes(transition.records) > self._limits.batch_bytes_max:
            await self._transit_smaller(inputs, rules, catalog)
        elif transition.records:
            await self._put_in_force(transition)
        else:
            await self._answer_only(transition, inputs)

    async def _transit_smaller(self, inputs: Sequence[Input], rules: Rules, catalog: Catalog) -> None:
        if len(inputs) > 1:
            half = len(inputs) // 2
            await self._transit(inputs[:half], rules, catalog)
            await self._transit(inputs[half:], rules, catalog)
            return
        only = inputs[0]
        if isinstance(only, UsageRunInput):
            assert len(only.customers) > 1, "a run is cut so that each of its customers fits into a batch"
            for half_of_it in only.halves():
                await self._transit([half_of_it], rules, catalog)
            return
        if isinstance(only, Tick):
            assert rules.due_per_tick_max > 1, "one customer's due changes do not fit into a batch"
            await self._transit(inputs, replace(rules, due_per_tick_max=rules.due_per_tick_max // 2), catalog)
            return
        await self._transit([_too_large(only, self._limits.batch_bytes_max)], rules, catalog)

    async def _answer_only(self, transition: Transition, inputs: Sequence[Input]) -> None:
        """Answers what changes nothing. An owner that was paused for long first asks its journal whether it is one."""
        if self._ports.clock.monotonic_us() - self._known_us > self._limits.fresh_ms * 1000:
            await self._transit([self._tick()], self._rules, self._ports.catalogs.newest)
        applied = dict(self._state.row.applied)
        for each in inputs:
            assert not isinstance(each, Tick), "a tick always changes the partition row"
            applied[each.source.topic] = max(each.source.offset, applied.get(each.source.topic, -1))
        # Journaled with the next batch. If that never comes, the same questions are answered again.
        self._state.row = replace(self._state.row, applied=applied)
        self._show(transition)

    async def _put_in_force(self, transition: Transition) -> None:
        ports = self._ports
        if transition.dead_letters:
            taken, of_run = self._step
            known = {(record.topic, record.offset): record for record in (*(each.record for each in taken), *of_run)}
            await ports.dead_letters.put(
                [(known[d.source.topic, d.source.offset], d.reason, d.message) for d in transition.dead_letters]
            )
            ports.at("dead_lettered")
        records = self._with_repairs(transition.records)
        self._seq += 1
        known_us = ports.clock.monotonic_us()
        self._follower.expect(self.term, self._seq, records)
        await ports.journal.append(records, self.term, self._seq)
        ports.at("appended")
        await self._read_until(self.term, self._seq, transition.records[-1][1])
        of_rules = transition.writes
        unknown = records if of_rules is None else records[: len(records) - len(transition.records)]
        writes = [write for key, value in unknown for write in table_writes(key, value)]
        self._follower.took_own([*writes, *(of_rules or ())])
        self._known_us = known_us
        ports.metrics.journal_seconds.observe((ports.clock.monotonic_us() - known_us) / 1e6)
        ports.metrics.journal_records.inc(len(records))
        ports.at("read_back")
        # What is read back is decided, whatever becomes of the table, which is a copy: so nobody waits for that.
        self._show(transition)
        ports.at("answered")
        self._follower.flush()
        ports.at("table_written")
        self._state.commit(transition)
        self._forget()

    def _with_repairs(self, records: Sequence[Pair]) -> list[Pair]:
        """The rows that stale records lie over, as far as they fit, in front of a transition's own records."""
        found: list[Pair] = []
        room = self._limits.batch_bytes_max - batch_bytes(records)
        written = {key for key, _ in records}
        for key, value in self._follower.repairs():
            room -= record_bytes(key, value)
            if room < 0:
                break
            if key not in written:
                found.append((key, value))
        if found:
            self._ports.metrics.repaired_rows.inc(len(found))
            logger.warning("partition %d: %d rows of a former owner overwritten", self.partition, len(found))
        return [*found, *records]

    def _show(self, transition: Transition) -> None:
        self._ports.metrics.took_effect(transition)
        if transition.replies:
            self._ports.replies.send(transition.replies)

    def _forget(self) -> None:
        """Once a day of stream time, drops the ids that are past remembering."""
        stream_at = self._state.row.stream_at
        if not stream_at:
            return  # a new partition
        gone = forgotten_range(stream_at)
        if gone[1] != self._remembered_from:
            self._remembered_from = gone[1]
            self._follower.flush(gone)

    async def _read_until(self, term: int, seq: int, value: bytes | None) -> Verdict:
        """Reads the journal on until the record comes back that closes what was just appended under `term` and `seq`.

        Raises `Fenced` when somebody else's higher term is read, even behind it.
        """
        key = PARTITION_KEY if seq else OPEN_KEY
        mine: Verdict | None = None
        while mine is None:
            before = self._follower.stale_records
            for record in await self._ports.journal.read():
                verdict = self._follower.take(record)
                if record.key == key and record.value == value and term_of(record) == (term, seq):
                    mine, self._opened_ms = verdict, record.timestamp_ms
                if (self.term or mine is Verdict.OPENED) and self._follower.fence.term != term:
                    raise Fenced(
                        f"partition {self.partition}: term {term} is over, another owner opened term "
                        f"{self._follower.fence.term}"
                    )
            self._ports.metrics.stale_records.inc(self._follower.stale_records - before)
        return mine

    def _observe_lag(self, taken: Sequence[Taken]) -> None:
        """The age of each lane's oldest input of this step."""
        now = self._ports.clock.wall_ms()
        first = {each.record.topic: each.record.timestamp_ms for each in reversed(taken)}
        for topic, at in first.items():
            self._ports.metrics.lag_seconds.labels(topic).observe(max(0, now - at) / 1000)


def batch_bytes(records: Sequence[Pair]) -> int:
    """At most so many bytes the records take as one batch."""
    return BATCH_OVERHEAD_BYTES + sum(record_bytes(key, value) for key, value in records)


def record_bytes(key: bytes, value: bytes | None) -> int:
    return len(key) + len(value or b"") + RECORD_OVERHEAD_BYTES


def _too_large(each: Input, bytes_max: int) -> RefusedInput:
    """The same input as one that is refused because its consequences do not fit into a batch."""
    assert not isinstance(each, RefusedInput | UsageRunInput | Tick)
    message = f"what follows from this record does not fit into {bytes_max} bytes: send it in smaller parts"
    if isinstance(each, RequestInput):
        request = each.request
        return RefusedInput(each.source, Reason.TOO_LARGE, message, each.route, request.id, request.customer)
    return RefusedInput(each.source, Reason.TOO_LARGE, message)
