"""Asks a worker by Kafka's own means: every answer that ever comes is kept, and so is every record that was sent.

Not the product's client, so that a mistake of that one cannot hide a mistake of the worker.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tallygate.connectors.consuming import replay
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas import topics
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.catalog import Catalog, catalog_key, encode_catalog
from tallygate.schemas.journal import Entry, decode_record
from tallygate.schemas.records import Record
from tallygate.schemas.requests import Request, encode_request

REPLY_TOPIC = topics.reply_topic("cli")
AGAIN_SECONDS = 2.0


class Asker:
    def __init__(self, brokers: str) -> None:
        self.brokers = brokers
        self._producer = Producer(
            {"bootstrap.servers": brokers, "partitioner": "murmur2_random", "linger.ms": 0, "log_level": 0}
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "asker",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "fetch.queue.backoff.ms": 1,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(REPLY_TOPIC, 0, self._end(REPLY_TOPIC, 0))])
        self.answers: dict[str, list[Answer]] = {}

    def _end(self, topic: str, partition: int) -> int:
        for _ in range(50):  # a topic that was just made has no leader yet
            with contextlib.suppress(KafkaException):
                return self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
            time.sleep(0.1)
        raise AssertionError(f"{topic} has no leader")

    def close(self) -> None:
        self._consumer.close()
        self._producer.purge()

    def send(self, request: Request) -> None:
        self.put(topics.REQUESTS, encode_request(request), request.customer)

    def ask_nobody(self, *requests: Request) -> None:
        """Leaves requests in the topic while no worker runs."""
        for request in requests:
            self.send(request)
        self._producer.flush(30)

    def put(self, topic: str, value: bytes | None, key: str, partition: int = -1, reply_to: str = REPLY_TOPIC) -> None:
        self._producer.produce(
            topic,
            value,
            key,
            partition,
            headers=[
                (topics.HEADER_REPLY_TO, reply_to.encode()),
                (topics.HEADER_REPLY_PARTITION, b"0"),
                (topics.HEADER_CORRELATION, b"c"),
            ],
        )
        self._producer.poll(0)

    def use(self, customer: str, *ids: str, tokens: int = 1) -> None:
        for id in ids:
            event = {
                "specversion": "1.0",
                "id": id,
                "source": "test",
                "type": "llm.call",
                "subject": customer,
                "data": {"tokens": tokens},
            }
            self._producer.produce(topics.USAGE, msgspec.json.encode(event), customer)
        self._producer.flush(30)

    def apply(self, catalog: Catalog) -> None:
        self._producer.produce(topics.CATALOG, encode_catalog(catalog), catalog_key(catalog.version))
        self._producer.flush(30)

    def poll(self, seconds: float) -> None:
        """Takes in the answers that come within this time, at least the first of them."""
        message = self._consumer.poll(seconds)
        while message is not None:
            if message.error() is None:
                answer = decode_answer(message.value())
                self.answers.setdefault(answer.id, []).append(answer)
            message = self._consumer.poll(0)

    def ask(self, *requests: Request, seconds: float = 40.0) -> list[Answer]:
        """The first answer to each; asks again with the same id while none comes."""
        until = time.monotonic() + seconds
        again = 0.0
        waiting = {request.id: request for request in requests}
        while waiting := {id: request for id, request in waiting.items() if id not in self.answers}:
            assert time.monotonic() < until, f"no answer within {seconds} s: {sorted(waiting)[:10]}"
            if time.monotonic() > again:
                again = time.monotonic() + AGAIN_SECONDS
                for request in waiting.values():
                    self.send(request)
            self.poll(0.1)
        return [self.answers[request.id][0] for request in requests]

    def contradictions(self) -> list[str]:
        """Ids that were answered in different ways."""
        said = {id: {(a.op, a.allowed, a.reason, a.credits) for a in answers} for id, answers in self.answers.items()}
        return [id for id, ways in said.items() if len(ways) > 1]


def records(brokers: str, topic: str) -> Iterator[Record]:
    """Everything that lies in a topic now."""
    partitions = AdminClient({"bootstrap.servers": brokers}).list_topics(topic, timeout=10).topics[topic].partitions
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "records"})
    marks = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10) for p in partitions}
    consumer.close()
    for partition, (begin, end) in marks.items():
        yield from replay(brokers, (topic, partition), begin, end, group="records")


def accepted(journal: Iterable[Record]) -> Iterator[Record]:
    """What every reader of the journal accepts: this one is no part of the worker."""
    fences: dict[int, Fence] = {}
    for record in journal:
        headers = dict(record.headers)
        fence = fences.setdefault(record.partition, Fence())
        term, seq = int(headers[topics.HEADER_TERM]), int(headers[topics.HEADER_SEQ])
        if fence.judge(term, seq, record.key or b"") is Verdict.ACCEPTED:
            yield record


def entries(brokers: str) -> list[Entry]:
    found = []
    for record in accepted(records(brokers, topics.JOURNAL)):
        if record.value is not None and b"\0entry\0" in (record.key or b""):
            entry = decode_record(record.value)
            assert isinstance(entry, Entry)
            found.append(entry)
    return found


def decided(brokers: str) -> Counter[tuple[str, str, bool]]:
    """How often the ledger holds a decision, by operation, id and outcome."""
    return Counter((d.op, d.id, d.allowed) for entry in entries(brokers) for d in entry.decisions)


def counted(brokers: str) -> dict[str, int]:
    """Usage events by customer, as the ledger's entries count them."""
    found: dict[str, int] = {}
    for entry in entries(brokers):
        found[entry.customer] = found.get(entry.customer, 0) + sum(delta.events for delta in entry.usage)
    return found
