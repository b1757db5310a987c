"""`tallygate bench leases`: decisions within leases, beside a counter in the process; and what they add up to."""

import secrets
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from tallygate.schemas.amounts import NANOS
from tallygate.schemas.topics import JOURNAL
from tallygate.topologies.bench.bars import Bars
from tallygate.topologies.bench.cluster import start, subscribe
from tallygate.topologies.bench.decision_load import PLAN, POOR_PLAN
from tallygate.topologies.bench.figures import Meters, conditions, load_average, percentiles
from tallygate.topologies.bench.jobs import LeasesDone, LeasesJob
from tallygate.topologies.bench.journaled import read_decisions
from tallygate.topologies.bench.oracle import limits_of, overdrawn
from tallygate.topologies.bench.processes import BenchProcess
from tallygate.topologies.bench.usage_load import customer_name
from tallygate.topologies.topic_reading import bounds

_WARM_SECONDS: Final = 1.0
#: A thousand tokens cost one credit, and the poor customer has a hundred.
_POOR_TOKENS: Final = 100_000


class LeaseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` takes a second by all `clients`; half of them lease for a customer who runs out of credits."""

    rate: int = 20_000
    clients: int = 8
    seconds: float = 10.0
    partitions: int | None = None
    given: bool = False


def bench_leases(options: LeaseOptions, bars: Bars) -> dict[str, Any]:
    """The result of a run, as `--json` writes it. Raises Trouble, StackError and what else a cluster raises."""
    with ExitStack() as ends:
        load_before = load_average()
        cluster = start(ends, bars.say, given=options.given, partitions=options.partitions)
        plans = {customer_name(cluster.prefix, 0): PLAN, customer_name(cluster.prefix, 1): POOR_PLAN}
        subscribe(cluster, plans, lambda: None)
        begins = {number: end for number, (_, end) in bounds(cluster.settings, JOURNAL).items()}
        job = LeasesJob(
            kafka=cluster.kafka,
            customers=list(plans),
            clients=options.clients,
            rate=options.rate,
            seconds=options.seconds,
            warm_seconds=_WARM_SECONDS,
            seed=secrets.randbits(32),
        )
        meters = Meters(cluster.stack)
        total = round(options.rate * (options.seconds + _WARM_SECONDS))
        with (
            bars.counting(f"{options.rate} takes a second by {options.clients} leases", total) as count,
            BenchProcess(cluster.folder, "leases", job, LeasesDone) as load,
        ):

            def look() -> None:
                cluster.check()
                count.to(load.said.get("answered", 0))

            done = load.result(look)
        cpu = meters.read()
        ranges = {number: (begins[number], end) for number, (_, end) in bounds(cluster.settings, JOURNAL).items()}
        journaled = read_decisions(cluster.settings, ranges, f"{cluster.prefix}-", cluster.check)
        over = overdrawn(
            {customer: limits_of(cluster.plans[plan]) for customer, plan in plans.items()}, journaled.moves
        )
        poor = done.tokens.get(customer_name(cluster.prefix, 1), 0)
        worst = max([0, poor - _POOR_TOKENS, *(each.over_nanos / NANOS for each in over)])
        mine, peer = percentiles("", done.take_us), percentiles("", done.peer_us)
        return {
            "bench": "leases",
            "rate": options.rate,
            "clients": options.clients,
            "seconds": options.seconds,
            **{f"{name}_us": value for name, value in mine.items()},
            **{f"peer_{name}_us": value for name, value in peer.items()},
            "takes_per_second": round(done.sent / done.seconds),
            "sent": done.sent,
            "allowed": done.allowed,
            "slices_settled": done.slices,
            "settled_late": done.late,
            "requests_journaled": sum(journaled.counts.values()),
            "limit_tokens": _POOR_TOKENS,
            "limit_taken": poor,
            "overdraft": worst,
            **cpu,
            "generator_cpu_seconds": round(done.cpu_seconds, 2),
            "troubles": done.troubles,
            **conditions(cluster.settings, cluster.stack is not None, load_before),
        }


def differences(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result, a line each."""
    lines = list(result["troubles"])
    if result["overdraft"]:
        lines.append(
            f"overdrawn: {result['overdraft']:g}; {result['limit_taken']} of {result['limit_tokens']} were taken"
        )
    return lines
