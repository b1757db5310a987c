"""The commands about credits: grant, budget, reserve, settle, release, check, balance."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tallygate.topologies.cli_options import (
    Brokers,
    Customer,
    DataDir,
    Json,
    Timeout,
    client_for,
    pairs,
    print_json,
    show_table,
)
from tallygate.topologies.exits import Exit

if TYPE_CHECKING:
    from tallygate.schemas.answers import Answer, GrantView, LimitState, Statement

app = typer.Typer()

Feature = Annotated[str, typer.Argument(help="A feature of the catalog.", show_default=False)]
HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id.", show_default=False)]
Id = Annotated[str | None, typer.Option("--id", help="An id of your own: the same one again changes nothing more.")]
Quantities = Annotated[
    list[str] | None,
    typer.Option("--quantity", "-q", metavar="METER=NUMBER", help="A quantity of a meter; may be repeated."),
]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dimension", "-d", metavar="NAME=VALUE", help="Who and what, e.g. team=research; may be repeated."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show every limit looked at, not only those that said no.")]
Instant = Annotated[str | None, typer.Option(metavar="INSTANT", help="Like 2026-01-31T00:00:00Z.")]
_TIMEOUT = 10.0


@app.command(rich_help_panel="Credits")
def grant(
    customer: Customer,
    amount: Annotated[str, typer.Argument(help="How many credits.", show_default=False)],
    pool: Annotated[str, typer.Option(help="The wallet they go into.")] = "credits",
    priority: Annotated[int, typer.Option(min=0, max=255, help="0 burns first.")] = 1,
    effective_at: Instant = None,
    expires_at: Instant = None,
    category: Annotated[Literal["paid", "trial", "promotional"], typer.Option()] = "paid",
    price: Annotated[str, typer.Option(help="What was paid for one credit.")] = "0",
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """Give a customer credits.

    \b
    tallygate grant acme 1000
    tallygate grant acme 50 --priority 0 --expires-at 2030-01-01T00:00:00Z
    """
    effective, expires = _instant(effective_at, "--effective-at"), _instant(expires_at, "--expires-at")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.grant(
            customer,
            amount,
            id=id,
            pool=pool,
            priority=priority,
            effective_at=effective,
            expires_at=expires,
            category=category,
            price=price,
        )
    _finish(answer, json, f"granted {answer.credits} credits to {customer}; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def budget(
    customer: Customer,
    name: Annotated[str, typer.Argument(help="The budget's name; the same name again changes it.", show_default=False)],
    limit: Annotated[str, typer.Option(help="The most that may be used in a period.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Whom it limits; `*` is a budget for each value; may be repeated."),
    ] = None,
    period: Annotated[Literal["lifetime", "hour", "day", "week", "month"], typer.Option(help="In UTC.")] = "lifetime",
    unit: Annotated[str, typer.Option(help="credits, or a meter's name.")] = "credits",
    soft: Annotated[bool, typer.Option("--soft", help="Allow and report, rather than deny.")] = False,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """Limit what a customer, or a scope within, may use over a period.

    \b
    tallygate budget acme agents --scope 'agent=*' --limit 500 --period day
    tallygate budget acme research --scope team=research --limit 9000 --soft
    """
    scopes = pairs(scope, "--scope")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.set_budget(customer, name, limit, scope=scopes, unit=unit, period=period, hard=not soft, id=id)
    whom = " ".join(f"{k}={v}" for k, v in sorted(scopes.items())) or "the whole customer"
    span = "in its lifetime" if period == "lifetime" else f"a {period}"
    _finish(answer, json, f"budget {name} of {customer}: {limit} {unit} {span} for {whom}")


@app.command(rich_help_panel="Credits")
def reserve(
    customer: Customer,
    feature: Feature,
    quantity: Quantities = None,
    credits: Annotated[str, typer.Option(help="Credits, besides what the quantities cost.")] = "0",
    dimension: Dimensions = None,
    ttl: Annotated[
        int | None,
        typer.Option(min=1, max=30 * 24 * 3600, metavar="SECONDS", help="How long it holds; default: the feature's."),
    ] = None,
    explain: Explain = False,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """May this go ahead? If so, set its credits aside until it is settled or released. Ends with 1 when denied.

    \b
    tallygate reserve acme llm -q input_tokens=2000 -d model=chat-large
    tallygate reserve acme llm --credits 75 -d agent=crawler --explain
    """
    quantities, dimensions = pairs(quantity, "--quantity"), pairs(dimension, "--dimension")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.reserve(
            customer,
            feature=feature,
            quantities=quantities,
            credits=credits,
            dimensions=dimensions,
            ttl_seconds=ttl,
            explain=explain,
            id=id,
        ).answer
    text = ""
    if answer.hold is not None:
        text = (
            f"allowed: {answer.hold.credits} credits are held until {answer.hold.expires_at}; "
            f"{answer.balance} can be spent\nhold {answer.hold.id}"
        )
    _finish(answer, json, text)


@app.command(rich_help_panel="Credits")
def settle(
    customer: Customer,
    hold: HoldId,
    quantity: Quantities = None,
    credits: Annotated[str | None, typer.Option(help="Credits, besides what the quantities cost.")] = None,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """Record what the work really took, and give the rest of its hold back. Without amounts: what was held.

    \b
    tallygate settle acme 3f2c... -q input_tokens=2000 -q output_tokens=212
    """
    quantities = pairs(quantity, "--quantity") or None
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.settle(customer, hold, quantities, credits=credits, id=id)
    paid = ", ".join(f"{share.amount} by {share.grant}" for share in answer.paid)
    text = f"settled {answer.credits} credits"
    text += f" (paid {paid})" if paid else ""
    text += f", {answer.overage} of them overage" if answer.overage not in (None, "0") else ""
    text += ", late: its hold had ended" if answer.late else ""
    _finish(answer, json, f"{text}; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def release(
    customer: Customer,
    hold: HoldId,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """Give a hold back unused.

    \b
    tallygate release acme 3f2c...
    """
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.release(customer, hold, id=id)
    _finish(answer, json, answer.message or f"released; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def check(
    customer: Customer,
    feature: Feature,
    quantity: Quantities = None,
    credits: Annotated[str, typer.Option(help="Credits, besides what the quantities cost.")] = "0",
    dimension: Dimensions = None,
    explain: Explain = False,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """Would this be allowed now? Changes nothing. Ends with 0 for yes and 1 for no, for scripts.

    \b
    tallygate check acme llm -q output_tokens=4096 && ./run-the-job
    """
    quantities, dimensions = pairs(quantity, "--quantity"), pairs(dimension, "--dimension")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.check(
            customer,
            feature=feature,
            quantities=quantities,
            credits=credits,
            dimensions=dimensions,
            explain=explain,
        )
    _finish(answer, json, f"yes: it would cost {answer.credits} credits; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def balance(
    customer: Customer,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = _TIMEOUT,
    json: Json = False,
) -> None:
    """What a customer has: pools, grants in burn order, open holds, budgets.

    \b
    tallygate balance acme
    tallygate balance acme --json | jq -r '.pools[].balance'
    """
    with client_for(brokers, data_dir, timeout) as client:
        statement = client.balance(customer)
    if json:
        print_json(statement)
    else:
        _show_statement(statement)


def _finish(answer: "Answer", json: bool, text: str) -> None:
    """Shows an answer and ends with its exit code."""
    if json:
        print_json(answer)
    elif answer.allowed:
        typer.echo(text)
    else:
        typer.echo(f"denied: {answer.reason}" + (f": {answer.message}" if answer.message else ""))
    if not json:
        for limit in answer.limits:
            typer.echo(_limit_line(limit))
    if not answer.allowed:
        raise typer.Exit(Exit.NO)


def _limit_line(limit: "LimitState") -> str:
    """A limit as a decision saw it."""
    mark = "ok" if limit.ok else "no" if limit.hard else "over, but soft"
    return f"  {mark}: {limit.asked} asked of {_limit(limit)}"


def _limit(limit: "LimitState") -> str:
    scope = "".join(f" {k}={v}" for k, v in sorted(limit.scope.items()))
    resets = f", resets {limit.resets_at}" if limit.resets_at else ""
    return (
        f"{limit.kind} {limit.name}{scope}: {limit.remaining} of {limit.limit} {limit.unit} left "
        f"({limit.used} used, {limit.held} held{resets})"
    )


def _show_statement(statement: "Statement") -> None:
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


def _instant(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    from tallygate.schemas.instants import parse_instant, to_datetime

    try:
        return to_datetime(parse_instant(text))
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
