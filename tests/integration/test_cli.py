"""The command line against a real `tallygate up`: what the panel tells a person to type works, and exit codes hold."""

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CommandLine
from kafka_fixture import java_and_maven
from tallygate.topologies.running import NOTE
from up_process import ADDRESSES, Up

pytestmark = [
    pytest.mark.skipif(not java_and_maven(), reason="`tallygate up` needs Java 17+ and Maven"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, _nothing_left_behind: None) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    running = Up(folder / "data", folder / "up.log")
    try:
        running.wait_for("/v1/customers/acme/balance -H ")  # the last line that it shows
        yield running
    finally:
        if running.process.poll() is None:
            running.end()


@pytest.fixture
def cli(up: Up, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(up.data_dir))
    monkeypatch.delenv("TALLYGATE_KAFKA_BROKERS", raising=False)
    return CommandLine(monkeypatch, capfd)


def test_the_commands_that_up_shows_work(up: Up, cli: CommandLine) -> None:
    shown = re.findall(r"tallygate ((?:grant|reserve|balance) .*?) +│", up.said)
    assert len(shown) == 3
    granted, reserved, balance = (cli(*command.split()) for command in shown)
    assert (granted.code, reserved.code, balance.code) == (0, 0, 0)
    assert "granted 1000 credits to acme" in granted.out
    assert "allowed: 75 credits are held until" in reserved.out
    assert re.search(r"credits +925 +75 +0", balance.out)


def test_the_curl_lines_that_up_shows_work(up: Up) -> None:
    lines = re.findall(r"^  (curl .*)$", up.said, re.MULTILINE)
    assert len(lines) == 3
    said = []
    for line in lines:
        ran = subprocess.run(["bash", "-c", f"{line} -sS"], capture_output=True, text=True, timeout=60, check=True)
        said.append(json.loads(ran.stdout))
    granted, reserved, balance = said
    assert (granted["allowed"], granted["credits"]) == (True, "1000")
    assert (reserved["allowed"], reserved["hold"]["credits"]) == (True, "75")
    assert balance["pools"][0]["held"] in ("75", "150")  # the commands above may have held as much


def test_reserve_settle_release(cli: CommandLine) -> None:
    cli("grant", "wayne", "100", "--id", "first")
    again = cli("grant", "wayne", "100", "--id", "first")
    assert "100 can be spent" in again.out
    held = json.loads(cli("reserve", "wayne", "llm", "--credits", "60", "--json").out)
    assert (held["allowed"], held["balance"]) == (True, "40")
    denied = cli("reserve", "wayne", "llm", "--credits", "60")
    assert denied.code == 1
    assert "denied: credits_exhausted" in denied.out
    assert "no: 60 asked of credits credits: 40 of 100 credits left" in denied.out
    settled = cli("settle", "wayne", held["id"], "--credits", "50")
    assert (settled.code, settled.out) == (0, "settled 50 credits (paid 50 by first); 50 can be spent\n")
    other = json.loads(cli("reserve", "wayne", "llm", "--credits", "50", "--json").out)
    assert cli("release", "wayne", other["id"]).out == "released; 50 can be spent\n"
    unknown = cli("release", "wayne", "no-such-hold")
    assert unknown.code == 2
    assert unknown.err.startswith("tallygate: hold_unknown: ")


def test_check_is_for_scripts(cli: CommandLine) -> None:
    cli("grant", "stark", "10")
    yes = cli("check", "stark", "llm", "-q", "input_tokens=1000000", "-d", "model=code", "--explain")
    assert (yes.code, yes.err) == (1, "")  # 30 credits of 10
    assert cli("check", "stark", "llm", "-q", "input_tokens=100000", "-d", "model=code").code == 0
    assert cli("check", "nobody", "llm").code == 1
    assert cli("check", "stark", "video").code == 1
    assert cli("check", "stark", "llm", "-q", "pages=1").code == 2


def test_a_budget_for_each_agent(cli: CommandLine) -> None:
    cli("grant", "hooli", "1000")
    set_ = cli("budget", "hooli", "agents", "--scope", "agent=*", "--limit", "100", "--period", "day")
    assert set_.out == "budget agents of hooli: 100 credits a day for agent=*\n"
    codes = [cli("reserve", "hooli", "llm", "--credits", "75", "-d", f"agent={name}").code for name in ("a", "b", "a")]
    assert codes == [0, 0, 1]
    assert "budget agents agent=a: 25 of 100 credits left" in cli("balance", "hooli").out


def test_events_from_a_file_reach_clickhouse(cli: CommandLine, tmp_path: Path) -> None:
    events = [
        {
            "specversion": "1.0",
            "id": str(number),
            "source": "/test",
            "type": "llm.call",
            "subject": "initech",
            "data": {"input_tokens": 100, "team": "apps", "model": "code"},
        }
        for number in range(20)
    ]
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join(map(json.dumps, events)))
    assert cli("produce", str(file)).out.startswith("20 events (")
    assert json.loads(cli("produce", str(file), "--json").out)["events"] == 20  # again: they count once
    question = "SELECT sum(quantity) AS n FROM usage_hourly WHERE customer = 'initech' AND meter = 'input_tokens'"
    until = time.monotonic() + 30
    while (found := cli("sql", question, "--json")).out != '{"n":"2000"}\n':
        assert found.code == 0
        assert time.monotonic() < until, found
        time.sleep(0.2)
    assert cli("sql", question, "--csv").out == '"n"\n2000\n'
    file.write_text(json.dumps(events[0]) + "\n{}\n")
    bad = cli("produce", str(file))
    assert bad.code == 2
    assert "events.ndjson, line 2: " in bad.err


def test_sql_answers_questions_only(cli: CommandLine) -> None:
    assert cli("sql", "SELEC 1").code == 2
    dropped = cli("sql", "DROP TABLE sink_usage")
    assert dropped.code == 2
    assert "only questions are answered" in dropped.err


def test_catalogs_are_versions(cli: CommandLine, tmp_path: Path) -> None:
    first = json.loads(cli("catalog", "show", "--json").out)
    assert cli("catalog", "show", "--version", "99").code == 2
    file = tmp_path / "catalog.yaml"
    file.write_text("meters: {pages: {event_type: print, value: pages}}\nfeatures: {printing: {meters: [pagez]}}\n")
    broken = cli("catalog", "apply", str(file))
    assert broken.code == 2
    assert "features.printing.meters.0: there is no meter 'pagez'" in broken.err
    assert json.loads(cli("catalog", "show", "--json").out) == first
    file.write_text("meters: {pages: {event_type: print, value: pages}}\nfeatures: {printing: {meters: [pages]}}\n")
    try:
        applied = json.loads(cli("catalog", "apply", str(file), "--json").out)
        assert applied == {"version": first["version"] + 1, "changed": True}
        assert json.loads(cli("catalog", "apply", str(file), "--json").out) == {**applied, "changed": False}
        assert "meters: [pages]" in cli("catalog", "show").out
        assert json.loads(cli("catalog", "show", "--version", str(first["version"]), "--json").out) == first
    finally:
        from tallygate.topologies.demo_trace import data_path

        with data_path("catalog.yaml") as example:
            assert cli("catalog", "apply", str(example)).code == 0


def test_what_the_command_line_changes_is_audited(cli: CommandLine) -> None:
    cli("grant", "vandelay", "10", "--id", "g")
    assert cli("grant", "vandelay", "11", "--id", "g").code == 2
    cli("budget", "vandelay", "agents", "--limit", "5")
    cli("reserve", "vandelay", "llm", "--credits", "1")
    lines = cli("audit", "--customer", "vandelay", "--json").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [(each["action"], each["outcome"]) for each in found] == [
        ("grant", "asked"),
        ("grant", "done"),
        ("grant", "asked"),
        ("grant", "refused"),
        ("budget", "asked"),
        ("budget", "done"),
    ]
    assert {each["who"] for each in found} == {f"cli:{getpass.getuser()}"}
    assert found[0]["details"]["amount"] == "10"
    assert found[3]["reason"].startswith("id_conflict: ")
    [catalog, *_] = [json.loads(line) for line in cli("audit", "--action", "catalog.apply", "--json").out.splitlines()]
    assert catalog["details"] == {"from": "catalog.yaml"}

    asked = "SELECT action, target, outcome FROM audit WHERE customer = 'vandelay' ORDER BY at"
    until = time.monotonic() + 30
    while len(rows := cli("sql", asked, "--json").out.splitlines()) < 3 or "asked" in rows[-1]:
        assert time.monotonic() < until, rows
        time.sleep(0.2)
    assert json.loads(rows[0]) == {"action": "grant", "target": "g", "outcome": "done"}
    assert [json.loads(row)["outcome"] for row in rows[1:]] == ["refused", "done"]


def test_topics(cli: CommandLine) -> None:
    assert cli("topics").code == 0
    made = json.loads(cli("topics", "--service", "checkout", "--json").out)
    assert [report["name"] for report in made if report["outcome"] == "created"] == ["tallygate.replies.checkout.v1"]
    other = cli("topics", "--partitions", "3")
    assert other.code == 1
    assert "partitions is 8, not 3" in other.out


def test_a_second_up_is_told(cli: CommandLine) -> None:
    second = cli("up")
    assert second.code == 3
    assert "is running on" in second.err


def test_a_killed_worker_is_started_again(up: Up, cli: CommandLine) -> None:
    cli("grant", "globex", "5")
    os.kill(up.member("worker"), signal.SIGKILL)
    after = cli("balance", "globex", "--json", "--timeout", "60")
    assert json.loads(after.out)["pools"][0]["balance"] == "5"
    assert "the worker ended (signal 9)" in up.said


def test_a_taken_port_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(monkeypatch, capfd)
    monkeypatch.delenv("TALLYGATE_KAFKA_BROKERS", raising=False)
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(tmp_path / "data"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in ADDRESSES.items():
            monkeypatch.setenv(name, value)
        said = cli("up", "--port", port)
        assert (said.code, said.err.count("\n")) == (3, 1)
        assert f"port {port} on 127.0.0.1 is taken" in said.err
        monkeypatch.setenv("TALLYGATE_METRICS_ADDRESS", f"127.0.0.1:{port}")
        said = cli("up", "--port", "0")
        assert (said.code, said.err.count("\n")) == (3, 1)
        assert "set TALLYGATE_METRICS_ADDRESS" in said.err


def test_up_ends_in_order_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(monkeypatch, capfd)
    monkeypatch.delenv("TALLYGATE_KAFKA_BROKERS", raising=False)
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(tmp_path / "data"))
    for number, balance in enumerate(("10", "20"), 1):
        running = Up(tmp_path / "data", tmp_path / f"up-{number}.log")
        try:
            running.wait_for("Ctrl-C ends it.")
            assert f"{balance} can be spent" in cli("grant", "acme", "10").out
        finally:
            code = running.end()
        assert code == 0
        assert not (tmp_path / "data" / NOTE).exists()
        assert not list((tmp_path / "data" / "members").glob("*.json"))  # settings may hold secrets
    away = cli("balance", "acme", "--timeout", "0.2")
    assert away.code == 3
    assert cli("sql", "SELECT 1").code == 3
