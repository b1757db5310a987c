"""The local table in RocksDB: bytes in order, one write for rows and position, and what a damaged folder does."""

import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owner_world import Life, MemoryTable, World
from tallygate.pipeline.replay import forgotten_range, seen_key
from tallygate.topologies.tables import (
    WAITING_ROWS_MAX,
    Position,
    RocksTable,
    TableBroken,
    TableMemory,
    cannot_resume,
)
from unit.test_owner import busy

HOUR_MS = 3_600_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tables" / "0"


def rows(table: RocksTable) -> dict[bytes, bytes]:
    return dict(table.scan(b"", b"\xff\xff"))


def test_rows_and_position_survive_a_close(path: Path) -> None:
    table = RocksTable(path)
    assert table.position == Position()
    position = Position(7, 2, 5, 1_700_000_000_000)
    table.apply([(b"a\0x\0", b"1"), (b"b", b""), (b"a\0x\0", b"2"), (b"gone", b"3"), (b"gone", None)], position)
    table.close()
    again = RocksTable(path)
    assert (again.position, rows(again), again.rebuilt) == (position, {b"a\0x\0": b"2", b"b": b""}, False)
    assert (again.get(b"a\0x\0"), again.get(b"meta.v1"), again.get(b"gone")) == (b"2", None, None)
    again.close()


def test_a_scan_is_sorted_and_half_open(path: Path) -> None:
    table = RocksTable(path)
    keys = [b"\0due\0" + n.to_bytes(8, "big") for n in range(5)] + [b"a\0", b"a\0\xff", b"b"]
    table.apply([(key, b"v") for key in random.Random(1).sample(keys, len(keys))], Position())
    assert [key for key, _ in table.scan(keys[1], keys[4])] == keys[1:4]
    assert [key for key, _ in table.scan(b"a\0", b"b")] == [b"a\0", b"a\0\xff"]
    assert table.scan(b"x", b"y") == []
    assert [key for key, _ in table.scan(keys[1], keys[4], 2)] == keys[1:3]
    table.close()


def test_forgotten_ids_go_and_what_is_written_at_once_stays(path: Path) -> None:
    table = RocksTable(path)
    table.apply([(seen_key(day, b"d"), b"v") for day in (100, 101, 102, 103)], Position())
    table.apply([(b"row", b"1")], Position(), forgotten_range(103 * 24 * HOUR_MS))
    assert sorted(rows(table)) == [seen_key(102, b"d"), seen_key(103, b"d"), b"row"]
    table.close()


@pytest.mark.parametrize(
    ("position", "why"),
    [
        (Position(), ""),
        (Position(10, at=0), "h old"),
        (Position(10, at=8 * HOUR_MS), ""),
        (Position(4, at=9 * HOUR_MS), "before the journal's first offset 5"),
        (Position(5, at=9 * HOUR_MS), ""),
        (Position(20, at=9 * HOUR_MS), ""),
        (Position(21, at=9 * HOUR_MS), "after the journal's end 20"),
    ],
)
def test_which_positions_can_be_resumed(position: Position, why: str) -> None:
    found = cannot_resume(position, begin=5, end=20, now=10 * HOUR_MS, resume_ms_max=2 * HOUR_MS)
    assert (why in found) if why else not found


def test_it_holds_what_a_table_in_memory_holds(path: Path) -> None:
    """The same work over RocksDB and over the double that the owner's tests use."""
    world, other = World(), World()
    table = RocksTable(path)
    busy(world, Life(world, "a", table).opened())
    busy(other, Life(other, "a", MemoryTable()).opened())
    assert rows(table) == Life(other, "b").opened().table.rows | {}
    assert table.position.offset == len(world.log)
    table.close()
    resumed = RocksTable(path)
    Life(world, "b", resumed).opened()
    assert rows(resumed) == Life(world, "c").opened().table.rows
    resumed.close()


def damaged(path: Path, suffix: str, size: int) -> None:
    table = RocksTable(path)
    for n in range(3):
        table.apply([(b"%d-%d" % (n, i), os.urandom(100)) for i in range(1000)], Position(n + 1))
        table._db.flush()
    table.close()
    for file in path.iterdir():
        if file.name.endswith(suffix) or file.name.startswith(suffix):
            os.truncate(file, size)


@pytest.mark.parametrize(("suffix", "size"), [(".sst", 100), ("MANIFEST", 10), ("CURRENT", 0), (".sst", 0)])
def test_a_damaged_folder_is_emptied_with_one_line(
    path: Path, suffix: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(path, suffix, size)
    with caplog.at_level(logging.WARNING):
        table = RocksTable(path)
    assert (table.position, rows(table), table.rebuilt) == (Position(), {}, True)
    assert [record.getMessage().endswith("building it anew from the journal") for record in caplog.records] == [True]
    table.apply([(b"a", b"1")], Position(1))
    table.close()
    assert RocksTable(path).get(b"a") == b"1"


def test_damage_that_shows_later_ends_the_process_and_empties_the_folder_at_the_next_start(path: Path) -> None:
    table = RocksTable(path)
    for n in range(20):
        table.apply([(b"%d-%d" % (n, i), os.urandom(1000)) for i in range(100)], Position(n + 1))
        table._db.flush()
    table.close()
    for file in path.glob("*.sst"):  # the same length, other bytes
        file.write_bytes(file.read_bytes()[:30_000] + bytes(20_000) + file.read_bytes()[50_000:])
    table = RocksTable(path)
    assert not table.rebuilt
    with pytest.raises(TableBroken) as caught:
        rows(table)
    assert "\n" not in str(caught.value)
    table.close()
    del table, caught  # RocksDB's lock goes with the last reference where a close has failed
    again = RocksTable(path)
    assert (again.rebuilt, rows(again)) == (True, {})
    again.close()


def test_a_folder_in_use_by_another_process_is_not_touched(path: Path) -> None:
    table = RocksTable(path)
    table.apply([(b"a", b"1")], Position(1))
    code = "import sys, pathlib; from tallygate.topologies.tables import *; RocksTable(pathlib.Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "is in use by another process" in other.stderr.splitlines()[-1]
    assert table.get(b"a") == b"1"
    table.close()


def test_rows_that_wait_to_be_written_are_seen(path: Path) -> None:
    table = RocksTable(path)
    table.apply([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], Position(1))
    table.scan(b"", b"z")  # writes them
    table.apply([(b"a", b"2"), (b"b", None), (b"d", b"1")], Position(2))
    assert table._db.get(b"ra") == b"1"
    assert [table.get(key) for key in (b"a", b"b", b"c", b"d", b"e")] == [b"2", None, b"1", b"1", None]
    assert table.get_many([b"e", b"d", b"c", b"b", b"a"]) == [None, b"1", b"1", None, b"2"]
    assert table.get_many([b"c", b"e"]) == [b"1", None]
    assert table.scan(b"", b"z") == [(b"a", b"2"), (b"c", b"1"), (b"d", b"1")]
    table.apply([(b"a", b"3")], Position(3))
    table.wipe("a test")
    assert (table.get(b"a"), table.position) == (None, Position())
    table.close()


def test_what_was_written_survives_kill_9(path: Path) -> None:
    code = (
        "import os, sys, pathlib; from tallygate.topologies.tables import *\n"
        "table = RocksTable(pathlib.Path(sys.argv[1]))\n"
        "for n in range(WAITING_ROWS_MAX + 9): table.apply([(b'%d' % n, b'v')], Position(n + 1))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    table = RocksTable(path)
    assert (table.position, len(rows(table))) == (Position(WAITING_ROWS_MAX), WAITING_ROWS_MAX)  # both or neither
    table.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TableBroken, match="TALLYGATE_DATA_DIR"):
        RocksTable(tmp_path / "file" / "0")


def test_all_tables_of_a_process_share_their_memory(tmp_path: Path) -> None:
    """More is written than all of them may buffer, and less into each than it would buffer alone."""
    memory = TableMemory(32)
    tables = [RocksTable(tmp_path / str(number), memory) for number in range(6)]
    for lap in range(40):
        for table in tables:
            table.apply([(b"%d-%d" % (lap, n), random.randbytes(900)) for n in range(250)], Position(lap + 1))
            assert memory.buffers.get_usage()
    for _ in range(300):  # what is too much is on its way to disk
        if memory.buffers.get_usage() <= 32 << 20:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"{memory.buffers.get_usage()} bytes are buffered")
    assert all(len(table.scan(b"", b"\xff")) == 40 * 250 for table in tables)
    for table in tables:
        table.close()
