"""The commands about the ledger: verify."""

from typing import TYPE_CHECKING, Annotated

import typer

from tallygate.topologies.cli_options import Brokers, DataDir, Json, console, print_json, settings_for
from tallygate.topologies.exits import Exit

if TYPE_CHECKING:
    from tallygate.topologies.ledger import Verification

app = typer.Typer(no_args_is_help=True, help="The books: whether they agree with themselves.")


@app.callback()
def ledger() -> None:
    """The books: whether they agree with themselves."""


@app.command()
def verify(
    customer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this customer; all of them by default.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long the sink may take to catch up.")
    ] = 60.0,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Rebuild every balance from ClickHouse's postings and from the journal, and compare both with the live state.

    The first difference is named, and the command ends with 1. Nothing is changed; workers and the sink go on working.

    \b
    tallygate ledger verify
    tallygate ledger verify --customer acme --json
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from tallygate.topologies import ledger

    settings = settings_for(brokers, data_dir)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    shown = console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("reading the journal", total=None)

        def progress(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        found = ledger.verify(settings, customer, wait, progress)
    if json:
        print_json({"agrees": found.difference is None, **_plain(found)})
    else:
        _tell(found)
    if found.difference is not None:
        raise typer.Exit(Exit.NO)


def _plain(found: "Verification") -> dict[str, object]:
    import msgspec

    return msgspec.structs.asdict(found)


def _tell(found: "Verification") -> None:
    if found.difference is not None:
        typer.echo(f"the first difference: {found.difference.line}")
        return
    typer.echo(
        f"the ledger agrees: customers {found.customers}, pools {found.pools}, grants {found.grants}, "
        f"open holds {found.holds}, postings {found.postings}"
    )
    typer.echo("sums by kind of account: " + (", ".join(f"{kind} {sum}" for kind, sum in found.sums.items()) or "none"))
    short = [each for each in found.partitions if not each.complete]
    if not short:
        typer.echo("every balance was rebuilt from ClickHouse's postings and from the journal's entries")
        return
    gone = ", ".join(f"{each.partition} before offset {each.entries_from}" for each in short)
    typer.echo("every balance was rebuilt from ClickHouse's postings")
    typer.echo(
        f"compaction has taken entries of the journal (partition {gone}): from there on they were compared with "
        f"ClickHouse's, and {found.pools_stated} of {found.pools} pools with what their last entry states"
    )
