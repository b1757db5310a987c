"""Which Kafka the tests talk to: a given cluster, a container, or a local broker."""

import contextlib
import functools
import gc
import os
import shutil
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol, Self

import docker
import pytest
from testcontainers.community.kafka import KafkaContainer

from tallygate.connectors.kafka_admin import declare_topics
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.topics import topic_specs
from topic_waits import await_leaders, remove_topics

PARTITIONS = 4
GIVEN = "TALLYGATE_KAFKA_BROKERS"


class Broker(Protocol):
    @property
    def bootstrap(self) -> str: ...


class GivenKafka:
    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap


class ContainerKafka:
    """A broker in a container. It is not killed and restarted: a test that asks for that is skipped."""

    def __init__(self) -> None:
        self._container: Any = KafkaContainer().with_kraft().with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")

    def __enter__(self) -> "ContainerKafka":
        self._container.start()
        self.bootstrap: str = self._container.get_bootstrap_server()
        return self

    def __exit__(self, *_: object) -> None:
        self._container.stop()

    def kill(self) -> NoReturn:
        pytest.skip("a broker that can be killed needs Java 17+ and Maven")

    start = stop = restart = kill


@functools.cache
def docker_answers() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # without an engine, the client forgets to close its socket
        try:
            with contextlib.closing(docker.from_env(timeout=5)) as client:
                return bool(client.ping())
        except (docker.errors.DockerException, OSError):
            return False
        finally:
            gc.collect()


def java_and_maven() -> bool:
    return shutil.which("java") is not None and shutil.which("mvn") is not None


def shared_kind() -> str:
    if os.environ.get(GIVEN):
        return f"given by {GIVEN}: {os.environ[GIVEN]}"
    return "a container" if docker_answers() else "a local broker"


def own_kind() -> str:
    """Tests that break their broker get one of their own, local where that can be."""
    return "a local broker" if java_and_maven() or not docker_answers() else "a container"


@contextlib.contextmanager
def shared_broker() -> Iterator[Broker]:
    if given := os.environ.get(GIVEN):
        yield GivenKafka(given)
    elif docker_answers():
        with contextlib.ExitStack() as stack:
            yield _container_or_local(stack)
    else:
        with LocalKafka() as local:
            yield local


def _container_or_local(stack: contextlib.ExitStack) -> Broker:
    try:
        return stack.enter_context(ContainerKafka())
    except Exception as error:  # noqa: BLE001 - whatever Docker's client raises; said aloud, and another way is taken
        warnings.warn(f"Docker answers but gives no Kafka ({error}): a local broker is used", stacklevel=1)
        return stack.enter_context(LocalKafka())


class BrokerPool:
    """Brokers that tests break, or want without foreign topics: lent to one after the other, started only when needed.

    Each borrower finds a broker that runs and has no topics. Groups and transactional ids stay: tests name their own.
    """

    def __init__(self) -> None:
        self._idle: list[LocalKafka | ContainerKafka] = []
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[LocalKafka | ContainerKafka]:
        broker = self._idle.pop() if self._idle else self._new()
        if isinstance(broker, LocalKafka) and not broker.running:
            broker.start()
        remove_topics(broker.bootstrap)
        yield broker
        self._idle.append(broker)

    def _new(self) -> LocalKafka | ContainerKafka:
        return self._stack.enter_context(LocalKafka() if own_kind() == "a local broker" else ContainerKafka())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def with_topics(broker: Broker) -> None:
    declare_topics({"bootstrap.servers": broker.bootstrap}, topic_specs(PARTITIONS))
    await_leaders(broker.bootstrap)


#: For tests of the local broker itself. Where there is no Docker either, they run and say what is missing.
needs_java = pytest.mark.skipif(
    own_kind() != "a local broker", reason="Kafka runs in containers here: no Java and Maven"
)
