"""The local table of a partition: what the accepted journal says, in RocksDB, so that a restart reads only the tail.

It is a cache of the journal and never ahead of it. One WriteBatch holds the rows of some transitions and the position
up to which the journal is contained, so the two cannot part. What is applied waits in memory until it is worth a write,
and what a killed process or a power cut takes is read again from the journal.
"""

import logging
import shutil
from pathlib import Path
from typing import Final, Protocol

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DbClosedError,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
)

from tallygate.pipeline.replay import Write

logger = logging.getLogger(__name__)

_META: Final = b"meta.v1"
#: Rows carry this in front of their key, so that no row can ever be taken for the meta record.
_ROW: Final = b"r"
_BROKEN_MARK: Final = "BROKEN"
_FILTER_BITS_PER_KEY: Final = 10
_WRITE_BUFFER_BYTES: Final = 16 << 20
#: So many rows wait at most for being written together. A write of its own for each step took a tenth of a worker's
#: time; a busy customer's rows are also written once instead of with each step. A tick's scan writes what waits.
WAITING_ROWS_MAX: Final = 500


class Position(msgspec.Struct, frozen=True):
    """How far a table contains the journal.

    `offset` is the next to read; `term` and `seq` are where the reader's fence stood there. `at` is when the last
    record before it was written, in ms: what is far older must not be resumed, since tombstones may be gone by now.
    """

    offset: int = 0
    term: int = 0
    seq: int = 0
    at: int = 0


class TableMemory:
    """What all tables of a process share: a cache of blocks, and of it the buffers of what was written lately.

    Without it, each table would have its own, and a worker's memory would grow with the partitions it owns.
    """

    def __init__(self, mb: int) -> None:
        self.cache = Cache(mb << 20)
        self.buffers = WriteBufferManager.new_write_buffer_manager_with_cache((mb << 20) // 2, False, self.cache)


class TableBroken(Exception):
    """The local table cannot be read or written. The next start builds it anew from the journal."""


class Table(Protocol):
    """What an owner needs of its local table; the rules see `get` and `scan`."""

    position: Position

    def get(self, key: bytes, /) -> bytes | None: ...

    def get_many(self, keys: list[bytes], /) -> list[bytes | None]: ...

    def scan(self, begin: bytes, end: bytes, most: int = 0, /) -> list[tuple[bytes, bytes]]: ...

    def apply(self, writes: list[Write], position: Position, forget: tuple[bytes, bytes] | None = None) -> None:
        """All of it or nothing: first the range `forget` is deleted, then `writes` in order, then the position."""
        ...

    def wipe(self, why: str) -> None:
        """Empties the table: everything is read from the journal again."""
        ...

    def close(self) -> None: ...


class RocksTable:
    """A `Table` in a folder of its own. Not for two processes at once: RocksDB's lock refuses the second."""

    def __init__(self, path: Path, memory: TableMemory | None = None) -> None:
        """Opens or makes the folder; one that is damaged is wiped. Raises `TableBroken`, e.g. when it is in use."""
        self.path = path
        self._memory = memory
        self.rebuilt = False
        self._waiting: dict[bytes, bytes | None] = {}
        self._db, self.position = self._open()

    def get(self, key: bytes, /) -> bytes | None:
        if key in self._waiting:
            return self._waiting[key]
        try:
            return self._db.get(_ROW + key)  # type: ignore[no-any-return]
        except Exception as error:
            raise self._broken(error) from error

    def get_many(self, keys: list[bytes], /) -> list[bytes | None]:
        try:
            found: list[bytes | None] = self._db.get([_ROW + key for key in keys])
        except Exception as error:
            raise self._broken(error) from error
        waiting = self._waiting
        if waiting and not waiting.keys().isdisjoint(keys):
            return [waiting.get(key, value) for key, value in zip(keys, found, strict=True)]
        return found

    def scan(self, begin: bytes, end: bytes, most: int = 0, /) -> list[tuple[bytes, bytes]]:
        if self._waiting:
            self._write(None, [], self.position)
        options = ReadOptions()
        options.set_iterate_upper_bound(_ROW + end)
        try:
            found = []
            at = self._db.iter(options)
            at.seek(_ROW + begin)
            while at.valid():
                found.append((at.key()[1:], at.value()))
                if len(found) == most:
                    break
                at.next()
            at.status()  # an iterator, and rocksdict's items(), end silently at a damaged block
            return found
        except Exception as error:
            raise self._broken(error) from error

    def apply(self, writes: list[Write], position: Position, forget: tuple[bytes, bytes] | None = None) -> None:
        if forget is None and len(writes) < WAITING_ROWS_MAX:
            self._waiting.update(writes)
            self.position = position
            if len(self._waiting) < WAITING_ROWS_MAX:
                return
            writes = []
        self._write(forget, writes, position)

    def _write(self, forget: tuple[bytes, bytes] | None, writes: list[Write], position: Position) -> None:
        """All of it or nothing: what waits, then the end of the range `forget`, then `writes`, then the position."""
        batch = WriteBatch(raw_mode=True)
        for part in (self._waiting.items(), writes):
            for key, value in part:
                if value is None:
                    batch.delete(_ROW + key)
                else:
                    batch.put(_ROW + key, value)
            if forget is not None:
                batch.delete_range(_ROW + forget[0], _ROW + forget[1])
                forget = None
        batch.put(_META, msgspec.json.encode(position))
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._broken(error) from error
        self._waiting.clear()
        self.position = position

    def wipe(self, why: str) -> None:
        logger.warning("%s: %s; building it anew from the journal", self.path, why)
        self._waiting.clear()
        self.close()
        shutil.rmtree(self.path)
        self._db, self.position = self._open()
        self.rebuilt = True

    def close(self) -> None:
        try:
            if self._waiting:
                self._write(None, [], self.position)
            self._db.close()
        except Exception as error:  # noqa: BLE001  # of a background task; the journal has everything
            logger.warning("%s; it will be built anew from the journal", self._broken(error))

    def _open(self) -> tuple[Rdict, Position]:
        if (self.path / _BROKEN_MARK).exists():
            self._remove("was marked as broken")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return self._open_once()
        except OSError as error:
            raise TableBroken(f"{self.path}: {error.strerror}: choose another TALLYGATE_DATA_DIR") from error
        except Exception as error:  # rocksdict raises bare Exceptions; the text tells them apart
            if "/LOCK:" in str(error):
                raise TableBroken(f"{self.path} is in use by another process") from error
            self._remove(f"cannot be opened ({_first_line(error)})")
        try:
            return self._open_once()
        except Exception as error:
            raise TableBroken(f"{self.path} cannot be opened: {_first_line(error)}") from error

    def _open_once(self) -> tuple[Rdict, Position]:
        db = Rdict(str(self.path), _options(self._memory))
        try:
            value = db.get(_META)
            return db, Position() if value is None else msgspec.json.decode(value, type=Position)
        except BaseException:
            db.close()
            raise

    def _remove(self, why: str) -> None:
        logger.warning("%s %s; building it anew from the journal", self.path, why)
        shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        self.rebuilt = True

    def _broken(self, error: Exception) -> TableBroken:
        """Leaves a mark, so that the next start does not trip over the same damage."""
        assert not isinstance(error, DbClosedError), f"{self.path} is used after it was closed"
        try:
            (self.path / _BROKEN_MARK).touch()
        except OSError as why:
            logger.warning("%s: no mark could be left: %s", self.path, why)
        return TableBroken(f"{self.path}: {_first_line(error)}")


def cannot_resume(position: Position, begin: int, end: int, now: int, resume_ms_max: int) -> str:
    """Why a table at this position must be built anew, or the empty string."""
    if not position.offset:
        return ""
    if position.offset < begin:
        return f"it ends at offset {position.offset}, before the journal's first offset {begin}"
    if position.offset > end:
        return f"it ends at offset {position.offset}, after the journal's end {end}: another journal, or one cut back"
    if now - position.at > resume_ms_max:
        return f"it is {(now - position.at) // 3_600_000} h old, and the journal may have dropped tombstones since"
    return ""


def _options(memory: TableMemory | None) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    # Nearly every id that is looked up is a new one. A filter answers so in 0.6 µs, the index of each file in 7 to 11.
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(_FILTER_BITS_PER_KEY, False)
    if memory is not None:
        blocks.set_block_cache(memory.cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options.set_write_buffer_manager(memory.buffers)
    options.set_block_based_table_factory(blocks)
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.05)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    return options


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
