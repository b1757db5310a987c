"""Runs of batch records: read and grouped off the event loop, then handed to the rules a few customers at a time."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from tallygate.pipeline.rules import Rules
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.transition import Batch, DeadLetter, Source, UsageRunInput
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import UsageRun
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.records import Record
from tallygate.schemas.topics import JOURNAL_BATCH_BYTES_MAX
from tallygate.schemas.usage_batch import SUBJECT, BatchId, read_batch_id
from tallygate.topologies.usage_columns import ColumnReader, Columns, checked_name
from tallygate.topologies.usage_grouping import Customers, Grouper
from tallygate.topologies.usage_joined import WrongRecords

#: What one group writes into the journal besides its names: a usage row and a delta for each meter.
_ROW_BYTES: Final = 700
_CUSTOMERS_KNOWN_MAX: Final = 1_000_000


class Run:
    """Consecutive batch records, grouped under one catalog. `next` gives out its customers, part by part."""

    def __init__(
        self, records: Sequence[Record], catalog: Catalog, batches: list[Batch], columns: list[Columns]
    ) -> None:
        self.records = records
        self.catalog = catalog
        self.batches = tuple(batches)
        self.columns = columns
        self.duplicates: frozenset[int] = frozenset()
        self.skipped: tuple[int, ...] = ()
        self.customers: Customers = []
        self.begun = False
        self._at = 0
        first, last = records[0], records[-1]
        latest = max(record.timestamp_ms for record in records)
        self.source = Source(last.topic, last.partition, last.offset, latest)
        self._name = f"batches {first.offset} to {last.offset}" if len(records) > 1 else f"batch {first.offset}"

    @property
    def ended(self) -> bool:
        return self.begun and self._at >= len(self.customers)

    def leave_out(self, after: str) -> None:
        """Go on behind a customer: an owner before this one came so far."""
        self.begun = True
        self.customers = [each for each in self.customers if each[0] > after]

    def next(self, groups_max: int) -> UsageRunInput:
        """The next customers: so many that there are about `groups_max` groups, at least one."""
        begin, groups = self._at, 0
        while self._at < len(self.customers) and (groups < groups_max or self._at == begin):
            groups += len(self.customers[self._at][1])
            self._at += 1
        first, self.begun = not self.begun, True
        return UsageRunInput(
            self.source,
            self._name,
            self.catalog.version,
            tuple(self.customers[begin : self._at]),
            self.skipped,
            self.batches if first else (),
            first,
            self._at >= len(self.customers),
        )


class RunReader:
    """Makes runs of one partition. `read` may run in any thread, one call at a time."""

    def __init__(self, partitions: int, rules: Rules) -> None:
        self._partitions = partitions
        self._rules = rules
        self._columns = ColumnReader()
        self._names: list[str] = []  # customers known to live in this partition
        self._numbers: dict[str | None, int] = {}
        self._catalog: Catalog | None = None
        self._grouper: Grouper | None = None

    def heads(self, records: Sequence[Record]) -> tuple[Batch, ...]:
        """The records by their headers alone, to see at once which were counted before."""
        return tuple(self._head(record)[0] for record in records)

    def read(
        self,
        records: Sequence[Record],
        catalog: Catalog,
        under_way: UsageRun | None = None,
        duplicates: frozenset[int] = frozenset(),
    ) -> Run:
        """The records' groups under a catalog, without duplicates; of a run under way, only what is not in force yet.

        Fewer records than given, where what one customer has in all of them would not fit into a journal batch.
        """
        if len(self._names) > _CUSTOMERS_KNOWN_MAX:
            self._names, self._numbers = [], {}
        skipped = frozenset(under_way.skipped) if under_way else frozenset()
        batches, columns = [], []
        for record in records:
            batch, read = self._batch(record, record.offset in skipped)
            batches.append(batch)
            if read is not None and record.offset not in duplicates:
                columns.append(read)
        run = Run(records, catalog, batches, columns)
        run.duplicates = duplicates
        self._group(run)
        if under_way is not None:
            run.skipped = under_way.skipped
            run.leave_out(under_way.after)
        elif _largest(run.customers) > JOURNAL_BATCH_BYTES_MAX - (1 << 20):
            if len(records) > 1:
                half = records[: len(records) // 2]
                return self.read(half, catalog, None, duplicates & {record.offset for record in half})
            refused = Refused(Reason.TOO_LARGE, "one customer's groups do not fit into a journal batch: send fewer")
            run.columns = []
            run.batches = (_refused(batches[0], refused),)
            self._group(run)
        return run

    def _group(self, run: Run) -> None:
        """Group what is right; what is wrong with a record makes it a refused one."""
        while True:
            try:
                run.customers = self._grouper_of(run.catalog).group(run.columns, self._names)
            except WrongRecords as wrong:
                why = {run.columns[place].source.offset: refused for place, refused in wrong.found.items()}
                run.columns = [each for each in run.columns if each.source.offset not in why]
                run.batches = tuple(
                    _refused(each, why[each.source.offset]) if each.source.offset in why else each
                    for each in run.batches
                )
                continue
            refused = {each.source.offset for each in run.batches if each.refused is not None}
            run.skipped = tuple(sorted(refused | run.duplicates))
            return

    def _grouper_of(self, catalog: Catalog) -> Grouper:
        if self._grouper is None or self._catalog is not catalog:
            self._catalog, self._grouper = catalog, Grouper(Tariff(catalog), self._rules.grace_ms)
        return self._grouper

    def _batch(self, record: Record, skipped: bool) -> tuple[Batch, Columns | None]:
        head, id = self._head(record)
        source = head.source
        if id is None or skipped:
            return head, None
        try:
            columns = self._columns.read(source, id, record.value)
            self._number_customers(columns)
            ahead = int(columns.at.max()) - source.at
            if ahead > self._rules.future_ms_max:
                when, by = format_instant(int(columns.at.max())), from_nanos(ahead * 1_000_000)
                raise Refused(Reason.TIME_IN_FUTURE, f"time {when} is {by} s ahead: check that clock")
        except Refused as refused:
            return _refused(Batch(source, id, 0), refused), None
        return Batch(source, id, columns.events), columns

    @staticmethod
    def _head(record: Record) -> tuple[Batch, BatchId | None]:
        source = Source(record.topic, record.partition, record.offset, record.timestamp_ms)
        try:
            id = read_batch_id(dict(record.headers))
        except Refused as refused:
            return _refused(Batch(source, None, 0), refused), None
        return Batch(source, id, 0), id

    def _number_customers(self, columns: Columns) -> None:
        texts = columns.subject.texts
        try:
            numbers = list(map(self._numbers.__getitem__, texts))  # all are known, nearly always
        except KeyError:
            numbers = [self._number(text, columns.source.partition) for text in texts]
        columns.customer = np.array(numbers, np.int64)[columns.subject.codes]

    def _number(self, text: str | None, partition: int) -> int:
        number = self._numbers.get(text)
        if number is None:
            customer = checked_name(SUBJECT, text)
            belongs = partition_of(customer, self._partitions)
            if belongs != partition:
                raise Refused(
                    Reason.WRONG_PARTITION,
                    f"customer {customer[:80]!r} belongs to partition {belongs}, not {partition}: a batch holds "
                    "customers of one partition",
                )
            number = self._numbers[customer] = len(self._names)
            self._names.append(customer)
        return number


def _refused(batch: Batch, refused: Refused) -> Batch:
    return Batch(batch.source, batch.id, 0, DeadLetter(batch.source, refused.reason, refused.message))


def _largest(customers: Customers) -> int:
    """About the bytes that the largest customer of a run takes in the journal."""
    largest = 0
    for name, groups in customers:
        if len(groups) > 500:
            own = 0
            for group in groups:
                dimensions = sum(len(k) + 4 * len(v) for k, v in group.combination.dimensions.items())
                own += len(group.combination.uses) * (_ROW_BYTES + 4 * len(name) + 3 * dimensions)
                own += sum(64 + 4 * len(value) for figure in group.figures for value in figure.values)
            largest = max(largest, own)
    return largest
