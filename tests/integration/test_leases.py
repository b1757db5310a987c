"""Leases on a real broker and worker: clients in processes of their own on one budget, one of them killed."""

import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from asker import Asker
from kafka_fixture import Broker
from lease_process import METER, LeaseProcess
from partition import CATALOG
from tallygate.connectors.client import Denied, TallygateSync
from tallygate.schemas.answers import Statement
from tallygate.schemas.reasons import Reason
from worker_process import WorkerProcess

LIMIT = 1_000


@pytest.fixture(scope="module")
def brokers(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    asker = Asker(module_kafka.bootstrap)
    asker.apply(CATALOG)
    asker.close()
    folder: Path = tmp_path_factory.mktemp("worker")
    with WorkerProcess(module_kafka.bootstrap, folder / "a"):
        yield module_kafka.bootstrap


@pytest.fixture
def client(brokers: str) -> Iterator[TallygateSync]:
    with TallygateSync(brokers, service="cli", timeout=60) as started:
        yield started


def give(client: TallygateSync, customer: str) -> None:
    client.grant(customer, 10_000)
    client.set_budget(customer, "tokens", LIMIT, unit=METER)


def budget(statement: Statement) -> tuple[Decimal, Decimal]:
    """Used, held."""
    [limit] = statement.limits
    return Decimal(limit.used), Decimal(limit.held)


def test_clients_together_take_the_limit_and_no_more_and_a_killed_ones_lease_comes_back(
    brokers: str, client: TallygateSync
) -> None:
    give(client, "acme")
    with LeaseProcess(brokers, "acme", first=400, ttl=6, take=50) as killed:
        killed.go()
        killed.wait_for("waits")
        assert budget(client.balance("acme"))[1] > 0
        killed.kill()
        with (
            LeaseProcess(brokers, "acme", first=50, ttl=20) as one,
            LeaseProcess(brokers, "acme", first=50, ttl=20) as other,
        ):
            one.wait_for("ready")
            other.go()
            one.go()
            until = time.monotonic() + 60
            while budget(client.balance("acme")) != (LIMIT, 0) and time.monotonic() < until:
                time.sleep(0.1)
            for each in (one, other):  # they ask on, and get nothing more
                each.wait_for("no", 5)
            one.close()
            other.close()
            # Where the machine was slow, the killed one had renewed its slice, and settled what it had taken.
            assert one.taken + other.taken in (LIMIT, LIMIT - 50)
            assert min(one.taken, other.taken) > 0
    assert budget(client.balance("acme")) == (LIMIT, 0)


def test_the_rest_comes_back_and_what_was_taken_is_settled_in_batches(client: TallygateSync) -> None:
    give(client, "globex")
    with client.lease("globex", feature="llm", quantities={METER: 100, "calls": 100}) as lease:
        for _ in range(7):
            assert lease.take({METER: 3, "calls": 1})
        assert not lease.take({METER: 300})
        assert lease.acquire({METER: 300})
        assert sum(budget(client.balance("globex"))) >= 321
    statement = client.balance("globex")
    assert budget(statement) == (321, 0)
    assert statement.holds == ()
    assert Decimal(statement.pools[0].balance) == 10_000 - Decimal("0.642")


def test_a_strict_customer_gets_none_and_reserves(client: TallygateSync) -> None:
    give(client, "hooli")
    client.set_customer("hooli", strict=True)
    with pytest.raises(Denied) as caught:
        client.lease("hooli", feature="llm", quantities={METER: 10})
    assert caught.value.reason is Reason.CUSTOMER_STRICT
    with client.reserve("hooli", feature="llm", quantities={METER: 10}) as hold:
        assert hold.settle({METER: 4}).allowed
    client.set_customer("hooli", strict=False)
    with client.lease("hooli", feature="llm", quantities={METER: 10}) as lease:
        assert lease.take({METER: 1})
