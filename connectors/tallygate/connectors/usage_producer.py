"""Usage events into Kafka: checked before they are sent, confirmed by the broker afterwards.

A file is checked to its end before its first event is sent; standard input is sent as it comes. Publishing the same
events again is safe: an event with the same source and id counts once.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tallygate.connectors.kafka_security import Heard, said_of
from tallygate.schemas.events import STRUCTURED, UsageEvent, decode_events, encode_event
from tallygate.schemas.reasons import Refused
from tallygate.schemas.topics import EVENT_BYTES_MAX, USAGE

#: How long a broker that is away is waited for.
PATIENCE_SECONDS_DEFAULT: Final = 60.0
_PROGRESS_EVERY: Final = 1_000
_WAIT_SECONDS: Final = 0.2
_ROOM_SECONDS: Final = 0.01
_LINE_BYTES_MAX: Final = EVENT_BYTES_MAX + 2
_ABSENT: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
#: librdkafka's own log: what matters comes through callbacks, once and in our words.
_UNHEARD: Final = logging.getLogger("tallygate.librdkafka")
_UNHEARD.disabled = True
_BOM: Final = b"\xef\xbb\xbf"
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_AGAIN: Final = "publish them again: an event with the same source and id counts once"

_HEADERS: Final = [("content-type", STRUCTURED)]

_PRODUCER: Final[dict[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "linger.ms": 10,
    "delivery.report.only.error": True,
    "queue.buffering.max.messages": 50_000,
    "queue.buffering.max.kbytes": 32 * 1024,
    "reconnect.backoff.max.ms": 1_000,
    "logger": _UNHEARD,
}


class BadEvents(ValueError):
    """An event that is wrong in itself; one line that says where and why."""


class PublishFailed(Exception):
    """Not all events were confirmed; one line that says how many and why."""


class PublishReport(msgspec.Struct, frozen=True):
    """`events` were confirmed by the broker, `bytes` of values in all, in `seconds`."""

    events: int
    bytes: int
    seconds: float


def read_events(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """CloudEvents in JSON, each checked: one a line (empty lines are skipped), or one JSON array of them.

    Raises BadEvents that names the line, or the array's element, by number from 1.
    """
    begun = False
    for number in itertools.count(1):
        line = stream.readline(_LINE_BYTES_MAX)
        if not line:
            return
        line = (line.removeprefix(_BOM) if number == 1 else line).lstrip()
        if not begun and line.startswith(b"["):
            yield from _read_array(line + stream.read(), f"{name}, line {number}", name)
            return
        if line:
            begun = True
            yield _checked(line.rstrip(), f"{name}, line {number}")


def _read_array(text: bytes, where: str, name: str) -> Iterator[bytes]:
    try:
        elements = _decode_array(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadEvents(f"{where} begins a JSON array that cannot be read: {error}") from None
    for number, element in enumerate(elements, 1):
        yield _checked(bytes(element), f"{name}, element {number}")


def _checked(value: bytes, where: str) -> bytes:
    try:
        decode_events(value, {})
    except Refused as refused:
        raise BadEvents(f"{where}: {refused.message}") from None
    return value


def publish_file(
    config: Mapping[str, Any],
    path: Path,
    on_progress: Callable[[int], None] = lambda confirmed: None,
    on_wait: Callable[[str], None] = lambda line: None,
    patience_seconds: float = PATIENCE_SECONDS_DEFAULT,
) -> PublishReport:
    """`publish_events` of a file; nothing of it is sent when any event is wrong. Raises OSError, too."""
    if path.is_file():
        with path.open("rb") as stream:
            for _ in read_events(stream, path.name):
                pass
    with path.open("rb") as stream:
        return publish_events(config, read_events(stream, path.name), on_progress, on_wait, patience_seconds)


def publish_events(
    config: Mapping[str, Any],
    events: Iterable[bytes | UsageEvent],
    on_progress: Callable[[int], None] = lambda confirmed: None,
    on_wait: Callable[[str], None] = lambda line: None,
    patience_seconds: float = PATIENCE_SECONDS_DEFAULT,
) -> PublishReport:
    """Sends events, keyed by customer, as fast as the broker confirms them; `config` is librdkafka's.

    Bytes are CloudEvents in JSON and are sent as they are. `on_progress` hears the number confirmed so far; `on_wait`
    hears one line each time the broker goes away, and it is waited for as long as `patience_seconds`. Raises BadEvents
    for a wrong event, after those before it were sent, and PublishFailed.
    """
    began = time.monotonic()
    publisher = _Publisher(config, on_progress, on_wait, patience_seconds)
    publisher.connect()
    try:
        for number, event in enumerate(events, 1):
            value = event if isinstance(event, bytes) else encode_event(event)
            try:
                customer = decode_events(value, {})[0].subject
            except Refused as refused:
                raise BadEvents(f"event {number}: {refused.message}") from None
            publisher.send(customer, value)
    except BadEvents as bad:
        publisher.finish()
        if publisher.sent:
            raise BadEvents(f"{bad} (the {publisher.sent} events before it were sent)") from None
        raise
    publisher.finish()
    return PublishReport(publisher.sent, publisher.sent_bytes, time.monotonic() - began)


class _Publisher:
    """A producer that counts what is confirmed and stops at the first event that is not."""

    def __init__(
        self,
        config: Mapping[str, Any],
        on_progress: Callable[[int], None],
        on_wait: Callable[[str], None],
        patience_seconds: float,
    ) -> None:
        self.sent = 0
        self.sent_bytes = 0
        self._on_progress = on_progress
        self._on_wait = on_wait
        self._patience_seconds = patience_seconds
        self._where = config.get("bootstrap.servers", "no address at all")
        self._failed = 0
        self._shown = 0
        self._why = ""
        self._heard = Heard()
        self._away = False
        own = {
            "error_cb": self._on_error,
            "on_delivery": self._on_undelivered,
            "message.timeout.ms": int(patience_seconds * 1000),
        }
        try:
            self._producer = Producer({**_PRODUCER, **config, **own})
        except (KafkaException, TypeError, ValueError) as error:
            raise PublishFailed(f"librdkafka does not take these settings: {_line(error)}") from None

    def connect(self) -> None:
        """Waits for the broker and looks for the topic, so that nothing makes it with other settings."""
        until = time.monotonic() + self._patience_seconds
        while True:
            try:
                found = self._producer.list_topics(USAGE, timeout=_WAIT_SECONDS * 5).topics[USAGE]
                break
            except KafkaException as error:
                self._producer.poll(0)
                if self._heard.refused:
                    raise PublishFailed(
                        f"Kafka at {self._where} does not let this client in: {self._heard.refused}"
                    ) from None
                if time.monotonic() >= until:
                    raise PublishFailed(
                        f"no Kafka broker answers at {self._where} within {self._patience_seconds:g} s "
                        f"({self._heard.last or _line(error)}); nothing was sent: start it, or check its address"
                    ) from None
        if found.error is None or (found.error.retriable() and found.error.code() not in _ABSENT):
            return
        if found.error.code() in _ABSENT:
            raise PublishFailed(f"topic {USAGE} is missing on {self._where}: declare it with `tallygate topics`")
        raise PublishFailed(f"topic {USAGE} on {self._where} cannot be written: {said_of(found.error)}")

    def send(self, customer: str, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(USAGE, value, customer.encode(), headers=_HEADERS)
                break
            except BufferError:
                self._producer.poll(_ROOM_SECONDS)
                self._look()
            except KafkaException as error:  # the producer is in a state that it does not leave
                self._why = self._why or _line(error)
                self._fail()
        self.sent += 1
        self.sent_bytes += len(value)
        if self.sent % _PROGRESS_EVERY == 0:
            self._producer.poll(0)
            self._look()

    def finish(self) -> None:
        """Waits until everything is confirmed."""
        while self._producer.flush(_WAIT_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        if self._failed:
            self._fail()
        confirmed = self._confirmed()
        if confirmed > self._shown:
            self._shown = confirmed
            self._away = False
            self._on_progress(confirmed)

    def _confirmed(self) -> int:
        return max(0, self.sent - len(self._producer) - self._failed)

    def _fail(self) -> None:
        confirmed = self._confirmed()
        self._producer.purge()
        raise PublishFailed(
            f"{confirmed} of {self.sent} events sent to {self._where} were confirmed, then: {self._why}"
            f"{f' ({self._heard.last})' if self._heard.last else ''}; {_AGAIN}"
        )

    def _on_undelivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed += 1
            self._why = self._why or said_of(error)

    def _on_error(self, error: KafkaError) -> None:
        self._heard(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not (self._away or self._heard.refused):
            self._away = True
            self._on_wait(f"broker {self._where} is away ({self._heard.last or error.str()}); waiting")


def _line(error: Exception) -> str:
    return str(error.args[0].str() if isinstance(error, KafkaException) else error)
