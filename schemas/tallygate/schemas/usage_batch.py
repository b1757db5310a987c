"""Usage batches: many events of one partition in one record of `tallygate.usage.v1`, column by column.

`usage-batch.md` beside this file is the specification, for writers in any language. This module holds its names and
limits, and reads the headers; who reads the columns needs an Arrow library, which the vocabulary does not import.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from tallygate.schemas.names import NAME_MAX, has_control
from tallygate.schemas.reasons import Reason, Refused

#: Content type of a batch: one Arrow IPC stream.
ARROW: Final = b"application/vnd.apache.arrow.stream"
HEADER_CONTENT_TYPE: Final = "content-type"
#: Who wrote the batch, in which of its lives, and the batch's number in it: what makes a batch count once.
HEADER_PRODUCER: Final = "tallygate-producer"
HEADER_EPOCH: Final = "tallygate-epoch"
HEADER_SEQUENCE: Final = "tallygate-sequence"

#: Columns that are attributes of the event; every other column is a property of its data.
SUBJECT: Final = "subject"
TYPE: Final = "type"
TIME: Final = "time"

EVENTS_MAX: Final = 10_000
COLUMNS_MAX: Final = 256
#: Of the record's value; together with key and headers it stays below what a Kafka topic takes unless told otherwise.
BYTES_MAX: Final = 1_000_000

_NUMBER = re.compile(rb"[0-9]{1,18}")


class BatchId(msgspec.Struct, frozen=True, gc=False):
    """Identifies a batch. Within an epoch of a producer, sequences rise from batch to batch of a partition."""

    producer: str
    epoch: int
    sequence: int

    @property
    def text(self) -> str:
        return f"{self.producer}/{self.epoch}/{self.sequence}"


def is_arrow(headers: Mapping[str, bytes]) -> bool:
    """Whether a record with these headers is a columnar batch."""
    content_type = headers.get(HEADER_CONTENT_TYPE)
    return content_type is not None and content_type.split(b";")[0].strip().lower() == ARROW


def batch_headers(id: BatchId) -> list[tuple[str, bytes]]:
    return [
        (HEADER_CONTENT_TYPE, ARROW),
        (HEADER_PRODUCER, id.producer.encode()),
        (HEADER_EPOCH, b"%d" % id.epoch),
        (HEADER_SEQUENCE, b"%d" % id.sequence),
    ]


def read_batch_id(headers: Mapping[str, bytes]) -> BatchId:
    """The batch's identity; `Refused` says which header is wrong."""
    try:
        producer = headers.get(HEADER_PRODUCER, b"").decode()
    except UnicodeDecodeError:
        producer = ""
    if not 0 < len(producer) <= NAME_MAX or has_control(producer):
        raise Refused(Reason.MALFORMED, f"header {HEADER_PRODUCER} is to be 1 to {NAME_MAX} characters, no controls")
    return BatchId(producer, _number(headers, HEADER_EPOCH), _number(headers, HEADER_SEQUENCE))


def _number(headers: Mapping[str, bytes], name: str) -> int:
    raw = headers.get(name, b"")
    if not _NUMBER.fullmatch(raw):
        raise Refused(Reason.MALFORMED, f"header {name} is to be a decimal number of 1 to 18 digits")
    return int(raw)
