"""Reads a partition's journal, in order, into its local table.

Records that the fence refuses are not merely dropped. A stale row lies *after* the row it tried to replace, so
compaction would one day keep the stale one alone. Its key is remembered until an accepted record of the same key is
read; an owner writes such rows again. Until then the table's position stays before the stale record: whoever resumes
from the table sees it, too.
"""

from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from tallygate.pipeline.fence import Fence, Verdict
from tallygate.pipeline.replay import Write, table_writes
from tallygate.schemas.journal import ENTRY_KIND, OPEN_KEY, PARTITION_KEY, split_key
from tallygate.schemas.records import Record
from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM
from tallygate.topologies.ports import Pair
from tallygate.topologies.tables import Position, Table


class Follower:
    """One reader of one partition; begins at the table's position."""

    def __init__(self, table: Table, wall_ms: Callable[[], int]) -> None:
        self.fence = Fence(table.position.term, table.position.seq)
        self.stale_records = 0
        self._table = table
        self._wall_ms = wall_ms
        self._next_offset = table.position.offset
        self._written_at = table.position.at  # when the last record was written
        self._writes: list[Write] = []
        self._stale: dict[bytes, Position] = {}
        self._headers: tuple[tuple[str, bytes], ...] = ()  # those of one batch are alike, and read once
        self._term_and_seq = 0, 0
        self._own = -1, -1
        self._own_records: Sequence[Pair] = ()

    def take(self, record: Record) -> Verdict:
        """Judges the next record. What is accepted goes into the table with the next `flush`."""
        key = record.key
        assert key is not None
        if record.headers != self._headers:
            self._headers, self._term_and_seq = record.headers, term_of(record)
        fence = self.fence
        before = fence.term, fence.seq
        verdict = fence.judge(*self._term_and_seq, key)
        if verdict is Verdict.ACCEPTED:
            if self._term_and_seq != self._own:
                self._writes += table_writes(key, record.value)
            if self._stale:
                self._stale.pop(key, None)
                if key == PARTITION_KEY and self._term_and_seq == self._own:
                    for own, _ in self._own_records:
                        self._stale.pop(own, None)
        elif verdict is Verdict.STALE:
            self.stale_records += 1
            if key != OPEN_KEY:
                self._stale.setdefault(key, Position(record.offset, *before, self._written_at))
        self._next_offset, self._written_at = record.offset + 1, record.timestamp_ms
        return verdict

    def expect(self, term: int, seq: int, records: Sequence[Pair]) -> None:
        """The transition that comes next is the reader's own: it knows the writes, and hands them to `took_own`.

        What lies stale before the batch's last record is written again by it. What lies behind it is not, although
        both may be read at once.
        """
        self._own, self._own_records = (term, seq), records

    def took_own(self, writes: Sequence[Write]) -> None:
        """The last record of what `expect` said has been taken, so all of it is in the journal."""
        self._writes += writes

    @property
    def pending_writes(self) -> int:
        return len(self._writes)

    def flush(self, forget: tuple[bytes, bytes] | None = None) -> None:
        """Writes what was accepted, and how far the journal is read, into the table: all of it or nothing."""
        here = Position(self._next_offset, self.fence.term, self.fence.seq, self._written_at)
        position = next(iter(self._stale.values()), here)
        # A writer's clock may be ahead; a table must not look younger than it is.
        position = replace(position, at=min(position.at, self._wall_ms()))
        self._table.apply(self._writes, position, forget)
        self._writes = []

    def repairs(self) -> Iterator[Pair]:
        """The true values of all rows that a stale record lies over; None where there is none. Entries are not kept in
        the table: a tombstone makes the stale one go, and the true one was read by everybody long before compaction.
        """
        for key in self._stale:
            yield key, None if _is_entry(key) else self._table.get(key)


def term_of(record: Record) -> tuple[int, int]:
    """Term and sequence number of a journal record."""
    headers = dict(record.headers)
    return int(headers[HEADER_TERM]), int(headers[HEADER_SEQ])


def _is_entry(key: bytes) -> bool:
    return key[:1] != b"\0" and split_key(key)[1] == ENTRY_KIND
