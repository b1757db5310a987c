"""A Kafka record and a run of them, independent of any client library."""

import msgspec


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as it lies in its partition; `timestamp_ms` is the broker's where the topic has `LogAppendTime`."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Chunk(msgspec.Struct, frozen=True):
    """A run of records of one partition, in order of their offsets, never empty."""

    topic: str
    partition: int
    records: list[Record]
