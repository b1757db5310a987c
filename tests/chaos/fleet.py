"""The processes under test: a broker, workers, a sink into an embedded ClickHouse, and a second sink into a ClickHouse
server that can be taken away. All but the broker are started again whenever they end.
"""

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import Producer

from chaos.evidence import Killed
from chaos.supervised import Supervised
from kafka_cluster import KafkaCluster
from sink_world import ClickHouseServer
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.catalog import Catalog, catalog_key, encode_catalog
from tallygate.schemas.topics import CATALOG, JOURNAL
from tallygate.topologies.settings import Settings, load_settings

SESSION_MS: Final = 6_000
_TMPFS_MB: Final = 48
_CLONE_NEWNS: Final = 0x20000
_TESTS: Final = Path(__file__).parent.parent
_READY_SECONDS: Final = 90.0


class Worker(Supervised):
    """A worker that can be told to kill itself at a crash point. `data` holds its tables."""

    def __init__(self, folder: Path, name: str, brokers: str, *, lasting: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        settings = folder / "settings.json"
        chosen = {
            "kafka_brokers": brokers,
            "data_dir": str(self.data),
            "group": "chaos",
            "instance_id": name if lasting else "",
            "metrics_address": "",
            "session_timeout_ms": SESSION_MS,
        }
        settings.write_text(json.dumps(chosen))
        self._order = folder / "settings.json.crash"
        super().__init__(name, [str(_TESTS / "worker_process.py"), str(settings)], folder / "worker.log")

    def crash_at(self, point: str, passes: int) -> None:
        """It ends itself the next time (or the `passes`th) that it passes this point."""
        draft = self._order.with_suffix(".draft")
        draft.write_text(f"{point} {passes}")
        draft.replace(self._order)

    def forget_crash(self) -> None:
        self._order.unlink(missing_ok=True)

    def tables(self) -> list[Path]:
        return sorted(self.data.glob("workers/*/*/[0-9]*"))


def terms_in(said: str) -> list[tuple[int, int]]:
    """The partitions and terms that a worker says it has opened."""
    return [(int(p), int(term)) for p, term in re.findall(r"partition (\d+) opened: term (\d+)", said)]


class Sink(Supervised):
    def __init__(self, folder: Path, name: str, brokers: str, dsn: str = "", relay: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._order = folder / "crash"
        chosen: dict[str, Any] = {
            "kafka_brokers": brokers,
            "data_dir": str(folder),
            "clickhouse_dsn": dsn,
            "relay": relay,
            "sql_address": "127.0.0.1:0",
            "metrics_address": "",
        }
        self.settings: Settings = load_settings(**{**chosen, "data_dir": folder})
        self.database = folder / "clickhouse"
        given = json.dumps({"settings": chosen, "crash_file": str(self._order)})
        super().__init__(name, [str(_TESTS / "sink_process.py"), given], folder / "sink.log")

    def crash_in_insert(self, seconds: float) -> None:
        """It ends itself so many seconds into its next insert."""
        draft = self._order.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(self._order)


class Fleet:
    """`with Fleet(folder, workers, partitions, server=True) as fleet:`; nothing of it is left afterwards."""

    def __init__(
        self, folder: Path, workers: int, *, nodes: int, server: bool, small_disk: bool, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._number = workers
        self._stack = ExitStack()
        self._server_wanted = server
        self._disk_wanted = small_disk
        self.server: ClickHouseServer | None = None
        self.broker = KafkaCluster(folder) if nodes > 1 else LocalKafka(folder / "kafka", on_progress=say)
        self.workers: list[Worker] = []
        self.joiners: list[Worker] = []
        self.sinks: list[Sink] = []
        self.disk = "no disk was filled"
        self.broker_restarts = 0
        self.troubles: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.broker)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def start(self) -> None:
        """Workers and sinks; the topics must be there."""
        if self._disk_wanted:
            self.disk = self._small_disk(self._folder / "worker-0" / "data")
        for number in range(self._number):
            # The last one has no lasting name: when it ends, the group waits for its session, and others take over.
            lasting = number < self._number - 1 or self._number == 1
            self.workers.append(self._worker(f"worker-{number}", lasting=lasting))
        self.sinks.append(self._sink("sink", relay="decisions,postings,alerts"))
        if self._server_wanted:
            self.server = ClickHouseServer(self._folder / "clickhouse")
            self._stack.callback(self.server.kill)
            self.server.start()
            self.sinks.append(self._sink("server-sink", dsn=self.server.dsn))
            self.sinks[-1].database = self._folder / "clickhouse"

    def wait_ready(self) -> None:
        until = time.monotonic() + _READY_SECONDS
        for worker in self.workers:
            while "worker is ready" not in worker.said():
                if time.monotonic() > until:
                    raise TimeoutError(f"{worker.name} is not ready: {worker.said()[-500:]}")
                time.sleep(0.05)

    def join(self) -> Worker:
        """One more worker, without a lasting name."""
        self.joiners.append(self._worker(f"joiner-{len(self.joiners)}", lasting=False))
        return self.joiners[-1]

    def kill_broker(self, partition: int, meanwhile: Callable[[], None]) -> None:
        """Kills the broker (of three: the leader of this partition of the journal) and starts it again after that."""
        self.broker_restarts += 1
        if isinstance(self.broker, LocalKafka):
            self.broker.kill()
            self.broker.start()
            return
        leader = self.broker.leaders(JOURNAL)[partition]
        self.broker.kill(leader)
        meanwhile()
        self.broker.start_again(leader)
        self.broker.await_copies(JOURNAL)

    def publish(self, catalog: Catalog) -> None:
        producer = Producer({"bootstrap.servers": self.broker.bootstrap})
        producer.produce(CATALOG, encode_catalog(catalog), catalog_key(catalog.version))
        assert producer.flush(30) == 0

    def stop_all(self) -> None:
        """In order: the workers at once, then the sinks. Whoever runs must end with 0."""
        for group in ((*self.workers, *self.joiners), self.sinks):
            for each in group:
                each.hold()
            for each in [each for each in group if each.send(signal.SIGTERM)]:
                if code := each.stopped():
                    self.troubles.append(f"{each.name} was told to end, and ended with {code}: {each.said()[-300:]}")

    def killed(self) -> list[Killed]:
        """Every life of a worker that was ended by SIGKILL."""
        return [
            Killed(worker.name, life, terms_in(worker.words_of(life)))
            for worker in (*self.workers, *self.joiners)
            for life in worker.lives
            if life.code == -signal.SIGKILL
        ]

    def exits(self) -> dict[str, int]:
        """How the workers' lives ended, by exit code or signal."""
        codes = Counter(life.code for worker in (*self.workers, *self.joiners) for life in worker.lives)
        return {str(code): number for code, number in sorted(codes.items())}

    def _worker(self, name: str, *, lasting: bool) -> Worker:
        worker = Worker(self._folder / name, name, self.broker.bootstrap, lasting=lasting)
        self._stack.callback(worker.close)
        return worker

    def _sink(self, name: str, **given: str) -> Sink:
        sink = Sink(self._folder / name, name, self.broker.bootstrap, **given)
        self._stack.callback(sink.close)
        return sink

    def _small_disk(self, folder: Path) -> str:
        """A disk of its own for one worker's tables, where this process may mount one."""
        folder.mkdir(parents=True, exist_ok=True)
        why = private_mounts()
        if not why:
            ran = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_MB}m", "tmpfs", str(folder)],
                capture_output=True,
                text=True,
            )
            why = ran.stderr.strip()
        if why:
            return f"files limited in size (RLIMIT_FSIZE): no tmpfs can be mounted here ({why}); root can"
        self._stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
        return f"tmpfs of {_TMPFS_MB} MB"


def private_mounts() -> str:
    """What this process mounts from now on is seen by it and its children only, and ends with them; else why not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(_CLONE_NEWNS):
        return os.strerror(ctypes.get_errno())
    ran = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    return ran.stderr.strip()


def limit_files(pid: int, bytes_max: int) -> None:
    """Writing beyond fails from now on, as on a full disk; -1: no limit."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if bytes_max < 0 else bytes_max, hard))
