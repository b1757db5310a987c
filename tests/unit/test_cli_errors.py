"""What a person sees when something is wrong: one line and an exit code, never a traceback."""

import importlib
from pathlib import Path

import pytest
import typer

from command_line import CommandLine
from tallygate.connectors.client_errors import ClientClosed
from tallygate.topologies import cli_simulate
from tallygate.topologies.cli import main
from tallygate.topologies.cli_options import pairs
from tallygate.topologies.exits import CODES, Exit, Trouble, explain


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("TALLYGATE_KAFKA_BROKERS", raising=False)
    return CommandLine(monkeypatch, capfd)


@pytest.mark.parametrize("name", CODES)
def test_every_known_error_exists(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), kind), Exception)


def test_what_is_explained() -> None:
    missing = FileNotFoundError(2, "No such file or directory", "prices.yaml")
    assert explain(Trouble(Exit.NO, "three differences")) == (Exit.NO, "three differences")
    assert explain(ClientClosed("it was closed")) == (Exit.AWAY, "it was closed")  # by its base class
    assert explain(missing) == (Exit.WRONG, "prices.yaml: No such file or directory")
    assert explain(KeyError("customer")) is None
    assert explain(OSError("something without a file")) is None


def test_a_bug_is_one_line_and_how_to_see_more(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: Path) -> None:
        raise KeyError("customer")

    monkeypatch.setattr(cli_simulate, "_read_json", broken)
    said = cli("simulate", "scenario.json")
    assert said.code == 70
    assert "fault in tallygate itself: KeyError: 'customer'" in said.err
    assert "--traceback" in said.err
    assert "Traceback" not in said.err
    monkeypatch.setattr("sys.argv", ["tallygate", "--traceback", "simulate", "scenario.json"])
    with pytest.raises(KeyError):
        main()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("balance",), 2, "Missing argument"),
        (("balance", "acme", "--timeout", "0"), 2, "--timeout"),
        (("reserve", "acme", "llm", "-q", "tokens"), 2, "'tokens' is no NAME=VALUE"),
        (("reserve", "acme", "llm", "-d", "a=1", "-d", "a=2"), 2, "'a' is given twice"),
        (("grant", "acme", "5", "--expires-at", "tomorrow"), 2, "'tomorrow' is no instant"),
        (("grant", "acme", "5", "--category", "gift"), 2, "gift"),
        (("budget", "acme", "b", "--limit", "5", "--period", "year"), 2, "year"),
        (("topics", "--service", "No Spaces"), 2, "use 1 to 63 lower-case letters"),
        (("acls", "--worker", "tg-worker"), 2, "'tg-worker' is no principal: write User:NAME"),
        (("acls", "--service", "No Spaces=User:x"), 2, "use 1 to 63 lower-case letters"),
        (("acls", "--apply"), 2, "say for whom"),
        (("dead-letters", "show", "usage-3-17"), 2, "'usage-3-17' is no place: write topic/partition/offset"),
        (("dead-letters", "show", "a/0/1", "--raw", "--json"), 2, "choose one of --raw and --json"),
        (("dead-letters", "list", "--reason", "bad"), 2, "'bad' is no reason: there are allowed,"),
        (("dead-letters", "list", "--since", "today"), 2, "'today' is no instant"),
        (("dead-letters", "replay"), 2, "name places, or choose with"),
        (("dead-letters", "replay", "a/0/1", "--all"), 2, "name places, or choose with"),
        (("sql", "SELECT 1", "--json", "--csv"), 2, "choose one of --json and --csv"),
        (("catalog", "apply", "nowhere.yaml"), 2, "nowhere.yaml: cannot be read: No such file or directory"),
        (("simulate", "nowhere.json"), 2, "nowhere.json: No such file or directory"),
        (
            ("balance", "acme", "--brokers", "127.0.0.1:1", "--timeout", "0.2"),
            3,
            "no Kafka broker answers at 127.0.0.1:1",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(cli: CommandLine, words: tuple[str, ...], code: int, says: str) -> None:
    said = cli(*words)
    assert (said.code, said.out) == (code, "")
    assert says in " ".join(said.err.replace("│", " ").split())
    assert "Traceback" not in said.err


def test_a_wrong_setting_names_its_variable(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYGATE_PARTITIONS", "many")
    said = cli("topics")
    assert said.code == 2
    assert said.err.startswith("tallygate: TALLYGATE_PARTITIONS: ")
    assert said.err.count("\n") == 1


def test_up_starts_no_kafka_beside_settings_for_another(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYGATE_KAFKA_CONFIG", '{"security.protocol": "SSL"}')
    said = cli("up")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("tallygate: TALLYGATE_KAFKA_CONFIG is for a Kafka that is there: name it with --brokers")


def test_pairs() -> None:
    assert pairs(["a=1", "b=x=y"], "-d") == {"a": "1", "b": "x=y"}
    assert pairs(None, "-d") == {}
    for wrong in ("a", "=1", "a=", ""):
        with pytest.raises(typer.BadParameter):
            pairs([wrong], "-d")
