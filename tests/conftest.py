"""Fixtures for all tests.

`kafka` is one broker for the session; its topics belong to all of the session's tests. `module_kafka` and `fresh_kafka`
are a module's and a test's own for as long as it runs, with all of Tallygate's topics in 4 partitions and nothing in
them; they can be killed and restarted. `broker_pool` lends others, without topics.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from kafka_fixture import Broker, BrokerPool, ContainerKafka, own_kind, shared_broker, shared_kind, with_topics
from leftovers import left_behind, mark
from tallygate.connectors.kafka_fetch import fetch_jars
from tallygate.connectors.kafka_local import LocalKafka, LocalKafkaError

_OWN = {"broker_pool", "module_kafka", "fresh_kafka"}


def pytest_report_header() -> str:
    return f"Kafka: {shared_kind()}; where a test needs its own: {own_kind()}"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a test of a broker of its own, or of its session's, runs on whichever worker has room.

    Any other stays with its file, whose tests may share something.
    """
    for item in items:
        if isinstance(item, pytest.Function) and not {"kafka", "fresh_kafka"}.intersection(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetches Kafka before the first test, whose time limit is not meant for that."""
    asked = {name for item in session.items if isinstance(item, pytest.Function) for name in item.fixturenames}
    local = "a local broker"
    if (shared_kind() == local and "kafka" in asked) or (own_kind() == local and asked & _OWN):
        with contextlib.suppress(LocalKafkaError):  # the fixture raises it again, where it is seen
            fetch_jars(on_progress=print)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    session = mark()
    yield
    found = left_behind(session)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not found, f"processes were left behind (and are ended now): {found}"


@pytest.fixture(scope="session")
def kafka(_nothing_left_behind: None) -> Iterator[Broker]:
    with shared_broker() as broker:
        yield broker


@pytest.fixture(scope="session")
def broker_pool(_nothing_left_behind: None) -> Iterator[BrokerPool]:
    with BrokerPool() as pool:
        yield pool


@pytest.fixture(scope="module")
def module_kafka(broker_pool: BrokerPool) -> Iterator[LocalKafka | ContainerKafka]:
    with broker_pool.borrowed() as broker:
        with_topics(broker)
        yield broker


@pytest.fixture
def fresh_kafka(broker_pool: BrokerPool) -> Iterator[LocalKafka | ContainerKafka]:
    with broker_pool.borrowed() as broker:
        with_topics(broker)
        yield broker
