"""Workers killed with SIGKILL while reservations run: every call is answered once, nothing is lost or doubled."""

import os
import random
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from asker import Asker, counted, decided, entries
from integration.test_worker import CATALOG, CUSTOMERS, PARTITIONS, grant, reserve, until_owned
from kafka_fixture import ContainerKafka
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.requests import Release, Request, Settle
from worker_process import WorkerProcess

SEED = int(os.environ.get("SEED", "1"))
GRANTED = 500
POINTS = ("appended", "read_back", "table_written", "answered", "dead_lettered", "opened", "recovering")


@pytest.fixture
def asker(fresh_kafka: LocalKafka | ContainerKafka) -> Iterator[Asker]:
    asker = Asker(fresh_kafka.bootstrap)
    asker.apply(CATALOG)
    yield asker
    asker.close()


class Load:
    """Rounds of reservations, settlements, releases and usage, and what must be true of them in the end."""

    def __init__(self, asker: Asker, seed: int) -> None:
        self.asker = asker
        self._random = random.Random(seed)
        self._held: list[tuple[str, str]] = []
        self._round = 0
        self.asked: list[Request] = []
        self.used: dict[str, int] = {}

    def round(self) -> None:
        """One round, sent at once, and repeated until all of it is answered."""
        self._round += 1
        asks: list[Request] = []
        for n, customer in CUSTOMERS.items():
            asks += [reserve(f"r{self._round}-{n}-{i}", customer, self._random.randint(1, 40)) for i in range(10)]
            ids = [f"e{self._round}-{n}-{i}" for i in range(20)]
            self.asker.use(customer, *ids)
            self.asker.use(customer, *ids[:5])  # a producer that repeats itself
            self.asker.put("tallygate.usage.v1", b"{", customer, n)
            self.used[customer] = self.used.get(customer, 0) + 20
        for hold, customer in self._held:
            credits = Decimal(self._random.randint(0, 10))
            asks.append(
                Settle(id=f"s-{hold}", customer=customer, hold=hold, credits=credits)
                if self._random.random() < 0.5
                else Release(id=f"x-{hold}", customer=customer, hold=hold)
            )
        self._random.shuffle(asks)
        answers = self.asker.ask(*asks, seconds=120)
        self.asked += asks
        self._held = [(a.hold.id, a.customer) for a in answers if a.op == "reserve" and a.allowed and a.hold]

    def verify(self) -> None:
        brokers = self.asker.brokers
        assert not self.asker.contradictions()
        for customer in self.used:  # late repetitions of usage events are in by now, too
            self.asker.ask(reserve(f"last-{customer}", customer, 1))
        in_ledger = decided(brokers)
        first = {id: answers[0] for id, answers in self.asker.answers.items()}
        for ask in self.asked:
            answer = first[ask.id]
            assert in_ledger[answer.op, ask.id, answer.allowed] == 1, ask
            assert in_ledger[answer.op, ask.id, not answer.allowed] == 0, ask
        assert counted(brokers) == self.used
        for customer in self.used:
            self._verify_ledger(customer)

    def _verify_ledger(self, customer: str) -> None:
        balances: dict[str, int] = {}
        for entry in entries(self.asker.brokers):
            if entry.customer == customer:
                for leg in entry.postings:
                    balances[leg.account] = balances.get(leg.account, 0) + leg.amount_nanos
                held = {k: v for k, v in balances.items() if k.startswith(("hold:", "grant:"))}
                assert min(held.values(), default=0) >= 0, (customer, entry)
        assert sum(balances.values()) == 0
        given = -sum(v for k, v in balances.items() if k.startswith("issued:"))
        assert given == GRANTED * 10**9


def kept_alive(
    brokers: str, folder: Path, crashes: list[tuple[str, int]], done: threading.Event, ends: list[int]
) -> None:
    """A supervisor: starts a worker again whenever it ends, each with the next crash, the last one without."""
    for crash in [*crashes, None]:
        with WorkerProcess(brokers, folder, crash=crash, instance_id="w") as worker:
            while worker.process.poll() is None and not done.wait(0.02):
                pass
            if worker.process.poll() is None:
                ends.append(worker.stop())
                return
            ends.append(worker.process.returncode)


def test_a_worker_killed_at_every_named_point_loses_and_doubles_nothing(
    fresh_kafka: LocalKafka | ContainerKafka, asker: Asker, tmp_path: Path
) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    crashes = [(point, 1 if point in ("opened", "recovering") else chance.randint(2, 12)) for point in POINTS]
    chance.shuffle(crashes)
    done, ends = threading.Event(), list[int]()
    keeper = threading.Thread(target=kept_alive, args=(fresh_kafka.bootstrap, tmp_path, crashes, done, ends))
    keeper.start()
    try:
        load = Load(asker, SEED)
        asker.ask(*(grant(f"g{n}", c, GRANTED) for n, c in CUSTOMERS.items()), seconds=120)
        while len(ends) < len(crashes):
            load.round()
        load.round()
        load.verify()
    finally:
        done.set()
        keeper.join(60)
    assert ends == [-9] * len(crashes) + [0]


def test_another_worker_takes_over_from_one_that_is_killed(
    fresh_kafka: LocalKafka | ContainerKafka, asker: Asker, tmp_path: Path
) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    brokers = fresh_kafka.bootstrap
    load = Load(asker, SEED)
    with WorkerProcess(brokers, tmp_path) as first, WorkerProcess(brokers, tmp_path) as second:
        until_owned(first, PARTITIONS // 2)
        until_owned(second, PARTITIONS // 2)
        asker.ask(*(grant(f"g{n}", c, GRANTED) for n, c in CUSTOMERS.items()))
        load.round()
        killer = threading.Timer(chance.uniform(0, 0.05), first.kill)
        killer.start()
        load.round()
        killer.join()
        load.round()
        until_owned(second, PARTITIONS)
        load.verify()
        assert second.stop() == 0
