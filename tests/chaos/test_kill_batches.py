"""Workers killed with SIGKILL while usage batches flow: every event counts once, however large the runs are."""

import os
import random
import threading
from pathlib import Path

from confluent_kafka import Producer

from asker import Asker, entries, records
from chaos.test_kill_worker import kept_alive
from kafka_fixture import ContainerKafka
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.connectors.usage_batches import encode_batch
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog, Feature, Meter, Rate
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import Balance, GiveGrant
from tallygate.schemas.usage_batch import BatchId, batch_headers
from worker_process import WorkerProcess

SEED = int(os.environ.get("SEED", "1"))
PARTITIONS = 4
CATALOG = Catalog(
    version=1,
    meters=(Meter("tokens", "llm.call", "sum", "tokens"),),
    features=(Feature("llm", ("credits",), ("tokens",), (Rate("tokens", 2, 1),)),),
)
CUSTOMERS = [f"c-{number:03}" for number in range(400)]
GRANTED = 1_000_000
POINTS = ("appended", "read_back", "table_written", "answered")


class Load:
    """Batches of many customers, each sent once or more, and what must come of them."""

    def __init__(self, brokers: str, chance: random.Random) -> None:
        self._chance = chance
        self._producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
        self._sequence = 0
        self._homes = {
            number: [c for c in CUSTOMERS if partition_of(c, PARTITIONS) == number] for number in range(PARTITIONS)
        }
        self.used: dict[str, int] = {}

    def send(self) -> None:
        for number, homes in self._homes.items():
            events = []
            for customer in self._chance.choices(homes, k=self._chance.randint(1, 300)):
                tokens = self._chance.randint(1, 9)
                events.append((customer, "llm.call", None, {"tokens": tokens}))
                self.used[customer] = self.used.get(customer, 0) + tokens
            self._sequence += 1
            headers = batch_headers(BatchId("load", 1, self._sequence))
            for _ in range(self._chance.choice((1, 1, 2))):
                self._producer.produce(topics.USAGE, encode_batch(events), partition=number, headers=headers)
            if self._chance.random() < 0.2:
                self._producer.produce(
                    topics.USAGE, b"wrong", partition=number, headers=batch_headers(BatchId("bad", 1, self._sequence))
                )
        self._producer.flush(60)


def test_batches_count_once_though_workers_are_killed_in_the_middle_of_runs(
    fresh_kafka: LocalKafka | ContainerKafka, tmp_path: Path
) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    brokers = fresh_kafka.bootstrap
    asker = Asker(brokers)
    asker.apply(CATALOG)
    load = Load(brokers, chance)
    with WorkerProcess(brokers, tmp_path, instance_id="w") as worker:
        asker.ask(*(GiveGrant(id="g" + c, customer=c, amount=GRANTED) for c in CUSTOMERS), seconds=120)
        assert worker.stop() == 0
    crashes = [(point, chance.randint(3, 20)) for point in (*POINTS, *chance.sample(POINTS, 2))]
    done, ends = threading.Event(), list[int]()
    keeper = threading.Thread(target=kept_alive, args=(brokers, tmp_path, crashes, done, ends))
    for _ in range(10):  # the first worker finds a backlog
        load.send()
    keeper.start()
    try:
        while len(ends) < len(crashes):
            load.send()
            asker.poll(0.1)
        load.send()
        asker.ask(*(Balance(id=f"b{c}", customer=c) for c in CUSTOMERS), seconds=120)
        for _ in range(200):
            found = tokens(brokers)
            if sum(found.values()) >= sum(load.used.values()):
                break
            asker.poll(0.1)
        assert tokens(brokers) == load.used
        ends_with = asker.ask(*(Balance(id=f"end-{c}", customer=c) for c in CUSTOMERS), seconds=120)
        left = {a.customer: a.statement.pools[0].balance for a in ends_with if a.statement is not None}
        assert left == {customer: str(GRANTED - 2 * load.used.get(customer, 0)) for customer in CUSTOMERS}
    finally:
        done.set()
        keeper.join(60)
        asker.close()
    assert ends == [-9] * len(crashes) + [0]
    assert dead(brokers) == {b"malformed"}


def tokens(brokers: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in entries(brokers):
        nanos = sum(delta.quantity_nanos for delta in entry.usage)
        if nanos:
            found[entry.customer] = found.get(entry.customer, 0) + nanos // 10**9
    return found


def dead(brokers: str) -> set[bytes]:
    return {dict(r.headers)[topics.HEADER_DEAD_REASON] for r in records(brokers, topics.DEAD_LETTERS)}
