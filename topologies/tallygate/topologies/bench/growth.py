"""`tallygate bench growth`: what an event costs as customers, partitions and workers become more.

Each step is a stack of its own. Its customers are met once each, then the events that count come, most of them for few.
They have no subscription: to put a million of them on a plan would take longer than the rest.
"""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from tallygate.topologies.bench.bars import Bars
from tallygate.topologies.bench.cluster import start
from tallygate.topologies.bench.figures import conditions, load_average
from tallygate.topologies.bench.jobs import UsageJob
from tallygate.topologies.bench.usage import run_load
from tallygate.topologies.bench.usage_figures import capacity


class GrowthOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The first of each list is what the others are compared with; one list grows at a time."""

    customers: Sequence[int] = (10_000, 100_000)
    partitions: Sequence[int] = (8, 1, 32)
    workers: Sequence[int] = (1, 2)
    events: int = 50_000


def steps(options: GrowthOptions) -> list[tuple[int, int, int]]:
    """(customers, partitions, workers) of each step; the first is the one that all are compared with."""
    customers, partitions, workers = options.customers, options.partitions, options.workers
    found = [(each, partitions[0], workers[0]) for each in customers]
    found += [(customers[0], each, workers[0]) for each in partitions[1:]]
    found += [(customers[0], partitions[0], each) for each in workers[1:]]
    return found


def bench_growth(options: GrowthOptions, bars: Bars) -> dict[str, Any]:
    """The result, as `--json` writes it."""
    load_before = load_average()
    runs: list[dict[str, Any]] = []
    shown: dict[str, Any] = {}
    for customers, partitions, workers in steps(options):
        with ExitStack() as ends:
            cluster = start(ends, bars.say, partitions=partitions, workers=workers)

            def job(count: int, each: bool, cluster: Any = cluster, customers: int = customers) -> UsageJob:
                return UsageJob(
                    kafka=cluster.kafka,
                    prefix=cluster.prefix,
                    run=secrets.token_hex(6),
                    customers=customers,
                    count=count,
                    each=each,
                )

            run_load(cluster, bars, f"{customers} customers, met once each", job(customers, True))
            run = run_load(cluster, bars, f"{options.events} events of theirs", job(options.events, False))
            shown = shown or conditions(cluster.settings, True, load_before)
            worker = run.cpu["worker_cpu_seconds"]
            assert worker is not None
            runs.append(
                {
                    "customers": customers,
                    "partitions": partitions,
                    "workers": workers,
                    "events_per_second": round(capacity(run.sent, run.progress)),
                    "worker_cpu_us_per_event": round(worker * 1e6 / run.sent.events, 2),
                    "worker_events_per_cpu_second": round(run.sent.events / worker) if worker else None,
                    "sent": run.sent.events,
                    "counted": run.counted,
                }
            )
    first = runs[0]["worker_cpu_us_per_event"]
    for each in runs:
        each["times_the_first"] = round(each["worker_cpu_us_per_event"] / first, 3)
    return {
        "bench": "growth",
        "events": options.events,
        "runs": runs,
        **shown,
        "load_average": {"before": load_before, "after": load_average()},
    }
