"""A real Apache Kafka on this machine: one node, KRaft combined mode, loopback only, ended with its parent.

Java's flags are measured (Kafka 4.3.0, Java 17, two cores, medians of three):

    flags                                        format   start   600 k records of 200 B   one acked record
    none                                         0.7 s    2.0 s   1.5 s, then 1.2 s        0.20 ms
    -XX:+UseSerialGC                             0.7 s    1.8 s   1.5 s, then 1.1 s        0.16 ms
    -XX:+UseSerialGC -XX:TieredStopAtLevel=1     0.55 s   1.5 s   1.2 s, then 0.7 s        0.19 ms

so stopping at the quick compiler wins at a demo's length of work too, with half the CPU. A class data archive would
save another 0.7 s a start, for 50 MB of cache that belongs to one Java build; it is left out.
"""

import contextlib
import errno
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tallygate.connectors import kafka_folder
from tallygate.connectors.kafka_fetch import LocalKafkaError, Progress, fetch_jars, find_java

__all__ = ["LocalKafka", "LocalKafkaError"]

HOST: Final = "127.0.0.1"
HEAP_MB_MIN: Final = 128
HEAP_MB_MAX: Final = 512
#: Free ports are taken from below the ranges that systems give to outgoing connections: a stopped broker's port is
#: then still free when it starts again.
FREE_PORTS: Final = range(15_000, 32_000)
_PORT_TRIES: Final = 3
_FORMAT_SECONDS_MAX: Final = 60
_STOP_SECONDS: Final = 15.0
JAVA_FLAGS: Final = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",  # leaves a file in the temporary folder when killed
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dlog4j2.configurationFile=log4j2.properties",
)
_WATCH: Final = Path(__file__).with_name("kafka_watch.py")
_PORT_TAKEN: Final = "Address already in use"


class LocalKafka:
    """One broker: `with LocalKafka() as kafka: ... kafka.bootstrap`.

    `data_dir` keeps topics and records across starts; None is a temporary folder that `stop` removes. `port` None takes
    a free one and keeps it for this object's life. `cache_dir` is where the jars are kept (the user's cache folder).
    `listeners` are more than the plain one on `port`, like `SASL_SSL://127.0.0.1:9093`; `properties` are Kafka's own
    and win over ours. `cluster_id` is that of the cluster that an empty folder joins. Starting raises LocalKafkaError,
    whose message is one line. Not for several threads at once.

    The broker also ends when this process does, in whatever way; children that this process forks without exec hold on
    to it until they end.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        port: int | None = None,
        *,
        heap_mb: int = HEAP_MB_MAX,
        up_seconds_max: float = 60.0,
        cache_dir: Path | None = None,
        on_progress: Progress = lambda line: None,
        listeners: Sequence[str] = (),
        properties: Mapping[str, str] | None = None,
        cluster_id: str | None = None,
    ) -> None:
        if not HEAP_MB_MIN <= heap_mb <= HEAP_MB_MAX:
            raise ValueError(f"heap_mb is {heap_mb}: take {HEAP_MB_MIN} to {HEAP_MB_MAX}")
        if port is not None and not 0 < port < 65_536:
            raise ValueError(f"port is {port}: take 1 to 65535")
        self._given_dir = data_dir.absolute() if data_dir else None
        self._heap_mb = heap_mb
        self._up_seconds_max = up_seconds_max
        self._cache_dir = cache_dir
        self._progress = on_progress
        self._listeners = tuple(listeners)
        self._properties = dict(properties or {})
        self._new_cluster_id = cluster_id or kafka_folder.new_cluster_id()
        self._port = port
        self._dir = self._given_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    @property
    def port(self) -> int:
        assert self._port is not None, "not started"
        return self._port

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def data_dir(self) -> Path:
        assert self._dir is not None, "not started"
        return self._dir

    @property
    def log_path(self) -> Path:
        return self.data_dir / kafka_folder.LOG

    @property
    def cluster_id(self) -> str | None:
        """The id that the folder was formatted with; None before the first start."""
        return kafka_folder.cluster_id(self.data_dir)

    @property
    def pid(self) -> int:
        """The process id of the broker itself."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def why_ended(self) -> str | None:
        """One line on why a broker that nobody stopped has ended; None while it runs or after `stop` and `kill`."""
        if self._process is None or self._process.poll() is None:
            return None
        return self._reason("Kafka ended")

    def start(self) -> Self:
        """Starts the broker; returns when it answers. Raises LocalKafkaError."""
        assert self._process is None or not self.running, "already running"
        self._reap()
        java = find_java()
        jars = fetch_jars(self._cache_dir, self._progress)
        try:
            if self._dir is None:
                self._dir = Path(tempfile.mkdtemp(prefix="tallygate-kafka-"))
            kafka_folder.prepare(self.data_dir)
            with kafka_folder.held(self.data_dir) as lock_fd:
                self._start_on_free_ports([java, *JAVA_FLAGS, f"-Xmx{self._heap_mb}m", "-cp", f"{jars}/*"], lock_fd)
        except OSError as error:
            self.stop()
            raise self._folder_error(error) from error
        except BaseException:
            self.stop()
            raise
        self._progress(f"Kafka is up on {self.bootstrap}")
        return self

    def stop(self) -> None:
        """Ends the broker in order; removes its folder when that is a temporary one. Safe to call twice."""
        self._terminate()
        if self._given_dir is None and self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None

    def restart(self) -> None:
        """Ends the broker in order and starts it on the same port and folder. Raises LocalKafkaError."""
        self._terminate()
        self.start()

    def kill(self) -> None:
        """Ends the broker with SIGKILL; its folder stays as it is, and `start` goes on from there."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._reap()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            self._process.kill()
            self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None

    def _start_on_free_ports(self, java: list[str], lock_fd: int) -> None:
        """Another process may take a port between the look and the bind: then the next ones are tried."""
        given = self._port
        for tries_left in reversed(range(_PORT_TRIES)):
            self._port = given or _free_port()
            self._check_port(self._port)
            controller_port = _free_port(besides=self._port)
            kafka_folder.write_config(self.data_dir, self._port, controller_port, self._listeners, self._properties)
            if self.cluster_id is None:
                self._format(java, lock_fd)
            self._progress("starting Kafka")
            self._spawn(java, lock_fd)
            if self._is_up():
                return
            reason = self._reason("Kafka ended while starting")
            if _PORT_TAKEN not in kafka_folder.said_since(self.data_dir, self._log_from) or not tries_left:
                raise LocalKafkaError(reason)
            self._reap()

    def _format(self, java: list[str], lock_fd: int) -> None:
        command = ["kafka.tools.StorageTool", "format", "-t", self._new_cluster_id, "-c", "server.properties"]
        try:
            ran = subprocess.run(
                [*java, *command],
                cwd=self.data_dir,
                pass_fds=(lock_fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_FORMAT_SECONDS_MAX,
            )
        except subprocess.TimeoutExpired:
            raise LocalKafkaError(
                f"formatting {self.data_dir} took longer than {_FORMAT_SECONDS_MAX} s: look at that disk"
            ) from None
        if ran.returncode != 0:
            if self._is_disk_full(ran.stdout):
                raise LocalKafkaError(kafka_folder.disk_full(self.data_dir))
            raise LocalKafkaError(f"{self.data_dir} cannot be formatted: {kafka_folder.telling_line(ran.stdout)}")

    def _spawn(self, java: list[str], lock_fd: int) -> None:
        temporary = "" if self._given_dir else str(self.data_dir)
        self._log_from = kafka_folder.log_size(self.data_dir)
        with (self.data_dir / kafka_folder.OUT).open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WATCH), temporary, *java, "kafka.Kafka", "server.properties"],
                cwd=self.data_dir,
                pass_fds=(lock_fd,),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the parent, which stops the broker last
            )

    def _is_up(self) -> bool:
        """True once the broker answers for its cluster; False when it has ended. Raises LocalKafkaError when late."""
        quick = {"reconnect.backoff.ms": "50", "reconnect.backoff.max.ms": "200", "log_level": "0"}
        admin = AdminClient({"bootstrap.servers": self.bootstrap, **quick})
        until = time.monotonic() + self._up_seconds_max
        while self.running:
            with contextlib.suppress(KafkaException):
                metadata = admin.list_topics(timeout=0.5)
                if metadata.brokers and metadata.cluster_id == self.cluster_id:
                    return True
            if time.monotonic() > until:
                raise LocalKafkaError(
                    f"Kafka is not up on {self.bootstrap} after {self._up_seconds_max:g} s; "
                    f"its last words: {self._last_words()}"
                )
        return False

    def _reason(self, what: str) -> str:
        assert self._process is not None
        if self._is_disk_full(kafka_folder.said_since(self.data_dir, self._log_from)):
            return kafka_folder.disk_full(self.data_dir)
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return f"{what} ({how}): {self._last_words()}"

    def _last_words(self) -> str:
        line = kafka_folder.telling_line(kafka_folder.said_since(self.data_dir, self._log_from))
        return f"{line}; its log is {self.log_path}" if self._given_dir else line

    def _is_disk_full(self, said: str) -> bool:
        return "No space left on device" in said or kafka_folder.free_mb(self.data_dir) == 0

    def _folder_error(self, error: OSError) -> LocalKafkaError:
        folder = self._given_dir or tempfile.gettempdir()
        if kafka_folder.is_disk_full(error):
            return LocalKafkaError(kafka_folder.disk_full(Path(folder)))
        return LocalKafkaError(
            f"the data folder {folder} cannot be used: {error.strerror}: make it writable, or choose another one"
        )

    def _check_port(self, port: int) -> None:
        error = _bind_error(port)
        if error is None:
            return
        if error.errno == errno.EADDRINUSE:
            raise LocalKafkaError(
                f"port {port} on {HOST} is taken: stop what listens there, or choose another port for Kafka"
            )
        raise LocalKafkaError(f"port {port} on {HOST} cannot be used: {error.strerror}: choose another port for Kafka")


def _bind_error(port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: old connections do not count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error
    return None


def _free_port(besides: int = 0) -> int:
    for port in random.sample(FREE_PORTS, 200):
        if port != besides and _bind_error(port) is None:
            return port
    raise LocalKafkaError(f"no free port on {HOST} among {FREE_PORTS.start} to {FREE_PORTS.stop}: name one for Kafka")
