"""The bench's processes, as the one that started them sees them."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from tallygate.connectors import kafka_watch
from tallygate.topologies.exits import Exit, Trouble

T = TypeVar("T")

_STOP_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.1


class BenchProcess(Generic[T]):
    """A role of `bench.member` in a process of its own, which ends with this one, however it ends.

    `said` is what it said last about how far it is. A context: leaving it ends the process.
    """

    def __init__(self, folder: Path, role: str, job: msgspec.Struct, kind: type[T]) -> None:
        self.said: dict[str, Any] = {}
        self._role = role
        self._kind = kind
        name = f"{role}-{time.monotonic_ns()}"
        self._job_file = folder / f"{name}.job"
        self._result_file = folder / f"{name}.result"
        self._log_path = folder / f"{name}.log"
        with open(os.open(self._job_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(job))  # it may hold passwords, so it is not on the command line

    def __enter__(self) -> Self:
        member = [sys.executable, "-m", "tallygate.topologies.bench.member"]
        words = [self._role, str(self._job_file), str(self._result_file)]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", kafka_watch.__file__, "", *member, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the parent, which stops its children in order
            )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ask_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def ask_to_end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def wait_until(
        self, reached: Callable[[dict[str, Any]], bool], seconds: float, meanwhile: Callable[[], None]
    ) -> bool:
        """Whether it has said so within so many seconds. Raises Trouble where the process has ended."""
        until = time.monotonic() + seconds
        while not reached(self.said):
            if self._process.poll() is not None:
                raise self._trouble()
            if time.monotonic() > until:
                return False
            meanwhile()
            time.sleep(_LOOK_SECONDS)
        return True

    def result(self, meanwhile: Callable[[], None] = lambda: None) -> T:
        """What it brought back, once it has ended. Raises Trouble where it brought nothing."""
        while self._process.poll() is None:
            meanwhile()
            time.sleep(_LOOK_SECONDS)
        if self._process.returncode != 0:
            raise self._trouble()
        return msgspec.json.decode(self._result_file.read_bytes(), type=self._kind)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said = msgspec.json.decode(line)

    def _trouble(self) -> Trouble:
        lines = [line.strip() for line in self._log_path.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        return Trouble(Exit.AWAY, f"the bench's {self._role} process ended with {self._process.returncode}: {last}")
