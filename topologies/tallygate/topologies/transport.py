"""The Faust transport that delivers chunks: one Faust event is a run of records of one partition.

Faust gives the process its shape (services, agents, supervision); this module gives it membership and records. The
group decides which partitions are ours (`Membership`); each input topic is read by a `Lane` of its own, so that a
backlog of usage never stands in front of requests. Between the two stand the `PartitionHooks`: a partition's records
are delivered from exactly the offsets that `opening` returned, and after `closing` was called nothing of it is
delivered, and nobody else is given it before `closing` has returned.

How an app is built:

    app = faust.App(settings.group, **app_settings(brokers="127.0.0.1:9092", data_dir=folder))
    transport_of(app).hooks = hooks                     # PartitionHooks; required
    transport_of(app).client_config = {...}             # librdkafka's, for security; optional

    @app.agent(chunk_topic(app, USAGE, REQUESTS), name="accounts")
    async def accounts(stream):
        async for event in chunk_events(app, stream):   # event.value is a Chunk, of one partition of one topic
            owners[event.message.partition].take(event.value, event.ack)

`event.ack()` says that the chunk is done with; it must come in order within a topic's partition. It makes room in the
lane (which stops taking when too much is unfinished) and moves the group's committed offset, a hint for people's tools.

A rebalance closes and opens only what moves; what stays is read on meanwhile. So Faust, whose own way is to stop
everything and to empty its queues, is told once of all partitions there are, and no more: `chunk_events` leaves out
what is still in its queues of a partition that was closed.

What ends the process: an agent or `opening` that raises and trouble on a lane, through Faust (`app.crash_reason` says
what, the worker's shutdown raises it); `closing` that raises or takes longer than `closing_seconds`, and a lost
session unless `lost` says otherwise, at once with exit code 70.

Faust's Consumer, Fetcher and Conductor are used as they are but for what is overridden here. There are no Faust
tables, no changelogs, no replies, no leader, and Faust's producer sends nothing.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import faust
from faust import streams
from faust.transport import base
from faust.transport import consumer as faust_consumer
from faust.transport import producer as faust_producer
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode import Service
from mode.supervisors import CrashingSupervisor

from tallygate.connectors.consuming import LaneTrouble, Partition
from tallygate.connectors.lanes import Lane, LaneLimits
from tallygate.schemas.records import Chunk
from tallygate.topologies.membership import Membership

SCHEME: Final = "tallygate://"
LOG_APPEND_TIME: Final = 1
#: More chunks than the lanes let out: a full stream buffer would hold up all lanes at once.
STREAM_BUFFER_CHUNKS: Final = 1 << 20


class PartitionHooks(Protocol):
    """The owners of partitions, told by number: a number stands for that partition of every input topic."""

    async def opening(self, partition: int) -> Mapping[str, int]:
        """Takes the partition over; returns the next offset to read of every input topic.

        May take long. When the partition is revoked meanwhile, `closing` is called while it runs, and should end it.
        """
        ...

    async def closing(self, partition: int) -> None:
        """Lets the partition go; called once for each `opening`. Acks made in here are still committed.

        An `opening` that still runs when this returns is cancelled.
        """
        ...

    async def lost(self, partitions: Collection[int]) -> bool | None:
        """The session has expired, as it does when the broker is away for longer: others may own them by now.

        True: all that belongs to them is put away, so the process stays and joins again. Otherwise it ends.
        """
        ...


def app_settings(
    *,
    brokers: str,
    data_dir: Path,
    session_timeout_ms: int = 10_000,
    instance_id: str | None = None,
) -> dict[str, Any]:
    """Faust's settings for an app on this transport. `brokers`: `host:port` with commas.

    `instance_id` makes the membership static: its partitions wait for the same id to come back within the session.
    """
    return {
        "broker": [SCHEME + broker.strip() for broker in brokers.split(",")],
        "datadir": data_dir,
        "broker_session_timeout": session_timeout_ms / 1000,
        "broker_heartbeat_interval": min(3.0, session_timeout_ms / 3000),
        "broker_max_poll_interval": 1800.0,  # a closing may wait long for a broker
        "broker_commit_interval": 1.0,
        "consumer_group_instance_id": instance_id or "",
        "agent_supervisor": CrashingSupervisor,
        "stream_buffer_maxsize": STREAM_BUFFER_CHUNKS,
        "stream_wait_empty": False,  # `closing` waits
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "web_enabled": False,
        "worker_redirect_stdouts": False,
        "autodiscover": False,
    }


def transport_of(app: Any) -> "Transport":
    return cast(Transport, app.transport)


def chunk_topic(app: Any, *topics: str) -> Any:
    """The Faust topic to give to `app.agent`: its values are `Chunk`s, and no codec of Faust's touches them."""
    return app.topic(*topics, schema=ChunkSchema())


async def chunk_events(app: Any, stream: Any) -> AsyncIterator[Any]:
    """The stream's events, without those of partitions that were closed meanwhile."""
    async for event in stream.noack().events():
        if app.consumer.is_current(event.value):
            yield event


class ChunkSchema(faust.Schema):  # type: ignore[misc]  # Faust ships no types that mypy follows
    def compile(self, app: Any, **_: Any) -> Any:
        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, None, message)

        return decode


class Consumer(faust_consumer.Consumer):  # type: ignore[misc]
    """Faust's consumer over a `Membership` and a `Lane` a topic. All of it runs on the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lanes: dict[str, Lane] = {}
        self._membership: Membership | None = None
        self._known_to_faust: set[Any] = set()  # of TP
        self._openings: dict[int, asyncio.Task[None]] = {}
        self._inbox: dict[str, deque[Chunk]] = {}
        self._arrived = asyncio.Event()
        self._unsettled: dict[Any, deque[Any]] = {}  # by TP: messages delivered and not acked, in order
        self._committable: dict[Any, int] = {}

    def unfinished(self, topic: str) -> tuple[int, int]:
        """Records delivered and not done with, and the bytes of their values; in any thread."""
        lane = self._lanes.get(topic)
        return (lane.unfinished_records, lane.unfinished_bytes) if lane else (0, 0)

    # The group.

    async def subscribe(self, topics: Collection[str]) -> None:
        """Joins the group and opens the lanes. Faust calls it once the agents have started."""
        names = sorted(topics)
        if self._membership is not None:
            assert names == sorted(self._lanes), "the input topics are fixed when the app starts"
            return
        transport, conf = self.transport, self.app.conf
        for topic in names:
            self._inbox[topic] = deque()
            self._lanes[topic] = Lane(
                transport.brokers,
                name=topic,
                group=conf.id,
                deliver=self._inbox_of(topic),
                trouble=self.on_trouble,
                loop=self.loop,
                limits=transport.limits.get(topic),
                client_config={**transport.lane_config.get(topic, {}), **transport.client_config},
            )
        self._membership = Membership(
            transport.brokers,
            group=conf.id,
            topics=names,
            listener=self,
            loop=self.loop,
            closing_seconds=transport.closing_seconds,
            config={**transport.group_config(), **transport.client_config},
        )

    async def on_assigned(self, numbers: Sequence[int]) -> None:
        assert self._membership is not None
        if numbers[-1] >= self._membership.partitions:
            raise LaneTrouble(f"there is a partition {numbers[-1]} now: partition counts must stay as they were")
        if not self._known_to_faust:
            self._known_to_faust = {TP(topic, n) for topic in self._lanes for n in range(self._membership.partitions)}
            self.app.on_rebalance_start()
            self.app.consumer_generation_id += 1
            await self.on_partitions_assigned(self._known_to_faust, self.app.consumer_generation_id)
        for number in numbers:
            self._openings[number] = self.loop.create_task(self._open(number))

    async def on_revoked(self, numbers: Sequence[int]) -> Mapping[Partition, int]:
        await self._stop_openings(numbers)
        self._stop_delivery(numbers)
        await asyncio.gather(*(self.transport.hooks.closing(number) for number in numbers))
        self._settle()
        gone = [TP(topic, number) for topic in self._lanes for number in numbers]
        offsets = {(tp.topic, tp.partition): self._committable[tp] for tp in gone if tp in self._committable}
        self._forget(numbers)
        return offsets

    async def on_lost(self, numbers: Sequence[int]) -> bool:
        await self._stop_openings(numbers)
        self._stop_delivery(numbers)
        stays = await self.transport.hooks.lost(numbers)
        self._forget(numbers)
        return bool(stays)

    async def _stop_openings(self, numbers: Sequence[int]) -> None:
        """No opening goes on beside its closing, which could not undo it."""
        openings = [self._openings.pop(number) for number in numbers]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)

    def _stop_delivery(self, numbers: Sequence[int]) -> None:
        for topic, lane in self._lanes.items():
            lane.drop((topic, number) for number in numbers)

    def _forget(self, numbers: Sequence[int]) -> None:
        for topic in self._lanes:
            for number in numbers:
                self._committable.pop(TP(topic, number), None)
                self._unsettled.pop(TP(topic, number), None)

    async def _open(self, number: int) -> None:
        try:
            offsets = await self.transport.hooks.opening(number)
            absent = self._lanes.keys() - offsets.keys()
            if absent:
                raise LaneTrouble(f"partition {number} was opened without an offset for {', '.join(sorted(absent))}")
        except Exception as error:  # noqa: BLE001  # the partition cannot be served: Faust ends the process
            if number in self._openings:
                await self.crash(error)
            return
        if number not in self._openings:
            return  # revoked meanwhile
        for topic, lane in self._lanes.items():
            lane.start({(topic, number): offsets[topic]})

    def on_trouble(self, trouble: LaneTrouble) -> None:
        self.add_future(self.crash(trouble))

    async def on_stop(self) -> None:
        if self._membership is not None:
            await self._membership.leave()
        for lane in self._lanes.values():
            await asyncio.to_thread(lane.close)

    # Delivery.

    def _inbox_of(self, topic: str) -> Any:
        waiting = self._inbox[topic]

        def arrive(chunks: list[Chunk]) -> None:
            waiting.extend(chunks)
            self._arrived.set()

        return arrive

    async def deliver_chunks(self) -> None:
        """Hands chunks to Faust, one of each topic in turn; run by the Fetcher."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while any(self._inbox.values()):
                for waiting in self._inbox.values():
                    if not self.flow_active:
                        await self.can_resume_flow.wait()
                    if waiting:
                        await self._deliver(waiting.popleft())

    def is_current(self, chunk: Chunk) -> bool:
        """Whether the partition is still open, and read under the assignment that the chunk came from."""
        return self._lanes[chunk.topic].is_current(chunk)

    async def _deliver(self, chunk: Chunk) -> None:
        if not self.is_current(chunk):
            return
        message = self._message(chunk)
        self._unsettled.setdefault(message.tp, deque()).append(message)
        await self.callback(message)

    def _message(self, chunk: Chunk) -> Any:
        last = chunk.records[-1]
        return ConsumerMessage(
            chunk.topic,
            chunk.partition,
            last.offset,
            last.timestamp_ms / 1000,
            LOG_APPEND_TIME,
            None,
            None,
            chunk,
            None,
            0,
            chunk.value_bytes,
            TP(chunk.topic, chunk.partition),
            generation_id=self.app.consumer_generation_id,
        )

    # Acks and commits.

    def ack(self, message: Any) -> bool:
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        self._settle(message.tp)
        return True

    def _settle(self, tp: Any = None) -> None:
        """Lets go of what is acked, in order; a stream that acks by itself does so without calling `ack`."""
        for each in list(self._unsettled) if tp is None else [tp]:
            waiting = self._unsettled.get(each)
            while waiting and waiting[0].acked:
                message = waiting.popleft()
                self._lanes[message.topic].done(message.value)
                self._committable[each] = message.offset + 1

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        self._settle()
        if not self._committable or self._membership is None:
            return False
        self._membership.commit({(tp.topic, tp.partition): offset for tp, offset in self._committable.items()})
        self._committable.clear()
        return True

    # What Faust asks of a consumer.

    def assignment(self) -> set[Any]:
        return self._known_to_faust

    async def perform_seek(self) -> None:
        """Nothing: the lanes start where `opening` says, not at committed offsets."""

    def on_buffer_full(self, tp: Any) -> None:
        """Nothing: the lanes have their own limits."""

    def on_buffer_drop(self, tp: Any) -> None: ...

    def highwater(self, tp: Any) -> int:
        raise NotImplementedError("ask the lane for its end offsets")

    def _unused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("Faust's tables, seeks and topic declarations are not used")

    seek_to_committed = _seek = _getmany = _to_message = _new_topicpartition = _unused
    create_topic = topic_partitions = key_partition = _unused
    position = earliest_offsets = highwaters = seek_wait = _commit = _unused


class Fetcher(Service):  # type: ignore[misc]
    """The task in which chunks are delivered; Faust starts it after a rebalance and stops it at the end."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        super().__init__(**kwargs)

    @Service.task  # type: ignore[untyped-decorator]
    async def _deliver(self) -> None:
        await self.app.consumer.deliver_chunks()


class Producer(faust_producer.Producer):  # type: ignore[misc]
    """There because Faust starts one. Tallygate writes the journal and its answers by other means."""

    async def flush(self) -> None: ...


class Transport(base.Transport):  # type: ignore[misc]
    """The `faust.transports` entry point. `limits` and `lane_config` are by topic."""

    Consumer = Consumer
    Producer = Producer
    Fetcher = Fetcher
    driver_version = "tallygate"

    hooks: PartitionHooks
    closing_seconds: float = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.client_config: dict[str, Any] = {}
        self.limits: dict[str, LaneLimits] = {}
        self.lane_config: dict[str, Mapping[str, Any]] = {}

    @property
    def brokers(self) -> str:
        return ",".join(url.raw_authority for url in self.url)  # with the brackets of an IPv6 address

    def create_consumer(self, callback: Any, **kwargs: Any) -> Any:
        # The stream in pure Python acks what it skips, so that a chunk would be lost in a rebalance.
        assert streams._CStreamIterator is not None, "Faust's compiled stream is missing: is NO_CYTHON set?"
        assert hasattr(self, "hooks"), "transport_of(app).hooks is not set"
        return super().create_consumer(callback, **kwargs)

    def group_config(self) -> dict[str, Any]:
        """librdkafka's settings of the membership, from Faust's."""
        conf = self.app.conf
        config = {
            "session.timeout.ms": round(conf.broker_session_timeout * 1000),
            "heartbeat.interval.ms": round(conf.broker_heartbeat_interval * 1000),
            "max.poll.interval.ms": round((conf.broker_max_poll_interval or 0) * 1000),
            "client.id": conf.broker_client_id,
        }
        if conf.consumer_group_instance_id:
            config["group.instance.id"] = conf.consumer_group_instance_id
        return config
