"""How answers of the gate look on a terminal: what was decided, why not, the waterfall, what a customer has."""

from typing import TYPE_CHECKING

import typer

from tallygate.topologies.cli_options import print_json, show_table
from tallygate.topologies.exits import Exit

if TYPE_CHECKING:
    from tallygate.schemas.answers import Answer, GrantView, LimitState, Statement, Step


def finish(answer: "Answer", json: bool, text: str) -> None:
    """Shows an answer, `text` where it is a yes, and ends with its exit code."""
    if json:
        print_json(answer)
    else:
        _show(answer, text)
    if not answer.allowed:
        raise typer.Exit(Exit.NO)


def _show(answer: "Answer", text: str) -> None:
    if answer.allowed:
        typer.echo(text)
    else:
        typer.echo(f"denied: {answer.reason}" + (f": {answer.message}" if answer.message else ""))
    if answer.trace:
        show_table("waterfall", _COLUMNS, [row for step in answer.trace for row in _rows(step)])
    else:
        for limit in answer.limits:
            typer.echo(f"  {_mark(limit)}: {limit.asked} asked of {_limit(limit)}")
    if answer.retry_after_ms is not None:
        typer.echo(f"  retry after {seconds(answer.retry_after_ms)} s")
    if answer.would_deny:
        typer.echo(f"  limits that only observe would have said: {', '.join(answer.would_deny)}")
    if answer.affordable is not None:
        for unit, much in answer.affordable.items():
            typer.echo(f"affordable now: {much} {unit}")


def seconds(ms: int) -> str:
    """Seconds of milliseconds, exactly, without zeros at the end."""
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03}".rstrip("0").rstrip(".")


_COLUMNS = ("step", "says", "limit", "room", "asked>", "left>", "of>", "used>", "held>", "unit", "resets")


def _rows(step: "Step") -> list[tuple[str, ...]]:
    """A step of the waterfall: a line for each limit that it looked at, the step's own verdict on the first."""
    cells = [_cells(limit) for limit in step.limits] or [("",) * (len(_COLUMNS) - 2)]
    says = "yes" if step.ok else step.reason.value
    return [(step.step.replace("_", " ") if not n else "", says if not n else "", *row) for n, row in enumerate(cells)]


def _cells(limit: "LimitState") -> tuple[str, ...]:
    name, resets = limit.name + _scope(limit), limit.resets_at or ""
    sizes = (limit.asked, limit.remaining, limit.limit, limit.used, limit.held)
    return (name, _mark(limit), *sizes, limit.unit, resets)


def _mark(limit: "LimitState") -> str:
    if limit.ok:
        return "ok"
    return "over, but observing" if limit.observe else "no" if limit.hard else "over, but soft"


def _scope(limit: "LimitState") -> str:
    return "".join(f" {k}={v}" for k, v in sorted(limit.scope.items()))


def _limit(limit: "LimitState") -> str:
    resets = f", resets {limit.resets_at}" if limit.resets_at else ""
    return (
        f"{limit.kind} {limit.name}{_scope(limit)}: {limit.remaining} of {limit.limit} {limit.unit} left "
        f"({limit.used} used, {limit.held} held{resets})"
    )


def show_statement(statement: "Statement") -> None:
    show_table(
        "pools",
        ("pool", "can be spent>", "held>", "overage>"),
        [(pool.pool, pool.balance, pool.held, pool.overage) for pool in statement.pools],
    )
    show_table(
        "grants",
        ("grant", "pool", "category", "priority>", "given>", "left>", "held>", "until"),
        [(g.id, g.pool, g.category, str(g.priority), g.amount, g.balance, g.held, _until(g)) for g in statement.grants],
    )
    show_table(
        "open holds",
        ("hold", "feature", "credits>", "until"),
        [(hold.id, hold.feature, hold.credits, hold.expires_at) for hold in statement.holds],
    )
    if statement.limits:
        typer.echo("budgets")
    for limit in statement.limits:
        typer.echo(f"  {_limit(limit)}")


def _until(grant: "GrantView") -> str:
    ends = grant.expires_at or "no end"
    return ends if grant.active else f"{ends}, not active (from {grant.effective_at})"
