"""The commands about data: produce, sql, simulate."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tallygate.topologies.cli_options import Brokers, DataDir, Json, console, print_json, settings_for
from tallygate.topologies.exits import Exit, Trouble

app = typer.Typer()


@app.command(rich_help_panel="Data")
def produce(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CloudEvents in JSON: one a line, or one array; - is standard input.")
    ],
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Send usage events. Every event of a file is checked first: when one is wrong, nothing is sent.

    Sending the same file again is safe: an event with the same source and id counts once.

    \b
    tallygate produce usage.ndjson
    ./export-usage | tallygate produce -
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tallygate.connectors.usage_producer import publish_file

    path = Path("/dev/stdin") if str(file) == "-" else file
    settings = settings_for(brokers, data_dir)
    columns = (TextColumn("sending events"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("sending", total=None)
        report = publish_file(
            settings.librdkafka,
            path,
            on_progress=lambda confirmed: progress.update(task, completed=confirmed),
            on_wait=progress.console.print,
        )
    if json:
        print_json(report)
    else:
        typer.echo(f"{report.events} events ({report.bytes} bytes) are in Kafka, in {report.seconds:.1f} s")


@app.command(rich_help_panel="Data")
def sql(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="One SELECT, SHOW, DESCRIBE or EXPLAIN.")],
    data_dir: DataDir = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")] = False,
) -> None:
    """Ask ClickHouse, through the running sink: views postings, decisions, usage_hourly, balances.

    \b
    tallygate sql "SELECT meter, sum(quantity) FROM usage_hourly GROUP BY meter"
    tallygate sql "SELECT reason, count() FROM decisions GROUP BY ALL" --json
    """
    from tallygate.topologies.settings import load_settings
    from tallygate.topologies.sql_server import ask

    if json and csv:
        raise typer.BadParameter("choose one of --json and --csv", param_hint="--csv")
    form = "jsonl" if json else "csv" if csv else "table"
    typer.echo(ask(load_settings(data_dir=data_dir), question, form), nl=False)


@app.command(rich_help_panel="Data")
def simulate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A scenario in JSON; - is standard input.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare with what the file expects; end with 1 on any difference.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Results are always JSON; with --check, differences too.")
    ] = False,
) -> None:
    """What would happen? Grants, usage, resets and reservations of a scenario, decided by the worker's own rules.

    \b
    tallygate simulate scenario.json
    tallygate simulate vectors.json --check
    """
    from tallygate.pipeline.simulate import check_scenarios, run_scenarios

    document = _read_json(file)
    if not check:
        print_json(run_scenarios(document))
        return
    differences = check_scenarios(document)
    if json:
        print_json({"differences": differences})
    else:
        for line in differences:
            typer.echo(line)
        typer.echo("no differences" if not differences else f"{len(differences)} differences")
    if differences:
        raise typer.Exit(Exit.NO)


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
