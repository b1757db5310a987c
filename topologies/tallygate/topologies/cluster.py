"""What a worker asks of the cluster besides records: whether it is there, its topics, and where a partition begins and
ends. Brokers that are away are waited for.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tallygate.connectors.consuming import ELECTING, PASSING, broker_watch
from tallygate.connectors.kafka_security import Heard, said_of
from tallygate.schemas import topics
from tallygate.topologies.settings import Settings

_T = TypeVar("_T")

_ASK_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.5
#: For so long, that a leader is being elected is not worth a line.
_ELECTION_SECONDS: Final = 5.0

#: The topics without which a worker cannot start; the first three must have the same number of partitions.
NEEDED: Final = (topics.JOURNAL, topics.USAGE, topics.REQUESTS, topics.CATALOG, topics.DEAD_LETTERS)


class ClusterTrouble(Exception):
    """The cluster is there and not as it must be; one line says what to do."""


class Layout:
    """`journal_id` is Kafka's own id of the journal topic: another cluster's, or one made anew, has another."""

    def __init__(self, partitions: int, journal_id: str) -> None:
        self.partitions = partitions
        self.journal_id = journal_id


class Cluster:
    """Questions to the brokers. All methods belong to the event loop and wait for as long as the brokers are away."""

    def __init__(self, settings: Settings) -> None:
        self._brokers = settings.kafka_brokers
        self._watch = broker_watch(settings.kafka_brokers)
        self._heard = Heard()
        self._admin = AdminClient({**settings.librdkafka, "log_level": 2, "error_cb": self._heard})

    async def layout(self) -> Layout:
        """The topics as they are. Raises `ClusterTrouble` where one is missing or counts differ."""

        def ask() -> Any:
            futures = self._admin.describe_topics(TopicCollection(list(NEEDED)), request_timeout=_ASK_SECONDS)
            return {name: future.result() for name, future in futures.items()}

        try:
            found = await self._patiently(ask)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise ClusterTrouble(f"{self._brokers}: {said_of(error.args[0])}") from error
            raise ClusterTrouble(
                f"{self._brokers} has not all of Tallygate's topics ({', '.join(NEEDED)}): run `tallygate topics`"
            ) from None
        counts = {name: len(found[name].partitions) for name in NEEDED[:3]}
        if len(set(counts.values())) != 1:
            text = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ClusterTrouble(f"the inputs and the journal must have the same number of partitions: {text}")
        # librdkafka writes the id with signs that a file name cannot hold; Kafka's own tools write it like this.
        journal_id = str(found[topics.JOURNAL].topic_id).replace("/", "_").replace("+", "-")
        return Layout(counts[topics.JOURNAL], journal_id)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset there is, and the one that the next record will have."""
        place = TopicPartition(topic, partition)

        def ask() -> tuple[int, int]:
            first = self._admin.list_offsets({place: OffsetSpec.earliest()}, request_timeout=_ASK_SECONDS)
            last = self._admin.list_offsets({place: OffsetSpec.latest()}, request_timeout=_ASK_SECONDS)
            try:
                return next(iter(first.values())).result().offset, next(iter(last.values())).result().offset
            except KafkaException:
                # librdkafka goes on asking the leader that it knows, under the epoch that it knows, for a quarter of an
                # hour, unless it is made to look for the present one.
                self._admin.list_topics(topic, timeout=_ASK_SECONDS)
                raise

        try:
            return await self._patiently(ask)
        except KafkaException as error:
            raise ClusterTrouble(f"{topic} partition {partition}: {said_of(error.args[0])}") from error

    async def _patiently(self, ask: Callable[[], _T]) -> _T:
        elected_by = time.monotonic() + _ELECTION_SECONDS
        while True:
            try:
                answer = await asyncio.to_thread(ask)
            except KafkaException as error:
                if error.args[0].code() not in PASSING and not error.args[0].retriable():
                    raise
                self._admin.poll(0)  # delivers what was heard
                if self._heard.refused:
                    raise ClusterTrouble(
                        f"Kafka at {self._brokers} does not let this worker in: {self._heard.refused}"
                    ) from error
                if error.args[0].code() not in ELECTING or time.monotonic() > elected_by:
                    self._watch.away("worker", self._heard.last or error.args[0].str())
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                self._heard.refused = ""
                self._watch.back("worker")
                return answer
