"""The commands that ask what would happen, or would have: simulate, backtest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallygate.topologies.cli_options import DataDir, Json, console, counted, print_json
from tallygate.topologies.exits import Exit, Trouble

if TYPE_CHECKING:
    from tallygate.pipeline.simulate import ReadPast

app = typer.Typer()


@app.command(rich_help_panel="Data")
def simulate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A scenario in JSON; - is standard input.")],
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="FILE_OR_FOLDER", help="The catalog, in YAML, in place of the scenario's own."),
    ] = None,
    from_clickhouse: Annotated[
        str | None,
        typer.Option(
            metavar="CUSTOMER", help="Add the recorded usage and calls of a customer since the scenario's start."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with what the file expects; end with 1 on any difference.")
    ] = False,
    data_dir: DataDir = None,
    json: Annotated[
        bool, typer.Option("--json", help="Results are always JSON; with --check, differences too.")
    ] = False,
) -> None:
    """What would happen? A scenario, decided by the worker's own rules.

    A plain scenario is one customer with one pool: grants, usage, resets, ops and queries.

    With a catalog and events, the whole waterfall runs, for any number of customers: usage events (at, type, data) and
    requests (at, op, and that request's fields). The result has the answer to each event, everyone's pools, grants and
    budgets at each query, a summary, and the postings where "postings" is true.

    \b
    {"customer": "acme",
     "catalog": {
       "meters": {"tokens": {"event_type": "llm.call", "value": "tokens",
                             "dimensions": ["team"]}},
       "features": {"llm": {"meters": ["tokens"], "rates": [
                             {"meter": "tokens", "credits": 1, "per": 1000}]}}},
     "grants": [{"id": "trial", "amount": 100}],
     "events": [
       {"at": "2026-01-01T00:00:00Z", "op": "budget", "name": "teams",
        "scope": {"team": "*"}, "limit": 8},
       {"at": "2026-01-01T10:00:00Z", "type": "llm.call",
        "data": {"tokens": 4000, "team": "red"}},
       {"at": "2026-01-01T11:00:00Z", "op": "reserve", "id": "h1",
        "feature": "llm", "quantities": {"tokens": 3000},
        "dimensions": {"team": "red"}},
       {"at": "2026-01-01T11:01:00Z", "op": "settle", "hold": "h1",
        "quantities": {"tokens": 2500}}],
     "queries": [{"at": "2026-01-02T00:00:00Z"}],
     "expect": {
       "ops": [{}, {"credits": 4}, {"allowed": true}, {"credits": 2.5}],
       "queries": [{"customers": {"acme": {
                     "pools": {"credits": {"balance": 93.5}}}}}]}}

    \b
    tallygate simulate scenario.json
    tallygate simulate scenario.json --check
    tallygate simulate scenario.json --catalog next/ --from-clickhouse acme
    """
    from tallygate.pipeline.simulate import check_scenarios, run_scenarios
    from tallygate.topologies.catalog_yaml import read_files

    document = _read_json(file)
    own = read_files(catalog).compile(1) if catalog else None
    past = _past(data_dir, from_clickhouse) if from_clickhouse else None
    if not check:
        print_json(run_scenarios(document, own, past))
        return
    differences = check_scenarios(document, own, past)
    if json:
        print_json({"differences": differences})
    else:
        for line in differences:
            typer.echo(line)
        typer.echo("no differences" if not differences else counted(len(differences), "difference"))
    if differences:
        raise typer.Exit(Exit.NO)


def _past(data_dir: Path | None, customer: str) -> "ReadPast":
    """A reader of one customer's recorded calls: usage and reservations, not what those who run the books did."""
    from tallygate.pipeline.catalog_run import PastCalls
    from tallygate.pipeline.past import CALLS, Past
    from tallygate.topologies.backtest import OPEN_END
    from tallygate.topologies.past_usage import Record
    from tallygate.topologies.settings import load_settings

    record = Record(load_settings(data_dir=data_dir))

    def read(scenario: Any) -> PastCalls:
        past = Past(customer, scenario.catalog)
        decisions = [
            each for each in record.decisions(customer, scenario.start_at, OPEN_END) if each.record.op in CALLS
        ]
        calls = past.calls(decisions, record.usage(customer, scenario.start_at, OPEN_END))
        return PastCalls(tuple(calls), past.notes)

    return read


@app.command(rich_help_panel="Data")
def backtest(
    catalog: Annotated[
        Path, typer.Option(metavar="FILE_OR_FOLDER", help="The other catalog, in YAML.", show_default=False)
    ],
    since: Annotated[
        str, typer.Option(metavar="INSTANT", help="Like 2026-01-31 or 2026-01-31T12:00:00Z.", show_default=False)
    ],
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="Up to, not including. Default: now.")] = None,
    customer: Annotated[
        list[str] | None, typer.Option(metavar="CUSTOMER", help="Only this one; may be repeated.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="PLAN", help="Put everyone on this plan of the catalog at --since.")
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """What would another catalog have charged and denied? Recorded usage and calls, decided again, side by side.

    ClickHouse keeps of each call what it asked for and of each usage event what its meters counted; that is decided
    again by the worker's own rules. What cannot be known is assumed, and said below the table.

    \b
    tallygate backtest --catalog next/ --since 2026-01-01
    tallygate backtest --catalog next/ --since 2026-01-01 --until 2026-02-01 --plan pro --json
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tallygate.topologies import backtest_report
    from tallygate.topologies.backtest import OPEN_END, Window
    from tallygate.topologies.backtest import backtest as run
    from tallygate.topologies.catalog_yaml import read_files
    from tallygate.topologies.past_usage import Record
    from tallygate.topologies.settings import load_settings

    begin, end = _instant(since, "--since"), OPEN_END if until is None else _instant(until, "--until")
    if begin >= end:
        raise typer.BadParameter("must come after --since", param_hint="--until")
    new = read_files(catalog).compile(1)
    plans = sorted(each.name for each in new.plans)
    if plan is not None and plan not in plans:
        known = ", ".join(plans) or "none"
        raise typer.BadParameter(f"the catalog has no plan {plan!r}; it has: {known}", param_hint="--plan")
    record = Record(load_settings(data_dir=data_dir))
    names = customer or record.customers(begin, end)
    columns = (TextColumn("customers"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("customers", total=len(names))
        report = run(record, new, Window(begin, end), names, plan or "", lambda: progress.advance(task))
    if json:
        print_json(report.as_json())
    else:
        backtest_report.show(report, console())


def _instant(text: str, option: str) -> int:
    """Milliseconds of an instant, or of a date's midnight in UTC."""
    from tallygate.schemas.instants import parse_instant

    try:
        return parse_instant(f"{text}T00:00:00Z" if len(text) == len("2026-01-31") else text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _read_json(file: Path) -> Any:
    """Parsed JSON with exact numbers. Raises Trouble, OSError."""
    import sys
    from decimal import Decimal
    from json import JSONDecodeError, loads

    try:
        text = sys.stdin.buffer.read().decode() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        return loads(text, parse_float=Decimal, parse_constant=_no_number)
    except JSONDecodeError as error:
        raise Trouble(Exit.WRONG, f"{file}:{error.lineno}:{error.colno}: no JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Trouble(Exit.WRONG, f"{file}: no JSON: {error}") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")
