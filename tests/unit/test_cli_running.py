"""The note that a `tallygate up` leaves for the other commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tallygate.topologies.running import NOTE, AlreadyRunning, claimed, connect_settings, running_brokers

HOLDER = """
import sys, time
from pathlib import Path
from tallygate.topologies.running import claimed
with claimed(Path(sys.argv[1])) as note:
    note("127.0.0.1:4711")
    print("noted", flush=True)
    time.sleep(60)
"""


def test_a_note_is_found_as_long_as_its_writer_lives(tmp_path: Path) -> None:
    assert running_brokers(tmp_path) is None
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"noted\n"
        assert running_brokers(tmp_path) == "127.0.0.1:4711"
        with pytest.raises(AlreadyRunning, match="is running on"), claimed(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / NOTE).exists()
    assert running_brokers(tmp_path) is None
    with claimed(tmp_path) as note:
        note("127.0.0.1:4712")
        assert running_brokers(tmp_path) == "127.0.0.1:4712"
    assert not (tmp_path / NOTE).exists()


def test_which_address_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TALLYGATE_KAFKA_BROKERS", raising=False)

    def found(brokers: str | None = None) -> str:
        return connect_settings(kafka_brokers=brokers, data_dir=tmp_path).kafka_brokers

    assert found() == "127.0.0.1:9092"
    with claimed(tmp_path) as note:
        assert found() == "127.0.0.1:9092"  # claimed, not noted yet
        note("127.0.0.1:4713")
        assert found() == "127.0.0.1:4713"
        monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", "kafka:9092")
        assert found() == "kafka:9092"
        assert found("other:9092") == "other:9092"
