"""A partition without a broker: the real core over rows in memory, with a clock moved by hand."""

from collections.abc import Sequence
from typing import Any

from tallygate.connectors.usage_batches import encode_batch
from tallygate.pipeline.batches import duplicates
from tallygate.pipeline.decide import decide
from tallygate.pipeline.intake import Intake
from tallygate.pipeline.replay import table_writes
from tallygate.pipeline.rows import MemoryRows
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Input, Tick, Transition
from tallygate.schemas import topics
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import UsageEvent, encode_event
from tallygate.schemas.instants import parse_instant
from tallygate.schemas.journal import ENTRY_KIND, PARTITION_KEY, Entry, decode_record, split_key
from tallygate.schemas.records import Record
from tallygate.schemas.requests import OPS, Request, encode_request
from tallygate.schemas.usage_batch import BatchId, batch_headers
from tallygate.topologies.usage_runs import RunReader

T0 = parse_instant("2026-01-01T00:00:00Z")

CATALOG = read_catalog(
    {
        "meters": {
            "input_tokens": {
                "event_type": "llm.call",
                "value": "input_tokens",
                "dimensions": ["team", "user", "agent", "model"],
            },
            "output_tokens": {
                "event_type": "llm.call",
                "value": "output_tokens",
                "dimensions": ["team", "user", "agent", "model"],
            },
            "calls": {
                "event_type": "llm.call",
                "aggregation": "count",
                "dimensions": ["team", "user", "agent", "model"],
            },
        },
        "features": {
            "llm": {
                "meters": ["input_tokens", "output_tokens", "calls"],
                "rates": [
                    {"meter": "input_tokens", "credits": "1", "per": 1000},
                    {"meter": "output_tokens", "credits": "2", "per": 1000},
                    {"meter": "output_tokens", "credits": "4", "per": 1000, "when": {"model": "large"}},
                ],
            },
            "owing": {"overage": "unlimited"},
            "capped": {"overage": "10"},
            "estimate": {"hold": {"at_end": "settle", "ttl_seconds": 60}},
        },
    },
    "tests",
).compile(1)


class Partition:
    """One partition of one; keeps every journal record it has written."""

    def __init__(self, catalog: Catalog = CATALOG, rules: Rules | None = None) -> None:
        self.rows = MemoryRows()
        self.state = PartitionState.load(self.rows, 0)
        self.catalog = catalog
        self.rules = rules or Rules()
        self.now = T0
        self.journal: list[tuple[bytes, bytes | None]] = []
        self.transitions: list[Transition] = []
        self._intake = Intake(1)
        self._runs = RunReader(1, self.rules)
        self._sequence = 0
        self._offsets = {topics.USAGE: -1, topics.REQUESTS: -1}

    def ask(self, request: Request) -> Answer:
        """Decide one request now and return its answer."""
        transition = self.apply(self.record(topics.REQUESTS, encode_request(request)))
        [reply] = transition.replies
        return decode_answer(reply.answer)

    def ask_all(self, *requests: Request) -> list[Answer]:
        """Decide requests in one chunk; their answers in order."""
        transition = self.apply(*(self.record(topics.REQUESTS, encode_request(each)) for each in requests))
        return [decode_answer(reply.answer) for reply in transition.replies]

    def use(self, *events: UsageEvent | bytes) -> Transition:
        """Take usage events now, a record each, in one chunk."""
        values = [event if isinstance(event, bytes) else encode_event(event) for event in events]
        return self.apply(*(self.record(topics.USAGE, value) for value in values))

    def use_batches(self, *batches: Sequence[UsageEvent], groups_max: int = 1 << 30, producer: str = "p") -> None:
        """Take batches of events now, a record each, as one run, so many groups a step."""
        records = []
        for events in batches:
            self._offsets[topics.USAGE] += 1
            self._sequence += 1
            headers = tuple(batch_headers(BatchId(producer, 1, self._sequence)))
            value = encode_batch([(e.subject, e.type, e.at, e.data) for e in events])
            records.append(Record(topics.USAGE, 0, self._offsets[topics.USAGE], self.now, None, value, headers))
        self.take_run(records, groups_max)

    def take_run(self, records: Sequence[Record], groups_max: int = 1 << 30) -> None:
        run = self._runs.read(records, self.catalog)
        if known := duplicates(self.state, run.batches):
            run = self._runs.read(records, self.catalog, None, known)
        while not run.ended:
            self.apply(run.next(groups_max))

    def tick(self, seconds: int) -> Transition:
        """Let time pass, and let the owner notice it."""
        return self.tick_ms(seconds * 1000)

    def tick_ms(self, ms: int) -> Transition:
        self.now += ms
        return self.apply(Tick(self.now))

    def record(self, topic: str, value: bytes, headers: dict[str, bytes] | None = None) -> Input:
        self._offsets[topic] += 1
        if headers is None and topic == topics.REQUESTS:
            headers = {topics.HEADER_REPLY_TO: b"tallygate.replies.test.v1", topics.HEADER_CORRELATION: b"c"}
        found = tuple((headers or {}).items())
        return self._intake.read(Record(topic, 0, self._offsets[topic], self.now, None, value, found))

    def apply(self, *inputs: Input) -> Transition:
        transition = decide(self.state, inputs, self.catalog, self.rules)
        for key, value in transition.records:
            self.journal.append((key, value))
            self.rows.apply(table_writes(key, value))
        read_back = [write for key, value in transition.records for write in table_writes(key, value)]
        assert list(transition.writes or ()) == read_back, "an owner writes the same as whoever reads its journal"
        self.state.commit(transition)
        self.transitions.append(transition)
        return transition

    def restart(self) -> None:
        """Forget memory; go on from the table."""
        self.state = PartitionState.load(self.rows, 0)

    def replayed(self) -> MemoryRows:
        """A table rebuilt from the journal alone."""
        rows = MemoryRows()
        for key, value in self.journal:
            rows.apply(table_writes(key, value))
        return rows

    def entries(self) -> list[Entry]:
        found = []
        for key, value in self.journal:
            if key != PARTITION_KEY and split_key(key)[1] == ENTRY_KIND:
                assert value is not None
                entry = decode_record(value)
                assert isinstance(entry, Entry)
                found.append(entry)
        return found


def event(id: str, customer: str = "acme", **data: Any) -> UsageEvent:
    return UsageEvent(specversion="1.0", id=id, source="test", type="llm.call", subject=customer, data=data)


__all__ = ["CATALOG", "OPS", "T0", "Partition", "event"]
