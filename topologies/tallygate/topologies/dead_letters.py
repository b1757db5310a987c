"""Dead letters: read from their topic, and sent again to where they came from.

A letter is known by its place, `topic/partition/offset` of the record that could not be taken; a worker that ended in
between may have written it twice, and it is shown once. What was sent again is marked by a record of its own beside the
letter, written when the broker has confirmed the sending: so a crash in between leaves a letter that looks unsent and
may be sent twice, which counts once within the 24 hours for which ids are remembered. After that, the mark is what
keeps it from being sent twice.
"""

import heapq
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.connectors.kafka_security import said_of
from tallygate.schemas import topics
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record
from tallygate.schemas.usage_batch import SUBJECT, BatchId, batch_headers, is_arrow
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import bounds, records

_SEND_SECONDS: Final = 30.0
#: So many are sent, confirmed and marked at once.
_SENT_AT_ONCE: Final = 500
_TELL_RECORDS: Final = 500
_SOURCES: Final = (topics.USAGE, topics.REQUESTS)

_UNHEARD: Final = logging.getLogger("tallygate.librdkafka")

#: Hears of progress: how many records are read, and of how many.
Progress = Callable[[int, int], None]


class Place(NamedTuple):
    """Where a record that could not be taken lay."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be taken, as it was, and why. `lies_in`: the partition of the dead-letter topic."""

    place: Place
    at: int
    reason: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    lies_in: int

    @property
    def customers(self) -> tuple[str, ...]:
        """Whom the record names, as far as it can be read."""
        return customers_of(self.value, dict(self.headers))


class Found(NamedTuple):
    """Letters, newest first; of how many that fit; and to where those that were sent again went, by their places."""

    letters: list[DeadLetter]
    fitting: int
    replayed: dict[Place, str]


def parse_place(text: str) -> Place:
    """Raises Trouble where the text names no place."""
    topic, _, rest = text.rpartition("/")
    topic, _, partition = topic.rpartition("/")
    if not (topic and partition.isdecimal() and rest.isdecimal()):
        raise Trouble(Exit.WRONG, f"{text!r} is no place: write topic/partition/offset, like {topics.USAGE}/3/17")
    return Place(topic, int(partition), int(rest))


def find_letters(
    settings: Settings,
    fits: Callable[[DeadLetter], bool],
    limit: int | None,
    progress: Progress = lambda done, of: None,
) -> Found:
    """The newest letters that fit, `limit` at most. Raises KafkaUnreachable, KafkaRefused."""
    newest: list[tuple[int, Place, DeadLetter]] = []
    seen: set[Place] = set()
    replayed: dict[Place, str] = {}
    fitting = 0
    for each in _read(settings, progress):
        if isinstance(each, _Mark):
            replayed[each.place] = each.to
        elif each.place not in seen:
            seen.add(each.place)
            if fits(each):
                fitting += 1
                heapq.heappush(newest, (each.at, each.place, each))
                if limit is not None and len(newest) > limit:
                    heapq.heappop(newest)
    return Found([letter for _, _, letter in sorted(newest, reverse=True)], fitting, replayed)


def letters_at(settings: Settings, places: Collection[Place], progress: Progress = lambda done, of: None) -> Found:
    """The letters of these places. Raises Trouble for one that has none."""
    found = find_letters(settings, lambda letter: letter.place in places, None, progress)
    if missing := sorted(set(places) - {letter.place for letter in found.letters}):
        raise Trouble(Exit.WRONG, f"there is no dead letter of {missing[0]}: `tallygate dead-letters` lists them")
    return found


class Route(NamedTuple):
    """Where a letter is sent to, under which key. `trouble` is not empty where it cannot be sent."""

    letter: DeadLetter
    partition: int
    key: bytes | None
    trouble: str = ""

    @property
    def moved(self) -> bool:
        return self.partition != self.letter.place.partition


def routes(settings: Settings, letters: Sequence[DeadLetter]) -> list[Route]:
    """Where each letter belongs: the partition of the customer that it names, else where it lay before."""
    counts: dict[str, int] = {}
    found = []
    for letter in letters:
        topic = letter.place.topic
        if topic not in _SOURCES:
            found.append(Route(letter, 0, None, f"{topic} is no input of Tallygate"))
            continue
        if topic not in counts:
            counts[topic] = len(bounds(settings, topic))
        found.append(route_of(letter, counts[topic]))
    return found


def route_of(letter: DeadLetter, count: int) -> Route:
    homes = {partition_of(customer, count) for customer in letter.customers}
    if len(homes) > 1:
        return Route(letter, 0, None, f"it holds events of customers in {len(homes)} partitions: send them one by one")
    if not homes:
        return Route(letter, letter.place.partition % count, letter.key)
    rekeyed = letter.reason == Reason.WRONG_PARTITION and len(letter.customers) == 1
    return Route(letter, homes.pop(), letter.customers[0].encode() if rekeyed else letter.key)


def send_again(
    settings: Settings, chosen: Sequence[Route], sent: Callable[[DeadLetter, str], None] = lambda letter, to: None
) -> None:
    """Sends letters, oldest first: the original bytes, key and headers. `sent` hears of each that is confirmed.

    Raises KafkaUnreachable and KafkaRefused; what was confirmed before that is marked.
    """
    sender = _Sender(settings)
    waiting = [route for route in reversed(chosen) if not route.trouble]
    for begin in range(0, len(waiting), _SENT_AT_ONCE):
        sender.send(waiting[begin : begin + _SENT_AT_ONCE], sent)


def customers_of(value: bytes | None, headers: dict[str, bytes]) -> tuple[str, ...]:
    """The customers that a request or usage record names, each once, even where the rest of it is wrong."""
    if subject := headers.get("ce_subject"):
        return (subject.decode("utf-8", "replace"),)
    try:
        if is_arrow(headers):
            return _arrow_subjects(value or b"")
        named = _decode_named(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    found = [each.customer or each.subject for each in (named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(name for name in found if name))


def _arrow_subjects(value: bytes) -> tuple[str, ...]:
    import pyarrow

    try:
        column = pyarrow.ipc.open_stream(value).read_all().column(SUBJECT).unique().to_pylist()
    except (pyarrow.ArrowException, KeyError, ValueError):
        return ()
    return tuple(name for name in column if isinstance(name, str) and name)


def headers_again(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The original headers, and where it lay. A batch gets an identity of its own, the same each time: under its old
    one it would pass for counted wherever its producer has sent a later one.
    """
    headers = dict(letter.headers)
    again = [(name, value) for name, value in letter.headers if name != topics.HEADER_REPLAYED_FROM]
    if is_arrow(headers):
        ours = batch_headers(BatchId(f"dead-letter/{letter.place}", 1, 1))
        again = [(name, value) for name, value in again if name not in dict(ours)] + ours
    return [*again, (topics.HEADER_REPLAYED_FROM, str(letter.place).encode())]


class _Named(msgspec.Struct):
    subject: str = ""
    customer: str = ""


_decode_named = msgspec.json.Decoder(_Named | list[_Named]).decode


class _Mark(NamedTuple):
    place: Place
    to: str


def _read(settings: Settings, progress: Progress) -> Iterator[DeadLetter | _Mark]:
    ranges = bounds(settings, topics.DEAD_LETTERS)
    total = sum(end - begin for begin, end in ranges.values())
    done = 0
    for number, (begin, end) in ranges.items():
        for record in records(settings, topics.DEAD_LETTERS, number, begin, end):
            done += 1
            if done % _TELL_RECORDS == 0:
                progress(done, total)
            if (letter := _letter(record)) is not None:
                yield letter


def _letter(record: Record) -> DeadLetter | _Mark | None:
    """None for a record that is neither a letter nor a mark: somebody else's."""
    headers = dict(record.headers)
    try:
        place = parse_place(headers[topics.HEADER_DEAD_SOURCE].decode())
    except (KeyError, UnicodeDecodeError, Trouble):
        return None
    if topics.HEADER_REPLAYED_TO in headers:
        return _Mark(place, headers[topics.HEADER_REPLAYED_TO].decode("utf-8", "replace"))
    prefix = topics.DEAD_ORIGINAL_PREFIX
    return DeadLetter(
        place,
        record.timestamp_ms,
        headers.get(topics.HEADER_DEAD_REASON, b"").decode("utf-8", "replace"),
        headers.get(topics.HEADER_DEAD_MESSAGE, b"").decode("utf-8", "replace"),
        headers.get(topics.HEADER_DEAD_KEY),
        record.value,
        tuple((name.removeprefix(prefix), value) for name, value in record.headers if name.startswith(prefix)),
        record.partition,
    )


class _Sender:
    def __init__(self, settings: Settings) -> None:
        self._where = settings.kafka_brokers
        self._failed: KafkaError | None = None
        self._producer = Producer(
            {
                **settings.librdkafka,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.max.bytes": topics.RECORD_BYTES_MAX,
                "message.timeout.ms": int(_SEND_SECONDS * 1000),
                "error_cb": lambda error: None,
                "logger": _UNHEARD,
            }
        )

    def send(self, chosen: Iterable[Route], sent: Callable[[DeadLetter, str], None]) -> None:
        """Sends some, and marks those that were confirmed, also where others were not."""
        confirmed: list[tuple[DeadLetter, str]] = []
        for route in chosen:
            letter = route.letter

            def delivered(error: KafkaError | None, message: Message, letter: DeadLetter = letter) -> None:
                if self._confirmed(error):
                    confirmed.append((letter, f"{message.topic()}/{message.partition()}/{message.offset()}"))

            self._produce(
                letter.place.topic, route.partition, route.key, letter.value, headers_again(letter), delivered
            )
        self._flush()
        for letter, to in confirmed:
            place = str(letter.place).encode()
            headers = [(topics.HEADER_DEAD_SOURCE, place), (topics.HEADER_REPLAYED_TO, to.encode())]
            self._produce(topics.DEAD_LETTERS, letter.lies_in, place, b"", headers, lambda e, _: self._confirmed(e))
            sent(letter, to)
        self._flush()
        if self._failed is not None:
            again = "run it again: what was confirmed is marked and is not sent twice"
            line = f"{self._where} did not take all of it: {said_of(self._failed)}; {again}"
            raise (KafkaUnreachable if self._failed.code() == KafkaError._MSG_TIMED_OUT else KafkaRefused)(line)

    def _confirmed(self, error: KafkaError | None) -> bool:
        self._failed = self._failed or error
        return error is None

    def _produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        delivered: Callable[[KafkaError | None, Message], Any],
    ) -> None:
        try:
            self._producer.produce(topic, value, key, partition, delivered, headers=headers)
        except KafkaException as error:
            self._confirmed(error.args[0])

    def _flush(self) -> None:
        until = time.monotonic() + 2 * _SEND_SECONDS
        while self._producer.flush(1.0) and time.monotonic() < until:
            pass
