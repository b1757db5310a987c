"""A result as a person reads it."""

from typing import Any, Final

from rich.console import Console
from rich.table import Table

_LEVELS: Final = ("p50", "p90", "p99", "p999", "max")
_CPU: Final = ("worker", "sink", "broker", "generator", "observer")


def show_usage(result: dict[str, Any], out: Console) -> None:
    table = _table(f"Usage, {result['shape']} events: {_number(result['offered_per_second'])} a second offered")
    held = "held" if result["held"] else "NOT held"
    table.add_row("sustained, end to end", f"{_number(result['sustained_per_second'])} events/s ({held})")
    table.add_row("events sent = counted", f"{_number(result['sent'])} = {_number(result['counted'])}")
    table.add_row("sent twice, counted once", _number(result["duplicates_sent"]))
    table.add_row("due → in force", _levels(result, "lag_ms_"))
    table.add_row("due → in ClickHouse", _levels(result, "visible_lag_ms_"))
    table.add_row("per worker CPU-second", f"{_number(result['worker_events_per_cpu_second'])} events")
    _conditions(table, result)
    limits = result["limits"]
    table.add_row("", "")
    table.add_row("the same broker, bare", _records(limits))
    table.add_row(
        "  librdkafka produces",
        f"{_number(limits['produced_per_second'])}/s, {limits['produced_bytes_per_second'] / 1e6:.0f} MB/s "
        f"(reached {limits['reached_of_produce']:.1%})",
    )
    table.add_row(
        "  librdkafka consumes",
        f"{_number(limits['consumed_per_second'])}/s, {limits['consumed_bytes_per_second'] / 1e6:.0f} MB/s "
        f"(reached {limits['reached_of_consume']:.1%})",
    )
    if (reached := limits["reached_of_decode_per_cpu_second"]) is not None:
        decoded = f"{_number(limits['decoded_per_cpu_second'])} a CPU-second (reached {reached:.1%})"
        table.add_row("  msgspec decodes", decoded)
    out.print(table)


def show_decisions(result: dict[str, Any], out: Console) -> None:
    load = {
        "rate": f"{result['rate']} calls a second, open",
        "closed": f"{result['clients']} clients, closed",
        "hot": f"one hot customer, {result['clients']} agents, closed",
    }[result["kind"]]
    if result["usage_rate"]:
        load += f"; {_number(result['usage_rate'])} usage events a second beside, {result['usage_shape']}"
    table = _table(f"Decisions: {load}")
    table.add_row("reserve, due → answered", _levels({f"ms_{n}": result[f"{n}_ms"] for n in _LEVELS}, "ms_"))
    table.add_row("settle", _levels(result, "settle_ms_"))
    table.add_row(
        "answers, calls settled", f"{_number(result['answers_per_second'])}/s, {_number(result['pairs_per_second'])}/s"
    )
    table.add_row("requests sent = answered", f"{_number(result['sent'])} = {_number(result['answered'])}")
    table.add_row("allowed, denied", f"{_number(result['allowed'])}, {_number(result['denied'])}")
    table.add_row("overdraft", f"{result['overdraft']:g}")
    if "usage_sent_per_second" in result:
        after = f"all counted after {result['usage_counted_after_seconds']:g} s"
        table.add_row("usage beside", f"{_number(result['usage_sent_per_second'])} events/s sent, {after}")
    _conditions(table, result)
    table.add_row("", "")
    table.add_row("a bare echo, same broker", _levels(result["limits"], "echo_ms_"))
    table.add_row("ours / the echo's", f"p50 {_times(result['p50_of_echo'])}, p99 {_times(result['p99_of_echo'])}")
    out.print(table)


def show_leases(result: dict[str, Any], out: Console) -> None:
    table = _table(f"Leases: {_number(result['rate'])} takes a second by {result['clients']} leases")
    table.add_row("a decision", _microseconds(result, ""))
    table.add_row("a counter in the process", _microseconds(result, "peer_"))
    table.add_row("takes, allowed", f"{_number(result['sent'])}, {_number(result['allowed'])}")
    table.add_row("slices settled, late", f"{_number(result['slices_settled'])}, {_number(result['settled_late'])}")
    table.add_row("taken of the limit", f"{_number(result['limit_taken'])} of {_number(result['limit_tokens'])} tokens")
    table.add_row("overdraft", f"{result['overdraft']:g}")
    _conditions(table, result)
    out.print(table)


def _microseconds(result: dict[str, Any], prefix: str) -> str:
    shown = ((name.replace("p999", "p99.9"), result[f"{prefix}{name}_us"]) for name in _LEVELS)
    return ", ".join(f"{name} {value:.3g}" for name, value in shown if value is not None) + " µs"


def show_sink(result: dict[str, Any], out: Console) -> None:
    table = _table(f"Sink: {_number(result['records'])} journal records")
    table.add_row("rows into ClickHouse", f"{_number(result['rows'])}: {_number(result['rows_per_second'])}/s")
    table.add_row("per sink CPU-second", f"{_number(result['rows_per_cpu_second'])} rows")
    table.add_row("journal records", f"{_number(result['records_per_second'])}/s")
    table.add_row("events sent = counted", f"{_number(result['sent'])} = {_number(result['counted'])}")
    _conditions(table, result)
    out.print(table)


def show_growth(result: dict[str, Any], out: Console) -> None:
    table = Table("customers", "partitions", "workers", title="Growth", title_justify="left", title_style="bold")
    for name in ("events/s", "µs of worker CPU an event", "× the first"):
        table.add_column(name, justify="right")
    for run in result["runs"]:
        table.add_row(
            _number(run["customers"]),
            str(run["partitions"]),
            str(run["workers"]),
            _number(run["events_per_second"]),
            f"{run['worker_cpu_us_per_event']:.1f}",
            f"{run['times_the_first']:.2f}",
        )
    out.print(table)
    out.print(
        f"load average {result['load_average']['before']} → {result['load_average']['after']}, {result['cores']} cores"
    )


def show_differences(lines: list[str], out: Console) -> None:
    for line in lines:
        out.print(f"WRONG: {line}", style="bold red")


def _conditions(table: Table, result: dict[str, Any]) -> None:
    spent = [
        f"{role} {result[f'{role}_cpu_seconds']:g}" for role in _CPU if result.get(f"{role}_cpu_seconds") is not None
    ]
    versions, load = result["versions"], result["load_average"]
    table.add_row("CPU seconds", ", ".join(spent))
    table.add_row("load average, cores", f"{load['before']} → {load['after']}, {result['cores']}")
    table.add_row(
        "with",
        f"Python {versions['python']}, Kafka {versions['kafka'] or 'of the cluster'}, "
        f"ClickHouse {versions['clickhouse']} ({result['clickhouse_engine']}), "
        f"{result['settings']['partitions']} partitions",
    )


def _table(title: str) -> Table:
    return Table("", "", title=title, title_justify="left", title_style="bold", show_header=False)


def _levels(result: dict[str, Any], prefix: str) -> str:
    shown = [(name, result.get(f"{prefix}{name}")) for name in _LEVELS]
    return (
        ", ".join(f"{name.replace('p999', 'p99.9')} {value:.3g}" for name, value in shown if value is not None) + " ms"
    )


def _records(limits: dict[str, Any]) -> str:
    events = limits["events_per_record"]
    return f"records of {limits['record_bytes']} bytes" + (f", {_number(events)} events in each" if events > 1 else "")


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ×"


def _number(number: float | None) -> str:
    return "not known here" if number is None else f"{number:,.0f}".replace(",", " ")
