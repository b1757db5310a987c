"""Runs the blocks of a page of documentation (`doc_blocks`) against one stack.

place = Place(stack, kafka.bootstrap, folder, {"OPENAI_BASE_URL": …})
with Reading(place, "quick-start.md", markdown) as reading:
    reading.run()
"""

import ast
import asyncio
import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import yaml

from doc_blocks import Block, DocError, blocks_of, check_elsewhere, differs
from gateway_stack import Stack, wait_until

_EVENTUALLY_SECONDS = 30.0
_BLOCK_SECONDS = 60.0


def page_environment(stack: Stack, brokers: str, folder: Path, **more: str) -> dict[str, str]:
    """What blocks find: `tallygate` on the path, the stack's Kafka and data folder, a key for everything."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("TALLYGATE_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TALLYGATE_KAFKA_BROKERS": brokers,
        "TALLYGATE_DATA_DIR": str(folder),
        "TALLYGATE_GROUP": f"workers of {folder / 'worker'}",
        "KEY": stack.gateway.admin,
        "COLUMNS": "120",
        "NO_COLOR": "1",
        **more,
    }


class Place(NamedTuple):
    """Where pages are read. `folder`: the stack's; each page has a folder of its own in it.

    `environment` is that of the blocks; `page_environment` makes one for a stack.
    """

    stack: Stack
    brokers: str
    folder: Path
    environment: Mapping[str, str]

    def apply(self, catalog: Path) -> None:
        """Puts a catalog in force, if another one is."""
        sent = self.stack.gateway.call("POST", "/v1/catalog", yaml.safe_load(catalog.read_text()))
        assert sent.status == 200, sent
        self.await_catalog()

    def await_catalog(self) -> None:
        """Until the worker decides by the newest catalog. A reader takes longer for the next line than it does."""
        call = self.stack.gateway.call
        newest = call("GET", "/v1/catalog").json["version"]
        wait_until(lambda: call("POST", "/v1/customers/nobody/status", {}).json.get("catalog") == newest)


class Reading:
    """One page, from its first block to its last."""

    def __init__(self, place: Place, page: str, markdown: str) -> None:
        self.blocks = blocks_of(page, markdown)
        self.done: list[Block] = []
        self._place = place
        self._folder = place.folder / "pages" / page.replace("/", "-")
        self._folder.mkdir(parents=True, exist_ok=True)
        url = place.stack.gateway.url
        host = url.removeprefix("http://")
        self._real = {
            "127.0.0.1:9092": place.brokers,
            "localhost:9092": place.brokers,
            "127.0.0.1:8086": host,
            "localhost:8086": host,
        }
        self._environment = dict(place.environment)
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._loop = asyncio.Runner()
        self._before: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self._environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.close()
        os.environ.clear()
        os.environ.update(self._before)

    def run(self) -> None:
        """Every block, each in its part; those that were run or checked are `done`."""
        for index, block in enumerate(self.blocks):
            following = self.blocks[index + 1] if index + 1 < len(self.blocks) else None
            expected = following if following is not None and following.role == "expected" else None
            if block.role == "file":
                path = self._folder / block.flags["title"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._meant(block.text))
            elif block.role == "run":
                self._run(block, expected)
            elif block.role == "elsewhere":
                check_elsewhere(block)
            self.done.append(block)

    def _run(self, block: Block, expected: Block | None) -> None:
        until = time.monotonic() + _EVENTUALLY_SECONDS
        again = "eventually" in block.flags or block.language == "sql"
        while True:
            try:
                return self._once(block, expected)
            except DocError:
                if not again or time.monotonic() > until:
                    raise
            time.sleep(0.3)

    def _once(self, block: Block, expected: Block | None) -> None:
        printed = self._printed(block)
        if expected and (wrong := differs(expected, printed)):
            raise DocError(f"{expected.place}: {wrong}")

    def _printed(self, block: Block) -> str:
        text = self._meant(block.text)
        if block.language == "python":
            printed = self._python(block, text)
        else:
            command = (
                ["tallygate", "sql", text] if block.language == "sql" else ["bash", "-euo", "pipefail", "-c", text]
            )
            printed = self._command(block, command)
        if "catalog apply" in text:
            self._place.await_catalog()
        for said, real in self._real.items():
            if not said.startswith("localhost"):
                printed = printed.replace(real, said)
        return printed

    def _command(self, block: Block, command: list[str]) -> str:
        ran = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_BLOCK_SECONDS,
        )
        if ran.returncode != int(block.flags.get("exit", 0)):
            raise DocError(f"{block.place}: it ended with {ran.returncode}: {ran.stdout}")
        return ran.stdout

    def _python(self, block: Block, text: str) -> str:
        """Runs it with the page's names, in the page's folder; `await` works outside of functions, too."""
        code = compile("\n" * block.line + text, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(self._folder):
            try:
                found = eval(code, self._names)
                if found is not None:
                    self._loop.run(asyncio.wait_for(found, _BLOCK_SECONDS))
            except Exception as error:
                raise DocError(f"{block.place}: {type(error).__name__}: {error}") from error
        return printed.getvalue()

    def _meant(self, text: str) -> str:
        for said, real in self._real.items():
            text = text.replace(said, real)
        return text
