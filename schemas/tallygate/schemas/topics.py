"""The one place where topics are named and described.

Inputs share one partition count, so that a customer's usage and requests meet in one partition; the journal has the
same count. The input topics stamp records with the broker's time (`LogAppendTime`): a producer's clock cannot move
stream time. So does the journal: a worker's clock that is days behind would have its records compacted at once.
"""

import re
from typing import Final

import msgspec

USAGE: Final = "tallygate.usage.v1"
REQUESTS: Final = "tallygate.requests.v1"
JOURNAL: Final = "tallygate.journal.v1"
CATALOG: Final = "tallygate.catalog.v1"
DEAD_LETTERS: Final = "tallygate.dead-letters.v1"
DECISIONS: Final = "tallygate.decisions.v1"
POSTINGS: Final = "tallygate.postings.v1"
ALERTS: Final = "tallygate.alerts.v1"
KEYS: Final = "tallygate.keys.v1"
AUDIT: Final = "tallygate.audit.v1"
REPLIES_PREFIX: Final = "tallygate.replies."

#: What a reply topic may be called, unless the operator lists others.
REPLY_TOPIC: Final = re.compile(r"tallygate\.replies\.[a-z0-9][a-z0-9-]{0,62}\.v1")

PARTITIONS_DEFAULT: Final = 8
REPLY_PARTITIONS: Final = 4

#: Record headers of the request and reply topics.
HEADER_REPLY_TO: Final = "tallygate-reply-to"
HEADER_REPLY_PARTITION: Final = "tallygate-reply-partition"
HEADER_CORRELATION: Final = "tallygate-correlation-id"

#: Record headers of the journal: the owner's term and the transition's number within it, decimal digits.
HEADER_TERM: Final = "term"
HEADER_SEQ: Final = "seq"

#: Record headers of the dead-letter topic; the value is the original bytes, the key `topic/partition/offset`.
HEADER_DEAD_REASON: Final = "tallygate-reason"
HEADER_DEAD_MESSAGE: Final = "tallygate-message"
HEADER_DEAD_SOURCE: Final = "tallygate-source"
#: The original key, and what stands in front of the names of the original headers.
HEADER_DEAD_KEY: Final = "tallygate-key"
DEAD_ORIGINAL_PREFIX: Final = "original-"
#: A dead letter that was sent again names its old place; a mark beside the letter names the new one.
HEADER_REPLAYED_FROM: Final = "tallygate-replayed-from"
HEADER_REPLAYED_TO: Final = "tallygate-replayed-to"

#: Record header of decisions, postings and alerts: the same for a record that comes again.
HEADER_RECORD_ID: Final = "tallygate-record-id"

#: Group names that no group is joined under: librdkafka asks for one, and so does Kafka's authorizer. The sink notes in
#: its own how far it is, for lag tools.
GROUP_SINK: Final = "tallygate-sink"
GROUP_READER: Final = "tallygate-reader"
GROUP_CLIENT_PREFIX: Final = "tallygate-client-"

#: A usage event's largest size on the wire, in bytes.
EVENT_BYTES_MAX: Final = 64 * 1024
#: The largest record of the catalog, of dead letters and of decisions, in bytes.
RECORD_BYTES_MAX: Final = 4 * 1024 * 1024
#: The journal's largest batch, in bytes: one transition is one batch.
JOURNAL_BATCH_BYTES_MAX: Final = 8 * 1024 * 1024

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic as it is declared: `config` holds Kafka's own names and values."""

    name: str
    partitions: int
    config: dict[str, str]


def reply_topic(service: str) -> str:
    """The reply topic of a service, e.g. `tallygate.replies.checkout.v1`."""
    name = f"{REPLIES_PREFIX}{service}.v1"
    if not REPLY_TOPIC.fullmatch(name):
        raise ValueError(
            f"service name {service!r}: use 1 to 63 lower-case letters, digits and dashes, a letter or digit first"
        )
    return name


def topic_specs(partitions: int = PARTITIONS_DEFAULT, services: tuple[str, ...] = ("cli",)) -> list[TopicSpec]:
    """Every topic that Tallygate needs, in the order in which they are declared."""
    arrival = {"message.timestamp.type": "LogAppendTime"}
    large = {"max.message.bytes": str(RECORD_BYTES_MAX)}
    specs = [
        TopicSpec(USAGE, partitions, {**arrival, "retention.ms": str(7 * DAY_MS)}),
        TopicSpec(REQUESTS, partitions, {**arrival, "retention.ms": str(7 * DAY_MS)}),
        TopicSpec(
            JOURNAL,
            partitions,
            {
                **arrival,
                "cleanup.policy": "compact",
                "min.compaction.lag.ms": str(DAY_MS),
                "delete.retention.ms": str(7 * DAY_MS),
                "max.message.bytes": str(JOURNAL_BATCH_BYTES_MAX),
                "segment.ms": str(6 * HOUR_MS),
            },
        ),
        TopicSpec(CATALOG, 1, {"cleanup.policy": "compact", **large}),
        TopicSpec(
            DEAD_LETTERS,
            partitions,
            {"retention.ms": str(30 * DAY_MS), **large},
        ),
        TopicSpec(DECISIONS, partitions, {"retention.ms": str(7 * DAY_MS), **large}),
        TopicSpec(POSTINGS, partitions, {"retention.ms": str(7 * DAY_MS)}),
        TopicSpec(ALERTS, partitions, {"retention.ms": str(30 * DAY_MS)}),
        TopicSpec(KEYS, 1, {"cleanup.policy": "compact"}),
        TopicSpec(AUDIT, 1, {"retention.ms": "-1", **large}),
    ]
    specs += [TopicSpec(reply_topic(s), REPLY_PARTITIONS, {"retention.ms": str(HOUR_MS)}) for s in services]
    return specs
