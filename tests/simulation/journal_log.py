"""One partition of the journal as a broker keeps it: appends, segments, and compaction by Kafka's rules.

The topic's own declared settings hold (lags, retention of tombstones, whose clock stamps): time is simulated, so a day
costs nothing.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from tallygate.schemas import topics
from tallygate.schemas.records import Record
from tallygate.topologies.ports import Pair

_CONFIG: Final = next(spec.config for spec in topics.topic_specs() if spec.name == topics.JOURNAL)
LAG_MS: Final = int(_CONFIG["min.compaction.lag.ms"])
TOMBSTONES_MS: Final = int(_CONFIG["delete.retention.ms"])
SEGMENT_MS: Final = int(_CONFIG["segment.ms"])
BROKER_STAMPS: Final = _CONFIG.get("message.timestamp.type") == "LogAppendTime"


class JournalLog:
    """Records by offset; compaction makes holes and never moves the end."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.end = 0
        self.cleaned = 0  # the offset up to which compaction has been
        self._offsets: list[int] = []
        self._segments: list[int] = [0]  # first offset of each; the last one is active
        self._youngest: list[int] = [0]  # and the greatest timestamp in each
        self._begun_at = 0
        self._horizons: dict[int, int] = {}

    def land(self, records: Sequence[Pair], term: int, seq: int, now_ms: int, writer_ms: int) -> list[Record]:
        """One batch, whole. Stamped by the broker or, where the topic says so, as the writer's clock shows."""
        at = now_ms if BROKER_STAMPS else writer_ms
        headers = ((topics.HEADER_TERM, b"%d" % term), (topics.HEADER_SEQ, b"%d" % seq))
        if at - self._begun_at > SEGMENT_MS:
            self.roll(at)
        batch = [
            Record(topics.JOURNAL, 0, self.end + n, at, key, value, headers) for n, (key, value) in enumerate(records)
        ]
        self.records += batch
        self._offsets += [record.offset for record in batch]
        self.end += len(batch)
        self._youngest[-1] = max(self._youngest[-1], at)
        return batch

    def roll(self, at: int) -> None:
        """Closes the active segment, by its age or by its size: only closed ones are compacted."""
        if self._segments[-1] < self.end:
            self._segments.append(self.end)
            self._youngest.append(0)
        self._begun_at = at

    def read(self, begin: int, most: int | None = None) -> list[Record]:
        at = bisect_left(self._offsets, begin)
        return self.records[at:] if most is None else self.records[at : at + most]

    def between(self, begin: int, end: int) -> list[Record]:
        return self.records[bisect_left(self._offsets, begin) : bisect_left(self._offsets, end)]

    def compact(self, now_ms: int, segments_max: int) -> int:
        """Cleans closed segments that are old enough, oldest first; returns how many records went.

        Of each key the last record stays; a tombstone only until its time is over, which begins when it is first met.
        """
        border = 0
        for number, end in enumerate(self._segments[1:]):
            if number >= segments_max or now_ms - self._youngest[number] < LAG_MS:
                break
            border = end
        cut = bisect_left(self._offsets, border)
        last = {record.key: record.offset for record in self.records[:cut]}
        kept = [record for record in self.records[:cut] if self._stays(record, last, now_ms)]
        gone = cut - len(kept)
        if gone:
            self.records[:cut] = kept
            self._offsets[:cut] = [record.offset for record in kept]
            self.cleaned = max(self.cleaned, border)
        return gone

    def _stays(self, record: Record, last: dict[bytes | None, int], now_ms: int) -> bool:
        if last[record.key] != record.offset:
            return False
        if record.value is not None:
            return True
        return now_ms < self._horizons.setdefault(record.offset, now_ms + TOMBSTONES_MS)
