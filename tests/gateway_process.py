"""Gateways in processes of their own, and how a test talks to one.

`python gateway_process.py FILE` runs one: FILE holds its settings as JSON.
"""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tallygate.connectors.kafka_admin import declare_topics
from tallygate.schemas.keys import SCOPES, Scope
from tallygate.schemas.topics import topic_specs
from tallygate.topologies.keys_topic import create_key
from tallygate.topologies.settings import Settings, load_settings
from topic_waits import await_leaders


def main(file: str) -> int:
    import logging

    from tallygate.topologies.gateway import run_gateway

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return run_gateway(load_settings(**json.loads(Path(file).read_text())))


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def declare_gateway(brokers: str, partitions: int = 4) -> None:
    """All topics, and the reply topic of gateways."""
    declare_topics({"bootstrap.servers": brokers}, topic_specs(partitions, ("cli", "gateway")))
    await_leaders(brokers)


class GatewayProcess:
    """`with GatewayProcess(brokers, data_dir) as gateway:` runs one that is ready, on free ports.

    Its topics are declared first. `data_dir` is where a sink of the same test has its files. `key(...)` makes an API
    key that the gateway knows; `call(...)` calls it, with `admin`, a key for everything, unless told otherwise.
    """

    def __init__(self, brokers: str, data_dir: Path, *, wait: bool = True, **settings: Any) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._number = len(list(data_dir.glob("gateway-*.json")))
        self._file = data_dir / f"gateway-{self._number}.json"
        own = {"gateway_address": "127.0.0.1:0", "gateway_metrics_address": "127.0.0.1:0"}
        given = {"kafka_brokers": brokers, "data_dir": str(data_dir), **own, **settings}
        self._file.write_text(json.dumps(given))
        self.settings: Settings = load_settings(**given)
        self.log_path = data_dir / f"gateway-{self._number}.log"
        self._wait = wait
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.admin = ""

    def __enter__(self) -> Self:
        if self._wait:
            declare_gateway(self.settings.kafka_brokers)
            self.admin = create_key(self.settings, SCOPES, name="admin").text
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self._file)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.url = self.wait_for(r"listens on (\S+)")[1]
        if self._wait:
            self.wait_for(r"gateway is ready")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        if kind is not None:
            print(f"--- {self.log_path.name} ---\n{self.log()}")

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "not started"
        return self._process

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """Until a line of the log matches."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.log()):
                return found
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log()}"
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {seconds} s: {self.log()}")

    def stop(self, seconds: float = 20.0) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def key(self, *scopes: Scope, **more: Any) -> str:
        """An API key that the gateway knows."""
        made = create_key(self.settings, scopes, **more)
        self.await_key(made.text)
        return made.text

    def await_key(self, text: str, status: int = 401, seconds: float = 10.0) -> None:
        """Until the gateway has heard of a key: calls with it are not answered `status` any more."""
        until = time.monotonic() + seconds
        while self.call("GET", "/v1/customers/nobody/usage?from=x", key=text).status == status:
            assert time.monotonic() < until, f"still {status} after {seconds} s"
            time.sleep(0.02)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 30.0,
    ) -> Reply:
        """One call. `body`: bytes as they are, anything else as JSON. `key`: `admin` unless given; empty: none."""
        sent = {}
        if key != "":
            sent["authorization"] = f"Bearer {self.admin if key is None else key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["content-type"] = "application/json"
        connection = http.client.HTTPConnection(*self.place, timeout=seconds)
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.url.rpartition("/")[2].rpartition(":")
        return host, int(port)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
