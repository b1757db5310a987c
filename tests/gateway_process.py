"""Gateways in processes of their own, and how a test talks to one.

`python gateway_process.py FILE` runs one: FILE holds its settings as JSON.
"""

import http.client
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from logged_process import LoggedProcess
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


class GatewayProcess(LoggedProcess):
    """`with GatewayProcess(brokers, data_dir) as gateway:` runs one that is ready, on free ports.

    Its topics are declared first. `data_dir` is where a sink of the same test has its files. `key(...)` makes an API
    key that the gateway knows; `call(...)` calls it, with `admin`, a key for everything, unless told otherwise.
    """

    def __init__(self, brokers: str, data_dir: Path, *, wait: bool = True, **settings: Any) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        number = len(list(data_dir.glob("gateway-*.json")))
        super().__init__(data_dir / f"gateway-{number}.log")
        self._file = data_dir / f"gateway-{number}.json"
        own = {"gateway_address": "127.0.0.1:0", "gateway_metrics_address": "127.0.0.1:0"}
        given = {"kafka_brokers": brokers, "data_dir": str(data_dir), **own, **settings}
        self._file.write_text(json.dumps(given))
        self.settings: Settings = load_settings(**given)
        self._wait = wait
        self.url = ""
        self.admin = ""

    def __enter__(self) -> Self:
        if self._wait:
            declare_gateway(self.settings.kafka_brokers)
            self.admin = create_key(self.settings, SCOPES, name="admin").text
        self.run(__file__, str(self._file))
        self.url = self.wait_for(r"listens on (\S+)")[1]
        if self._wait:
            self.wait_for(r"gateway is ready")
        return self

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
