"""Carries a plan out: each fault in turn, with what it needs around it, and a wait until the load is answered again."""

import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chaos.fleet import SESSION_MS, Fleet, Worker, limit_files
from chaos.load import Load
from chaos.plan import OPEN_POINTS, RANDOM, REBALANCE, Fault
from chaos.supervised import Supervised

_DIES_SECONDS: Final = 20.0
_RECOVERS_SECONDS: Final = 45.0
_PAUSE_SECONDS: Final = SESSION_MS / 1000 + 3

Say = Callable[[str], None]


class Story:
    """`away_seconds`: how long ClickHouse is away. What was done is counted in `done`."""

    def __init__(self, fleet: Fleet, load: Load, seed: int, away_seconds: float, say: Say) -> None:
        self._fleet = fleet
        self._load = load
        self._chance = random.Random(f"{seed} story")
        self._away_seconds = away_seconds
        self._say = say
        self._away: threading.Thread | None = None
        self.done: Counter[str] = Counter()
        self.points: Counter[str] = Counter()
        self.slow: list[str] = []
        self.load_average_max = 0.0

    def run(self, faults: list[Fault]) -> None:
        for number, fault in enumerate(faults, 1):
            time.sleep(fault.wait_seconds)
            self.load_average_max = max(self.load_average_max, os.getloadavg()[0])
            worker = self._fleet.workers[fault.worker]
            what = f"{fault.kind} {fault.point}".strip()
            self._say(f"{number}/{len(faults)} {what}: {worker.name}")
            self.done[fault.kind] += 1
            getattr(self, f"_{fault.kind}")(worker, fault)
            if not fault.hasty:
                self._recover(what)
        if self._away is not None:
            self._away.join()
        self._recover("the last fault")

    def _recover(self, what: str) -> None:
        """Until requests that were sent from now on are answered in all partitions."""
        since = time.monotonic()
        until = time.monotonic() + _RECOVERS_SECONDS
        while missing := self._load.silent(since):
            if time.monotonic() > until:
                self._complain(f"{_RECOVERS_SECONDS:g} s after {what} no answer from partitions {missing}")
                return
            time.sleep(0.1)

    def _complain(self, of: str) -> None:
        """Something took long: said and counted, since it may be the machine; what never comes, the oracles see."""
        self._say(of)
        self.slow.append(of)

    # The faults

    def _kill(self, worker: Worker, fault: Fault) -> None:
        self.points[fault.point] += 1
        if fault.point == RANDOM:
            self._kill_now(worker)
        elif fault.point == REBALANCE:
            self._kill_in_rebalance(worker)
        elif fault.point in OPEN_POINTS:
            worker.hold()  # a life that is ending must not take the order for its own
            if worker.send(signal.SIGTERM):
                worker.stopped()
            worker.crash_at(fault.point, fault.passes)
            worker.let_go()
            self._await_death(worker)
        else:
            worker.crash_at(fault.point, fault.passes)
            self._await_death(worker)

    def _kill_in_rebalance(self, worker: Worker) -> None:
        """One joins; the worker dies while it opens what it is given anew, or at any moment around that."""
        if self._chance.random() < 0.5:
            worker.crash_at(self._chance.choice(OPEN_POINTS), 1)
        joiner = self._fleet.join()
        self._until(lambda: "worker is ready" in joiner.said(), _DIES_SECONDS)
        time.sleep(self._chance.uniform(0, 0.5))
        worker.forget_crash()
        self._kill_now(worker)
        self._part(joiner)

    def _kill_now(self, worker: Supervised) -> None:
        """Kills the life that runs, once one does."""
        self._until(lambda: worker.running, _DIES_SECONDS)
        worker.kill()

    def _await_end(self, worker: Supervised, act: Callable[[], object]) -> bool:
        ended = len(worker.lives)
        act()
        return worker.wait_ended(ended, _DIES_SECONDS)

    def _await_death(self, worker: Worker) -> None:
        """Until it has killed itself where it was told to; if it does not come by there, it is killed as it is."""
        if not self._await_end(worker, lambda: None):
            worker.forget_crash()
            self.points["elsewhere"] += 1
            worker.kill()

    def _pause(self, worker: Worker, fault: Fault) -> None:
        if worker.send(signal.SIGSTOP):
            time.sleep(_PAUSE_SECONDS)
            worker.send(signal.SIGCONT)

    def _broker_killed(self, worker: Worker, fault: Fault) -> None:
        partition = self._chance.randrange(self._load.partitions)
        self._fleet.kill_broker(partition, lambda: self._recover("a broker of three was killed"))

    def _sink_killed_in_insert(self, worker: Worker, fault: Fault) -> None:
        sink = self._chance.choice(self._fleet.sinks)
        if not self._await_end(sink, lambda: sink.crash_in_insert(self._chance.uniform(0, 0.02))):
            self._complain(f"{sink.name} made no insert within {_DIES_SECONDS:g} s")

    def _sink_killed(self, worker: Worker, fault: Fault) -> None:
        self._chance.choice(self._fleet.sinks).kill()

    def _clickhouse_away(self, worker: Worker, fault: Fault) -> None:
        """Meanwhile the story goes on."""
        server = self._fleet.server
        assert server is not None, "the plan has this fault only where there is a server"
        if self._away is not None:
            self._away.join()
        server.kill()

        def back() -> None:
            time.sleep(self._away_seconds)
            server.start()

        self._away = threading.Thread(target=back)
        self._away.start()

    def _disk_full(self, worker: Worker, fault: Fault) -> None:
        """It is always the first worker's disk. RocksDB writes until it no longer can; then there is room again."""
        worker = self._fleet.workers[0]
        self._until(lambda: worker.running, _DIES_SECONDS)
        ballast = worker.data / "ballast"
        tmpfs = self._fleet.disk.startswith("tmpfs")
        if not self._await_end(worker, lambda: fill(ballast) if tmpfs else limit_files(worker.pid, 1024)):
            self._complain(f"{worker.name} went on for {_DIES_SECONDS:g} s on a full disk")
        time.sleep(self._chance.uniform(0, 2))  # it finds the disk full when it starts again, too
        ballast.unlink(missing_ok=True)

    def _tables_deleted(self, worker: Worker, fault: Fault) -> None:
        self._between_lives(worker, lambda: [shutil.rmtree(table) for table in worker.tables()])

    def _tables_truncated(self, worker: Worker, fault: Fault) -> None:
        def cut() -> None:
            for table in worker.tables():
                files = [path for path in table.iterdir() if path.is_file() and path.stat().st_size > 0]
                for path in self._chance.sample(files, min(2, len(files))):
                    with path.open("r+b") as file:
                        file.truncate(self._chance.randrange(path.stat().st_size))

        self._between_lives(worker, cut)

    def _between_lives(self, worker: Worker, damage: Callable[[], object]) -> None:
        worker.hold()
        if worker.running:
            self._await_end(worker, worker.kill)
        damage()
        worker.let_go()

    def _rebalance_storm(self, worker: Worker, fault: Fault) -> None:
        """Workers come and go quicker than the group settles; some leave in order, some are killed."""
        for _ in range(4):
            joiner = self._fleet.join()
            time.sleep(self._chance.uniform(0.5, 3))
            self._part(joiner)

    def _restarted_in_order(self, worker: Worker, fault: Fault) -> None:
        self._until(lambda: worker.running, _DIES_SECONDS)
        worker.send(signal.SIGTERM)

    def _part(self, joiner: Worker) -> None:
        if self._chance.random() < 0.5:
            joiner.hold()
            joiner.kill()
        else:
            joiner.stop()

    @staticmethod
    def _until(true: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not true() and time.monotonic() < until:
            time.sleep(0.02)


def fill(path: Path) -> None:
    """Writes until the disk has no room."""
    with path.open("wb", buffering=0) as file:
        for block in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * block)
            except OSError:
                continue
