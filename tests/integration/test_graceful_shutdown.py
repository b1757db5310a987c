"""SIGTERM under load: a worker answers all requests that it took in, leaves the others as they are, and ends with 0."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from asker import REPLY_TOPIC, Asker, decided, records
from integration.test_worker import CATALOG, CUSTOMERS, grant, reserve
from kafka_fixture import Broker
from tallygate.schemas.answers import decode_answer
from worker_process import WorkerProcess

SEED = int(os.environ.get("SEED", "1"))
CROWD, EVERY_SECONDS = 300, 0.1
ROUNDS = 2
TAKEN_IN = 'tallygate_chunk_records_sum{topic="tallygate.requests.v1"}'


@pytest.fixture
def asker(fresh_kafka: Broker) -> Iterator[Asker]:
    asker = Asker(fresh_kafka.bootstrap)
    asker.apply(CATALOG)
    yield asker
    asker.close()


def answered(brokers: str) -> Counter[str]:
    """How often each request was answered, by the reply topic itself."""
    return Counter(decode_answer(r.value or b"").id for r in records(brokers, REPLY_TOPIC))


def journaled(brokers: str) -> set[str]:
    return {id for _, id, _ in decided(brokers)}


class Sender:
    """Sends reservations, a crowd every now and then, from `with` on until its end; never again what was sent."""

    def __init__(self, asker: Asker, name: str) -> None:
        self.sent: list[str] = []
        self._asker = asker
        self._name = name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        customers = list(CUSTOMERS.values())
        while not self._ended.wait(EVERY_SECONDS):
            asks = [
                reserve(f"{self._name}-{len(self.sent) + n}", customers[n % len(customers)], 1) for n in range(CROWD)
            ]
            self.sent += [ask.id for ask in asks]
            self._asker.ask_nobody(*asks)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()


def test_what_was_taken_in_is_answered_and_the_rest_waits_for_the_next_worker(
    fresh_kafka: Broker, asker: Asker, tmp_path: Path
) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    brokers = fresh_kafka.bootstrap
    sent = [f"g{n}" for n in CUSTOMERS]
    asker.ask_nobody(*(grant(f"g{n}", c, 10**6) for n, c in CUSTOMERS.items()))
    before = 0
    for number in range(ROUNDS):
        with Sender(asker, f"r{number}") as sender:
            with WorkerProcess(brokers, tmp_path, step_requests_max=8) as worker:
                while not worker.metrics().get(TAKEN_IN):
                    assert worker.process.poll() is None, worker.log()
                time.sleep(chance.uniform(0, 0.3))
                taken_in = worker.metrics()[TAKEN_IN]
                assert worker.stop(60) == 0
            time.sleep(2 * EVERY_SECONDS)  # some come when nobody is there
        sent += sender.sent
        # Nobody asks again: each decision has its answer, and a request without one has left no trace.
        assert answered(brokers) == Counter(journaled(brokers))
        done = len(journaled(brokers))
        assert taken_in <= done - before
        assert done < len(sent)
        before = done
    with WorkerProcess(brokers, tmp_path) as worker:
        while len(asker.answers) < len(sent):
            assert worker.process.poll() is None, worker.log()
            asker.poll(0.2)
        assert worker.stop() == 0
    assert answered(brokers) == Counter(sent)
