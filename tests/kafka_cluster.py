"""Three brokers on this machine, each also a controller of the quorum: one may be killed, and all goes on."""

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka.admin import AdminClient

from tallygate.connectors import kafka_folder
from tallygate.connectors.kafka_fetch import fetch_jars
from tallygate.connectors.kafka_local import FREE_PORTS, HOST, LocalKafka, _bind_error

NODES: Final = (1, 2, 3)
_HEAP_MB: Final = 256
_REPLICATED: Final = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "replica.lag.time.max.ms": "5000",
    "log.cleaner.threads": "1",
}


class KafkaCluster:
    """`with KafkaCluster(folder) as kafka: ... kafka.bootstrap`; `kill` and `start_again` take a node's number."""

    def __init__(self, folder: Path) -> None:
        ports = iter(_free_ports(2 * len(NODES)))
        places = {node: (next(ports), next(ports)) for node in NODES}
        voters = ",".join(f"{node}@{HOST}:{controller}" for node, (_, controller) in places.items())
        id = kafka_folder.new_cluster_id()
        self.nodes = {
            node: LocalKafka(
                folder / f"kafka-{node}",
                port,
                heap_mb=_HEAP_MB,
                up_seconds_max=120,
                cluster_id=id,
                properties={
                    "node.id": str(node),
                    "controller.quorum.voters": voters,
                    "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller}",
                    **_REPLICATED,
                },
            )
            for node, (port, controller) in places.items()
        }
        self.bootstrap = ",".join(f"{HOST}:{port}" for port, _ in places.values())

    def __enter__(self) -> Self:
        fetch_jars()
        try:
            with ThreadPoolExecutor(len(NODES)) as pool:  # none of them is up before two are
                list(pool.map(LocalKafka.start, self.nodes.values()))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        with ThreadPoolExecutor(len(NODES)) as pool:
            list(pool.map(LocalKafka.stop, self.nodes.values()))

    def kill(self, node: int) -> None:
        self.nodes[node].kill()

    def start_again(self, node: int) -> None:
        self.nodes[node].start()

    def leaders(self, topic: str) -> dict[int, int]:
        """By partition, as the cluster says now; -1 where there is none."""
        found = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(topic, timeout=30)
        return {number: partition.leader for number, partition in found.topics[topic].partitions.items()}

    def await_copies(self, topic: str) -> None:
        """Until every partition has all its copies again."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        for _ in range(600):
            partitions = admin.list_topics(topic, timeout=30).topics[topic].partitions.values()
            if all(len(partition.isrs) == len(NODES) for partition in partitions):
                return
            time.sleep(0.1)
        raise AssertionError(f"{topic} has not all its copies: {self.leaders(topic)}")


def _free_ports(number: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(FREE_PORTS, 400):
        with contextlib.suppress(OSError):
            if _bind_error(port) is None:
                found.append(port)
            if len(found) == number:
                return found
    raise AssertionError("no free ports")
