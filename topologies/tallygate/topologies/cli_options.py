"""What the commands share: options, how settings are found, how results are shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tallygate.connectors.client_sync import TallygateClientSync
    from tallygate.topologies.settings import Settings

Brokers = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Kafka's addresses, with commas. Default: TALLYGATE_KAFKA_BROKERS, else a running `tallygate up`, "
        "else 127.0.0.1:9092.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="The data folder. Default: TALLYGATE_DATA_DIR, else a folder of its own among the user's data.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Timeout = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for the answer.")]
Customer = Annotated[str, typer.Argument(help="The customer's name.", show_default=False)]
Id = Annotated[str | None, typer.Option("--id", help="An id of your own: the same one again changes nothing more.")]
Instant = Annotated[str | None, typer.Option(metavar="INSTANT", help="Like 2026-01-31T00:00:00Z.")]

TIMEOUT_SECONDS: Final = 10.0


def settings_for(brokers: str | None, data_dir: Path | None) -> "Settings":
    """The settings of a command that talks to a cluster."""
    from tallygate.topologies.running import connect_settings

    return connect_settings(kafka_brokers=brokers, data_dir=data_dir)


@contextmanager
def client_for(brokers: str | None, data_dir: Path | None, timeout: float) -> Iterator["TallygateClientSync"]:
    """A client; what is changed through it is in the audit log."""
    from tallygate.connectors.client_sync import TallygateClientSync
    from tallygate.topologies.audit_log import AuditedTallygate

    with TallygateClientSync(AuditedTallygate(settings_for(brokers, data_dir), timeout)) as client:
        yield client


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """A mapping from `name=value` texts."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise typer.BadParameter(f"{text!r} is no NAME=VALUE", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value
    return found


def instant(text: str | None, option: str) -> datetime | None:
    """The instant that an option names."""
    if text is None:
        return None
    from tallygate.schemas.instants import parse_instant, to_datetime

    try:
        return to_datetime(parse_instant(text))
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode())


def console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Plain aligned columns, never cut: what stands there can be copied. A name that ends in `>` aligns right."""
    if not rows:
        return
    names = tuple(name.removesuffix(">") for name in columns)
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(columns))]
    typer.echo(title)
    for row in (names, *rows):
        cells = [
            text.rjust(width) if name.endswith(">") else text.ljust(width)
            for name, text, width in zip(columns, row, widths, strict=True)
        ]
        typer.echo(f"  {'  '.join(cells)}".rstrip())
