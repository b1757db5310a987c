"""The servers of the decision peers, on loopback and in a temporary folder: Redis and Postgres, where installed."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HOST = "127.0.0.1"
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


class Missing(Exception):
    """A peer cannot run here; one line says what it needs."""


class Server:
    def __init__(self, address: str, process: "subprocess.Popen[bytes]") -> None:
        self.address = address
        self._pid = process.pid

    def cpu_seconds(self) -> float:
        """Of the server and of those of its children that have ended."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def redis_server() -> Iterator[Server]:
    """Everything in memory, nothing written to disk: as fast as it can be."""
    program = _program("redis-server", "redis-server")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="tallygate-redis-") as folder:
        words = ["--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no", "--dir", folder]
        with _running([str(program), *words], Path(folder)) as process:
            _wait_for(port, process)
            yield Server(str(port), process)


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """Its defaults: every commit is on disk before it is answered."""
    initdb = _program("initdb", "postgresql", "/usr/lib/postgresql/*/bin/initdb")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="tallygate-postgres-", ignore_cleanup_errors=True) as folder:
        who: dict[str, str] = {}
        if os.geteuid() == 0:  # Postgres refuses to run as root; its package brings a user
            who = {"user": "postgres", "group": "postgres"}
            shutil.chown(folder, **who)
        data = Path(folder) / "data"
        words = ["-D", str(data), "-A", "trust", "-U", "postgres", "--no-instructions"]
        subprocess.run([initdb, *words], check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
        program = initdb.with_name("postgres")
        words = ["-D", str(data), "-p", str(port), "-h", HOST, "-k", folder]
        with _running([str(program), *words], Path(folder), **who) as process:
            _wait_for(port, process)
            yield Server(f"host={HOST} port={port} user=postgres dbname=postgres", process)


@contextlib.contextmanager
def _running(command: list[str], folder: Path, **who: str) -> "Iterator[subprocess.Popen[bytes]]":
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, **who)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


def _program(name: str, package: str, elsewhere: str = "") -> Path:
    if elsewhere and (found := sorted(Path("/").glob(elsewhere.lstrip("/")))):
        return found[-1]
    if path := shutil.which(name):
        return Path(path)
    raise Missing(f"{name} is not installed: apt-get install {package}")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    raise Missing(f"a server did not start within {_START_SECONDS:g} s")
