"""Workers in processes of their own: started, watched, asked to end or killed, by their ids.

`python worker_process.py FILE [POINT NUMBER]` runs one: FILE holds its settings as JSON; at the NUMBERth time that it
passes the crash point POINT it kills itself with SIGKILL. A file FILE.crash that says `POINT NUMBER` does so, too, from
when it is there; it is removed when it has been read.
"""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def main(file: str, point: str = "", number: str = "0") -> int:
    from tallygate.topologies.settings import load_settings
    from tallygate.topologies.worker import run_worker

    logging.basicConfig(level=os.environ.get("LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    left = int(number)
    order = f"{file}.crash"

    def at(passed: str) -> None:
        nonlocal left, point
        if os.path.exists(order):
            with contextlib.suppress(FileNotFoundError):  # it was taken back just now
                point, number = Path(order).read_text().split()
                left = int(number)
                os.unlink(order)
        if passed == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return run_worker(load_settings(**json.loads(Path(file).read_text())), at)


class WorkerProcess:
    """`with WorkerProcess(brokers, data_dir) as worker:`; killed at the end if it still runs."""

    def __init__(self, brokers: str, data_dir: Path, *, crash: tuple[str, int] | None = None, **settings: Any) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._number = len(list(data_dir.glob("settings-*.json")))
        self._file = data_dir / f"settings-{self._number}.json"
        # The members that a test leaves behind in its group are in nobody's way.
        own = {"group": f"workers of {data_dir}", "metrics_address": "127.0.0.1:0"}
        given = {**own, "session_timeout_ms": 6000, "tick_ms": 200, **settings}
        self._file.write_text(json.dumps({"kafka_brokers": brokers, "data_dir": str(data_dir), **given}))
        self.log_path = data_dir / f"worker-{self._number}.log"
        self._arguments = [str(self._file), *(map(str, crash) if crash else ())]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *self._arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
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
        while time.monotonic() < until:
            found = re.search(pattern, self.log())
            if found:
                return found
            assert self.process.poll() is None, f"ended with {self.process.returncode}, before {pattern!r}"
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {seconds} s")

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

    def metrics(self) -> dict[str, float]:
        """All samples, by name and labels as Prometheus writes them."""
        url = self.wait_for(r"metrics on (http://\S+)")[1]
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        found = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in found}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
