"""Bugs to plant into the production code, each as small as it can be: the simulation has to find every one of them."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from tallygate.pipeline import decide
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.pipeline.replay import due_customer, due_range, table_writes
from tallygate.pipeline.state import PartitionState
from tallygate.schemas.journal import OPEN_KEY, OpenRow, encode_record
from tallygate.topologies import inbox, owner
from tallygate.topologies.follower import Follower
from tallygate.topologies.owner import PartitionOwner
from tallygate.topologies.ports import Fenced

Plant = Callable[[pytest.MonkeyPatch], None]

_judge: Final = Fence.judge
_put_in_force: Final = PartitionOwner._put_in_force
_read_until: Final = PartitionOwner._read_until
_load: Final = PartitionState.load
_flush: Final = Follower.flush
_repairs: Final = Follower.repairs


def no_term_check_on_reading(patch: pytest.MonkeyPatch) -> None:
    def judge(self: Fence, term: int, seq: int, key: bytes) -> Verdict:
        verdict = _judge(self, term, seq, key)
        return Verdict.ACCEPTED if verdict is Verdict.STALE and key != OPEN_KEY else verdict

    patch.setattr(Fence, "judge", judge)


def reply_before_read_back(patch: pytest.MonkeyPatch) -> None:
    async def put_in_force(self: PartitionOwner, transition: Any) -> None:
        self._show(transition)
        await _put_in_force(self, transition)

    patch.setattr(PartitionOwner, "_put_in_force", put_in_force)


def table_written_early(patch: pytest.MonkeyPatch) -> None:
    async def put_in_force(self: PartitionOwner, transition: Any) -> None:
        assert self._table is not None
        writes = [write for key, value in transition.records for write in table_writes(key, value)]
        self._table.apply(writes, self._table.position)
        await _put_in_force(self, transition)

    patch.setattr(PartitionOwner, "_put_in_force", put_in_force)


def no_applied_offset(patch: pytest.MonkeyPatch) -> None:
    _lose(patch, applied={})


def catalog_version_forgotten(patch: pytest.MonkeyPatch) -> None:
    _lose(patch, catalog=0)


def _lose(patch: pytest.MonkeyPatch, **fields: Any) -> None:
    """A new owner does not know this of its partition."""

    def load(rows: Any, partition: int) -> PartitionState:
        state = _load(rows, partition)
        state.row = replace(state.row, **fields)
        return state

    patch.setattr(PartitionState, "load", load)


def stale_row_not_rewritten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Follower, "repairs", lambda self: iter(()))


def stale_entry_not_overwritten(patch: pytest.MonkeyPatch) -> None:
    def repairs(self: Follower) -> Iterator[tuple[bytes, bytes | None]]:
        return (pair for pair in _repairs(self) if b"\0entry\0" not in pair[0])

    patch.setattr(Follower, "repairs", repairs)


def position_past_a_stale_row(patch: pytest.MonkeyPatch) -> None:
    def flush(self: Follower, forget: tuple[bytes, bytes] | None = None) -> None:
        stale, self._stale = self._stale, {}
        _flush(self, forget)
        self._stale = stale

    patch.setattr(Follower, "flush", flush)


def resumed_past_tombstones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(owner, "cannot_resume", lambda *arguments: "")
    patch.setattr(PartitionOwner, "_stop_if_old", lambda self, age_ms: None)


def age_by_the_workers_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionOwner, "_stop_if_old", lambda self, age_ms: None)


def dedupe_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionState, "remembered", lambda self, digests, *instants: {each: [] for each in digests})


def delivered_again_taken_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(inbox._Lane, "last", property(lambda self: -1, lambda self, offset: None), raising=False)


def batch_appended_twice_counts_twice(patch: pytest.MonkeyPatch) -> None:
    def judge(self: Fence, term: int, seq: int, key: bytes) -> Verdict:
        verdict = _judge(self, term, seq, key)
        self.seq = min(self.seq, seq) if verdict is Verdict.ACCEPTED else self.seq
        return verdict

    patch.setattr(Fence, "judge", judge)


def taken_over_without_reading_on(patch: pytest.MonkeyPatch) -> None:
    async def take_over(self: PartitionOwner) -> int:
        term = self._follower.fence.term + 1
        row = encode_record(OpenRow(self._owner_id, self._ports.clock.wall_ms()))
        await self._ports.journal.append([(OPEN_KEY, row)], term, 0)
        return term

    patch.setattr(PartitionOwner, "_take_over", take_over)


def higher_term_ignored(patch: pytest.MonkeyPatch) -> None:
    async def read_until(self: PartitionOwner, *arguments: Any) -> Verdict:
        try:
            return await _read_until(self, *arguments)
        except Fenced:
            return Verdict.ACCEPTED

    patch.setattr(PartitionOwner, "_read_until", read_until)


def no_dead_letter(patch: pytest.MonkeyPatch) -> None:
    async def put_in_force(self: PartitionOwner, transition: Any) -> None:
        await _put_in_force(self, replace(transition, dead_letters=()))

    patch.setattr(PartitionOwner, "_put_in_force", put_in_force)


def wake_ups_left_over(patch: pytest.MonkeyPatch) -> None:
    def tick(draft: Any) -> None:
        for key, _ in draft.state.rows.scan(*due_range(draft.stream_at), draft.rules.due_per_tick_max):
            decide.advanced(draft, due_customer(key))
        decide.hours.end_closed(draft)
        decide.batches.forget_idle(draft)

    patch.setattr(decide, "_tick", tick)


class Search(msgspec.Struct, frozen=True):
    """Where a bug is looked for: seeds from `first` on, at most `seeds` of them, in `long` stories or in all kinds.

    The rare ones begin shortly before a seed that finds them, so that a test need not tell hundreds of stories.
    """

    seeds: int = 40
    first: int = 1
    long: bool = False


BUGS: Final[dict[Plant, Search]] = {
    no_term_check_on_reading: Search(),
    reply_before_read_back: Search(),
    no_applied_offset: Search(),
    stale_row_not_rewritten: Search(),
    table_written_early: Search(),
    dedupe_forgotten: Search(),
    delivered_again_taken_again: Search(),
    batch_appended_twice_counts_twice: Search(),
    taken_over_without_reading_on: Search(),
    higher_term_ignored: Search(),
    no_dead_letter: Search(),
    catalog_version_forgotten: Search(),
    resumed_past_tombstones: Search(400, long=True),
    stale_entry_not_overwritten: Search(400, first=75, long=True),
    wake_ups_left_over: Search(400, first=20, long=True),
    age_by_the_workers_clock: Search(400, first=95, long=True),
    position_past_a_stale_row: Search(400, long=True),
}
