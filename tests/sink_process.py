"""A sink in a process of its own: `python sink_process.py JSON`, with keys

settings: what `load_settings` is given; partitions, accept_gap: as in `run_sink`;
die_before: ends itself by SIGKILL instead of its nth insert; file_bytes_max: no file may grow beyond;
crash_file: once this file is there, the sink ends itself by SIGKILL in the middle of its next insert: as many seconds
after its beginning as the file says.
"""

import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tallygate.connectors.clickhouse import Store
from tallygate.connectors.clickhouse_tables import SCHEMA, Table
from tallygate.topologies.settings import load_settings
from tallygate.topologies.sink import run_sink


def die_before(insert: int) -> None:
    left = [insert]
    real = Store.insert

    def counting(self: Store, table: Table, columns: Sequence[Sequence[Any]]) -> None:
        if table is not SCHEMA:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        real(self, table, columns)

    Store.insert = counting  # type: ignore[method-assign]


def die_when_told(order: Path) -> None:
    real = Store.insert

    def looking(self: Store, table: Table, columns: Sequence[Sequence[Any]]) -> None:
        if table is not SCHEMA and order.exists():
            seconds = float(order.read_text())
            order.unlink()
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        real(self, table, columns)

    Store.insert = looking  # type: ignore[method-assign]


def main(given: dict[str, Any]) -> int:
    logging.basicConfig(format="%(message)s")
    if given.get("die_before"):
        die_before(given["die_before"])
    if given.get("crash_file"):
        die_when_told(Path(given["crash_file"]))
    if given.get("file_bytes_max"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (given["file_bytes_max"],) * 2)
    settings = load_settings(**{**given["settings"], "data_dir": Path(given["settings"]["data_dir"])})
    return run_sink(settings, accept_gap=given.get("accept_gap", False), partitions=given.get("partitions"))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
