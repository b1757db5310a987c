"""The bench as a person runs it: short, on a stack of its own, and its figures' relations."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from kafka_fixture import Broker, needs_java

KEPT = {"load_average", "cores", "versions", "broker", "worker_cpu_seconds", "broker_cpu_seconds", "sink_cpu_seconds"}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def bench(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYGATE_K")}
    return subprocess.Popen(
        [sys.executable, "-m", "tallygate.topologies.cli", "bench", *words],
        env={**environment, "TMPDIR": str(tmp_path), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def figures(tmp_path: Path, *words: str) -> dict[str, Any]:
    file = tmp_path / "figures.json"
    ran = bench(tmp_path, *words, "--json", str(file))
    said, trouble = ran.communicate(timeout=150)
    assert ran.returncode == 0, said + trouble
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    found: dict[str, Any] = json.loads(file.read_text())
    assert found.keys() >= KEPT
    assert found["worker_cpu_seconds"] > 0
    return found


@needs_java
def test_usage(tmp_path: Path) -> None:
    words = ("--shape", "single", "--seconds", "3", "--rate", "500", "--customers", "50", "--partitions", "2")
    found = figures(tmp_path, "usage", *words)
    assert found["sent"] == found["counted"] == 1500
    assert found["duplicates_sent"] == 15
    assert 0 < found["sustained_per_second"] <= found["offered_per_second"] == 500
    assert 0 < found["lag_ms_p50"] <= found["lag_ms_p99"] <= found["visible_lag_ms_p99"]
    assert found["worker_events_per_cpu_second"] == round(1500 / found["worker_cpu_seconds"])
    assert found["limits"]["produced_per_second"] > 0


@needs_java
def test_decisions_while_usage_flows(tmp_path: Path) -> None:
    words = ("--rate", "100", "--seconds", "3", "--usage-rate", "2000", "--customers", "40", "--partitions", "2")
    found = figures(tmp_path, "decisions", *words)
    assert found["sent"] == found["answered"] == found["allowed"] * 2 + found["denied"]
    assert found["denied"] > 0  # some limits were met, or the next line would say little
    assert found["overdraft"] == 0
    assert found["usage_counted"] == found["usage_sent"] > 0
    assert found["recorded"]["journal"] == found["recorded"]["clickhouse"]
    assert found["recorded"]["journal"] == {"reserve": found["allowed"], "settle": found["settled"]}
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["p999_ms"]
    assert found["limits"]["echo_ms_p50"] > 0


@needs_java
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    ran = bench(tmp_path, "decisions", "--closed", "5", "--seconds", "600")
    assert ran.stderr is not None
    for line in ran.stderr:
        if "putting customers" in line:
            break
    time.sleep(1)
    ran.send_signal(signal.SIGINT)
    said, trouble = ran.communicate(timeout=60)
    assert ran.returncode == 130, said + trouble
    assert said == ""
    assert "Traceback" not in trouble
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_the_benchs_catalog_is_not_written_to(
    module_kafka: Broker, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", module_kafka.bootstrap)
    said = cli("bench", "usage", "--cluster")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert "tallygate bench catalog" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("decisions", "give one of --rate, --closed and --hot"),
        ("decisions --rate 5 --hot 2", "give one of --rate, --closed and --hot"),
        ("usage --seconds 0", "'--seconds'"),
        ("usage --shape triple", "'triple' is not"),
        ("growth --partitions 1,x", "'1,x': write numbers from 1 to 256 with commas"),
        ("usage --json /no/such/folder/f.json", "/no/such/folder/f.json: No such file"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(cli: CommandLine, words: str, told: str) -> None:
    said = cli("bench", *words.split())
    assert said.code == 2
    assert told in " ".join(said.err.replace("│", " ").split())
