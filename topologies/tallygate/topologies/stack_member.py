"""One member of the local stack, in a process of its own: `python -m tallygate.topologies.stack_member sink FILE`.

FILE holds every setting as JSON, so that a member runs exactly as its parent means it to, whatever the environment
says; settings may be secrets, so they are not on the command line.
"""

import json
import logging
import sys
from pathlib import Path

from tallygate.topologies.settings import load_settings

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def main(role: str, settings_file: str) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    settings = load_settings(**json.loads(Path(settings_file).read_text()))
    if role == "worker":
        from tallygate.topologies.worker import run_worker

        return run_worker(settings)
    if role == "gateway":
        from tallygate.topologies.gateway import run_gateway

        return run_gateway(settings)
    assert role == "sink", role
    from tallygate.topologies.sink import run_sink

    return run_sink(settings)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
