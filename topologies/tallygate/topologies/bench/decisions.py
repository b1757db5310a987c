"""`tallygate bench decisions`: reserve and settle through the client, and an oracle of what may pass."""

import json
import secrets
import time
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from tallygate.schemas.amounts import NANOS
from tallygate.schemas.catalog import CREDITS_UNIT
from tallygate.schemas.topics import JOURNAL
from tallygate.topologies.bench.bars import Bars
from tallygate.topologies.bench.cluster import BenchCluster, start, subscribe
from tallygate.topologies.bench.decision_load import PLAN, POOR_PLAN, is_poor
from tallygate.topologies.bench.figures import Meters, conditions, load_average, percentiles
from tallygate.topologies.bench.jobs import DecisionsDone, DecisionsJob, UsageJob, UsageSent
from tallygate.topologies.bench.journaled import Journaled, read_decisions
from tallygate.topologies.bench.oracle import Move, Overdrawn, limits_of, overdrawn
from tallygate.topologies.bench.physical import bare_echo
from tallygate.topologies.bench.processes import BenchProcess
from tallygate.topologies.bench.usage import counted
from tallygate.topologies.bench.usage_load import customer_name
from tallygate.topologies.bench.watch import SINK_OFFSETS
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.sql_server import ask
from tallygate.topologies.topic_reading import bounds

_WARM_SECONDS_MAX: Final = 10.0  # a broker just started is slow for so long
_WARM_PART: Final = 1.0
_SINK_SECONDS_MAX: Final = 120.0
_LOOK_SECONDS: Final = 0.2
_USAGE_CUSTOMERS: Final = 1_000
#: Usage flows before the first measured decision, and after the last.
_USAGE_AROUND_SECONDS: Final = 2.0


class DecisionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One of `rate` (pairs a second), `closed` (clients) and `hot` (agents of one customer) is not 0."""

    rate: int = 0
    closed: int = 0
    hot: int = 0
    usage_rate: int = 0
    usage_shape: str = "batch"
    seconds: float = 30.0
    customers: int = 100
    partitions: int | None = None
    workers: int = 1
    given: bool = False

    @property
    def kind(self) -> str:
        return "rate" if self.rate else "closed" if self.closed else "hot"

    @property
    def clients(self) -> int:
        return self.closed or self.hot

    @property
    def warm_seconds(self) -> float:
        return min(_WARM_SECONDS_MAX, self.seconds * _WARM_PART)


def bench_decisions(options: DecisionOptions, bars: Bars) -> dict[str, Any]:
    """The result of a run, as `--json` writes it. Raises Trouble, StackError and what else a cluster raises."""
    with ExitStack() as ends:
        load_before = load_average()
        cluster = start(ends, bars.say, given=options.given, partitions=options.partitions, workers=options.workers)
        plans = _plans(cluster, options)
        with bars.counting("putting customers on the bench's plans", len(plans)) as count:
            subscribe(cluster, plans, count.advance)
        begins = {number: end for number, (_, end) in bounds(cluster.settings, JOURNAL).items()}
        done, usage, cpu = _run(cluster, options, bars)
        with bars.waiting("adding up what was let through"):
            ranges = {number: (begins[number], end) for number, (_, end) in bounds(cluster.settings, JOURNAL).items()}
            journaled = read_decisions(cluster.settings, ranges, f"{cluster.prefix}-", cluster.check)
            recorded = _recorded(cluster, journaled)
        limits = {customer: limits_of(cluster.plans[plan]) for customer, plan in plans.items()}
        found = {
            "answers": overdrawn(limits, answered_moves(done)),
            "journal": overdrawn(limits, journaled.moves),
        }
        with bars.waiting("waiting for the usage that flowed beside"):
            beside = _usage_beside(cluster, usage)
        bars.say("measuring a bare echo on the same broker")
        echo = bare_echo(cluster, options.rate, options.clients, options.seconds)
        return {
            "bench": "decisions",
            "kind": options.kind,
            "rate": options.rate or None,
            "clients": options.clients or None,
            "usage_rate": options.usage_rate,
            "usage_shape": options.usage_shape if options.usage_rate else None,
            "seconds": options.seconds,
            "customers": len(plans),
            "workers": options.workers if cluster.stack else None,
            **_latencies(done, options.warm_seconds, echo),
            **_counts(done, journaled, recorded),
            **_overdrafts(found),
            **beside,
            **cpu,
            "troubles": done.troubles,
            "limits": echo,
            **conditions(cluster.settings, cluster.stack is not None, load_before),
        }


def differences(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result, a line each."""
    lines = list(result["troubles"])
    if result["answered"] != result["sent"]:
        lines.append(f"{result['sent']} requests were sent and {result['answered']} answered")
    else:
        answered = {"reserve": result["allowed"], "settle": result["settled"]}
        for name, counts in result["recorded"].items():
            if counts != answered:
                lines.append(f"{answered} were answered as allowed, the {name} has {counts}")
    if result.get("usage_counted") != result.get("usage_sent"):
        lines.append(f"{result['usage_sent']} usage events were sent and ClickHouse counts {result['usage_counted']}")
    lines += [f"overdrawn: {line}" for line in result["overdrawn"]]
    return lines


def answered_moves(done: DecisionsDone) -> list[Move]:
    """What callers were told, summed by who called; the order of answers is not that of decisions."""
    return [
        Move(
            "spent",
            spent.customer,
            "",
            spent.dimensions,
            {CREDITS_UNIT: spent.used_nanos + spent.held_nanos, "bench_calls": spent.calls * NANOS},
        )
        for spent in done.spent
    ]


def _plans(cluster: BenchCluster, options: DecisionOptions) -> dict[str, str]:
    customers = 1 if options.hot else options.customers
    return {customer_name(cluster.prefix, n): POOR_PLAN if is_poor(n) else PLAN for n in range(customers)}


def _run(
    cluster: BenchCluster, options: DecisionOptions, bars: Bars
) -> tuple[DecisionsDone, UsageSent | None, dict[str, float | None]]:
    job = DecisionsJob(
        kafka=cluster.kafka,
        prefix=cluster.prefix,
        customers=1 if options.hot else options.customers,
        seconds=options.seconds,
        warm_seconds=options.warm_seconds,
        rate=options.rate,
        clients=options.clients,
        hot=bool(options.hot),
        seed=secrets.randbits(32),
    )
    length = options.warm_seconds + options.seconds
    what = f"{options.rate} calls a second" if options.rate else f"{options.clients} at once"
    with ExitStack() as ends:
        beside = _usage(cluster, options, length, bars)
        if beside is not None:
            ends.enter_context(beside)
            beside.wait_until(bool, _SINK_SECONDS_MAX, cluster.check)
            time.sleep(_USAGE_AROUND_SECONDS)
        meters = Meters(cluster.stack)
        with (
            bars.counting(
                f"{what} for {length:g} s: requests answered", round(options.rate * length * 2) or None
            ) as count,
            BenchProcess(cluster.folder, "decisions", job, DecisionsDone) as load,
        ):

            def look() -> None:
                cluster.check()
                count.to(load.said.get("answered", 0))

            done = load.result(look)
        cpu = meters.read()
        sent = beside.result(cluster.check) if beside is not None else None
    return done, sent, {**cpu, "generator_cpu_seconds": round(done.cpu_seconds, 2)}


def _usage(
    cluster: BenchCluster, options: DecisionOptions, length: float, bars: Bars
) -> "BenchProcess[UsageSent] | None":
    """Usage of other customers, who have credits of their own: the oracle's limits are for what was admitted."""
    if not options.usage_rate:
        return None
    prefix = _usage_prefix(cluster)
    with bars.counting("putting usage's customers on the bench's plan", _USAGE_CUSTOMERS) as count:
        names = {customer_name(prefix, number): PLAN for number in range(_USAGE_CUSTOMERS)}
        subscribe(cluster, names, count.advance)
    job = UsageJob(
        kafka=cluster.kafka,
        prefix=prefix,
        run=secrets.token_hex(6),
        customers=_USAGE_CUSTOMERS,
        shape=options.usage_shape,
        partitions=cluster.partitions,
        rate=options.usage_rate,
        seconds=length + 2 * _USAGE_AROUND_SECONDS,
    )
    return BenchProcess(cluster.folder, "usage", job, UsageSent)


def _recorded(cluster: BenchCluster, journaled: Journaled) -> dict[str, dict[str, int]]:
    """Allowed reservations and settlements, as the journal and ClickHouse have them."""
    until = time.monotonic() + _SINK_SECONDS_MAX
    while True:
        rows = map(json.loads, ask(cluster.settings, SINK_OFFSETS, "jsonl").splitlines())
        visible = {int(row["partition"]): int(row["next_offset"]) for row in rows}
        if all(visible.get(number, -1) > offset for number, offset in journaled.last.items()):
            break
        if time.monotonic() > until:
            raise Trouble(Exit.NO, f"not every decision was in ClickHouse after {_SINK_SECONDS_MAX:g} s")
        cluster.check()
        time.sleep(_LOOK_SECONDS)
    question = (
        "SELECT op, count() AS number FROM decisions "
        f"WHERE allowed AND startsWith(customer, '{cluster.prefix}-') AND op IN ('reserve', 'settle') GROUP BY op"
    )
    in_clickhouse = {"reserve": 0, "settle": 0}
    for row in map(json.loads, ask(cluster.settings, question, "jsonl").splitlines()):
        in_clickhouse[row["op"]] = int(row["number"])
    in_journal = {op: journaled.counts[f"{op} allowed"] for op in ("reserve", "settle")}
    return {"journal": in_journal, "clickhouse": in_clickhouse}


def _latencies(done: DecisionsDone, warm_seconds: float, echo: dict[str, Any]) -> dict[str, Any]:
    """Latencies and rates of what was due after the warm-up."""
    seconds = done.seconds - warm_seconds
    reserve = percentiles("", done.reserve_ms)
    found: dict[str, Any] = {f"{name}_ms": value for name, value in reserve.items()}
    for suffix in ("p50", "p99"):
        mine, bare = reserve[suffix], echo[f"echo_ms_{suffix}"]
        found[f"{suffix}_of_echo"] = round(mine / bare, 2) if mine and bare else None
    return {
        **found,
        **percentiles("settle_ms", done.settle_ms),
        "answers_per_second": round((len(done.reserve_ms) + len(done.settle_ms)) / seconds),
        "pairs_per_second": round(len(done.settle_ms) / seconds),
    }


def _counts(done: DecisionsDone, journaled: Journaled, recorded: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {
        "sent": done.sent,
        "answered": done.answered,
        "allowed": done.allowed,
        "denied": done.denied,
        "settled": done.settled,
        "recorded": recorded,
    }


def _overdrafts(found: dict[str, list[Overdrawn]]) -> dict[str, Any]:
    """The sum, in credits or units, of what passed a limit, by answers or by the journal: whichever is more."""
    sums = {name: sum(each.over_nanos for each in overs) for name, overs in found.items()}
    worst = max(sums.values())
    return {
        "overdraft": worst / NANOS if worst else 0,
        "overdrawn": [
            f"{each.customer}, {each.limit} {each.scope}: {each.over_nanos / NANOS:g} by the {name}"
            for name, overs in found.items()
            for each in overs
        ],
    }


def _usage_prefix(cluster: BenchCluster) -> str:
    return f"usage-{cluster.prefix}"


def _usage_beside(cluster: BenchCluster, usage: UsageSent | None) -> dict[str, Any]:
    """Whether it kept up is another bench's matter; that it arrives in the end is this one's, too."""
    if usage is None:
        return {}
    until = time.monotonic() + _SINK_SECONDS_MAX
    while (found := counted(cluster, _usage_prefix(cluster))) < usage.events and time.monotonic() < until:
        cluster.check()
        time.sleep(_LOOK_SECONDS)
    return {
        "usage_sent": usage.events,
        "usage_counted": found,
        "usage_sent_per_second": round(usage.events * 1e9 / (usage.end_ns - usage.begin_ns)),
        "usage_counted_after_seconds": round((time.monotonic_ns() - usage.end_ns) / 1e9, 1),
        "usage_generator_cpu_seconds": round(usage.cpu_seconds, 2),
    }
