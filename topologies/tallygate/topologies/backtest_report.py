"""How a backtest looks in a terminal: each figure as recorded, and as it would have been."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from tallygate.schemas.amounts import from_nanos
from tallygate.topologies.backtest import Compared, Report

_ALL = "all customers"


def show(report: Report, out: Console) -> None:
    """A row per customer and feature, the sums where there are several customers, then every assumption."""
    table = Table(title=f"{report.calls} calls decided again: recorded → new catalog", title_justify="left")
    for name in ("customer", "feature", "allowed", "denied", "would deny", "charged", "overage"):
        table.add_column(name, justify="left" if name in ("customer", "feature") else "right")
    for line in report.lines:
        table.add_row(*_cells(line.customer, line))
    if len({line.customer for line in report.lines}) > 1:
        table.add_section()
        for line in report.features():
            table.add_row(*_cells(_ALL, line))
    out.print(table if report.lines else "nothing was asked or used in that time")
    for text in report.assumptions:
        out.print(f"· {text}")


def _cells(customer: str, line: Compared) -> tuple[str, ...]:
    then, now = line.recorded, line.replayed
    return (
        customer,
        line.feature,
        _pair(str(then.allowed), str(now.allowed)),
        _reasons(then.denied, now.denied),
        _reasons(then.would_deny, now.would_deny),
        _pair(from_nanos(then.charged_nanos), from_nanos(now.charged_nanos)),
        _pair(from_nanos(then.overage_nanos), from_nanos(now.overage_nanos)),
    )


def _reasons(then: Counter[str], now: Counter[str]) -> str:
    names = sorted({*then, *now})
    return "\n".join(f"{name} {_pair(str(then[name]), str(now[name]))}" for name in names) or "0"


def _pair(then: str, now: str) -> str:
    return then if then == now else f"{then} → {now}"
