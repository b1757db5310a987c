"""Processes that are started again whenever they end, as a supervisor would."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_BACKOFF_SECONDS = 0.3
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Life:
    """One process from its start to its end; its lines are in the log from byte `log_from` on."""

    began_ms: int
    ended_ms: int
    code: int
    log_from: int


class Supervised:
    """One process, kept running by a thread of its own until `close`."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log_path = log
        self.lives: list[Life] = []
        self._command = [sys.executable, *command]
        self._env = dict(env) if env else None
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = threading.Event()  # may run
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._wanted.set()
        self._thread.start()

    def _keep(self) -> None:
        while not self._closing:
            self._wanted.wait()
            if self._closing:
                return
            with self.log_path.open("ab") as log, self._changed:
                if not self._wanted.is_set():
                    continue
                began, log_from = _now_ms(), log.tell()
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
                )
                self._changed.notify_all()
            code = self._process.wait()
            with self._changed:
                self.lives.append(Life(began, _now_ms(), code, log_from))
                self._process = None
                self._changed.notify_all()
            if not self._closing:
                time.sleep(_BACKOFF_SECONDS)

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        process = self._process
        assert process is not None, f"{self.name} does not run"
        return process.pid

    def send(self, number: int) -> bool:
        """Whether there was a process to send it to."""
        with self._changed:
            if self._process is None:
                return False
            self._process.send_signal(number)
            return True

    def kill(self) -> bool:
        return self.send(signal.SIGKILL)

    def stop(self) -> int | None:
        """Ends the process in order and keeps it from coming back; its exit code, None where none runs."""
        self.hold()
        return self.stopped() if self.send(signal.SIGTERM) else None

    def stopped(self) -> int:
        """Its exit code, after it was told to end. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.running, _STOP_SECONDS):
                raise TimeoutError(f"{self.name} did not end within {_STOP_SECONDS:g} s of SIGTERM: {self.log_path}")
            return self.lives[-1].code

    def hold(self) -> None:
        """From now on it is not started again."""
        with self._changed:
            self._wanted.clear()

    def let_go(self) -> None:
        self._wanted.set()

    def wait_ended(self, before: int, seconds: float) -> bool:
        """Until more than `before` of its lives are over; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.lives) > before, seconds)

    def said(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def words_of(self, life: Life) -> str:
        """What it said in one of its lives."""
        until = next((each.log_from for each in self.lives if each.log_from > life.log_from), None)
        return self.log_path.read_bytes()[life.log_from : until].decode(errors="replace")

    def close(self) -> None:
        """Ends it at once, if it still runs."""
        self._closing = True
        self._wanted.set()
        while self._thread.is_alive():
            self.send(signal.SIGCONT)
            self.kill()
            self._thread.join(0.2)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
