"""The demo's own reading of the ledger: usage summed from the journal's entries, nothing else asked.

It applies the one rule of every reader of the journal (`pipeline.fence`), so what a fenced-off owner had written late
would not count here either.
"""

import time
from typing import Final

from confluent_kafka import Consumer, TopicPartition

from tallygate.connectors.consuming import consumer_config
from tallygate.connectors.kafka_admin import KafkaUnreachable
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.journal import ENTRY_KIND, PARTITION_KEY, Entry, PartitionRow, decode_record, split_key
from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM, JOURNAL, USAGE
from tallygate.topologies.demo_trace import Totals
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import bounds

METERS: Final = ("calls", "input_tokens", "output_tokens")
_QUIET_SECONDS_MAX: Final = 30.0
_READ_RECORDS: Final = 5_000


class LedgerReader:
    """Reads every partition of the journal from its first record on; `read_to_end` may be called again and again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        begins = bounds(settings, JOURNAL)
        self._fences = {number: Fence() for number in begins}
        self._next_offsets = {number: begin for number, (begin, _) in begins.items()}
        self._nanos = dict.fromkeys(METERS, 0)
        self.last_change: dict[int, int] = {}  # by partition: the offset of the last record that is no mere tick
        self.usage_applied: dict[int, int] = {}  # by partition: the last offset of the usage topic that was decided
        self.entries = 0
        self._consumer = Consumer(
            {**consumer_config(settings.kafka_brokers, "tallygate-demo-ledger"), **settings.kafka_config}
        )
        self._consumer.assign([TopicPartition(JOURNAL, n, offset) for n, offset in self._next_offsets.items()])

    @property
    def totals(self) -> Totals:
        """The sums so far, in units. Raises ValueError where one is no whole number: tokens and calls are."""
        units = {}
        for meter, nanos in self._nanos.items():
            units[meter], rest = divmod(nanos, NANOS)
            if rest:
                raise ValueError(f"the ledger's {meter} are no whole number: {nanos} nanos")
        return Totals(**units)

    def read_to_end(self) -> None:
        """Reads to where the journal ends now. Raises KafkaUnreachable."""
        ends = {number: end for number, (_, end) in bounds(self._settings, JOURNAL).items()}
        heard_at = time.monotonic()
        while any(self._next_offsets[number] < end for number, end in ends.items()):
            messages = self._consumer.consume(_READ_RECORDS, 0.1)
            for message in messages:
                if message.error() is None:
                    self._take(message.partition(), message.offset(), message)
                    heard_at = time.monotonic()
            if time.monotonic() - heard_at > _QUIET_SECONDS_MAX:
                raise KafkaUnreachable(f"the journal's end was not reached: nothing came for {_QUIET_SECONDS_MAX:g} s")

    def close(self) -> None:
        self._consumer.close()

    def _take(self, partition: int, offset: int, message: object) -> None:
        key, value, headers = message.key(), message.value(), dict(message.headers())  # type: ignore[attr-defined]
        self._next_offsets[partition] = offset + 1
        verdict = self._fences[partition].judge(int(headers[HEADER_TERM]), int(headers[HEADER_SEQ]), key)
        if verdict is not Verdict.ACCEPTED or value is None:
            return
        if key == PARTITION_KEY:
            row = decode_record(value)
            assert isinstance(row, PartitionRow)
            self.usage_applied[partition] = row.applied.get(USAGE, -1)
            return
        self.last_change[partition] = offset
        if key[:1] != b"\0" and split_key(key)[1] == ENTRY_KIND:
            entry = decode_record(value)
            assert isinstance(entry, Entry)
            self.entries += 1
            for delta in entry.usage:
                if delta.meter in self._nanos:
                    self._nanos[delta.meter] += delta.quantity_nanos
