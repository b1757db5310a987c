"""Figures of a run: percentiles, processor seconds, and the conditions that belong to every result."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from tallygate.connectors.clickhouse_questions import QuestionError
from tallygate.connectors.kafka_fetch import KAFKA_VERSION
from tallygate.connectors.kafka_local import JAVA_FLAGS
from tallygate.topologies.local_stack import LocalStack
from tallygate.topologies.settings import Settings
from tallygate.topologies.sql_server import NobodyAnswers, ask

PERCENTILES: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9), ("max", 100.0))
_BROKER_SETTINGS: Final = (
    "num.network.threads",
    "num.io.threads",
    "log.flush.interval.messages",
    "log.segment.bytes",
    "message.max.bytes",
    "compression.type",
    "default.replication.factor",
    "min.insync.replicas",
)
_SETTINGS_SHOWN: Final = ("partitions", "step_events_max", "step_requests_max", "tick_ms", "relay")
_ASK_SECONDS: Final = 10.0


def percentiles(name: str, values: Iterable[float]) -> dict[str, float | None]:
    """`<name>_p50` … `<name>_p999` and `<name>_max` by nearest rank; None where nothing was measured."""
    ordered = sorted(values)
    return {f"{name}_{suffix}" if name else suffix: rank(ordered, percent) for suffix, percent in PERCENTILES}


def rank(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least `percent` of all do not pass."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(round(len(ordered) * percent / 100, 6)) - 1)], 3)


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that these processes have used so far, user and system. Raises OSError for one that has ended."""
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    said = subprocess.run(["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    days, _, clock = said.strip().rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return seconds + 86_400 * int(days or 0)


class Meters:
    """Processor seconds by role since it was made. Of a cluster that runs elsewhere nothing is known."""

    def __init__(self, stack: LocalStack | None) -> None:
        self._pids: dict[str, list[int]] = {}
        if stack is not None:
            self._pids = {"worker": stack.pids("worker"), "sink": stack.pids("sink")}
            self._pids["broker"] = [stack.kafka.pid] if stack.kafka else []
        self._since = {role: cpu_seconds(pids) for role, pids in self._pids.items()}

    def read(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {f"{role}_cpu_seconds": None for role in ("worker", "sink", "broker")}
        for role, pids in self._pids.items():
            if pids:
                found[f"{role}_cpu_seconds"] = round(cpu_seconds(pids) - self._since[role], 2)
        return found


def conditions(settings: Settings, own: bool, load_before: float) -> dict[str, Any]:
    """Where and with what a result was found; it belongs to every one."""
    return {
        "load_average": {"before": load_before, "after": load_average()},
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": sys.version.split()[0],
            "kafka": KAFKA_VERSION if own else None,
            "librdkafka": confluent_kafka.libversion()[0],
            "clickhouse": _clickhouse_version(settings),
            **{
                name: version(name) for name in ("tallygate", "confluent-kafka", "faust-streaming", "rocksdict", "chdb")
            },
        },
        "broker": _broker(settings, own),
        "settings": {name: _plain(getattr(settings, name)) for name in _SETTINGS_SHOWN},
        "clickhouse_engine": settings.clickhouse.split("://", 1)[0],
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def _clickhouse_version(settings: Settings) -> str | None:
    try:
        return ask(settings, "SELECT version()", "csv").splitlines()[-1].strip('"')
    except (NobodyAnswers, QuestionError):
        return None


def _broker(settings: Settings, own: bool) -> dict[str, Any]:
    admin = AdminClient({**settings.librdkafka, "log_level": 0, "error_cb": lambda error: None})
    try:
        brokers = admin.list_topics(timeout=_ASK_SECONDS).brokers
        resource = ConfigResource(ResourceType.BROKER, str(min(brokers)))
        [future] = admin.describe_configs([resource], request_timeout=_ASK_SECONDS).values()
        configs = future.result()
    except KafkaException as error:
        return {"unknown": error.args[0].str()}
    found: dict[str, Any] = {name: configs[name].value for name in _BROKER_SETTINGS if name in configs}
    return {"brokers": len(brokers), **found, **({"java": " ".join(JAVA_FLAGS)} if own else {})}
