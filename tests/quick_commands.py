"""`tallygate` for a test whose shell scripts call it a hundred times: one process imports it, and forks for each call.

    with quick_commands(folder) as bin: subprocess.run(..., env={"PATH": f"{bin}:…"})

It is `main` of the command line with the caller's words, folder, environment and standard streams; only the half
second of imports is spared.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

_STARTED_SECONDS = 30.0
_BUG = 70
#: What most commands import when they run.
_IMPORTED = (
    "tallygate.topologies.cli",
    "tallygate.connectors.client",
    *(
        f"tallygate.topologies.{name}"
        for name in ("catalog_topic", "catalog_yaml", "keys_topic", "settings", "sql_server")
    ),
)
#: What the shell finds as `tallygate`: it hands everything over and ends with what the command ended with.
_CALLER = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as to:
    to.connect({path!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(to, [len(call).to_bytes(8, "big")], [0, 1, 2])
    to.sendall(call)
    code = to.recv(1)
os._exit(code[0] if code else {bug})
"""


@contextlib.contextmanager
def quick_commands(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for PATH. `environment` is what the commands' modules see when they are imported."""
    folder.mkdir(parents=True, exist_ok=True)
    # A socket's path may have a hundred bytes, which a test's folder may have already.
    with tempfile.TemporaryDirectory() as short, _serving(folder, Path(short, "s"), environment):
        yield folder


@contextlib.contextmanager
def _serving(folder: Path, path: Path, environment: Mapping[str, str]) -> Iterator[None]:
    (folder / "tallygate").write_text(_CALLER.format(python=sys.executable, path=str(path), bug=_BUG))
    (folder / "tallygate").chmod(0o755)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(path)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + _STARTED_SECONDS
        while not path.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, "it did not start"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def serve(path: str) -> NoReturn:
    """Answers callers until it is ended."""
    for name in _IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a call: it answers by itself
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen(64)
        os.rename(f"{path}.new", path)
        while True:
            call, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(call)
            call.close()


def _answer(call: socket.socket) -> NoReturn:
    code = _BUG
    try:
        head, streams, _, _ = socket.recv_fds(call, 8, 3)
        with call.makefile("rb") as rest:
            words, folder, environment = json.loads(rest.read(int.from_bytes(head, "big")))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = _run(words)
    finally:
        call.send(bytes([code]))
        os._exit(0)


def _run(words: list[str]) -> int:
    from tallygate.topologies.cli import main

    sys.argv = ["tallygate", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
