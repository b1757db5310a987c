"""What comes in and what goes out of one step of a partition, as values."""

from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.usage_groups import Group
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.journal import PartitionRow
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Request
from tallygate.schemas.usage_batch import BatchId

if TYPE_CHECKING:
    from tallygate.pipeline.account import AccountDraft


class Rows(Protocol):
    """The local table as the rules see it: sorted bytes."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def get_many(self, keys: list[bytes], /) -> list[bytes | None]: ...

    def scan(self, begin: bytes, end: bytes, most: int = 0, /) -> list[tuple[bytes, bytes]]:
        """The pairs with begin <= key < end, in order: all of them, or the first `most`."""
        ...


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where an answer goes: a reply topic, a partition of it (None: any) and the caller's correlation id."""

    topic: str
    partition: int | None
    correlation: bytes


class Source(msgspec.Struct, frozen=True, gc=False):
    """The record an input came in; `at` is the broker's timestamp in ms."""

    topic: str
    partition: int
    offset: int
    at: int


class UsageInput(msgspec.Struct, frozen=True, gc=False):
    source: Source
    events: tuple[UsageEvent, ...]


class RequestInput(msgspec.Struct, frozen=True, gc=False):
    source: Source
    request: Request
    route: Route | None


class RefusedInput(msgspec.Struct, frozen=True, gc=False):
    """A record that is wrong in itself; `id` and `customer` as far as they could be read."""

    source: Source
    reason: Reason
    message: str
    route: Route | None = None
    id: str = ""
    customer: str = ""


class Tick(msgspec.Struct, frozen=True, gc=False):
    """An instant of the owner's clock, taken as an input (ms)."""

    at: int


class Batch(msgspec.Struct, frozen=True, gc=False):
    """A batch record of a run; `refused` says why it counts for nobody."""

    source: Source
    id: BatchId | None
    events: int
    refused: "DeadLetter | None" = None


class UsageRunInput(msgspec.Struct, frozen=True):
    """Some customers of a run of batch records that are counted as one; customers are in the order of their names.

    `source` is the run's last record, with the latest instant at which one arrived; `name` is the cause of what follows
    from it. `batches` are all its records where
    this is its `first` part. `skipped` are the offsets of those that count for nobody. After its `last` part the whole
    run is applied; before, an owner that comes new knows by the partition row for whom it is in force.
    """

    source: Source
    name: str
    catalog: int
    customers: tuple[tuple[str, tuple[Group, ...]], ...]
    skipped: tuple[int, ...]
    batches: tuple[Batch, ...] = ()
    first: bool = True
    last: bool = True

    def halves(self) -> "tuple[UsageRunInput, UsageRunInput]":
        """The same in two parts; there are several customers."""
        half = len(self.customers) // 2
        return (
            replace(self, customers=self.customers[:half], last=False),
            replace(self, customers=self.customers[half:], batches=(), first=False),
        )


Input = UsageInput | UsageRunInput | RequestInput | RefusedInput | Tick


class Reply(msgspec.Struct, frozen=True, gc=False):
    route: Route
    answer: bytes


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """An input that was put aside: its record's place, why, and one clear line."""

    source: Source
    reason: Reason
    message: str


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A decision for the metrics: `outcome` is allowed, denied or refused."""

    op: str
    outcome: str
    reason: Reason


class Transition(msgspec.Struct, frozen=True):
    """One step of a partition, decided but not yet in force.

    `records` are the journal records (key, value; None is a tombstone) of one batch, the partition row last; empty
    where nothing changes, and then the replies may go out at once. `events` were counted, `duplicates` known already;
    `ended` are the keys of rows of closed hours; it, `row` and `drafts` are what `PartitionState.commit` puts in force.
    `writes` is what `replay.table_writes` makes of the records, where that is known.
    """

    records: tuple[tuple[bytes, bytes | None], ...] = ()
    replies: tuple[Reply, ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    events: int = 0
    duplicates: int = 0
    row: PartitionRow | None = None
    writes: tuple[tuple[bytes, bytes | None], ...] | None = None
    drafts: tuple["AccountDraft", ...] = ()
    ended: tuple[bytes, ...] = ()
