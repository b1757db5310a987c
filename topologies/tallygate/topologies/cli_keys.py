"""The commands about who may do what: keys create, list, rotate, revoke; and audit, which lists who did what."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from tallygate.topologies.cli_options import Brokers, DataDir, Json, print_json, settings_for, show_table

if TYPE_CHECKING:
    from tallygate.connectors.gateway.keys import NewKey
    from tallygate.topologies.keys_topic import KnownKey

app = typer.Typer(no_args_is_help=True, help="API keys of the gateway: who may ask it what.")
audit_app = typer.Typer()

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `tallygate keys list` shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, to know it again.", show_default=False)],
    scope: Annotated[
        list[str],
        typer.Option(metavar="SCOPE", help="ingest, decide, read or admin; may be repeated.", show_default=False),
    ],
    customer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="For this customer alone; may be repeated. Default: all.")
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Default: never.")] = None,
    per_second: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Calls a second; 0: as the gateway's settings say.")
    ] = 0,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Make a key. It is shown once: nobody can show it again.

    \b
    tallygate keys create checkout --scope decide --scope ingest
    tallygate keys create acme-dashboard --scope read --customer acme --expires-in-days 90
    """
    from tallygate.schemas.keys import SCOPES
    from tallygate.schemas.names import NAME_MAX, has_control
    from tallygate.topologies.keys_topic import create_key

    for each in scope:
        if each not in SCOPES:
            raise typer.BadParameter(f"{each!r} is none of {', '.join(SCOPES)}", param_hint="--scope")
    for each in (name, *(customer or ())):
        if not each or len(each) > NAME_MAX or has_control(each):
            raise typer.BadParameter(f"{each!r} has not 1 to {NAME_MAX} plain characters", param_hint="--customer")
    expires = 0
    if expires_in_days is not None:
        expires = int((datetime.now(UTC) + timedelta(days=expires_in_days)).timestamp() * 1000)
    made = create_key(
        settings_for(brokers, data_dir),
        tuple(each for each in SCOPES if each in scope),
        name=name,
        customers=tuple(dict.fromkeys(customer or ())),
        expires_at=expires,
        per_second=per_second,
    )
    _show_once(made, json)


@app.command(name="list")
def list_keys(brokers: Brokers = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Every key with its scopes, customers and last use; no key itself.

    \b
    tallygate keys list
    tallygate keys list --json
    """
    from tallygate.topologies.keys_topic import known_keys

    found = known_keys(settings_for(brokers, data_dir))
    if json:
        print_json([_as_json(known) for known in found])
    elif not found:
        typer.echo("there are no keys: `tallygate keys create NAME --scope decide`")
    else:
        columns = ("id", "name", "scopes", "customers", "created", "last used", "state")
        show_table("API keys", columns, [_row(known) for known in found])


@app.command()
def rotate(
    id: KeyId,
    overlap_hours: Annotated[float, typer.Option(min=0, max=8760, help="How long the old key holds beside it.")] = 24.0,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Make a key that may do the same, and let the old one hold for a while: both work until then.

    \b
    tallygate keys rotate k3v9x0q7m2ab
    tallygate keys rotate k3v9x0q7m2ab --overlap-hours 1
    """
    from tallygate.topologies.keys_topic import rotate_key

    made = rotate_key(settings_for(brokers, data_dir), id, round(overlap_hours * 3600))
    _show_once(made, json, f"{id} holds for {overlap_hours:g} more hours, unless it is revoked before.")


@app.command()
def revoke(id: KeyId, brokers: Brokers = None, data_dir: DataDir = None, json: Json = False) -> None:
    """End a key, in every gateway within a moment.

    \b
    tallygate keys revoke k3v9x0q7m2ab
    """
    from tallygate.topologies.keys_topic import KnownKey, revoke_key

    ended = revoke_key(settings_for(brokers, data_dir), id)
    if json:
        print_json(_as_json(KnownKey(ended, 0)))
    else:
        typer.echo(f"{id} is revoked")


@audit_app.command(rich_help_panel="Data")
def audit(
    action: Annotated[str | None, typer.Option(help="Only this action, like grant or key.create.")] = None,
    customer: Annotated[str | None, typer.Option(help="Only changes of this customer.")] = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """List every administrative change, by the gateway or the command line: who, what, when, from where, outcome.

    \b
    tallygate audit
    tallygate audit --customer acme --json
    """
    from tallygate.schemas.instants import format_instant
    from tallygate.topologies.audit_log import audit_log

    found = [
        record
        for record in audit_log(settings_for(brokers, data_dir))
        if action in (None, record.action) and customer in (None, record.customer)
    ]
    if json:
        for record in found:
            print_json(record)
        return
    columns = ("at", "who", "from", "action", "customer", "target", "outcome", "why")
    rows = [(format_instant(r.at), r.who, r.origin, r.action, r.customer, r.target, r.outcome, r.reason) for r in found]
    if rows:
        show_table("Audit log", columns, rows)
    else:
        typer.echo("nothing of that is in the audit log")


def _show_once(made: "NewKey", json: bool, more: str = "") -> None:
    if json:
        print_json({"key": made.text, "id": made.record.id, "scopes": made.record.scopes})
        return
    typer.echo(made.text)
    typer.echo(f"Keep it: it is not shown again. Its id is {made.record.id}. {more}".rstrip(), err=True)


def _as_json(known: "KnownKey") -> dict[str, object]:
    from tallygate.schemas.instants import format_instant

    record = known.record

    def at(instant: int) -> str | None:
        return format_instant(instant) if instant else None

    return {
        "id": record.id,
        "name": record.name,
        "scopes": record.scopes,
        "customers": record.customers,
        "created_at": at(record.created_at),
        "expires_at": at(record.expires_at),
        "revoked_at": at(record.revoked_at),
        "replaces": record.replaces or None,
        "per_second": record.per_second or None,
        "last_used_hour": at(known.used),
    }


def _row(known: "KnownKey") -> tuple[str, ...]:
    from tallygate.schemas.instants import format_instant

    record = known.record
    if record.revoked_at:
        state = f"revoked {format_instant(record.revoked_at)[:16]}"
    elif record.expires_at:
        state = f"until {format_instant(record.expires_at)[:16]}"
    else:
        state = "holds"
    return (
        record.id,
        record.name,
        " ".join(record.scopes),
        " ".join(record.customers) or "all",
        format_instant(record.created_at)[:16],
        format_instant(known.used)[:13] if known.used else "",
        state,
    )
