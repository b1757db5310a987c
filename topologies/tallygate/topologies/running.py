"""Where `tallygate up` notes its Kafka's address, so that the other commands find it without being told.

The note is a file in the data folder. Its writer holds a lock on it for as long as it lives, so a note whose writer
was killed counts for nothing, whatever process has its number now.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tallygate.topologies.settings import Settings, load_settings

NOTE: Final = "running.json"
_CLAIM_SECONDS: Final = 1.0  # a reader holds the lock for a moment


class AlreadyRunning(Exception):
    """Another `tallygate up` has the data folder; the message is one line."""


@contextlib.contextmanager
def claimed(data_dir: Path) -> Iterator[Callable[[str], None]]:
    """Claims a data folder and gives the function that notes Kafka's address. Raises AlreadyRunning, OSError."""
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / NOTE
    with path.open("a+") as file:
        _lock(file.fileno(), data_dir)
        file.truncate(0)

        def note(kafka_brokers: str) -> None:
            file.write(json.dumps({"pid": os.getpid(), "kafka_brokers": kafka_brokers}))
            file.flush()

        try:
            yield note
        finally:
            path.unlink(missing_ok=True)


def _lock(fd: int, data_dir: Path) -> None:
    until = time.monotonic() + _CLAIM_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise AlreadyRunning(
                    f"`tallygate up` is running on {data_dir} already: stop that one, or choose another --data-dir"
                ) from None
            time.sleep(0.05)


def running_brokers(data_dir: Path) -> str | None:
    """The address of the Kafka of a `tallygate up` that lives on this data folder."""
    try:
        with (data_dir / NOTE).open() as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(json.loads(file.read())["kafka_brokers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or one that is being written
    return None


def connect_settings(**given: Any) -> Settings:
    """The settings of a command that talks to a cluster: what is given, the environment, a running `tallygate up`.

    Raises SettingsError.
    """
    settings = load_settings(**given)
    if "kafka_brokers" in settings.model_fields_set:
        return settings
    brokers = running_brokers(settings.data_dir)
    return settings if brokers is None else load_settings(**{**given, "kafka_brokers": brokers})
