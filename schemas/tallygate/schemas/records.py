"""What comes out of the log: single records, and runs of them.

They are the form in which the outside hands records on, so that nobody further in knows a Kafka client's classes.
"""

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as the broker holds it. `timestamp_ms`: milliseconds since 1970, the broker's on an input topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Chunk(msgspec.Struct, frozen=True):
    """A run of records of one partition, in the log's order, never empty.

    `value_bytes` is the size of their values; `generation` tells the runs of one assignment of the partition from
    those of an earlier one.
    """

    topic: str
    partition: int
    records: list[Record]
    value_bytes: int
    generation: int

    @property
    def last_offset(self) -> int:
        return self.records[-1].offset
