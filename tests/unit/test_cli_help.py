"""The help teaches, and costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from command_line import CommandLine
from tallygate.topologies.exits import MEANINGS

RUNNING = ("up", "demo", "worker", "sink", "gateway", "mcp", "topics", "audit", "acls", "doctor")
KEYS = tuple(f"keys {name}" for name in ("create", "list", "rotate", "revoke"))
PLANS = ("grant", "void-grant", "reset", "budget", "rate-limit", "subscribe", "customer")
CREDITS = ("reserve", "settle", "release", "extend", "check", "estimate", "balance")
CATALOG = tuple(f"catalog {name}" for name in ("apply", "diff", "show", "history", "import-prices", "example"))
DATA = ("produce", "sql", "simulate", *CATALOG)
BENCH = tuple(f"bench {name}" for name in ("usage", "decisions", "sink", "growth", "catalog"))
COMMANDS = (*RUNNING, *KEYS, *PLANS, *CREDITS, *DATA, *BENCH)
NOT_FOR_HELP = {
    "confluent_kafka",
    "faust",
    "chdb",
    "clickhouse_connect",
    "pydantic_settings",
    "aiokafka",
    "rocksdict",
    "starlette",
    "uvicorn",
    "mcp",
    "opentelemetry",
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def test_help_names_every_command_and_exit_code(cli: CommandLine) -> None:
    said = cli("--help")
    assert said.code == 0
    for command in COMMANDS:
        assert f"│ {command.split()[0]}" in said.out
    for code in MEANINGS:
        assert f"{code.value:4}  " in said.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(cli: CommandLine, command: str) -> None:
    said = cli(*command.split(), "--help")
    assert said.code == 0
    assert f"tallygate {command}" in said.out.replace("Usage: tallygate", "")


def test_help_imports_nothing_heavy() -> None:
    program = "import sys, tallygate.topologies.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded
    assert not NOT_FOR_HELP & set(loaded)


def test_the_console_script_is_this_one() -> None:
    script = Path(sys.executable).with_name("tallygate")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "0.1.0"
