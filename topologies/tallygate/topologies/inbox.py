"""What has come in for a partition and is not yet decided: two lanes, taken in small steps.

A step takes every waiting request, up to a limit, and a little usage, in the order in which the broker received them.
So a request waits for one step at most, however much usage lies before it. Columnar batches are taken as runs
(`batch_lane.py`): while one is read or put in force, what lies behind it in the usage topic waits. Between two takes,
usage rests for a time that follows from what the last one cost (`Pace`), unless a full step of it waits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from heapq import merge
from typing import Final

import msgspec

from tallygate.pipeline.transition import Input, UsageInput
from tallygate.schemas import topics
from tallygate.schemas.records import Chunk, Record
from tallygate.topologies.batch_lane import (
    RUN_BYTES_MAX,
    RUN_RECORDS_MAX,
    Background,
    BatchLane,
    Finished,
    Pace,
    Part,
    Standing,
    at_once,
    is_batch,
)
from tallygate.topologies.usage_runs import RunReader

#: A step of usage is also bounded in bytes: a batch record holds up to 10 000 events and comes alone.
STEP_BYTES_MAX: Final = 256 * 1024
CALM_BYTES_MAX: Final = 1024 * 1024


class StepLimits(msgspec.Struct, frozen=True):
    """How much one step takes: usage events (a record is never split) and requests.

    `calm_events_max`: while no request comes to the worker (0: no more than else). Large steps cost less for each
    event, and whoever asks meanwhile waits for them.
    """

    events_max: int = 256
    requests_max: int = 256
    calm_events_max: int = 0


class Taken(msgspec.Struct, frozen=True):
    """One record, decoded."""

    record: Record
    input: Input


class Step(msgspec.Struct, frozen=True):
    """What one step works on. `finished` is to be called, in order, once all of it is in force.

    `part` is what is in it of a run of batches, which was grouped under the part's catalog.
    """

    taken: tuple[Taken, ...]
    finished: tuple[Callable[[], object], ...]
    part: Part | None = None


class _Waiting(msgspec.Struct):
    records: Sequence[Record]
    done: Callable[[], object]
    at: int = 0


class _Lane:
    """Chunks of one topic in order; gives them out record by record."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self.last = -1  # the offset given out last: what is delivered twice is taken once
        self.records = self.bytes = 0  # that wait

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def offer(self, chunk: Chunk, done: Callable[[], object]) -> None:
        self._waiting.append(_Waiting(chunk.records, done))
        self.records += len(chunk.records)
        self.bytes += sum(len(record.value or b"") for record in chunk.records)

    def next(self) -> Record:
        first = self._waiting[0]
        return first.records[first.at]

    def advance(self) -> Callable[[], object] | None:
        """Steps over the next record; returns what its chunk wants called when that was the chunk's last."""
        first = self._waiting[0]
        self.records -= 1
        self.bytes -= len(first.records[first.at].value or b"")
        first.at += 1
        if first.at < len(first.records):
            return None
        self._waiting.popleft()
        return first.done

    def batches(self, records_max: int, bytes_max: int) -> list[Record]:
        """The batch records that come next, as far as nothing else is between them; nothing is stepped over."""
        found: list[Record] = []
        size, last = 0, self.last
        for waiting in self._waiting:
            for at in range(waiting.at, len(waiting.records)):
                record = waiting.records[at]
                if record.offset <= last:
                    continue
                size += len(record.value or b"")
                if not is_batch(record) or len(found) == records_max or (found and size > bytes_max):
                    return found
                found.append(record)
                last = record.offset
        return found

    def pass_to(self, offset: int, finished: Finished) -> None:
        while self._waiting and self.next().offset <= offset:
            done = self.advance()
            if done is not None:
                finished.append(done)
        self.last = max(self.last, offset)


class Inbox:
    """The waiting records of one partition. `read` decodes a record; `applied(topic)` is the last offset in force.

    `runs` reads batches, in the `background`; without it they are records like others.
    """

    def __init__(
        self,
        read: Callable[[Record], Input],
        limits: StepLimits,
        runs: RunReader | None = None,
        background: Background = at_once,
        run_bytes_max: int = RUN_BYTES_MAX,
        pace: Pace | None = None,
    ) -> None:
        self._read = read
        self._limits = limits
        self._usage = _Lane()
        self._requests = _Lane()
        self._run_bytes_max = run_bytes_max
        self._pace = pace or Pace(lambda: 0, rest_us_max=0)
        self._pace.partitions += 1
        self._rests_until_us = self._worked_us = 0
        self._batches: BatchLane | None = None
        if runs is not None:
            self._batches = BatchLane(self._usage, runs, background, run_bytes_max, self._pace)
        self._starved = False  # usage waits for more of it to come

    def __bool__(self) -> bool:
        """Whether a step would find anything now."""
        if self._requests:
            return True
        if self._batches is not None and self._batches.begun:
            return not self._batches.busy
        return bool(self._usage) and not self._starved and not self.rests

    @property
    def rests(self) -> bool:
        """Whether the usage that waits may still gather."""
        if not self._usage or self._pace.now_us() >= self._rests_until_us:
            return False
        records_max, bytes_max = self._usage_limits()
        if self._batches is not None and is_batch(self._usage.next()):
            records_max, bytes_max = RUN_RECORDS_MAX, self._run_bytes_max
        return self._usage.records < records_max and self._usage.bytes < bytes_max

    @property
    def rests_until_us(self) -> int:
        return self._rests_until_us

    @property
    def asks(self) -> bool:
        """Whether a request waits: somebody may be waiting for its answer."""
        return bool(self._requests)

    def offer(self, chunk: Chunk, done: Callable[[], object]) -> None:
        """Takes a chunk in; `done` is called when all its records are in force, or were before."""
        lane = self._usage
        if chunk.topic == topics.REQUESTS:
            lane = self._requests
            self._pace.asked()
        lane.offer(chunk, done)
        self._starved = False

    def take(self, applied: Callable[[str], int], standing: Standing | None = None) -> Step:
        """The next step, without the records that are applied already; empty when nothing waits."""
        finished: list[Callable[[], object]] = []
        requests = self._take_requests(applied, finished)
        usage = self._take_usage(applied, finished)
        part = None if standing is None or usage else self._take_part(standing, finished)
        if part is not None:
            usage = [Taken(part.record, part.input)]
        taken = merge(usage, requests, key=lambda each: each.record.timestamp_ms) if usage and requests else None
        return Step(tuple(taken or usage or requests), tuple(finished), part)

    def took(self, step: Step, us: int) -> None:
        """The rules took so long for a step."""
        if step.part is not None:
            assert self._batches is not None
            self._batches.took(sum(len(groups) for _, groups in step.part.input.customers), us)
            self._worked_us += us
        else:
            usage = sum(each.record.topic == topics.USAGE for each in step.taken)
            if not usage:
                return
            self._worked_us += us * usage // len(step.taken)
        if self._batches is None or not self._batches.begun:
            self._rests_until_us = self._pace.rested_us(self._worked_us)
            self._worked_us = 0

    def close(self) -> None:
        self._pace.partitions -= 1
        if self._batches is not None:
            self._batches.close()

    def _take_part(self, standing: Standing, finished: Finished) -> Part | None:
        lane = self._batches
        if lane is None or not (lane.begun or (self._usage and is_batch(self._usage.next()) and not self.rests)):
            return None
        part = lane.take(standing, finished)
        self._starved = part is None and not lane.begun
        return part

    def _take_requests(self, applied: Callable[[str], int], finished: list[Callable[[], object]]) -> list[Taken]:
        taken: list[Taken] = []
        self._requests.last = max(self._requests.last, applied(topics.REQUESTS))
        while self._requests and len(taken) < self._limits.requests_max:
            self._pass(self._requests, taken, finished)
        return taken

    def _take_usage(self, applied: Callable[[str], int], finished: list[Callable[[], object]]) -> list[Taken]:
        taken: list[Taken] = []
        events = size = 0
        self._usage.last = max(self._usage.last, applied(topics.USAGE))
        if (self._batches is not None and self._batches.begun) or self.rests:
            return taken
        events_max, bytes_max = self._usage_limits()
        while self._usage and events < events_max:
            first = self._usage.next()
            if self._batches is not None and first.offset > self._usage.last and is_batch(first):
                break
            size += len(first.value or b"")
            if taken and size > bytes_max:
                break
            one = self._pass(self._usage, taken, finished)
            events += len(one.events) if isinstance(one, UsageInput) else 1
        return taken

    def _usage_limits(self) -> tuple[int, int]:
        """How many events, and how many bytes, a step may take."""
        if self._limits.calm_events_max and self._pace.quiet:
            return self._limits.calm_events_max, CALM_BYTES_MAX
        return self._limits.events_max, STEP_BYTES_MAX

    def _pass(self, lane: _Lane, taken: list[Taken], finished: list[Callable[[], object]]) -> Input | None:
        record = lane.next()
        done = lane.advance()
        if done is not None:
            finished.append(done)
        if record.offset <= lane.last:
            return None
        lane.last = record.offset
        read = self._read(record)
        taken.append(Taken(record, read))
        return read
