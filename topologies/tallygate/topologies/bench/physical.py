"""The limits of broker and library, asked for in the same run as what is compared with them."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tallygate.connectors.kafka_admin import KafkaRefused
from tallygate.topologies.bench.cluster import BenchCluster
from tallygate.topologies.bench.figures import percentiles
from tallygate.topologies.bench.jobs import Echoed, EchoJob, Limits, LimitsJob, UsageSent
from tallygate.topologies.bench.processes import BenchProcess
from tallygate.topologies.bench.usage_load import EVENT_TYPE

#: Measured for a part of the run's own time, and no longer than makes a difference.
_PART: Final = 1 / 4
_SECONDS_MAX: Final = 3.0
_ECHO_SECONDS_MIN: Final = 2.0
_ADMIN_SECONDS: Final = 30.0
_READY_SECONDS: Final = 30.0


def bare_limits(cluster: BenchCluster, sent: UsageSent, seconds: float) -> Limits:
    """Produce and consume alone, with records of the same size; decoding, too, where a record is an event."""
    with _topics(cluster, "limits", cluster.partitions) as topic:
        job = LimitsJob(
            kafka=cluster.kafka,
            topic=topic,
            partitions=cluster.partitions,
            value=_event(sent.value_bytes * sent.events_per_record // sent.events),
            seconds=min(seconds * _PART, _SECONDS_MAX),
            decode=sent.events_per_record == 1,
        )
        with BenchProcess(cluster.folder, "limits", job, Limits) as process:
            return process.result(cluster.check)


def bare_echo(cluster: BenchCluster, rate: int, clients: int, seconds: float) -> dict[str, Any]:
    """Request and reply between two processes that do nothing else, in the same shape as the decisions."""
    with _topics(cluster, "echo-requests", 1) as requests, _topics(cluster, "echo-replies", 1) as replies:
        echo = EchoJob(kafka=cluster.kafka, requests=requests, replies=replies, ask=False)
        asking = EchoJob(
            kafka=cluster.kafka,
            requests=requests,
            replies=replies,
            ask=True,
            rate=rate,
            clients=clients,
            seconds=min(max(_ECHO_SECONDS_MIN, seconds * _PART), _SECONDS_MAX),
        )
        with BenchProcess(cluster.folder, "echo", echo, Echoed) as other:
            other.wait_until(bool, _READY_SECONDS, cluster.check)
            with BenchProcess(cluster.folder, "echo", asking, Echoed) as process:
                echoed = process.result(cluster.check)
    return {**percentiles("echo_ms", echoed.latencies_ms), "echo_per_second": round(echoed.answers_per_second)}


@contextmanager
def _topics(cluster: BenchCluster, what: str, partitions: int) -> Iterator[str]:
    """A topic for as long as it is needed."""
    topic = f"tallygate.bench.{what}.{secrets.token_hex(4)}"
    admin = AdminClient({**cluster.settings.librdkafka, "log_level": 0, "error_cb": lambda error: None})
    try:
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(_ADMIN_SECONDS)
    except KafkaException as error:
        raise KafkaRefused(f"topic {topic} cannot be created: {error.args[0].str()}") from error
    try:
        yield topic
    finally:
        admin.delete_topics([topic])[topic].result(_ADMIN_SECONDS)


def _event(size: int) -> bytes:
    """A usage event of about so many bytes."""
    head = (
        f'{{"specversion":"1.0","source":"/tallygate/bench","id":"0","type":"{EVENT_TYPE}","subject":"bench",'
        '"time":"2026-01-01T00:00:00Z","data":{"tokens":1000,"agent":"agent-1","model":"large","team":"team-1","user":"'
    )
    return f'{head}{"u" * max(1, size - len(head) - 3)}"}}}}'.encode()
