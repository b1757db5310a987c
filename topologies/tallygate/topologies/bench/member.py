"""One process of the bench: `python -m tallygate.topologies.bench.member ROLE JOB_FILE RESULT_FILE`.

It says how far it is on standard output, a JSON object a line. SIGTERM ends it early; what it has is its result.
"""

import gc
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from tallygate.topologies.bench import decision_load, lease_load, limits, usage_load, watch
from tallygate.topologies.bench.jobs import DecisionsJob, EchoJob, LeasesJob, LimitsJob, UsageJob, WatchJob

_SWITCH_SECONDS: Final = 0.0005

ROLES: Final[dict[str, tuple[Any, Callable[..., msgspec.Struct]]]] = {
    "usage": (UsageJob, usage_load.send),
    "watch": (WatchJob, watch.watch),
    "decisions": (DecisionsJob, decision_load.run),
    "leases": (LeasesJob, lease_load.run),
    "limits": (LimitsJob, limits.measure),
    "echo": (EchoJob, limits.echo),
}


def main(role: str, job_file: str, result_file: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    sys.setswitchinterval(_SWITCH_SECONDS)
    kind, work = ROLES[role]
    job = msgspec.json.decode(Path(job_file).read_bytes(), type=kind)
    gc.freeze()
    result = work(job, _say, stop)
    Path(result_file).write_bytes(msgspec.json.encode(result))


def _say(said: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
