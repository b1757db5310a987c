"""The bench's own reading of decisions: from the journal's entries, through the one rule of its readers."""

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas.catalog import CREDITS_UNIT
from tallygate.schemas.journal import ENTRY_KIND, DecisionRecord, Entry, decode_record, split_key
from tallygate.schemas.records import Record
from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM, JOURNAL
from tallygate.topologies.bench.oracle import Move
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import records


class Journaled(msgspec.Struct):
    """Decisions in the journal's order, how many of each kind, and by partition where the last of them lies."""

    moves: list[Move] = []
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    last: dict[int, int] = {}


def read_decisions(
    settings: Settings, ranges: dict[int, tuple[int, int]], prefix: str, check: Callable[[], None]
) -> Journaled:
    """Those of customers whose names begin with `prefix`, within `[begin, end)` of each partition."""
    found = Journaled()
    start = prefix.encode()
    for partition, (begin, end) in ranges.items():
        fence = Fence()
        for record in records(settings, JOURNAL, partition, begin, end):
            if record.offset % 10_000 == 0:
                check()
            if _accepted(fence, record) and record.value is not None and (record.key or b"").startswith(start):
                _take(record, found)
    return found


def _accepted(fence: Fence, record: Record) -> bool:
    headers = dict(record.headers)
    verdict = fence.judge(int(headers[HEADER_TERM]), int(headers[HEADER_SEQ]), record.key or b"")
    return verdict is Verdict.ACCEPTED


def _take(record: Record, found: Journaled) -> None:
    assert record.key is not None
    assert record.value is not None
    customer, kind, _ = split_key(record.key)
    if kind != ENTRY_KIND:
        return
    entry = decode_record(record.value)
    assert isinstance(entry, Entry)
    for decision in entry.decisions:
        found.counts[f"{decision.op} {'allowed' if decision.allowed else 'denied'}"] += 1
        found.moves += _moves(customer, decision)
        found.last[record.partition] = record.offset


def _moves(customer: str, decision: DecisionRecord) -> Iterator[Move]:
    if not decision.allowed:
        return
    amounts = {CREDITS_UNIT: decision.credits_nanos, **decision.quantities}
    match decision.op:
        case "reserve":
            yield Move("hold", customer, decision.id, decision.dimensions, amounts)
        case "settle":
            yield Move("settle", customer, decision.hold, decision.dimensions, amounts)
        case "release" | "expire":
            yield Move("release", customer, decision.hold)
