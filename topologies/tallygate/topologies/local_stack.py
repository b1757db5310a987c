"""The whole of Tallygate on one machine: a Kafka, a worker, a sink, a gateway as child processes; for `up` and `demo`.

Members end with this process, however it ends (`kafka_watch`). A member that ends by itself is started again, with
growing pauses, and not for ever: what fails `RESTARTS_MAX` times within a minute needs a person.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tallygate.connectors import kafka_watch
from tallygate.connectors.clickhouse_questions import QuestionError
from tallygate.connectors.client import NoAnswer, TallygateSync
from tallygate.connectors.kafka_admin import TopicReport, declare_topics
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.catalog import EMPTY, Catalog
from tallygate.schemas.catalog_file import CatalogFile
from tallygate.schemas.topics import topic_specs
from tallygate.topologies.audit_log import audited
from tallygate.topologies.catalog_topic import newest_catalog, publish
from tallygate.topologies.catalog_yaml import read_files
from tallygate.topologies.gateway_note import is_ready, listening_url
from tallygate.topologies.settings import ENV_PREFIX, Settings, parse_address
from tallygate.topologies.sql_server import ask

READY_SECONDS: Final = 60.0
RESTARTS_MAX: Final = 5
_RESTARTS_WITHIN_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 15.0
_LOG_TAIL_BYTES: Final = 64 * 1024
_PAUSE_SECONDS: Final = 0.1
_ASK_SECONDS: Final = 2.0

Say = Callable[[str], None]


class StackError(Exception):
    """The stack cannot run; the message is one line that says what, where and what to do."""


class Member:
    """A child process that is kept running: `worker`, `sink` or `gateway`. Several of one role have their own names."""

    def __init__(self, role: str, settings: Settings, folder: Path, say: Say, name: str = "") -> None:
        self.role = role
        self.name = name or role
        self.log_path = folder / f"{self.name}.log"
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_at: list[float] = []
        self._due_at = 0.0
        self._settings_file = folder / f"{self.name}.json"
        with open(os.open(self._settings_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(settings.model_dump(mode="json"), file)
        member = [sys.executable, "-m", "tallygate.topologies.stack_member", role, str(self._settings_file)]
        self.log_path.write_bytes(b"")
        self._command = [sys.executable, "-I", "-S", kafka_watch.__file__, "", *member]

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the parent, which stops its members in order
            )

    def check(self) -> None:
        """Starts the member again where it has ended, after a pause. Raises StackError when it ends too often."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due_at:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._reap()
        self._ended_at = [at for at in self._ended_at if now - at < _RESTARTS_WITHIN_SECONDS] + [now]
        how = f"the {self.name} ended ({_how(code)}): {self._last_line()}"
        if len(self._ended_at) > RESTARTS_MAX:
            raise StackError(f"{how}; it ended {len(self._ended_at)} times within a minute; its log is {self.log_path}")
        pause = 0.25 * 2 ** (len(self._ended_at) - 1)
        self._due_at = now + pause
        self._say(f"{how}; starting it again in {pause:g} s")

    def ask_to_end(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def end(self, until: float) -> None:
        """Waits for the end until an instant of the monotonic clock, then enforces it."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, until - time.monotonic()))
            self._process.kill()
            self._reap()
        self._settings_file.unlink(missing_ok=True)

    def _reap(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.wait()
        self._process.stdin.close()
        self._process = None

    def _last_line(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


class LocalStack:
    """`with LocalStack(settings, say) as stack: ...`; `check` is to be called now and then meanwhile.

    `kafka` is started and stopped with the rest; None: `settings.kafka_brokers` names one that runs. `catalog` is
    applied where it is not None; `example` only to a cluster that has none. `say` hears what happens, a line each.
    Of several `workers`, each has a data folder of its own.
    Raises StackError, LocalKafkaError, KafkaUnreachable, KafkaRefused, CatalogError.
    """

    def __init__(
        self,
        settings: Settings,
        kafka: LocalKafka | None,
        *,
        example: Path,
        catalog: Path | None = None,
        services: tuple[str, ...] = ("cli",),
        say: Say = lambda line: None,
        workers: int = 1,
        gateway: bool = False,
    ) -> None:
        self.settings = settings
        self.gateway_url = ""
        self.topics: list[TopicReport] = []
        self.catalog = EMPTY
        self._kafka = kafka
        self._example = example
        self._catalog = catalog
        self._gateway = gateway and bool(settings.gateway_address)
        self._services = (*services, "gateway") if self._gateway else services
        self._say = say
        self._workers = workers
        self._members: list[Member] = []

    @property
    def kafka(self) -> LocalKafka | None:
        """The broker that this stack runs; None where it was given one."""
        return self._kafka

    def pids(self, role: str) -> list[int]:
        """The process ids of the workers or the sink, as they run now."""
        return [member.pid for member in self._members if member.role == role and member.pid is not None]

    def start(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends everything that `start` started, the broker last. Safe to call twice."""
        if self._members:
            self._say("stopping")
        for member in self._members:
            member.ask_to_end()
        until = time.monotonic() + _STOP_SECONDS
        for member in self._members:
            member.end(until)
        self._members = []
        if self._kafka is not None:
            self._kafka.stop()

    def check(self) -> None:
        """Starts members again that have ended. Raises StackError where that is of no use."""
        if self._kafka is not None and (why := self._kafka.why_ended()):
            raise StackError(why)
        for member in self._members:
            member.check()

    def wait_ready(self) -> None:
        """Returns when the worker, the sink and the gateway answer. Raises StackError, also after `READY_SECONDS`."""
        until = time.monotonic() + READY_SECONDS
        with TallygateSync(
            self.settings.kafka_brokers, service=self._services[0], kafka=self.settings.kafka_config
        ) as client:
            self._wait("worker", lambda: _worker_answers(client), until)
        self._wait("sink", lambda: _sink_answers(self.settings), until)
        if self._gateway:
            self._wait("gateway", self._gateway_answers, until)

    def _gateway_answers(self) -> bool:
        self.gateway_url = listening_url(self.settings) or ""
        return bool(self.gateway_url) and is_ready(self.gateway_url)

    def _wait(self, role: str, answers: Callable[[], bool], until: float) -> None:
        while not answers():
            self.check()
            if time.monotonic() > until:
                log = next(member.log_path for member in self._members if member.role == role)
                raise StackError(f"the {role} does not answer after {READY_SECONDS:g} s; its log is {log}")
            time.sleep(_PAUSE_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        catalog = None if self._catalog is None else read_files(self._catalog)  # a broken one stops it all at once
        if self._kafka is not None:
            self._kafka.start()
            self.settings = self.settings.model_copy(update={"kafka_brokers": self._kafka.bootstrap})
        self._say("declaring topics")
        specs = topic_specs(self.settings.partitions, self._services)
        self.topics = declare_topics(self.settings.librdkafka, specs)
        folder = self.settings.data_dir / "members"
        folder.mkdir(parents=True, exist_ok=True)
        workers = "a worker" if self._workers == 1 else f"{self._workers} workers"
        self._say(f"starting {workers}, a sink and a gateway" if self._gateway else f"starting {workers} and a sink")
        sink = self.settings.model_copy(update={"metrics_address": sink_metrics_address(self.settings)})
        self._members = [
            *(self._worker(number, folder) for number in range(1, self._workers + 1)),
            Member("sink", sink, folder, self._say),
        ]
        if self._gateway:
            self._members.append(Member("gateway", self.settings, folder, self._say))
        for member in self._members:
            member.start()
        self.catalog = self._apply(catalog)  # while the members start: they follow the topic

    def _worker(self, number: int, folder: Path) -> Member:
        changed: dict[str, object] = {}
        if self._kafka is not None and not self.settings.instance_id:
            # Nobody else's worker is here: started again, it need not wait for its former session to end.
            changed["instance_id"] = "local-stack" if number == 1 else f"local-stack-{number}"
        if number > 1:
            changed |= {"data_dir": self.settings.data_dir / f"worker-{number}", "metrics_address": ""}
        name = "worker" if number == 1 else f"worker-{number}"
        return Member("worker", self.settings.model_copy(update=changed), folder, self._say, name)

    def _apply(self, catalog: CatalogFile | None) -> Catalog:
        source = self._catalog or self._example
        if catalog is None:
            newest = newest_catalog(self.settings)
            if newest.version:
                return newest
            catalog = read_files(source)
        with audited(self.settings, "catalog.apply", "", {"from": source.name}) as change:
            applied = publish(self.settings, catalog).catalog
            change.target = f"version {applied.version}"
        return applied


def sink_metrics_address(settings: Settings) -> str:
    """The sink's metrics are one port above the worker's."""
    if not settings.metrics_address:
        return ""
    host, port = parse_address(settings.metrics_address)
    return f"{host}:{port + 1 if port else 0}"


def check_addresses(settings: Settings) -> None:
    """Whether members can listen where they are to. Raises StackError."""
    for name, address in (
        ("GATEWAY_ADDRESS", settings.gateway_address),
        ("GATEWAY_METRICS_ADDRESS", settings.gateway_metrics_address),
        ("METRICS_ADDRESS", settings.metrics_address),
        ("METRICS_ADDRESS", sink_metrics_address(settings)),
        ("SQL_ADDRESS", settings.sql_address),
    ):
        if not address:
            continue
        host, port = parse_address(address)
        try:
            with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
                pass
        except OSError as error:
            raise StackError(
                f"{address} cannot be listened on ({error.strerror}): set {ENV_PREFIX}{name} to another address "
                "(port 0 takes a free one, empty is off)"
            ) from None


def _worker_answers(client: TallygateSync) -> bool:
    try:
        client.check("tallygate-ready", feature="none", timeout=_ASK_SECONDS)
    except NoAnswer:
        return False
    return True


def _sink_answers(settings: Settings) -> bool:
    try:
        ask(settings, "SELECT count() FROM usage_hourly", "jsonl")
    except QuestionError:
        return False
    return True


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
