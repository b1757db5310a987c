"""Three brokers, three copies, two of which must hold a record: the leader dies under load, and all zeros hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.oracle import Findings
from kafka_fixture import needs_java

SEED = os.environ.get("SEED", "1")
ZEROS = tuple(Findings().counts())


@needs_java
@pytest.mark.timeout(540)
def test_the_leader_is_killed_under_load_and_comes_back() -> None:
    what = ["--nodes", "3", "--kills", "1", "--faults", "broker_killed", "--partitions", "4", "--workers", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "chaos", *what, "--seed", SEED],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    result = json.loads(ran.stdout)
    assert {name: result[name] for name in ZEROS} == dict.fromkeys(ZEROS, 0)
    assert (result["brokers"], result["broker_restarts"], result["kills"] > 0) == (3, 1, True)
    assert result["faults"] == {"kill": 1, "broker_killed": 1}
