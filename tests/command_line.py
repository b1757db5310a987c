"""The command line as a test runs it: in this process, through `main`, with its exit code and what it said."""

import sys
from typing import NamedTuple

import pytest

from tallygate.topologies.cli import main


class Said(NamedTuple):
    code: int
    out: str
    err: str


class CommandLine:
    """`cli("balance", "acme")`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *words: str) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["tallygate", *words])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capfd.readouterr()
        return Said(int(ended.value.code or 0), out, err)
