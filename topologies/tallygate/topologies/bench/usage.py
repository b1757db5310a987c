"""`tallygate bench usage`: usage events end to end, from when they were due until ClickHouse has counted them."""

import json
import secrets
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from tallygate.schemas.topics import JOURNAL, USAGE
from tallygate.topologies.bench.bars import Bars
from tallygate.topologies.bench.cluster import BenchCluster, start, subscribe
from tallygate.topologies.bench.decision_load import PLAN
from tallygate.topologies.bench.figures import Meters, conditions, load_average
from tallygate.topologies.bench.jobs import Limits, UsageJob, UsageSent, Watched, WatchJob
from tallygate.topologies.bench.physical import bare_limits
from tallygate.topologies.bench.processes import BenchProcess
from tallygate.topologies.bench.usage_figures import Progress, capacity, usage_figures
from tallygate.topologies.bench.usage_load import DIMENSIONS, customer_name
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.sql_server import ask
from tallygate.topologies.topic_reading import bounds

_READY_SECONDS: Final = 30.0
_DRAIN_SECONDS_MAX: Final = 300.0
_PROBE_EVENTS: Final = 10_000
_PROBE_SECONDS: Final = 3.0
_PROBES_MAX: Final = 4
#: Without a rate: this part of what a backlog was worked off with, and less where that is not held.
_FIRST_PART: Final = 0.85
_NEXT_PART: Final = 0.8
_ATTEMPTS_MAX: Final = 3


class UsageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to be; `rate` 0: found by trying."""

    shape: str = "single"
    rate: int = 0
    seconds: float = 30.0
    customers: int = 1_000
    dimensions: int = 1
    partitions: int | None = None
    workers: int = 1
    given: bool = False


class Run(msgspec.Struct, frozen=True):
    """One load, all of which is in force and in ClickHouse (or was given up on)."""

    sent: UsageSent
    progress: Progress
    cpu: dict[str, float | None]
    counted: int


def bench_usage(options: UsageOptions, bars: Bars) -> dict[str, Any]:
    """The result of a run, as `--json` writes it. Raises Trouble, StackError and what else a cluster raises."""
    with ExitStack() as ends:
        load_before = load_average()
        cluster = start(ends, bars.say, given=options.given, partitions=options.partitions, workers=options.workers)
        put_on_plan(cluster, options.customers, bars)
        run, figures = _measured(cluster, options, bars)
        bars.say("measuring the broker alone")
        limits = bare_limits(cluster, run.sent, options.seconds)
        return {
            "bench": "usage",
            "shape": options.shape,
            "seconds": options.seconds,
            "customers": options.customers,
            "dimensions": list(DIMENSIONS[: options.dimensions]),
            "workers": options.workers if cluster.stack else None,
            **figures,
            **accounts(run),
            "limits": _beside(limits, figures["sustained_per_second"], run),
            **conditions(cluster.settings, cluster.stack is not None, load_before),
        }


def put_on_plan(cluster: BenchCluster, customers: int, bars: Bars) -> None:
    with bars.counting("putting customers on the bench's plan", customers) as count:
        names = {customer_name(cluster.prefix, number): PLAN for number in range(customers)}
        subscribe(cluster, names, count.advance)


def accounts(run: Run) -> dict[str, Any]:
    """What was sent and counted, and what it cost whom."""
    sent, cpu = run.sent, run.cpu
    worker = cpu["worker_cpu_seconds"]
    return {
        "sent": sent.events,
        "duplicates_sent": sent.duplicates,
        "counted": run.counted,
        "value_bytes": sent.value_bytes,
        "worker_events_per_cpu_second": round(sent.events / worker) if worker else None,
        **cpu,
    }


def differences(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result, a line each."""
    if result["counted"] == result["sent"]:
        return []
    return [f"{result['sent']} events were sent and ClickHouse counts {result['counted']}"]


def run_load(cluster: BenchCluster, bars: Bars, what: str, job: UsageJob) -> Run:
    """Sends, and waits until everything has arrived, for minutes at most: then the counts tell what is missing."""
    counted_before = counted(cluster)
    usage_begins = {number: end for number, (_, end) in bounds(cluster.settings, USAGE).items()}
    begins = {number: end for number, (_, end) in bounds(cluster.settings, JOURNAL).items()}
    total = round(job.rate * job.seconds) or job.count
    watching = BenchProcess(cluster.folder, "watch", WatchJob(settings=cluster.settings_json(), begins=begins), Watched)
    with watching as watch:
        if not watch.wait_until(bool, _READY_SECONDS, cluster.check):
            raise Trouble(Exit.AWAY, f"the bench's observer does not begin within {_READY_SECONDS:g} s")
        meters = Meters(cluster.stack)
        with (
            bars.counting(what, total) as count,
            BenchProcess(cluster.folder, "usage", job, UsageSent) as load,
        ):

            def look() -> None:
                cluster.check()
                count.to(load.said.get("sent", 0))

            sent = load.result(look)
            count.to(sent.events)
        ends = {number: end for number, (_, end) in bounds(cluster.settings, USAGE).items()}
        wanted = {str(number): end - 1 for number, end in ends.items() if end > usage_begins[number]}
        with bars.waiting("waiting until all of it is in ClickHouse"):
            arrived = watch.wait_until(lambda said: _arrived(said, wanted), _DRAIN_SECONDS_MAX, cluster.check)
        cpu = meters.read()
        watch.ask_to_end()
        watched = watch.result()
    if not arrived:
        bars.say(f"not all of {sent.records} records were in ClickHouse after {_DRAIN_SECONDS_MAX:g} s: given up")
    cpu |= {"generator_cpu_seconds": round(sent.cpu_seconds, 2), "observer_cpu_seconds": round(watched.cpu_seconds, 2)}
    progress = Progress.of(watched.applied, watched.visible, usage_begins)
    return Run(sent, progress, cpu, counted(cluster) - counted_before)


def counted(cluster: BenchCluster, prefix: str = "") -> int:
    """The calls of the run's customers, or of others with a `prefix`, as ClickHouse counts them."""
    question = (
        "SELECT sum(quantity) AS calls FROM usage_hourly "
        f"WHERE meter = 'bench_calls' AND startsWith(customer, '{prefix or cluster.prefix}-')"
    )
    [row] = map(json.loads, ask(cluster.settings, question, "jsonl").splitlines())
    return round(float(row["calls"]))


def _arrived(said: dict[str, Any], wanted: dict[str, int]) -> bool:
    applied, rows, visible = (said.get(name, {}) for name in ("applied", "rows", "visible"))
    return all(
        applied.get(number, -1) >= last and visible.get(number, -1) > rows[number] for number, last in wanted.items()
    )


def _measured(cluster: BenchCluster, options: UsageOptions, bars: Bars) -> tuple[Run, dict[str, Any]]:
    """The run that counts, with its figures: the first that is held, else the one that sustained most."""
    rate = options.rate or round(_FIRST_PART * _capacity(cluster, options, bars))
    tried: list[tuple[Run, dict[str, Any]]] = []
    for _ in range(1 if options.rate else _ATTEMPTS_MAX):
        job = _job(cluster, options, rate=rate, seconds=options.seconds)
        run = run_load(cluster, bars, f"{rate} events a second for {options.seconds:g} s", job)
        figures = usage_figures(run.sent, run.progress, rate)
        if figures["held"]:
            return run, figures
        tried.append((run, figures))
        bars.say(f"{rate} events a second are not held: {figures['sustained_per_second']} are")
        rate = round(_NEXT_PART * rate)
    return max(tried, key=lambda each: each[1]["sustained_per_second"])


def _capacity(cluster: BenchCluster, options: UsageOptions, bars: Bars) -> float:
    """Events a second with which backlogs, each larger than the last, are worked off."""
    count = _PROBE_EVENTS
    for _ in range(_PROBES_MAX):
        run = run_load(cluster, bars, f"a backlog of {count} events", _job(cluster, options, count=count))
        found = capacity(run.sent, run.progress)
        if count >= found * _PROBE_SECONDS:
            break
        count = round(found * _PROBE_SECONDS * 1.2)
    return found


def _job(cluster: BenchCluster, options: UsageOptions, **load: Any) -> UsageJob:
    return UsageJob(
        kafka=cluster.kafka,
        prefix=cluster.prefix,
        run=secrets.token_hex(6),
        customers=options.customers,
        shape=options.shape,
        dimensions=options.dimensions,
        partitions=cluster.partitions,
        **load,
    )


def _beside(limits: Limits, rate: int, run: Run) -> dict[str, Any]:
    """The limits, in records, and which part of each was reached."""
    worker, decoding = run.cpu["worker_cpu_seconds"], limits.decoded_per_cpu_second
    records = rate / run.sent.events_per_record
    return {
        **{name: None if value is None else round(value) for name, value in msgspec.to_builtins(limits).items()},
        "events_per_record": run.sent.events_per_record,
        "reached_of_produce": round(records / limits.produced_per_second, 4),
        "reached_of_consume": round(records / limits.consumed_per_second, 4),
        "reached_of_decode_per_cpu_second": round(run.sent.events / worker / decoding, 4)
        if worker and decoding
        else None,
    }
