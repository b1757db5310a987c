"""LiteLLM's proxy in a process of its own, out of the environment that `make install` makes for it.

Its configuration is `examples/litellm/config.yaml` with models on loopback, and with API keys that need no database: a
key `NAME` is that of customer NAME, `NAME/TEAM` of a team of it, and `nobody` of no customer.
"""

import contextlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gateway_process import Reply

ROOT = Path(__file__).parents[1]
LITELLM = ROOT / ".venv-litellm/bin/litellm"
EXAMPLE = ROOT / "examples/litellm/config.yaml"
_AUTH = """
from litellm.proxy._types import UserAPIKeyAuth


async def known(request, api_key):
    customer, _, team = api_key.partition("/")
    found = {} if customer == "nobody" else {"customer": customer}
    return UserAPIKeyAuth(api_key=api_key, user_id="u-" + customer, team_id=team or None, metadata=found)
"""


class Proxy:
    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def call(self, path: str, key: str, body: Any = None, *, seconds: float = 60.0) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        sent = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        try:
            connection.request("GET" if body is None else "POST", path, body and json.dumps(body), sent)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextlib.contextmanager
def litellm_proxy(
    folder: Path, settings: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], **environment: str
) -> Iterator[Proxy]:
    """A proxy that is ready. `settings` are put over the example's of Tallygate; `models` by the names of callers."""
    assert LITELLM.exists(), f"{LITELLM} is missing: make install"
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(EXAMPLE.read_text())
    config["model_list"] = [{"model_name": name, "litellm_params": dict(given)} for name, given in models.items()]
    config["callback_settings"]["tallygate"] |= settings
    del config["general_settings"]["database_url"]
    config["general_settings"]["custom_auth"] = "auth.known"
    config["router_settings"] = {"num_retries": 0, "disable_cooldowns": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "auth.py").write_text(_AUTH)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "HOME": str(folder)}
    own["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(32)}"
    own |= environment
    with (folder / "proxy.log").open("ab") as log:
        process = subprocess.Popen(
            [LITELLM, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, **own},
        )
    proxy = Proxy(port, folder / "proxy.log")
    try:
        _await(proxy, process)
        yield proxy
    except BaseException:
        print(f"--- proxy.log ---\n{proxy.log()[-20_000:]}")
        raise
    finally:
        process.kill()
        process.wait(20)


def _await(proxy: Proxy, process: "subprocess.Popen[bytes]", seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < until, f"not ready within {seconds:g} s"
        with contextlib.suppress(OSError):
            if proxy.call("/health/liveliness", "").status == 200:
                return
        time.sleep(0.1)
