"""The command line: `tallygate`. Each command builds what it needs; imports wait until it runs."""

import sys
from typing import Annotated, Final

import typer

from tallygate.topologies import (
    cli_admin,
    cli_bench,
    cli_catalog,
    cli_data,
    cli_dead_letters,
    cli_keys,
    cli_ledger,
    cli_mcp,
    cli_money,
    cli_operations,
    cli_run,
    cli_simulate,
)
from tallygate.topologies.exits import MEANINGS, Exit, explain

_HELP: Final = (
    "Meter usage, hold customers' credits and limits, and say yes or no before the work is done.\n\n"
    "Start with `tallygate up` in one terminal and the commands it names in another, or see it all at once with "
    "`tallygate demo`. Settings are environment variables that start with TALLYGATE_; the README lists them.\n\n"
    "\b\nExit codes:\n" + "\n".join(f"{code.value:4}  {meaning}" for code, meaning in MEANINGS.items())
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_HELP,
)
for group in (cli_run, cli_mcp, cli_operations, cli_admin, cli_money, cli_data, cli_simulate):
    app.add_typer(group.app)
app.add_typer(cli_keys.audit_app)
app.add_typer(cli_catalog.app, name="catalog", rich_help_panel="Data")
app.add_typer(cli_keys.app, name="keys", rich_help_panel="Running it")
app.add_typer(cli_ledger.app, name="ledger", rich_help_panel="Data")
app.add_typer(cli_dead_letters.app, name="dead-letters", rich_help_panel="Data")
app.add_typer(cli_bench.app, name="bench", rich_help_panel="Running it")

_TRACEBACK: Final = "--traceback"


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("tallygate"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="Show where in the program an error came from, for a bug report.")
    ] = False,
) -> None:
    """Options of the program itself; `main` looks at --traceback, since errors end there."""


def main() -> None:
    """The entry point of the console script: every trouble becomes one line and an exit code."""
    try:
        app()
    except Exception as error:  # the last place: a person sees one line, or asks for all of it
        if _TRACEBACK in sys.argv[1:]:
            raise
        sys.exit(_tell(error))


def _tell(error: Exception) -> Exit:
    known = explain(error)
    if known is None:
        words = " ".join(str(error).split()) or "no more is known"
        typer.echo(f"tallygate: a fault in tallygate itself: {type(error).__name__}: {words[:300]}", err=True)
        typer.echo("To see where, run it again as `tallygate --traceback ...`, and report what it shows.", err=True)
        return Exit.BUG
    code, message = known
    for line in message.splitlines():
        typer.echo(f"tallygate: {line}", err=True)
    return code


if __name__ == "__main__":
    main()
