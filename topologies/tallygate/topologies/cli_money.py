"""The commands that ask the gate: reserve, settle, release, extend, check, estimate, balance."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from tallygate.topologies.cli_answers import finish, show_statement
from tallygate.topologies.cli_options import (
    TIMEOUT_SECONDS,
    Brokers,
    Customer,
    DataDir,
    Id,
    Json,
    Timeout,
    client_for,
    pairs,
    print_json,
)

if TYPE_CHECKING:
    from tallygate.schemas.answers import Answer

app = typer.Typer()

_SECONDS_MAX: Final = 30 * 24 * 3600

Feature = Annotated[str, typer.Argument(help="A feature of the catalog.", show_default=False)]
HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id.", show_default=False)]
Quantities = Annotated[
    list[str] | None,
    typer.Option("--quantity", "-q", metavar="METER=NUMBER", help="A quantity of a meter; may be repeated."),
]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dimension", "-d", metavar="NAME=VALUE", help="Who and what, e.g. team=research; may be repeated."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the whole waterfall, step by step.")]


@app.command(rich_help_panel="Credits")
def reserve(
    customer: Customer,
    feature: Feature,
    quantity: Quantities = None,
    credits: Annotated[str, typer.Option(help="Credits, besides what the quantities cost.")] = "0",
    dimension: Dimensions = None,
    at_least: Annotated[
        str | None,
        typer.Option(metavar="METER=NUMBER", help="How little of a meter, or of `credits`, will do."),
    ] = None,
    ttl: Annotated[
        int | None,
        typer.Option(min=1, max=_SECONDS_MAX, metavar="SECONDS", help="How long it holds; default: the feature's."),
    ] = None,
    explain: Explain = False,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """May this go ahead? If so, set its credits aside until it is settled or released. Ends with 1 when denied.

    \b
    tallygate reserve acme llm -q input_tokens=2000 -d model=chat-large
    tallygate reserve acme llm -q output_tokens=4096 --at-least output_tokens=500
    tallygate reserve acme llm --credits 75 -d agent=crawler --explain
    """
    quantities, dimensions = pairs(quantity, "--quantity"), pairs(dimension, "--dimension")
    least = pairs([at_least] if at_least else None, "--at-least")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.reserve(
            customer,
            feature=feature,
            quantities=quantities,
            credits=credits,
            dimensions=dimensions,
            at_least=least,
            ttl_seconds=ttl,
            explain=explain,
            id=id,
        ).answer
    finish(answer, json, _held(answer, bool(least)))


def _held(answer: "Answer", with_quantities: bool) -> str:
    hold = answer.hold
    if hold is None:
        return ""
    text = f"allowed: {hold.credits} credits are held until {hold.expires_at}; {answer.balance} can be spent\n"
    if with_quantities and hold.quantities:
        text += f"for {', '.join(f'{number} {meter}' for meter, number in hold.quantities.items())}\n"
    return f"{text}hold {hold.id}"


@app.command(rich_help_panel="Credits")
def settle(
    customer: Customer,
    hold: HoldId,
    quantity: Quantities = None,
    credits: Annotated[str | None, typer.Option(help="Credits, besides what the quantities cost.")] = None,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Record what the work really took, and give the rest of its hold back. Without amounts: what was held.

    \b
    tallygate settle acme 3f2c... -q input_tokens=2000 -q output_tokens=212
    """
    quantities = pairs(quantity, "--quantity") or None
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.settle(customer, hold, quantities, credits=credits, id=id)
    paid = ", ".join(f"{share.amount} by {share.grant}" for share in answer.paid)
    text = f"settled {answer.credits} credits"
    text += f" (paid {paid})" if paid else ""
    text += f", {answer.overage} of them overage" if answer.overage not in (None, "0") else ""
    text += ", late: its hold had ended" if answer.late else ""
    finish(answer, json, f"{text}; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def release(
    customer: Customer,
    hold: HoldId,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Give a hold back unused.

    \b
    tallygate release acme 3f2c...
    """
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.release(customer, hold, id=id)
    finish(answer, json, answer.message or f"released; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def extend(
    customer: Customer,
    hold: HoldId,
    ttl: Annotated[
        int,
        typer.Option(min=1, max=_SECONDS_MAX, metavar="SECONDS", help="How long from now.", show_default=False),
    ],
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Let a hold live longer. One that lives longer already stays as it is; one that has ended is not revived.

    \b
    tallygate extend acme 3f2c... --ttl 600
    """
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.extend(customer, hold, ttl, id=id)
    finish(answer, json, f"held until {answer.hold.expires_at}" if answer.hold else "")


@app.command(rich_help_panel="Credits")
def check(
    customer: Customer,
    feature: Feature,
    quantity: Quantities = None,
    credits: Annotated[str, typer.Option(help="Credits, besides what the quantities cost.")] = "0",
    dimension: Dimensions = None,
    explain: Explain = False,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Would this be allowed now? Changes nothing. Ends with 0 for yes and 1 for no, for scripts.

    \b
    tallygate check acme llm -q output_tokens=4096 && ./run-the-job
    tallygate check acme llm -q output_tokens=4096 -d agent=crawler --explain
    """
    quantities, dimensions = pairs(quantity, "--quantity"), pairs(dimension, "--dimension")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.check(
            customer,
            feature=feature,
            quantities=quantities,
            credits=credits,
            dimensions=dimensions,
            explain=explain,
        )
    text = f"yes: it would cost {answer.credits} credits; {answer.balance} can be spent"
    finish(answer, json, text if answer.value is None else f"yes: {answer.value}")


@app.command(rich_help_panel="Credits")
def estimate(
    customer: Customer,
    feature: Feature,
    of: Annotated[str, typer.Option(metavar="METER", help="A meter, or `credits`.", show_default=False)],
    quantity: Quantities = None,
    credits: Annotated[str, typer.Option(help="Credits, besides what the quantities cost.")] = "0",
    dimension: Dimensions = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """What would this cost, and how much of a meter is affordable now? Changes nothing.

    Ends with 1 when this itself would be denied.

    \b
    tallygate estimate acme llm --of output_tokens -q input_tokens=2000 -d model=chat-large
    tallygate estimate acme llm --of credits -d agent=crawler
    """
    quantities, dimensions = pairs(quantity, "--quantity"), pairs(dimension, "--dimension")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.estimate(
            customer, feature=feature, of=of, quantities=quantities, credits=credits, dimensions=dimensions
        )
    finish(answer, json, f"it would cost {answer.credits} credits; {answer.balance} can be spent")


@app.command(rich_help_panel="Credits")
def balance(
    customer: Customer,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """What a customer has: pools, grants in burn order, open holds, budgets.

    \b
    tallygate balance acme
    tallygate balance acme --json | jq -r '.pools[].balance'
    """
    with client_for(brokers, data_dir, timeout) as client:
        statement = client.balance(customer)
    if json:
        print_json(statement)
    else:
        show_statement(statement)
