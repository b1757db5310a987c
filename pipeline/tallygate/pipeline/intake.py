"""From Kafka records to inputs: decode, check the partition, find the way back to the caller. Wrong records become
`RefusedInput`s; nothing raises.
"""

import re
from functools import lru_cache

import msgspec

from tallygate.pipeline.transition import Input, RefusedInput, RequestInput, Route, Source, UsageInput
from tallygate.schemas import topics
from tallygate.schemas.events import decode_events
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.records import Record
from tallygate.schemas.requests import parse_request


class Intake:
    """Reads the records of one cluster: its partition count and the reply topics that may be answered on.

    `reply_topics` empty allows every topic named `tallygate.replies.<service>.v1`.
    """

    def __init__(self, partitions: int, reply_topics: frozenset[str] = frozenset()) -> None:
        self.partitions = partitions
        self.reply_topics = reply_topics
        self._partition_of = lru_cache(maxsize=100_000)(lambda customer: partition_of(customer, partitions))

    def read(self, record: Record) -> Input:
        source = Source(record.topic, record.partition, record.offset, record.timestamp_ms)
        headers = dict(record.headers)
        if record.topic == topics.REQUESTS:
            return self._request(source, record.value, headers)
        try:
            events = decode_events(record.value, headers)
            for event in events:
                self._check_partition(event.subject, source.partition)
        except Refused as refused:
            return RefusedInput(source, refused.reason, refused.message)
        return UsageInput(source, events)

    def _request(self, source: Source, value: bytes | None, headers: dict[str, bytes]) -> Input:
        route = None
        try:
            route = self._route(headers)
            request = parse_request(value)
            self._check_partition(request.customer, source.partition)
        except Refused as refused:
            id, customer = _identity(value)
            return RefusedInput(source, refused.reason, refused.message, route, id, customer)
        return RequestInput(source, request, route)

    def _route(self, headers: dict[str, bytes]) -> Route | None:
        raw = headers.get(topics.HEADER_REPLY_TO)
        if raw is None:
            return None
        topic = raw.decode("utf-8", "replace")
        allowed = topic in self.reply_topics if self.reply_topics else topics.REPLY_TOPIC.fullmatch(topic)
        if not allowed:
            raise Refused(Reason.REPLY_TOPIC_NOT_ALLOWED, f"reply topic {topic[:80]!r} is not on the allow-list")
        number = headers.get(topics.HEADER_REPLY_PARTITION, b"")
        if number and not re.fullmatch(rb"[0-9]{1,6}", number):
            raise Refused(Reason.MALFORMED, f"header {topics.HEADER_REPLY_PARTITION} is no number")
        return Route(topic, int(number) if number else None, headers.get(topics.HEADER_CORRELATION, b""))

    def _check_partition(self, customer: str, partition: int) -> None:
        belongs = self._partition_of(customer)
        if belongs != partition:
            raise Refused(
                Reason.WRONG_PARTITION,
                f"customer {customer[:80]!r} belongs to partition {belongs}, not {partition}: key the record by "
                "customer and use the murmur2 partitioner (librdkafka: partitioner=murmur2_random)",
            )


class _Identity(msgspec.Struct):
    id: str = ""
    customer: str = ""


def _identity(value: bytes | None) -> tuple[str, str]:
    try:
        found = msgspec.json.decode(value or b"", type=_Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", ""
    return found.id[:256], found.customer[:256]
