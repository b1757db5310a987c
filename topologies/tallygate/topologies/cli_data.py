"""The commands about data: produce, catalog, sql, simulate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallygate.topologies.cli_options import (
    Brokers,
    DataDir,
    Json,
    console,
    counted,
    print_json,
    settings_for,
    show_table,
)
from tallygate.topologies.exits import Exit, Trouble

if TYPE_CHECKING:
    from tallygate.schemas.catalog import Catalog, Feature, Rate

app = typer.Typer()
catalog_app = typer.Typer(no_args_is_help=True, help="What is metered and what it costs: apply it, show it.")
app.add_typer(catalog_app, name="catalog", rich_help_panel="Data")


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


@catalog_app.command("apply")
def catalog_apply(
    path: Annotated[
        Path, typer.Argument(metavar="FILE_OR_FOLDER", help="A YAML file, or a folder of them.", show_default=False)
    ],
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Put a catalog in force as the next version. A broken one is refused whole; an unchanged one makes no version.

    \b
    tallygate catalog apply catalog.yaml
    tallygate catalog apply catalog/
    """
    from tallygate.topologies.catalog_topic import publish, read_files

    file = read_files(path)
    done = publish(settings_for(brokers, data_dir), file)
    version = done.catalog.version
    if json:
        print_json({"version": version, "changed": done.changed})
    elif done.changed:
        holds = f"{counted(len(done.catalog.meters), 'meter')}, {counted(len(done.catalog.features), 'feature')}"
        typer.echo(f"catalog version {version} is in force: {holds}")
    else:
        typer.echo(f"unchanged: version {version} says the same")


@catalog_app.command("show")
def catalog_show(
    version: Annotated[int | None, typer.Option(min=1, help="An earlier version; default: the newest.")] = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show the catalog in force, or an earlier version.

    \b
    tallygate catalog show
    tallygate catalog show --version 3 --json
    """
    from tallygate.topologies.catalog_topic import catalog_version, newest_catalog

    settings = settings_for(brokers, data_dir)
    found = newest_catalog(settings) if version is None else catalog_version(settings, version)
    if found is None:
        raise Trouble(Exit.WRONG, f"there is no catalog version {version}")
    if not found.version:
        raise Trouble(Exit.WRONG, "there is no catalog yet: apply one with `tallygate catalog apply FILE`")
    if json:
        print_json(found)
    else:
        _show_catalog(found)


def _show_catalog(catalog: "Catalog") -> None:
    typer.echo(f"catalog version {catalog.version}")
    meters = []
    for meter in catalog.meters:
        counts = "events" if meter.aggregation == "count" else f"{meter.aggregation} of {meter.value}"
        meters.append((meter.name, counts, meter.event_type, ", ".join(meter.dimensions)))
    show_table("meters", ("meter", "counts", "of events", "by"), meters)
    for feature in catalog.features:
        typer.echo(f"feature {feature.name}: {_feature_line(feature)}")
        show_table("rates", ("meter", "costs", "where", "since"), [_rate_row(rate) for rate in feature.rates])


def _feature_line(feature: "Feature") -> str:
    from tallygate.schemas.amounts import from_nanos

    owed = feature.overage_nanos_max
    overage = "unlimited" if owed is None else f"up to {from_nanos(owed)}" if owed else "none"
    end = {"release": "released", "settle": "settled as estimated"}[feature.at_end]
    return f"pool {feature.pool}, holds end after {feature.ttl_seconds} s and are then {end}, overage {overage}"


def _rate_row(rate: "Rate") -> tuple[str, str, str, str]:
    from tallygate.schemas.amounts import from_nanos
    from tallygate.schemas.instants import format_instant

    where = ", ".join(f"{k}={v}" for k, v in sorted(rate.when.items()))
    cost = f"{from_nanos(rate.credits_nanos)} credits per {from_nanos(rate.per_nanos)}"
    return rate.meter, cost, where, format_instant(rate.since) if rate.since else ""


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
    from tallygate.topologies.sql_server import LISTENING_FILE, ask

    if json and csv:
        raise typer.BadParameter("choose one of --json and --csv", param_hint="--csv")
    form = "jsonl" if json else "csv" if csv else "table"
    settings = load_settings(data_dir=data_dir)
    if not settings.clickhouse_dsn and not (settings.data_dir / LISTENING_FILE).exists():
        raise Trouble(
            Exit.AWAY, f"no sink is running on {settings.data_dir}: start one with `tallygate sink` or `tallygate up`"
        )
    typer.echo(ask(settings, question, form), nl=False)


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
        typer.echo(counted(len(differences), "difference") if differences else "no differences")
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
