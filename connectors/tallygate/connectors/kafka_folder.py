"""The folder of a local broker: what is written into it, who holds it, and what its log says.

server.properties  log4j2.properties   written at each start
data/                                  Kafka's own; formatted once, then kept
kafka.log  kafka.out                   the broker's log, rolled at 10 MB; what Java itself says
lock                                   held by the broker's process
"""

import base64
import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tallygate.connectors.kafka_fetch import LocalKafkaError

#: With less free space than this a broker is not started.
FREE_MB_MIN: Final = 64
#: How long a former holder, whose parent was killed, may take to end; longer than kafka_watch's patience.
_LOCK_SECONDS: Final = 15.0
_LOG_BYTES_READ: Final = 1024 * 1024

LOG: Final = "kafka.log"
OUT: Final = "kafka.out"

# Paths are relative to the folder, where Java runs: so a folder may have commas, spaces or any letters in its name.
_SERVER: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners={listeners},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={listeners}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=data
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# After a kill the controller refuses the broker until its old session has ended: 12 s to start again by default, now 5.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# The default of 128 MB is a quarter of the heap.
log.cleaner.dedupe.buffer.size=33554432
"""

_LOGGING: Final = f"""\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={LOG}
appender.file.filePattern={LOG}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %p %m (%c{{1}})%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""


def prepare(folder: Path) -> None:
    """Makes the folder and checks that there is room in it. Raises OSError or LocalKafkaError."""
    folder.mkdir(parents=True, exist_ok=True)
    if free_mb(folder) < FREE_MB_MIN:
        raise LocalKafkaError(disk_full(folder))


def write_config(
    folder: Path, port: int, controller_port: int, listeners: Sequence[str] = (), properties: Mapping[str, str] = {}
) -> None:
    """`listeners` besides the plain one, like `SASL_SSL://127.0.0.1:9093`; `properties` win over ours."""
    server = _SERVER.format(
        listeners=",".join([f"PLAINTEXT://127.0.0.1:{port}", *listeners]), controller_port=controller_port
    )
    more = "".join(f"{name}={value}\n" for name, value in properties.items())
    (folder / "server.properties").write_text(server + more)
    (folder / "log4j2.properties").write_text(_LOGGING)


def cluster_id(folder: Path) -> str | None:
    """The id that the folder was formatted with; None when it was not. The formatter writes it last."""
    meta = folder / "data" / "meta.properties"
    found = re.search(r"^cluster\.id=(.+)$", meta.read_text(), re.MULTILINE) if meta.is_file() else None
    return found[1].strip() if found else None


def new_cluster_id() -> str:
    """22 characters of URL-safe base64, as Kafka makes them: the first is no dash, which would read as an option."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()).startswith("-"):
        pass
    return made


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int]:
    """Holds the folder's lock, waiting a little for a broker that is just ending; gives its file descriptor.

    A process that inherits the descriptor goes on holding the lock after this ends, and for as long as it lives.
    Raises OSError or LocalKafkaError.
    """
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise LocalKafkaError(
                        f"the data folder {folder} is used by another local Kafka: stop that, or choose another folder"
                    ) from None
                time.sleep(0.05)
        yield fd
    finally:
        os.close(fd)


def free_mb(folder: Path) -> int:
    """Of the disk that the folder is on, or will be on once it is made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free // (1024 * 1024)


def disk_full(folder: Path) -> str:
    return (
        f"the disk is full at {folder} ({free_mb(folder)} MB free, {FREE_MB_MIN} MB are needed): "
        "make room, or choose another data folder"
    )


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def log_size(folder: Path) -> int:
    log = folder / LOG
    return log.stat().st_size if log.exists() else 0


def said_since(folder: Path, log_from: int) -> str:
    """What Java and the broker wrote since the log had `log_from` bytes; the last MB at most."""
    said = ""
    for name, start in ((OUT, 0), (LOG, log_from)):
        path = folder / name
        if not path.exists():
            continue
        size = path.stat().st_size
        start = start if start <= size else 0  # it was rolled
        with path.open("rb") as file:
            file.seek(max(start, size - _LOG_BYTES_READ))
            said += file.read().decode(errors="replace") + "\n"
    return said


def telling_line(said: str) -> str:
    """The last line that tells a cause: an exception's, else an error's, else the last that is not a stack frame."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not re.match(r"\s+(at |\.\.\. )", line)]
    for pattern in (r"(Caused by: )?([a-z]\w*\.)+[A-Z]\w*(Exception|Error)\b", r"\S+ (ERROR|FATAL) |Error\b", r""):
        for line in reversed(lines):
            if re.match(pattern, line):
                return line.removeprefix("Caused by: ")[:400]
    return "it said nothing"
