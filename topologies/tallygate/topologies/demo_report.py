"""What the demo shows: what it is about to do, and what it found."""

from decimal import Decimal

from rich.console import Console
from rich.table import Table

from tallygate.topologies.demo import Figures, percentile
from tallygate.topologies.demo_load import (
    CALLS_IN_FLIGHT,
    PAID_CREDITS,
    PROBES,
    PROBES_PER_SECOND,
    RUNAWAY_BUDGET,
    RUNAWAY_CREDITS,
    RUNAWAY_CUSTOMER,
    TRIAL_CREDITS,
)
from tallygate.topologies.demo_trace import ESTIMATED_OUTPUT_TOKENS, RULE, Totals


def show_start(out: Console) -> None:
    out.print(
        "28 185 real calls of two LLM services, on a Kafka, a worker and a sink of their own, in a temporary folder.\n"
        f"Data: Azure LLM inference traces 2023 (CC BY 4.0), shifted in time so that the last call is now. {RULE}. "
        f"Conversation calls reserve their input tokens and {ESTIMATED_OUTPUT_TOKENS} output tokens, an estimate, "
        "then settle what they took; code calls are usage events with their own times.\n"
    )


def show_figures(figures: Figures, disagreements: list[str], out: Console) -> None:
    out.print()
    out.print(_teams(figures))
    out.print(_credits(figures))
    out.print(
        f"Each was given {TRIAL_CREDITS} promotional credits, which burn first, and {_number(PAID_CREDITS)} paid.\n"
    )
    out.print(_agreement(figures))
    out.print()
    out.print(
        f"Runaway agent: {figures.runaway_asked} reservations of {RUNAWAY_CREDITS} credits at once, against its budget "
        f"of {RUNAWAY_BUDGET}: {figures.runaway_allowed} allowed."
    )
    out.print(
        f"Decisions: p50 {percentile(figures.probe_ms, 50):.1f} ms, p99 {percentile(figures.probe_ms, 99):.1f} ms "
        f"({PROBES} reservations at {PROBES_PER_SECOND} a second, from the call to its answer in the client, "
        "journaled in between)."
    )
    out.print(
        f"During the replay, with {CALLS_IN_FLIGHT} calls in flight: p50 {percentile(figures.replay_ms, 50):.0f} ms, "
        f"p99 {percentile(figures.replay_ms, 99):.0f} ms; {_rate(figures)} requests and events a second."
    )
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in figures.phases.items())
    out.print(f"{figures.seconds:.1f} seconds: {spent}.")
    if disagreements:
        out.print("\nThe counts do NOT agree:", style="bold red")
        for line in disagreements:
            out.print(f"  {line}")
    else:
        out.print("\nTrace, ledger and ClickHouse agree.", style="bold green")


def _rate(figures: Figures) -> str:
    talks = len(figures.replay_ms)
    done = 2 * talks + figures.trace.calls - talks
    return _number(round(done / figures.phases["calls"]))


def _teams(figures: Figures) -> Table:
    table = _table("Tokens by team and model (ClickHouse)", "team", "model")
    for column in ("calls", "input tokens", "output tokens"):
        table.add_column(column, justify="right")
    for row in figures.teams:
        table.add_row(row.team, row.model, *map(_number, (row.calls, row.input_tokens, row.output_tokens)))
    return table


def _credits(figures: Figures) -> Table:
    table = _table("Credits by customer", "customer")
    for column in ("spent", "held", "left"):
        table.add_column(column, justify="right")
    for customer, statement in figures.statements.items():
        given = sum(Decimal(grant.amount) for grant in statement.grants)
        left = sum(Decimal(pool.balance) for pool in statement.pools)
        held = sum(Decimal(pool.held) for pool in statement.pools)
        note = " by the runaway agent" if customer == RUNAWAY_CUSTOMER and held else ""
        table.add_row(customer, _number(given - left - held, 2), _number(held, 2) + note, _number(left, 2))
    return table


def _agreement(figures: Figures) -> Table:
    table = _table("The same calls, counted three times", "")
    for column in ("calls", "input tokens", "output tokens"):
        table.add_column(column, justify="right")
    for name, totals in (
        ("trace: the CSV files", figures.trace),
        ("ledger: the journal's entries", figures.ledger),
        ("ClickHouse: usage_hourly", figures.clickhouse),
    ):
        table.add_row(name, *(_number(getattr(totals, field)) for field in Totals._fields))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold")


def _number(number: int | Decimal, places: int = 0) -> str:
    return f"{number:,.{places}f}".replace(",", " ")
