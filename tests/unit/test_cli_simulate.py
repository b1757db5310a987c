"""`tallygate simulate`: files in, JSON out, exit codes for scripts."""

import io
import json
import sys
from pathlib import Path

import pytest

from command_line import CommandLine

SCENARIO = {
    "start": {"at": "2024-01-01T00:00:00Z", "balances": {"trial": "100"}},
    "grants": [{"id": "trial", "amount": 100, "effective_at": "2024-01-01T00:00:00Z"}],
    "usage": [{"at": "2024-01-02T00:00:00Z", "amount": 0.1}],
    "queries": [{"at": "2024-01-03T00:00:00Z"}],
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def _written(folder: Path, document: object) -> str:
    file = folder / "scenario.json"
    file.write_text(json.dumps(document))
    return str(file)


def test_a_scenario_is_answered_exactly(cli: CommandLine, tmp_path: Path) -> None:
    said = cli("simulate", _written(tmp_path, SCENARIO))
    assert said.code == 0
    [query] = json.loads(said.out)["queries"]
    assert query["balances"] == {"trial": "99.9"}  # 0.1 is a tenth, not the nearest binary fraction


def test_standard_input(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(SCENARIO).encode())))
    assert json.loads(cli("simulate", "-").out)["queries"][0]["balance"] == "99.9"


@pytest.mark.parametrize(("expected", "code"), [("99.9", 0), ("99", 1)])
def test_check(cli: CommandLine, tmp_path: Path, expected: str, code: int) -> None:
    file = _written(tmp_path, {"scenarios": [{**SCENARIO, "name": "one", "expect": [{"balance": expected}]}]})
    said = cli("simulate", file, "--check")
    assert said.code == code
    assert said.out.endswith("no differences\n" if code == 0 else "\n1 difference\n")
    differences = json.loads(cli("simulate", file, "--check", "--json").out)["differences"]
    assert len(differences) == code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "scenario.json:1:2: no JSON"),
        ('{"start": NaN}', "NaN is no number"),
        ("[" * 100_000, "no JSON"),
        ("\xff", "no JSON"),
        ('{"start": {}}', "start.at: is missing"),
        ('{"start": {"at": "2024-01-01T00:00:00Z"}, "grant": []}', "grant: unknown field"),
        ("7", "scenario: wants an object"),
    ],
)
def test_a_bad_file_gives_one_line(cli: CommandLine, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "scenario.json"
    file.write_bytes(text.encode("latin-1"))
    said = cli("simulate", str(file))
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert said.err.count("\n") == 1
