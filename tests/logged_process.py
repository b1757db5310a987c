"""A process of a test: its log in a file, watched, asked to end or killed by its id."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType


class LoggedProcess:
    """A Python script with arguments, once `run`; as a context manager killed at the end if it still runs."""

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        if kind is not None:
            print(f"--- {self.log_path.name} ---\n{self.log()}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """Until a line of the log matches."""
        until = time.monotonic() + seconds
        while True:
            ended = self.process.poll()
            if found := re.search(pattern, self.log()):
                return found
            assert ended is None, f"ended with {ended}, before {pattern!r}: {self.log()}"
            assert time.monotonic() < until, f"no {pattern!r} within {seconds} s: {self.log()}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, seconds: float = 20.0) -> int:
        """Asks it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def ended(self, seconds: float = 30.0) -> int:
        """The exit code, once it has ended by itself."""
        return self.process.wait(seconds)
