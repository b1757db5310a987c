"""What a partition owner needs from outside, as protocols: Kafka and the clock behind them in a worker, a seeded
simulation in a test. An owner awaits nothing but these.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Input, Reply, Rows, Transition
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.journal import PartitionRow, ProducerRow
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record

Pair = tuple[bytes, bytes | None]

#: Where a test may stop the process, named by what has just been done.
CrashPoint = Literal["recovering", "opened", "dead_lettered", "appended", "read_back", "table_written", "answered"]


class OwnershipLost(Exception):
    """This process must end now and may be started again at once: somebody else owns the partition, or may."""


class Fenced(OwnershipLost):
    """Another owner has opened the partition."""


class AppendUnknown(OwnershipLost):
    """An append was not answered, or not read back, in time: it may or may not be in the journal."""


class Clock(Protocol):
    """`wall_ms` is what people's clocks show, and may jump; `monotonic_us` does not."""

    def wall_ms(self) -> int: ...

    def monotonic_us(self) -> int: ...


class Journal(Protocol):
    """One partition of the journal."""

    async def bounds(self) -> tuple[int, int]:
        """The first offset there is, and the one that the next record will have."""
        ...

    async def replay(self, begin: int, end: int, take: Callable[[Record], None]) -> None:
        """Hands every record of `[begin, end)` to `take`, in order; none once it has ended, were it by cancellation."""
        ...

    def follow(self, begin: int) -> None:
        """From now on `read` returns what lies from this offset on."""
        ...

    async def append(self, records: Sequence[Pair], term: int, seq: int) -> None:
        """Appends all of it as one batch, or nothing. Raises `AppendUnknown` where it cannot tell which.

        It may return before the append is done; then `read` raises what goes wrong.
        """
        ...

    async def read(self) -> Sequence[Record]:
        """The next records, in order. Raises `AppendUnknown` when none comes in time.

        Of a batch that was appended here the last record always comes; the others may be left out.
        """
        ...


class DeadLetters(Protocol):
    async def put(self, letters: Sequence[tuple[Record, Reason, str]]) -> None:
        """Returns when the broker holds all of them; raises `AppendUnknown` where it may not."""
        ...


class Replies(Protocol):
    def send(self, replies: Sequence[Reply], /) -> None:
        """Sends answers and never blocks. One that gets lost is asked for again under the same id."""
        ...


class Catalogs(Protocol):
    @property
    def newest(self) -> Catalog: ...

    def version(self, number: int, /) -> Catalog | None:
        """An older version, if it is still known."""
        ...

    async def reach(self, version: int) -> None:
        """Returns when this version or a newer one is known."""
        ...


class State(Protocol):
    """`PartitionState`, as far as an owner cares."""

    row: PartitionRow

    def producer(self, name: str, /) -> ProducerRow | None: ...

    def commit(self, transition: Transition, /) -> None: ...


class Core(Protocol):
    """The rules; a test may put others in their place. The state goes from `load` to `decide` untouched."""

    def load(self, rows: Rows, partition: int, /) -> State: ...

    def decide(self, state: Any, inputs: Sequence[Input], catalog: Catalog, rules: Rules, /) -> Transition: ...
