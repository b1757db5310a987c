"""The usage topic's batch records, taken as runs: what waits is read together, in the background, given out in parts.

A run takes all batches that wait when it begins, up to a limit. So a partition that has fallen behind merges many into
one, and its work grows with the groups in them; one that keeps up takes each as it comes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, Protocol

import msgspec

from tallygate.pipeline.transition import Batch, Source, UsageRunInput
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.journal import UsageRun
from tallygate.schemas.records import Record
from tallygate.schemas.usage_batch import ARROW, HEADER_CONTENT_TYPE, is_arrow
from tallygate.topologies.usage_runs import Run, RunReader

#: What one run takes at most: the more, the less each event costs a partition that has fallen behind.
RUN_RECORDS_MAX: Final = 1_024
RUN_BYTES_MAX: Final = 16 << 20
#: What the runs of all partitions may take in memory together, unless they are very many.
_RUNS_BYTES_MAX: Final = 128 << 20
_RUN_BYTES_MIN: Final = 2 << 20
#: How long the rules may be busy with parts of runs while requests come: one waits for as long, at most, however many
#: partitions are at work. And with one part while none comes: the larger, the less appends cost.
PARTS_US: Final = 4_000
QUIET_PART_US: Final = 20_000
_PART_US_MIN: Final = 500
_QUIET_US: Final = 1_000_000
#: After usage a partition rests for so many times as long as the rules took for it, and each other partition of the
#: worker as well: with what follows (append, reading back, table) usage then takes about half of the worker's time.
#: What comes meanwhile is taken together, so each event costs less, and an idle partition waits for a moment only.
REST_TIMES: Final = 4
REST_US_MAX: Final = 700_000
_GROUP_US_FIRST: Final = 100
_GROUPS_MAX: Final = 4_096

Finished = list[Callable[[], object]]
#: Runs a call somewhere, sooner or later; the owner is woken when it is done.
Background = Callable[[Callable[[], Run]], "Future[Run]"]


def run_bytes_max(partitions: int) -> int:
    """What one run may take where there are so many partitions. A lane must let as much wait, for each of them."""
    return max(_RUN_BYTES_MIN, min(RUN_BYTES_MAX, _RUNS_BYTES_MAX // partitions))


class Waiting(Protocol):
    """The records of the usage topic that wait, as the inbox holds them."""

    def batches(self, records_max: int, bytes_max: int) -> list[Record]:
        """The batch records that come next, in order, as far as nothing else is between them."""
        ...

    def __bool__(self) -> bool: ...

    def next(self) -> Record: ...

    def pass_to(self, offset: int, finished: Finished) -> None:
        """Steps over everything up to the offset."""
        ...


class Pace:
    """How large parts may be, and how long usage may gather, for all partitions of a worker; `now_us` is its clock."""

    def __init__(self, now_us: Callable[[], int], rest_us_max: int = REST_US_MAX) -> None:
        self.now_us = now_us
        self._rest_us_max = rest_us_max
        self._asked_us = -_QUIET_US
        self.runs = 0  # that are being put in force
        self.partitions = 0

    def asked(self) -> None:
        """A request has come."""
        self._asked_us = self.now_us()

    @property
    def quiet(self) -> bool:
        """Whether nobody has asked for a while."""
        return self.now_us() - self._asked_us >= _QUIET_US

    def rested_us(self, worked_us: int) -> int:
        """Until when a partition lets usage gather, after the rules took so long for some."""
        return self.now_us() + min(worked_us * REST_TIMES * self.partitions, self._rest_us_max)

    @property
    def part_us(self) -> int:
        if self.quiet:
            return QUIET_PART_US
        return max(PARTS_US // max(self.runs, 1), _PART_US_MIN)


class Standing(msgspec.Struct, frozen=True):
    """What an owner knows when it takes a step: the catalog to decide under, and a run that its journal has begun."""

    catalog: Catalog
    under_way: UsageRun | None
    duplicates: Callable[[tuple[Batch, ...]], frozenset[int]]


class Part(msgspec.Struct, frozen=True):
    """The part of a run that comes next; `record` is the run's first, `records` all of them where this is its first."""

    record: Record
    input: UsageRunInput
    records: tuple[Record, ...]
    catalog: Catalog


def is_batch(record: Record) -> bool:
    for name, value in record.headers:
        if name == HEADER_CONTENT_TYPE:
            return value == ARROW or is_arrow({name: value})
    return False


def at_once(call: Callable[[], Run]) -> "Future[Run]":
    """The background of those who have none."""
    future: Future[Run] = Future()
    future.set_result(call())
    return future


class BatchLane:
    """One partition's runs, one at a time."""

    def __init__(self, waiting: Waiting, reader: RunReader, background: Background, bytes_max: int, pace: Pace) -> None:
        self._waiting = waiting
        self._reader = reader
        self._background = background
        self._bytes_max = bytes_max
        self._pace = pace
        self._reading: Future[Run] | None = None
        self._run: Run | None = None
        self._group_us = _GROUP_US_FIRST  # what the rules took for one lately

    @property
    def busy(self) -> bool:
        """Whether a run is being read, and nothing of it can be taken yet."""
        return self._reading is not None and not self._reading.done()

    @property
    def begun(self) -> bool:
        """Whether a run is read or being read; until it has ended nothing behind it is taken."""
        return self._reading is not None or self._run is not None

    def take(self, standing: Standing, finished: Finished) -> Part | None:
        """The next part; None where the run is not read yet, or not all of one under way has come."""
        if self._run is None:
            gone = self._gone(standing)
            if gone is not None:
                return gone
            self._run = self._begin(standing)
            self._pace.runs += self._run is not None
        run = self._run
        if run is None:
            return None
        records = () if run.begun else tuple(run.records)
        part = Part(
            run.records[0], run.next(min(self._pace.part_us // self._group_us, _GROUPS_MAX)), records, run.catalog
        )
        if run.ended:
            self._run = None
            self._pace.runs -= 1
            self._waiting.pass_to(part.input.source.offset, finished)
        return part

    def took(self, groups: int, us: int) -> None:
        """A part of so many groups took the rules so long."""
        if groups and us:
            self._group_us = max((self._group_us + us // groups) // 2, 1)

    def close(self) -> None:
        """The partition is let go; a run under way is somebody else's."""
        self._pace.runs -= self._run is not None
        self._run = None

    def _gone(self, standing: Standing) -> Part | None:
        """The end of a run under way whose records were deleted: what is not in force of it never will be."""
        run = standing.under_way
        if run is None or self._reading is not None or not self._waiting or self._waiting.next().offset <= run.upto:
            return None
        next = self._waiting.next()
        source = Source(next.topic, next.partition, run.upto, 0)
        end = UsageRunInput(source, "batches", standing.catalog.version, (), run.skipped, (), False, True)
        return Part(next, end, (), standing.catalog)

    def _begin(self, standing: Standing) -> Run | None:
        under_way = standing.under_way
        if self._reading is None:
            records = self._records(under_way)
            if not records:
                return None
            known: frozenset[int] = frozenset()
            if under_way is None:
                known = standing.duplicates(self._reader.heads(records))
            self._read(records, standing, known)
        assert self._reading is not None
        if not self._reading.done():
            return None
        run = self._reading.result()
        self._reading = None
        if under_way is None:
            if run.catalog is not standing.catalog:
                return self._begin(standing)
            known = standing.duplicates(run.batches)
            if known != run.duplicates:  # a record that was wrong said which number it had
                self._read(run.records, standing, known)
                return self._begin(standing)
        return run

    def _read(self, records: Sequence[Record], standing: Standing, duplicates: frozenset[int]) -> None:
        catalog, under_way = standing.catalog, standing.under_way
        self._reading = self._background(lambda: self._reader.read(records, catalog, under_way, duplicates))

    def _records(self, under_way: UsageRun | None) -> list[Record]:
        """The records of the next run; of one under way all of them, or none yet."""
        if under_way is None:
            return self._waiting.batches(RUN_RECORDS_MAX, self._bytes_max)
        records = [r for r in self._waiting.batches(1 << 30, 1 << 40) if r.offset <= under_way.upto]
        return records if records and records[-1].offset == under_way.upto else []
