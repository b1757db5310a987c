"""The client's way to the worker and back: requests out through librdkafka, answers in on one reply partition.

A client instance takes one partition of its service's reply topic, reads it from its end with a manual assignment (no
group, no rebalance), and knows its own answers by their correlation id; other instances share the partition. Requests
are sent again with the same id and correlation until an answer comes, so a worker that ends before it answers costs a
caller time and nothing else. For the same reason the producer need not be idempotent: a request that arrives twice is
answered twice alike, and a plain producer has no fatal state that only a restart of the service would end.

One thread polls and decodes; the event loop hears of answers once per batch.
"""

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tallygate.connectors.client_errors import BrokersAway, ClientClosed, NoAnswer, NotConnected, TallygateError
from tallygate.connectors.kafka_security import Heard, contradiction, said_of
from tallygate.schemas.answers import Answer, decode_answer
from tallygate.schemas.requests import OPS, Balance, Check, Estimate, Request
from tallygate.schemas.topics import (
    GROUP_CLIENT_PREFIX,
    HEADER_CORRELATION,
    HEADER_REPLY_PARTITION,
    HEADER_REPLY_TO,
    REQUESTS,
    reply_topic,
)

#: The first wait before a request is sent again; it doubles each time.
RESEND_SECONDS: Final = 1.0
#: A slow worker is not buried under repetitions: the first wait is at least so many times the usual answer time.
_RESEND_FACTOR: Final = 4.0
_USUAL_WEIGHT: Final = 0.05
_POLL_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.5
_BATCH_RECORDS_MAX: Final = 1_000

_log = logging.getLogger("tallygate.client")
_log.addHandler(logging.NullHandler())

_QUICK: Final = {
    "reconnect.backoff.ms": "50",
    "reconnect.backoff.max.ms": "500",
    "socket.nagle.disable": "true",
    "socket.keepalive.enable": "true",
    "log_level": "2",  # what matters comes through callbacks, once and in our words
}
_PRODUCER: Final = {
    "acks": "all",
    "linger.ms": "0",
    # Under load, requests gather while two batches are under way: measured 4 times the calls a second and half the CPU
    # of librdkafka's own limit (a million), and the same latency when idle.
    "max.in.flight": "2",
    "partitioner": "murmur2_random",
    # A request that waited this long for a broker has been given up, or is put into the queue again.
    "message.timeout.ms": str(int(RESEND_SECONDS * 1000)),
    "queue.buffering.max.kbytes": str(64 * 1024),
}
_CONSUMER: Final = {
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    # The position is always given; should the topic be made anew, no answer in it is skipped.
    "auto.offset.reset": "earliest",
    "fetch.min.bytes": "1",
    "fetch.wait.max.ms": "500",
    "fetch.queue.backoff.ms": "1",
    "fetch.error.backoff.ms": "100",
    "queued.max.messages.kbytes": str(16 * 1024),
}


class _Call:
    """One request in flight. `queued` means that a copy of it is on its way to the broker and not confirmed yet."""

    __slots__ = (
        "correlation",
        "future",
        "op",
        "queued",
        "request",
        "resend_seconds",
        "sent",
        "started",
        "timeout",
        "timer",
        "value",
    )

    def __init__(
        self, request: Request, value: bytes, timeout: float, correlation: bytes, future: "asyncio.Future[Answer]"
    ) -> None:
        self.request = request
        self.op = OPS[type(request)]
        self.value = value
        self.timeout = timeout
        self.correlation = correlation
        self.future = future
        self.started = time.monotonic()
        self.sent = 0
        self.queued = False
        self.resend_seconds = RESEND_SECONDS
        self.timer: asyncio.TimerHandle | None = None

    def seconds_left(self) -> float:
        return self.started + self.timeout - time.monotonic()


_Found = tuple[bytes, Answer | TallygateError]


class Transport:
    """Sends requests and finds their answers. `start`, `ask` and `close` belong to one event loop."""

    def __init__(self, brokers: str, service: str, in_flight_max: int, kafka: Mapping[str, str]) -> None:
        self._brokers = brokers
        self._service = service
        self._topic = reply_topic(service)
        self._kafka = dict(kafka)
        self._in_flight_max = in_flight_max
        self._slots = asyncio.Semaphore(in_flight_max)
        self._calls: dict[bytes, _Call] = {}
        self._instance = uuid.uuid4().hex[:16].encode() + b"-"
        self._count = 0
        self._usual_seconds = 0.0
        self._heard = Heard()
        self._trouble = ""
        self._trouble_at = 0.0
        self._why_down = "is not started: use it in a with block"
        self._running = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # Starting and ending

    async def start(self, timeout: float) -> None:
        """Finds the topics and the end of the own reply partition. Raises NotConnected within `timeout` seconds."""
        if self._thread is not None:
            return
        self._loop = asyncio.get_running_loop()
        partition = await asyncio.to_thread(self._connect, timeout)
        self._back = ((HEADER_REPLY_TO, self._topic.encode()), (HEADER_REPLY_PARTITION, b"%d" % partition))
        self._stop.clear()
        self._thread = threading.Thread(target=self._read, name=f"tallygate-{self._service}", daemon=True)
        self._running = True
        self._thread.start()

    async def close(self) -> None:
        """Fails what is in flight and gives the connections back. Twice is once."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._fail_all("was closed")
        self._stop.set()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._consumer.close)
        self._producer.purge()

    def _connect(self, timeout: float) -> int:
        """Reads one reply partition, chosen at random, from its end on; blocks. What fails leaves nothing open."""
        until = time.monotonic() + timeout
        self._heard = Heard()
        own = {"bootstrap.servers": self._brokers, "error_cb": self._remember, **self._kafka}
        group = {"group.id": f"{GROUP_CLIENT_PREFIX}{self._service}"}  # librdkafka asks for a name; no group is joined
        if wrong := contradiction(self._kafka):
            raise NotConnected(f"these settings for Kafka do not go together: {wrong}")
        try:
            consumer = Consumer({**_QUICK, **_CONSUMER, **group, **own})
        except (KafkaException, TypeError, ValueError) as error:
            raise NotConnected(f"librdkafka does not take these settings: {_line(error)}") from None
        try:
            place = self._find_place(consumer, until, timeout)
            consumer.assign([place])
            self._producer = Producer({**_QUICK, **_PRODUCER, **own})
        except BaseException:
            consumer.close()
            raise
        self._consumer = consumer
        return int(place.partition)

    def _find_place(self, consumer: Consumer, until: float, timeout: float) -> TopicPartition:
        while True:
            try:
                self._partitions(consumer, REQUESTS, "tallygate topics")
                found = self._partitions(consumer, self._topic, f"tallygate topics --service {self._service}")
                place = TopicPartition(self._topic, random.randrange(found))
                _, place.offset = consumer.get_watermark_offsets(place, timeout=_LOOK_SECONDS, cached=False)
                return place
            except KafkaException as error:
                consumer.poll(0.05)  # calls back with what went wrong
                if self._heard.refused:
                    raise NotConnected(
                        f"Kafka at {self._brokers} does not let this client in: {self._heard.refused}"
                    ) from None
                if time.monotonic() >= until:
                    raise BrokersAway(
                        f"no Kafka broker answers at {self._brokers} within {timeout:g} s "
                        f"({self._trouble or _line(error)}): start it, or check its address and settings"
                    ) from None

    def _partitions(self, consumer: Consumer, topic: str, command: str) -> int:
        found = consumer.list_topics(topic, timeout=_LOOK_SECONDS).topics[topic]
        if found.error is None:
            return len(found.partitions)
        if found.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise NotConnected(f"topic {topic} is missing on {self._brokers}: declare it with `{command}`")
        if found.error.code() == KafkaError.LEADER_NOT_AVAILABLE:
            raise KafkaException(found.error)
        raise NotConnected(f"topic {topic} on {self._brokers} cannot be used: {said_of(found.error)}")

    # Asking

    async def ask(self, request: Request, value: bytes, timeout: float) -> Answer:
        """The answer to a request, encoded in `value`. Raises NoAnswer after `timeout` seconds, or ClientClosed."""
        self._check_running()
        self._count += 1
        call = _Call(request, value, timeout, self._instance + b"%d" % self._count, self._loop.create_future())
        await self._take_slot(call)
        self._calls[call.correlation] = call
        try:
            self._check_running()
            call.resend_seconds = max(RESEND_SECONDS, _RESEND_FACTOR * self._usual_seconds)
            self._send(call)
            return await call.future
        finally:
            self._calls.pop(call.correlation, None)
            if call.timer is not None:
                call.timer.cancel()
            self._slots.release()

    async def _take_slot(self, call: _Call) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # at once
            return
        try:
            async with asyncio.timeout(call.timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise self._no_answer(call) from None

    def _send(self, call: _Call) -> None:
        """Sends a request, unless a copy is still on its way; comes back to send it again, until its time is over."""
        if call.future.done():
            return
        left = call.seconds_left()
        if left <= 0:
            call.future.set_exception(self._no_answer(call))
            return
        if not call.queued:
            self._produce(call)
        call.timer = self._loop.call_later(min(left, call.resend_seconds), self._send, call)
        call.resend_seconds *= 2

    def _produce(self, call: _Call) -> None:
        call.queued = True  # before the reading thread can say that it is delivered
        try:
            self._producer.produce(
                REQUESTS,
                call.value,
                call.request.customer.encode(),
                headers=[*self._back, (HEADER_CORRELATION, call.correlation)],
                on_delivery=partial(self._delivered, call),
            )
            call.sent += 1
        except BufferError:
            call.queued = False
            self._note("the queue to the broker is full")

    def _send_now(self, call: _Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.resend_seconds = RESEND_SECONDS
        self._send(call)

    def _no_answer(self, call: _Call) -> NoAnswer:
        request = call.request
        if not call.sent:
            how = "not sent"
            state = "it was not recorded"
        else:
            how = "sent once" if call.sent == 1 else f"sent {call.sent} times"
            state = "it may or may not have been recorded; asking again with the same id is safe"
        if isinstance(request, Check | Estimate | Balance):
            state = "it changes nothing, so asking again is safe"
        if self._trouble and self._trouble_at >= call.started:
            state += f"; last trouble: {self._trouble}"
        else:
            state += "; is a worker running?" if call.sent else f"; {self._in_flight_max} other calls were in flight"
        return NoAnswer(
            f"no answer to {call.op} {request.id!r} of customer {request.customer!r} within {call.timeout:g} s "
            f"({how}): {state}",
            op=call.op,
            id=request.id,
            customer=request.customer,
        )

    def _check_running(self) -> None:
        if not self._running:
            raise ClientClosed(f"the client {self._why_down}")

    def _fail_all(self, why: str) -> None:
        self._running = False
        self._why_down = why
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(
                    ClientClosed(
                        f"the client {why} before the answer to {call.op} {call.request.id!r} of customer "
                        f"{call.request.customer!r} came: asking again with the same id is safe"
                    )
                )

    def _deliver(self, found: list[_Found]) -> None:
        """Hands answers to those who wait for them; an answer that nobody waits for any more is dropped."""
        now = time.monotonic()
        for correlation, answer in found:
            call = self._calls.pop(correlation, None)
            if call is None or call.future.done():
                continue
            self._usual_seconds += _USUAL_WEIGHT * (now - call.started - self._usual_seconds)
            if isinstance(answer, Answer):
                call.future.set_result(answer)
            else:
                call.future.set_exception(answer)

    # The reading thread

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                first = self._consumer.poll(_POLL_SECONDS)
                self._producer.poll(0)  # calls back for what was delivered, or was not
                if first is None:
                    continue
                found: list[_Found] = []
                for message in (first, *self._consumer.consume(_BATCH_RECORDS_MAX, 0)):
                    self._take(message, found)
                if found:
                    self._loop.call_soon_threadsafe(self._deliver, found)
        except BaseException as error:
            if self._loop.is_closed():  # the program ended its loop without closing the client: nobody waits
                return
            self._loop.call_soon_threadsafe(self._fail_all, f"broke ({error!r})")
            raise

    def _take(self, message: Message, found: list[_Found]) -> None:
        if error := message.error():
            self._note(f"reading {self._topic}: {error.str()}")
            return
        for name, correlation in message.headers() or ():
            if name == HEADER_CORRELATION:
                if correlation and correlation.startswith(self._instance):
                    found.append((correlation, _decode(message.value())))
                return

    def _delivered(self, call: _Call, error: KafkaError | None, message: Message) -> None:
        call.queued = False
        if error is None:
            return
        self._note(f"sending to {message.topic()}: {error.str()}")
        if error.code() == KafkaError._MSG_TIMED_OUT:  # the broker is away: let another copy wait for it
            self._loop.call_soon_threadsafe(self._send_now, call)

    def _remember(self, error: KafkaError) -> None:
        self._heard(error)
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # says less than the error of the broker itself
            self._note(error.str())

    def _note(self, trouble: str) -> None:
        """Keeps what went wrong last, for whoever gets no answer meanwhile."""
        if trouble != self._trouble:
            _log.info("%s", trouble)
        self._trouble, self._trouble_at = trouble, time.monotonic()


def _line(error: Exception) -> str:
    return str(error.args[0].str() if isinstance(error, KafkaException) else error)


def _decode(value: Any) -> Answer | TallygateError:
    try:
        return decode_answer(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return TallygateError(f"the answer cannot be read ({error}): is this client older than the worker?")
