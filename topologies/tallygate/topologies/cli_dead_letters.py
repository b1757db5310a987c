"""The commands about dead letters: list, show, replay."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallygate.topologies.cli_options import (
    Brokers,
    DataDir,
    Json,
    console,
    counted,
    instant,
    print_json,
    settings_for,
    show_table,
)
from tallygate.topologies.exits import Exit, Trouble

if TYPE_CHECKING:
    from tallygate.topologies.dead_letters import DeadLetter, Found, Progress, Route

LIMIT = 50
_COLUMNS = ("place", "when", "reason", "customer", "sent again", "message")
_HEX_BYTES = 16
_PLACES_AUDITED = 20

app = typer.Typer(
    invoke_without_command=True,
    help="Records that could not be taken: what they are, why, and how they are sent again. Alone, it lists them.",
)

PlaceArgument = Annotated[
    str, typer.Argument(metavar="PLACE", help="topic/partition/offset, as in the list.", show_default=False)
]
ReasonOption = Annotated[
    str | None, typer.Option(metavar="REASON", help="Only those put aside for this, like malformed.")
]
Since = Annotated[str | None, typer.Option(metavar="INSTANT", help="Only those put aside since, in UTC.")]
Topic = Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this topic.")]


@app.callback()
def dead_letters(context: typer.Context) -> None:
    """Records that could not be taken: what they are, why, and how they are sent again. Alone, it lists them."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(
    reason: ReasonOption = None,
    since: Since = None,
    topic: Topic = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the newest.")] = LIMIT,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Dead letters, newest first: where the record lay, when and why it was put aside, whether it was sent again.

    \b
    tallygate dead-letters list
    tallygate dead-letters list --reason malformed --since 2026-01-31T00:00:00Z --json
    """
    from tallygate.topologies.dead_letters import find_letters

    fits = _fits(reason, since, topic)
    settings = settings_for(brokers, data_dir)
    with _progress() as progress:
        found = find_letters(settings, fits, limit, progress)
    if json:
        print_json([_plain(letter, found) for letter in found.letters])
        return
    if not found.letters:
        typer.echo("no dead letters")
        return
    rows = [_row(letter, found) for letter in found.letters]
    show_table(counted(found.fitting, "dead letter"), _COLUMNS, rows)
    if found.fitting > len(rows):
        typer.echo(f"the newest {len(rows)} are shown: --limit shows more")


@app.command()
def show(
    place: PlaceArgument,
    raw: Annotated[bool, typer.Option("--raw", help="Write the original bytes, and nothing else.")] = False,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """One dead letter with its headers and its original bytes: JSON where it is JSON, else in hexadecimal.

    \b
    tallygate dead-letters show tallygate.usage.v1/3/17
    tallygate dead-letters show tallygate.usage.v1/3/17 --raw > record
    """
    from tallygate.topologies.dead_letters import letters_at, parse_place

    if raw and json:
        raise typer.BadParameter("choose one of --raw and --json", param_hint="--raw")
    wanted = parse_place(place)
    with _progress() as progress:
        found = letters_at(settings_for(brokers, data_dir), [wanted], progress)
    letter = found.letters[0]
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    if json:
        print_json({**_plain(letter, found), **_content(letter)})
        return
    for name, text in zip(_COLUMNS, _row(letter, found), strict=True):
        typer.echo(f"{name:11} {text or '-'}")
    typer.echo(f"{'key':11} {'-' if letter.key is None else _text(letter.key)}")
    for name, value in letter.headers:
        typer.echo(f"header      {name}: {_text(value)}")
    typer.echo()
    typer.echo(_shown(letter.value))


@app.command()
def replay(
    places: Annotated[
        list[str] | None, typer.Argument(metavar="PLACE", help="Which ones; or choose by options.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All that are not sent again yet.")] = False,
    reason: ReasonOption = None,
    since: Since = None,
    topic: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only those of this topic. Default: usage; nobody waits for requests now."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also those that were sent again before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent, and where to.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Send records again to where they came from, once what was wrong is put right, as they were.

    A record goes to the partition of its customer; one that was put aside as wrong_partition gets the customer as its
    key. What was sent is marked, and is not sent again. An event counts once, however often it is sent in 24 hours.

    \b
    tallygate dead-letters replay tallygate.usage.v1/3/17
    tallygate dead-letters replay --reason wrong_partition --dry-run
    tallygate dead-letters replay --all --yes
    """
    from tallygate.schemas.topics import USAGE
    from tallygate.topologies.audit_log import audited
    from tallygate.topologies.dead_letters import find_letters, letters_at, parse_place, routes, send_again

    if bool(places) == bool(all_ or reason or since or topic):
        raise typer.BadParameter("name places, or choose with --all, --reason, --since or --topic", param_hint="PLACE")
    wanted = [parse_place(place) for place in places or ()]
    fits = _fits(reason, since, topic or USAGE)
    settings = settings_for(brokers, data_dir)
    with _progress() as progress:
        found = letters_at(settings, wanted, progress) if wanted else find_letters(settings, fits, None, progress)
    fresh = [letter for letter in found.letters if again or letter.place not in found.replayed]
    chosen = routes(settings, fresh)
    sendable = [route for route in chosen if not route.trouble]
    if not dry_run and sendable and not wanted and not yes:
        _ask(sendable)
    outcome: list[dict[str, Any]] = []
    if dry_run:
        outcome += [{"place": str(r.letter.place), "to": f"{r.letter.place.topic}/{r.partition}"} for r in sendable]
    elif sendable:
        first = [str(route.letter.place) for route in sendable[:_PLACES_AUDITED]]
        with audited(settings, "dead-letters.replay", "", {"letters": len(sendable), "first": first}):
            send_again(settings, chosen, lambda letter, to: outcome.append({"place": str(letter.place), "to": to}))
    troubles = [{"place": str(r.letter.place), "trouble": r.trouble} for r in chosen if r.trouble]
    _tell(outcome, troubles, len(found.letters) - len(fresh), dry_run, json)
    if troubles:
        raise typer.Exit(Exit.NO)


def _tell(
    outcome: list[dict[str, Any]], troubles: list[dict[str, Any]], before: int, dry_run: bool, json: bool
) -> None:
    if json:
        print_json({"dry_run": dry_run, "sent": outcome, "left": troubles, "sent_before": before})
        return
    for each in outcome:
        typer.echo(f"{each['place']} -> {each['to']}")
    for each in troubles:
        typer.echo(f"{each['place']} is left: {each['trouble']}", err=True)
    typer.echo(f"{counted(len(outcome), 'record')} {'would be sent again' if dry_run else 'sent again'}")
    if before:
        typer.echo(f"{counted(before, 'record')} sent again before: --again sends them once more")


def _ask(sendable: "list[Route]") -> None:
    if not sys.stdin.isatty():
        raise Trouble(Exit.WRONG, f"{counted(len(sendable), 'record')} would be sent again: say --yes, or --dry-run")
    reasons = ", ".join(sorted({route.letter.reason for route in sendable}))
    typer.confirm(f"Send {counted(len(sendable), 'record')} again ({reasons})?", abort=True)


def _fits(reason: str | None, since: str | None, topic: str | None) -> "Callable[[DeadLetter], bool]":
    from tallygate.schemas.instants import from_datetime
    from tallygate.schemas.reasons import Reason

    if reason is not None and reason not in list(Reason):
        raise typer.BadParameter(f"{reason!r} is no reason: there are {', '.join(Reason)}", param_hint="--reason")
    after = instant(since, "--since")
    from_ms = 0 if after is None else from_datetime(after)

    def fits(letter: "DeadLetter") -> bool:
        return letter.at >= from_ms and reason in (None, letter.reason) and topic in (None, letter.place.topic)

    return fits


@contextmanager
def _progress() -> "Iterator[Progress]":
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    err = console(stderr=True)
    columns = (TextColumn("reading dead letters"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _row(letter: "DeadLetter", found: "Found") -> tuple[str, ...]:
    from tallygate.schemas.instants import format_instant

    replayed = found.replayed.get(letter.place, "")
    place, when = str(letter.place), format_instant(letter.at)
    return place, when, letter.reason, ", ".join(letter.customers[:3]), replayed, letter.message


def _plain(letter: "DeadLetter", found: "Found") -> dict[str, Any]:
    from tallygate.schemas.instants import format_instant

    return {
        "place": str(letter.place),
        "at": format_instant(letter.at),
        "reason": letter.reason,
        "message": letter.message,
        "customers": letter.customers,
        "bytes": len(letter.value or b""),
        "sent_again": found.replayed.get(letter.place),
    }


def _content(letter: "DeadLetter") -> dict[str, Any]:
    """As JSON holds it: bytes in base64."""
    return {"key": letter.key, "headers": [[name, value] for name, value in letter.headers], "value": letter.value}


def _text(value: bytes) -> str:
    """One line of it: text where it is text."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
    return text if text.isprintable() else repr(text)


def _shown(value: bytes | None) -> str:
    import msgspec

    if value is None:
        return "(no value)"
    try:
        msgspec.json.decode(value)
        return msgspec.json.format(value, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        lines = (value[at : at + _HEX_BYTES] for at in range(0, len(value), _HEX_BYTES))
        return "\n".join(f"{n * _HEX_BYTES:08x}  {part.hex(' '):47}  {_ascii(part)}" for n, part in enumerate(lines))


def _ascii(value: bytes) -> str:
    return "".join(chr(each) if 32 <= each < 127 else "." for each in value)
