"""`tallygate bench sink`: a journal that waits, moved into ClickHouse by a sink that was held back until then."""

import json
import os
import secrets
import signal
import time
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from tallygate.schemas.topics import JOURNAL, USAGE
from tallygate.topologies.bench.bars import Bars
from tallygate.topologies.bench.cluster import BenchCluster, start
from tallygate.topologies.bench.figures import Meters, conditions, load_average
from tallygate.topologies.bench.jobs import UsageJob, UsageSent, Watched, WatchJob
from tallygate.topologies.bench.processes import BenchProcess
from tallygate.topologies.bench.usage import counted, put_on_plan
from tallygate.topologies.bench.watch import SINK_OFFSETS
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.sql_server import ask
from tallygate.topologies.topic_reading import bounds

#: Their rows stay as they are inserted, so they can be counted; those of states replace one another.
_TABLES: Final = ("sink_postings", "sink_decisions", "sink_usage_deltas")
_SECONDS_MAX: Final = 300.0
_LOOK_SECONDS: Final = 0.1


class SinkOptions(msgspec.Struct, frozen=True, kw_only=True):
    events: int = 50_000
    customers: int = 1_000
    partitions: int | None = None


def bench_sink(options: SinkOptions, bars: Bars) -> dict[str, Any]:
    """The result of a run, as `--json` writes it; always on a stack of its own, whose sink it holds back."""
    with ExitStack() as ends:
        load_before = load_average()
        cluster = start(ends, bars.say, partitions=options.partitions)
        assert cluster.stack is not None
        put_on_plan(cluster, options.customers, bars)
        rows_before, begins = _rows(cluster), _ends(cluster, JOURNAL)
        [sink] = cluster.stack.pids("sink")
        os.kill(sink, signal.SIGSTOP)
        try:
            sent = _fill(cluster, options, begins, bars)
        finally:
            os.kill(sink, signal.SIGCONT)
        meters, began = Meters(cluster.stack), time.monotonic()
        last = _ends(cluster, JOURNAL)
        with bars.waiting("moving the journal into ClickHouse"):
            _wait(cluster, {number: end for number, end in last.items() if end > begins[number]})
        seconds, cpu = time.monotonic() - began, meters.read()
        rows = _rows(cluster) - rows_before
        records = sum(last[number] - begin for number, begin in begins.items())
        sink_cpu = cpu["sink_cpu_seconds"]
        return {
            "bench": "sink",
            "records": records,
            "rows": rows,
            "seconds": round(seconds, 2),
            "rows_per_second": round(rows / seconds),
            "rows_per_cpu_second": round(rows / sink_cpu) if sink_cpu else None,
            "records_per_second": round(records / seconds),
            "sent": sent.events,
            "counted": counted(cluster),
            **cpu,
            **conditions(cluster.settings, True, load_before),
        }


def _fill(cluster: BenchCluster, options: SinkOptions, begins: dict[int, int], bars: Bars) -> UsageSent:
    """Usage that is in force when this returns."""
    job = UsageJob(
        kafka=cluster.kafka,
        prefix=cluster.prefix,
        run=secrets.token_hex(6),
        customers=options.customers,
        count=options.events,
    )
    before = _ends(cluster, USAGE)
    watching = WatchJob(settings=cluster.settings_json(), begins=begins, ask_seconds=_SECONDS_MAX)
    with (
        BenchProcess(cluster.folder, "watch", watching, Watched) as watch,
        BenchProcess(cluster.folder, "usage", job, UsageSent) as load,
        bars.waiting(f"{options.events} usage events into the journal"),
    ):
        sent = load.result(cluster.check)
        wanted = {str(n): end - 1 for n, end in _ends(cluster, USAGE).items() if end > before[n]}
        arrived = watch.wait_until(
            lambda said: all(said.get("applied", {}).get(n, -1) >= last for n, last in wanted.items()),
            _SECONDS_MAX,
            cluster.check,
        )
    if not arrived:
        raise Trouble(Exit.NO, f"not all of {sent.records} records were in force after {_SECONDS_MAX:g} s")
    return sent


def _wait(cluster: BenchCluster, ends: dict[int, int]) -> None:
    until = time.monotonic() + _SECONDS_MAX
    while True:
        found = {int(row["partition"]): int(row["next_offset"]) for row in _ask(cluster, SINK_OFFSETS)}
        # Ticks at the end are stored later: what matters is behind it once only they are left.
        if all(found.get(number, -1) >= end - 2 for number, end in ends.items()):
            return
        if time.monotonic() > until:
            raise Trouble(Exit.NO, f"the sink did not reach the journal's end within {_SECONDS_MAX:g} s")
        cluster.check()
        time.sleep(_LOOK_SECONDS)


def _rows(cluster: BenchCluster) -> int:
    return sum(int(row["rows"]) for table in _TABLES for row in _ask(cluster, f"SELECT count() AS rows FROM {table}"))


def _ask(cluster: BenchCluster, question: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(cluster.settings, question, "jsonl").splitlines()]


def _ends(cluster: BenchCluster, topic: str) -> dict[int, int]:
    return {number: end for number, (_, end) in bounds(cluster.settings, topic).items()}
