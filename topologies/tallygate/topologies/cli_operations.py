"""The commands of those who operate it: acls, doctor."""

from typing import Annotated

import typer

from tallygate.topologies.cli_options import Brokers, DataDir, Json, console, pairs, print_json, settings_for
from tallygate.topologies.exits import Exit

app = typer.Typer()


def _principal(who: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="PRINCIPAL", help=f"{who}, like User:NAME.")
    return option


@app.command(rich_help_panel="Running it")
def acls(
    worker: Annotated[str | None, _principal("Who decides, and alone writes the journal")] = None,
    sink: Annotated[str | None, _principal("Who moves the journal into ClickHouse and relays it")] = None,
    gateway: Annotated[str | None, _principal("Who answers over HTTP")] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PRINCIPAL", help="A service that asks, by the name of its reply topic; repeatable."),
    ] = None,
    producer: Annotated[str | None, _principal("Who sends usage events")] = None,
    operator: Annotated[str | None, _principal("Who uses the command line")] = None,
    analyst: Annotated[str | None, _principal("Who reads the relayed topics")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Put them in force, instead of printing commands.")] = False,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """The access rules of Kafka that each process needs, and no more: as `kafka-acls.sh` commands, or put in force.

    Without any principal, the rules are shown for principals called User:tallygate-worker and so on.

    \b
    tallygate acls
    tallygate acls --worker User:tg-worker --sink User:tg-sink --service checkout=User:checkout --apply
    """
    from tallygate.connectors.kafka_acls import ROLES, apply_rules, as_commands, rules_of, service_rules

    roles = {
        "worker": worker,
        "sink": sink,
        "gateway": gateway,
        "producer": producer,
        "operator": operator,
        "analyst": analyst,
    }
    named = {role: principal for role, principal in roles.items() if principal is not None}
    services = pairs(service, "--service")
    if not named and not services:
        if apply:
            raise typer.BadParameter(
                "say for whom: --worker, --sink, --gateway, --service, --producer, --operator, --analyst"
            )
        named = {role: f"User:tallygate-{role}" for role in ROLES}
        services = {"checkout": "User:checkout"}
    settings = settings_for(brokers, data_dir)
    rules = []
    for role, principal in named.items():
        rules += rules_of(role, _checked(principal, f"--{role}"), settings.group, settings.reply_topics)
    for name, principal in services.items():
        try:
            rules += service_rules(name, _checked(principal, f"--service {name}"))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--service") from None
    if apply:
        apply_rules(settings.librdkafka, rules)
    if json:
        print_json([rule._asdict() for rule in rules])
    elif apply:
        typer.echo(f"{len(rules)} rules are in force for {', '.join([*named.values(), *services.values()])}")
    else:
        typer.echo(as_commands(rules, settings.kafka_brokers))


def _checked(principal: str, option: str) -> str:
    kind, colon, name = principal.partition(":")
    if not (kind and colon and name) or name == "*":
        raise typer.BadParameter(f"{principal!r} is no principal: write User:NAME", param_hint=option)
    return principal


@app.command(rich_help_panel="Running it")
def doctor(brokers: Brokers = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Is everything sound: topics, replication, lag, compaction, clock, disk, ownership? What is not, and what to do.

    Ends with 0 when all is sound, and with 1 when something is to be looked at or broken. Nothing is changed.

    \b
    tallygate doctor
    tallygate doctor --json
    """
    from tallygate.topologies.cluster_facts import gather
    from tallygate.topologies.doctor import State, examine

    settings = settings_for(brokers, data_dir)
    err = console(stderr=True)
    with err.status("looking around"):
        findings = examine(gather(settings), settings.group, "on this machine")
    if json:
        print_json(findings)
    else:
        for finding in findings:
            typer.echo(f"{finding.state:14}{finding.area:13}{finding.said}")
            if finding.todo:
                typer.echo(f"{'':27}to do: {finding.todo}")
    if any(finding.state is not State.OK for finding in findings):
        raise typer.Exit(Exit.NO)
