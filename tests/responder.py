"""Stands in for the worker in tests of the client: reads requests as the worker does, answers by a rule."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from tallygate.pipeline.intake import Intake
from tallygate.pipeline.transition import RefusedInput, RequestInput, Route
from tallygate.schemas.answers import Answer, HoldView, Statement, encode_answer
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record
from tallygate.schemas.requests import OPS, Balance, Request, Reserve
from tallygate.schemas.topics import HEADER_CORRELATION, REQUESTS
from topic_waits import end_of

AT = "2026-01-31T00:00:00Z"

#: The answers to send now, given a request and how many times its id has come so far.
Rule = Callable[[Request, int], list[Answer]]


def answer_to(request: Request, reason: Reason = Reason.ALLOWED, message: str = "", **more: Any) -> Answer:
    allowed = reason is Reason.ALLOWED
    if allowed and isinstance(request, Reserve):
        more.setdefault("hold", HoldView(request.id, request.feature, str(request.credits), "2026-01-31T00:05:00Z"))
    if allowed and isinstance(request, Balance):
        more.setdefault("statement", Statement())
    return Answer(
        id=request.id,
        op=OPS[type(request)],
        customer=request.customer,
        allowed=allowed,
        reason=reason,
        message=message,
        at=AT,
        **more,
    )


def allow(request: Request, times: int) -> list[Answer]:
    return [answer_to(request)]


def silent(request: Request, times: int) -> list[Answer]:
    return []


class Responder:
    """Answers requests that come after it was made, or from the given offsets on, until `stop`.

    `requests` are all that came, in order, and `routes` where their answers go, by id. `noise` is sent before each
    answer, to the same partition, as pairs of correlation id and value.
    """

    def __init__(self, brokers: str, rule: Rule = allow, offsets: Mapping[int, int] | None = None) -> None:
        self.rule = rule
        self.requests: list[Request] = []
        self.routes: dict[str, Route] = {}
        self.noise: list[tuple[bytes | None, bytes]] = []
        self.broke: Exception | None = None
        self._came = threading.Condition()
        self._times: Counter[tuple[str, str]] = Counter()
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "responder",
                "enable.auto.commit": False,
                "fetch.queue.backoff.ms": 1,
                "fetch.wait.max.ms": 50,
                "reconnect.backoff.max.ms": 500,
                "log_level": 2,
            }
        )
        self._producer = Producer(
            {"bootstrap.servers": brokers, "linger.ms": 0, "reconnect.backoff.max.ms": 500, "log_level": 2}
        )
        count = len(self._consumer.list_topics(REQUESTS, timeout=10).topics[REQUESTS].partitions)
        self._intake = Intake(count)
        self.offsets = dict(offsets or {p: end_of(self._consumer, REQUESTS, p) for p in range(count)})
        self._consumer.assign([TopicPartition(REQUESTS, p, offset) for p, offset in self.offsets.items()])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Responder":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the reading; `offsets` are where another one can go on."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._producer.flush(10)
            self._consumer.close()
        if self.broke is not None:
            raise self.broke

    def ops(self) -> list[str]:
        return [OPS[type(request)] for request in self.requests]

    def wait_for(self, count: int) -> None:
        """Blocks until so many requests have come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.requests) >= count, 30), f"{len(self.requests)} came"

    def send(self, answer: Answer) -> None:
        route = self.routes[answer.id]
        for correlation, value in self.noise:
            self._reply(route, correlation, value)
        self._reply(route, route.correlation, encode_answer(answer))

    def _reply(self, route: Route, correlation: bytes | None, value: bytes) -> None:
        assert route.partition is not None
        self._producer.produce(
            route.topic, value, partition=route.partition, headers=[(HEADER_CORRELATION, correlation)]
        )

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                message = self._consumer.poll(0.02)
                self._producer.poll(0)
                if message is not None and message.error() is None:
                    self.offsets[message.partition()] = message.offset() + 1
                    self._take(message)
        except Exception as error:  # noqa: BLE001  # told by `stop`
            self.broke = error

    def _take(self, message: Any) -> None:
        record = Record(
            REQUESTS,
            message.partition(),
            message.offset(),
            message.timestamp()[1],
            message.key(),
            message.value(),
            tuple(message.headers()),
        )
        read = self._intake.read(record)
        assert isinstance(read, RequestInput | RefusedInput)
        assert read.route is not None
        if isinstance(read, RefusedInput):
            raise AssertionError(read.message)
        request = read.request
        self.routes[request.id] = read.route
        self._times[type(request).__name__, request.id] += 1
        answers = self.rule(request, self._times[type(request).__name__, request.id])
        with self._came:
            self.requests.append(request)
            self._came.notify_all()
        for answer in answers:
            self.send(answer)
