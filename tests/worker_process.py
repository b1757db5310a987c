"""Workers in processes of their own: started, watched, asked to end or killed, by their ids.

`python worker_process.py FILE [POINT NUMBER]` runs one: FILE holds its settings as JSON; at the NUMBERth time that it
passes the crash point POINT it kills itself with SIGKILL. A file FILE.crash that says `POINT NUMBER` does so, too, from
when it is there; it is removed when it has been read.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

from logged_process import LoggedProcess


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


class WorkerProcess(LoggedProcess):
    """`with WorkerProcess(brokers, data_dir) as worker:`; killed at the end if it still runs."""

    def __init__(self, brokers: str, data_dir: Path, *, crash: tuple[str, int] | None = None, **settings: Any) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        number = len(list(data_dir.glob("settings-*.json")))
        super().__init__(data_dir / f"worker-{number}.log")
        self._file = data_dir / f"settings-{number}.json"
        # The members that a test leaves behind in its group are in nobody's way.
        own = {"group": f"workers of {data_dir}", "metrics_address": "127.0.0.1:0"}
        given = {**own, "session_timeout_ms": 6000, "tick_ms": 200, **settings}
        self._file.write_text(json.dumps({"kafka_brokers": brokers, "data_dir": str(data_dir), **given}))
        self._arguments = [str(self._file), *(map(str, crash) if crash else ())]

    def __enter__(self) -> Self:
        self.run(__file__, *self._arguments)
        return self

    def metrics(self) -> dict[str, float]:
        """All samples, by name and labels as Prometheus writes them."""
        url = self.wait_for(r"metrics on (http://\S+)")[1]
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        found = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in found}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
