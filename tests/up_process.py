"""A `tallygate up` of its own, as a person starts it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

UP_SECONDS_MAX = 120.0
ADDRESSES = {f"TALLYGATE_{name}_ADDRESS": "127.0.0.1:0" for name in ("METRICS", "SQL", "GATEWAY", "GATEWAY_METRICS")}


class Up:
    """A running `tallygate up`."""

    def __init__(self, data_dir: Path, log: Path, *words: str) -> None:
        self.data_dir = data_dir
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYGATE_KAFKA")}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tallygate.topologies.cli", "up", "--port", "0", *words],
                env={**environment, **ADDRESSES, "TALLYGATE_DATA_DIR": str(data_dir), "COLUMNS": "160"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + UP_SECONDS_MAX
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.1)

    def member(self, role: str) -> int:
        """The process id of a member: the child whose command line names it."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                member = [b"-m", b"tallygate.topologies.stack_member", role.encode()]
                if words[1:4] == member and str(self.data_dir).encode() in words[4]:
                    return int(entry.name)
        raise AssertionError(f"no {role} is running")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
