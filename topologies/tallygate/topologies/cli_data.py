"""The commands about data: produce, sql."""

from pathlib import Path
from typing import Annotated

import typer

from tallygate.topologies.cli_options import (
    Brokers,
    DataDir,
    Json,
    console,
    counted,
    print_json,
    settings_for,
)

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
    err = console(stderr=True)
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("sending", total=None)
        report = publish_file(
            settings.librdkafka,
            path,
            on_progress=lambda confirmed: progress.update(task, completed=confirmed),
            on_wait=err.print,
        )
    if json:
        print_json(report)
    else:
        typer.echo(
            f"{counted(report.events, 'event')} ({report.bytes} bytes) sent and confirmed in {report.seconds:.1f} s"
        )


@app.command(rich_help_panel="Data")
def sql(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="One SELECT, SHOW, DESCRIBE or EXPLAIN.")],
    data_dir: DataDir = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")] = False,
) -> None:
    """Ask ClickHouse, through the running sink: views postings, decisions, usage, usage_hourly, balances.

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
