"""Records sent to Kafka, and what came of them: a call returns when the broker has confirmed all of its records."""

import asyncio
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from tallygate.connectors.client_errors import NotConnected
from tallygate.connectors.gateway.problems import Problem, unavailable

_POLL_SECONDS: Final = 0.1
_AGAIN: Final = "send it again: what is known already counts once"

_SETTINGS: Final[dict[str, Any]] = {
    "acks": "all",
    "partitioner": "murmur2_random",
    "linger.ms": 2,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 64 * 1024,
    "message.max.bytes": 4 * 1024 * 1024,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    "log_level": 2,
    # Twice is once to whoever reads these topics, so a plain producer will do: no state of its own needs a restart.
    "message.timeout.ms": 10_000,
}


class Outgoing(NamedTuple):
    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]] | None = None


class _Sending:
    """The records of one call: how many are not confirmed yet."""

    __slots__ = ("done", "left", "loop", "trouble")

    def __init__(self, left: int, loop: asyncio.AbstractEventLoop) -> None:
        self.left = left
        self.loop = loop
        self.done: asyncio.Future[str] = loop.create_future()
        self.trouble = ""

    def delivered(self, error: KafkaError | None, message: Any) -> None:
        """Called in the producer's thread, once a record."""
        self.settle(1, error.str() if error is not None else "")

    def settle(self, count: int, trouble: str) -> None:
        self.left -= count
        self.trouble = self.trouble or trouble
        if self.left == 0 and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(self.trouble)


class ConfirmedProducer:
    """One librdkafka producer and the thread that hears its confirmations."""

    def __init__(self, brokers: str, kafka: Mapping[str, str]) -> None:
        self._config = {"bootstrap.servers": brokers, **_SETTINGS, "error_cb": self._hear, **kafka}
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._trouble = ""

    def start(self) -> None:
        """Raises NotConnected where librdkafka does not take its settings."""
        try:
            self._producer = Producer(self._config)
        except (KafkaException, TypeError, ValueError) as error:
            raise NotConnected(f"librdkafka does not take these settings: {error}") from None
        self._thread = threading.Thread(target=self._work, name="tallygate-confirmations", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        if self._thread is not None:
            self._stop.set()
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def send(self, records: Iterable[Outgoing], timeout: float) -> None:
        """Returns when all of them are in Kafka. Raises Problem 503: then some of them may be there."""
        records = list(records)
        if not records:
            return
        sending = self.begin(records)
        try:
            trouble = await asyncio.wait_for(sending.done, timeout)
        except TimeoutError:
            trouble = self._trouble or f"no confirmation within {timeout:g} s"
        if trouble:
            raise unavailable("not-recorded", f"Kafka has not confirmed it ({trouble}); {_AGAIN}")

    def begin(self, records: list[Outgoing]) -> _Sending:
        """Puts records into the queue, all or none of them."""
        producer = self._producer
        if producer is None:
            raise unavailable("not-connected", "the gateway has no connection to Kafka now")
        sending = _Sending(len(records), asyncio.get_running_loop())
        for number, record in enumerate(records):
            try:
                producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    headers=record.headers,
                    on_delivery=sending.delivered,
                )
            except BufferError:
                sending.settle(len(records) - number, "the queue to the broker is full")
                break
            except KafkaException as error:
                trouble: KafkaError = error.args[0]
                if trouble.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise Problem(413, "record-too-large", "a record is larger than Kafka takes") from None
                sending.settle(len(records) - number, trouble.str())
                break
        return sending

    def _work(self) -> None:
        assert self._producer is not None
        while not self._stop.is_set():
            self._producer.poll(_POLL_SECONDS)
        self._producer.flush(1.0)
        self._producer.purge()
        self._producer.poll(0)

    def _hear(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = error.str()
