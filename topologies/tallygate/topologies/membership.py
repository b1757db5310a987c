"""The process's place in the consumer group: who owns which partitions, and nothing else.

A `Membership` is a librdkafka consumer in one thread that subscribes, is given partitions and fetches none of them
(it answers every assignment with an empty one; librdkafka keeps the group's assignment apart from what it fetches).
It subscribes to one of the input topics, and a partition of that one stands for the same partition of them all: so they
stay together, whatever the assignor. That one is cooperative and sticky: a member that comes or goes moves only what it
must, and nobody closes a partition only to open it again.

Its rebalance callbacks wait for the event loop. That is the point of the thread: until a revoke callback returns, the
group gives the partitions to nobody else, and librdkafka goes on sending heartbeats meanwhile. If the event loop does
not answer in time, or the session expired and the listener cannot put its partitions away, this process must not go
on: it ends at once, without clean-up, as if killed, which the journal is built to survive.
"""

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tallygate.connectors.consuming import AWAY, PASSING, LaneTrouble, Partition, broker_watch, consumer_config
from tallygate.connectors.kafka_security import said_of

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
METADATA_SECONDS: Final = 1.0
#: The exit code of a process that ended because its partitions were not its own any more.
EXIT_DISOWNED: Final = 70


class Listener(Protocol):
    """What happens to the partitions, told by number; all of it on the event loop."""

    async def on_assigned(self, numbers: Sequence[int]) -> None:
        """These partitions, besides those there are already."""
        ...

    async def on_revoked(self, numbers: Sequence[int]) -> Mapping[Partition, int]:
        """Done with these; returns the offsets to commit."""
        ...

    async def on_lost(self, numbers: Sequence[int]) -> bool:
        """Others may own these by now. Whether to join again; otherwise the process ends."""
        ...

    def on_trouble(self, trouble: LaneTrouble) -> None: ...


class Membership:
    """One member of the group, from `__init__` to `leave`. `config` holds librdkafka's group settings and wins.

    `partitions` is how many each topic has, known before anything is assigned.
    """

    def __init__(
        self,
        brokers: str,
        *,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        closing_seconds: float,
        config: Mapping[str, Any],
    ) -> None:
        self.partitions = 0
        self._topics = tuple(topics)
        self._listener = listener
        self._loop = loop
        self._closing_seconds = closing_seconds
        self._watch = broker_watch(brokers)
        self._leaving = threading.Event()
        self._left: asyncio.Future[None] = loop.create_future()
        self._commits: deque[Mapping[Partition, int]] = deque()
        self._consumer = Consumer(
            {
                **consumer_config(brokers, group),
                "partition.assignment.strategy": "cooperative-sticky",
                "error_cb": self._on_client_error,
                "on_commit": self._on_commit,
                **config,
            }
        )
        self._thread = threading.Thread(target=self._work, name="membership", daemon=True)
        self._thread.start()

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commits soon, and forgets it if that fails: the offsets in the group are a hint for people's tools."""
        self._commits.append(offsets)

    async def leave(self) -> None:
        """Leaves the group; the partitions are revoked first, as in a rebalance."""
        self._leaving.set()
        await asyncio.shield(self._left)

    # The thread.

    def _work(self) -> None:
        try:
            if self._topics_are_there():
                self._consumer.subscribe(
                    [self._topics[0]], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
                )
            while not self._leaving.is_set():
                while self._commits:
                    self._consumer.commit(offsets=_with_offsets(self._commits.popleft()), asynchronous=True)
                message = self._consumer.poll(POLL_SECONDS)
                if message is not None:
                    self._on_message_error(message.error())
        except LaneTrouble as trouble:
            self._loop.call_soon_threadsafe(self._listener.on_trouble, trouble)
        except Exception as error:  # noqa: BLE001  # whatever it is, the listener hears of it and ends the process
            broken = LaneTrouble(f"the membership broke: {error!r}")
            broken.__cause__ = error
            self._loop.call_soon_threadsafe(self._listener.on_trouble, broken)
        finally:
            self._consumer.close()  # revokes what is assigned, and waits for that
            self._watch.forget("membership")
            self._loop.call_soon_threadsafe(self._note_left)

    def _note_left(self) -> None:
        if not self._left.done():
            self._left.set_result(None)

    def _topics_are_there(self) -> bool:
        """Waits for the broker; False when asked to leave meanwhile. Raises `LaneTrouble` if the topics do not fit."""
        counts: dict[str, int] = {}
        while len(counts) < len(self._topics):
            topic = self._topics[len(counts)]
            try:
                found = self._consumer.list_topics(topic, timeout=METADATA_SECONDS).topics[topic]
            except KafkaException as error:
                if self._leaving.is_set():
                    return False
                self._watch.away("membership", error.args[0].str())
                continue
            if found.error is not None:
                if found.error.code() in PASSING:
                    self._leaving.wait(POLL_SECONDS)
                    continue
                raise LaneTrouble(
                    f"topic {topic} cannot be read ({found.error.str()}); `tallygate topics` creates what is missing"
                )
            counts[topic] = len(found.partitions)
        self._watch.back("membership")
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{topic} {count}" for topic, count in counts.items())
            raise LaneTrouble(f"the input topics need equal partition counts, and have: {shown}")
        self.partitions = counts[self._topics[0]]
        return True

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign([])
        if partitions:
            self._in_loop(self._listener.on_assigned(_numbers(partitions)), "taking partitions")

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        offsets = self._in_loop(self._listener.on_revoked(_numbers(partitions)), "closing partitions")
        if offsets:
            try:
                consumer.commit(offsets=_with_offsets(offsets), asynchronous=False)
            except KafkaException as error:
                logger.info("offsets are not committed at the end of an assignment: %s", error.args[0].str())
        consumer.incremental_unassign([])

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if not self._in_loop(self._listener.on_lost(_numbers(partitions)), "letting go of partitions"):
            end_process("the session expired: the group may have given this process's partitions away")
        consumer.incremental_unassign([])

    def _in_loop(self, work: Coroutine[Any, Any, Any], what: str) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._closing_seconds)
        except concurrent.futures.TimeoutError:
            end_process(f"{what} took longer than {self._closing_seconds:g} s")
        except Exception as error:  # the state of the partitions is not known any more
            logger.debug("%s failed", what, exc_info=error)
            end_process(f"{what} failed: {error!r}")

    def _on_client_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise LaneTrouble(f"the group refuses this process: {error.str()}")
        if error.code() in AWAY:
            self._watch.away("membership", error.str())

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._watch.back("membership")
        if error is not None:
            logger.debug("offsets are not committed: %s", error.str())

    def _on_message_error(self, error: KafkaError | None) -> None:
        if error is None or error.code() in PASSING or (error.retriable() and not error.fatal()):
            return
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            return  # the group takes the partitions away, and `_on_lost` follows
        raise LaneTrouble(f"the group cannot be followed: {said_of(error)}")


def end_process(reason: str) -> NoReturn:
    """Ends the process here and now: what it would still do is no longer its to do."""
    logger.critical("ending this process: %s", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_DISOWNED)


def _numbers(partitions: list[TopicPartition]) -> list[int]:
    return sorted(partition.partition for partition in partitions)


def _with_offsets(offsets: Mapping[Partition, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number, offset) for (topic, number), offset in offsets.items()]
