"""A worker, a gateway and, where wanted, a sink on one broker: what a test of an HTTP API needs.

    @pytest.fixture(scope="module")
    def stack(module_kafka, tmp_path_factory):
        with gateway_stack(module_kafka.bootstrap, tmp_path_factory.mktemp("stack"), sink=True) as stack:
            yield stack

`stack.gateway.call("POST", "/v1/reserve", {...})` asks, `stack.gateway.key("read", customers=("acme",))` makes a key.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gateway_process import GatewayProcess, declare_gateway
from tallygate.topologies.sql_server import LISTENING_FILE
from worker_process import WorkerProcess

#: One meter, priced at a credit each; one feature that fails open.
CATALOG: dict[str, Any] = {
    "meters": {
        "tokens": {"event_type": "llm.call", "value": "tokens", "dimensions": ["team", "model"]},
        "users": {"event_type": "llm.call", "value": "user", "aggregation": "unique"},
        "longest": {"event_type": "llm.call", "value": "tokens", "aggregation": "max"},
    },
    "features": {
        "llm": {"meters": ["tokens"], "rates": [{"meter": "tokens", "credits": 1}]},
        "open": {"fail": "open"},
    },
    "plans": {"pro": {"entitlements": {"llm": "credits", "open": "credits"}}},
    "default_plan": "pro",
}


class Stack(NamedTuple):
    gateway: GatewayProcess
    worker: WorkerProcess


@contextlib.contextmanager
def gateway_stack(
    brokers: str, folder: Path, *, sink: bool = False, catalog: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Stack]:
    """Everything started and ready, with a catalog in force; nothing is left running."""
    declare_gateway(brokers)
    with contextlib.ExitStack() as ends:
        worker = ends.enter_context(WorkerProcess(brokers, folder / "worker"))
        if sink:
            ends.enter_context(running_sink(brokers, folder))
        gateway = ends.enter_context(GatewayProcess(brokers, folder, gateway_timeout_ms=20_000, **settings))
        applied = gateway.call("POST", "/v1/catalog", CATALOG if catalog is None else catalog)
        assert applied.status == 200, applied
        worker.wait_for("worker is ready")
        wait_until(lambda: gateway.call("POST", "/v1/customers/nobody/status", {}).json.get("catalog") == 1)
        yield Stack(gateway, worker)


@contextlib.contextmanager
def running_sink(brokers: str, folder: Path) -> Iterator[None]:
    """A sink on a folder, once it answers questions."""
    settings = {"kafka_brokers": brokers, "data_dir": str(folder), "sql_address": "127.0.0.1:0", "metrics_address": ""}
    with (folder / "sink.log").open("ab") as log:
        sink = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sink_process.py")), json.dumps({"settings": settings})],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until((folder / LISTENING_FILE).exists)
        yield
    finally:
        sink.terminate()
        try:
            sink.wait(20)
        except subprocess.TimeoutExpired:
            sink.kill()
            sink.wait()


def wait_until(reached: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.05)
