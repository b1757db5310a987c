"""Processes that a test session left behind, however they were started and whoever is their parent now.

Every process of a session inherits a mark in its environment. Linux only: elsewhere nothing is found.
"""

import os
import time
import uuid
from pathlib import Path

_MARK = "TALLYGATE_TEST_SESSION"
_GRACE_SECONDS = 5.0
#: Python's own, which lives until its interpreter ends.
_ALLOWED = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def mark() -> str:
    """Marks what this process starts from now on; returns the mark."""
    os.environ[_MARK] = uuid.uuid4().hex
    return os.environ[_MARK]


def left_behind(mark: str) -> dict[int, str]:
    """Process id and command line of what still runs, after a short time to end."""
    until = time.monotonic() + _GRACE_SECONDS
    while (found := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _marked(mark: str) -> dict[int, str]:
    wanted = f"{_MARK}={mark}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # What started before the mark, such as this very process, does not have it; a zombie has nothing.
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if not any(allowed in command for allowed in _ALLOWED):
                    found[int(process.name)] = command[:200]
        except OSError:
            continue  # it has just ended, or belongs to another user
    return found
