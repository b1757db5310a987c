"""The commands of those who run the books: grant, void-grant, reset, budget, rate-limit, subscribe, customer."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tallygate.topologies.cli_answers import finish
from tallygate.topologies.cli_options import (
    TIMEOUT_SECONDS,
    Brokers,
    Customer,
    DataDir,
    Id,
    Instant,
    Json,
    Timeout,
    client_for,
    instant,
    pairs,
)

if TYPE_CHECKING:
    from tallygate.schemas.requests import Override

app = typer.Typer()

Name = Annotated[str, typer.Argument(help="Its name; the same name again changes it.", show_default=False)]
Scope = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Whom it limits; `*` is one limit for each value; may be repeated."),
]
_OVERRIDE_FORMS = (
    "write true, false, credits, value:TEXT, or meter:NAME,limit:NUMBER and, if need be, "
    "period:hour|day|week|month|lifetime and beyond:deny|credits|allow"
)
Observe = Annotated[bool, typer.Option("--observe", help="Never deny, only say what it would have denied.")]


@app.command(rich_help_panel="Plans and limits")
def grant(
    customer: Customer,
    amount: Annotated[str, typer.Argument(help="How many credits.", show_default=False)],
    pool: Annotated[str, typer.Option(help="The wallet they go into.")] = "credits",
    priority: Annotated[int, typer.Option(min=0, max=255, help="0 burns first.")] = 1,
    effective_at: Instant = None,
    expires_at: Instant = None,
    category: Annotated[Literal["paid", "trial", "promotional"], typer.Option()] = "paid",
    price: Annotated[str, typer.Option(help="What was paid for one credit.")] = "0",
    every: Annotated[
        str | None, typer.Option(metavar="INTERVAL", help="Give it anew each time, like P1M: it does not add up.")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="What --every counts from; default: when it takes effect.")
    ] = None,
    rollover_min: Annotated[str, typer.Option(help="At a reset of the pool it has this at least.")] = "0",
    rollover_max: Annotated[str, typer.Option(help="At a reset of the pool it keeps this at most.")] = "0",
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Give a customer credits.

    \b
    tallygate grant acme 1000
    tallygate grant acme 50 --priority 0 --expires-at 2030-01-01T00:00:00Z
    tallygate grant acme 2000 --every P1M --rollover-max 500 --price 0.01
    """
    effective, expires = instant(effective_at, "--effective-at"), instant(expires_at, "--expires-at")
    counted_from = instant(anchor, "--anchor")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.grant(
            customer,
            amount,
            id=id,
            pool=pool,
            priority=priority,
            effective_at=effective,
            expires_at=expires,
            category=category,
            price=price,
            every=every,
            anchor=counted_from,
            rollover_min=rollover_min,
            rollover_max=rollover_max,
        )
    finish(answer, json, f"granted {answer.credits} credits to {customer}; {answer.balance} can be spent")


@app.command(rich_help_panel="Plans and limits")
def void_grant(
    customer: Customer,
    grant: Annotated[str, typer.Argument(metavar="GRANT", help="The grant's id.", show_default=False)],
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """End a grant now. What is left of it, except for what is held, cannot be spent any more.

    \b
    tallygate balance acme                     # shows the grants' ids
    tallygate void-grant acme 3f2c...
    """
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.void_grant(customer, grant, id=id)
    finish(answer, json, f"ended grant {grant}: {answer.credits} credits were left; {answer.balance} can be spent")


@app.command(rich_help_panel="Plans and limits")
def reset(
    customer: Customer,
    pool: Annotated[str, typer.Option(help="The wallet whose usage period ends.")] = "credits",
    preserve_overage: Annotated[
        bool, typer.Option("--preserve-overage", help="What is owed is burnt at once, rather than dropped.")
    ] = False,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """End a pool's usage period now: grants keep only what rolls over, and what is owed is dropped.

    \b
    tallygate reset acme
    tallygate reset acme --pool credits --preserve-overage
    """
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.reset_pool(customer, pool, preserve_overage=preserve_overage, id=id)
    finish(answer, json, f"reset pool {pool} of {customer}; {answer.balance} can be spent")


@app.command(rich_help_panel="Plans and limits")
def budget(
    customer: Customer,
    name: Name,
    limit: Annotated[str, typer.Option(help="The most that may be used in a period.", show_default=False)],
    scope: Scope = None,
    period: Annotated[Literal["lifetime", "hour", "day", "week", "month"], typer.Option(help="In UTC.")] = "lifetime",
    unit: Annotated[str, typer.Option(help="credits, or a meter's name.")] = "credits",
    soft: Annotated[bool, typer.Option("--soft", help="Allow and report, rather than deny.")] = False,
    anchor: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="What periods count from; default: UTC's hours, days, ….")
    ] = None,
    threshold: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1000, metavar="PERCENT", help="Alert when so much is used; may be repeated."),
    ] = None,
    observe: Observe = False,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Limit what a customer, or a scope within, may use over a period.

    \b
    tallygate budget acme agents --scope 'agent=*' --limit 500 --period day
    tallygate budget acme research --scope team=research --limit 9000 --soft --threshold 80 --threshold 100
    """
    scopes, counted_from = pairs(scope, "--scope"), instant(anchor, "--anchor")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.set_budget(
            customer,
            name,
            limit,
            scope=scopes,
            unit=unit,
            period=period,
            hard=not soft,
            anchor=counted_from,
            thresholds=threshold or (),
            observe=observe,
            id=id,
        )
    span = "in its lifetime" if period == "lifetime" else f"a {period}"
    finish(answer, json, f"budget {name} of {customer}: {limit} {unit} {span} for {_whom(scopes)}")


@app.command(rich_help_panel="Plans and limits")
def rate_limit(
    customer: Customer,
    name: Name,
    limit: Annotated[str, typer.Option(help="How much may pass in each span.", show_default=False)],
    per: Annotated[
        str, typer.Option(metavar="SPAN", help="second, minute, hour, day, or like 10s, 15m.", show_default=False)
    ],
    burst: Annotated[str | None, typer.Option(help="How much at once; default: the limit.")] = None,
    scope: Scope = None,
    unit: Annotated[str, typer.Option(help="requests, credits, or a meter's name.")] = "requests",
    observe: Observe = False,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Limit how fast a customer, or a scope within, may go.

    \b
    tallygate rate-limit acme calls --limit 60 --per minute --burst 10 --scope 'user=*'
    tallygate rate-limit acme tokens --unit output_tokens --limit 100000 --per hour
    """
    from tallygate.schemas.catalog_values import span_seconds

    scopes = pairs(scope, "--scope")
    try:
        per_seconds = span_seconds(per)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--per") from None
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.set_rate_limit(
            customer,
            name,
            limit,
            per_seconds=per_seconds,
            burst=burst,
            scope=scopes,
            unit=unit,
            observe=observe,
            id=id,
        )
    bursts = "" if burst is None else f", {burst} at once"
    finish(answer, json, f"rate limit {name} of {customer}: {limit} {unit} per {per}{bursts} for {_whom(scopes)}")


def _whom(scopes: dict[str, str]) -> str:
    return " ".join(f"{k}={v}" for k, v in sorted(scopes.items())) or "the whole customer"


@app.command(rich_help_panel="Plans and limits")
def subscribe(
    customer: Customer,
    plan: Annotated[str, typer.Argument(help="A plan of the catalog.", show_default=False)],
    add_on: Annotated[list[str] | None, typer.Option(metavar="NAME", help="An add-on; may be repeated.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="FEATURE=…", help="This customer's own right to a feature; may be repeated."),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="What periods count from; default: now.")
    ] = None,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Put a customer on a plan, with all the add-ons and overrides it is to have from now on.

    An override is true, false, credits, value:TEXT, or an allowance as in the catalog.

    \b
    tallygate subscribe acme pro
    tallygate subscribe acme pro --add-on more-searches --override sso=true
    tallygate subscribe acme pro --override search=meter:searches,limit:5000,period:day,beyond:credits
    """
    overrides = {feature: _override(feature, text) for feature, text in pairs(override, "--override").items()}
    counted_from = instant(anchor, "--anchor")
    add_ons = add_on or []
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.subscribe(customer, plan, add_ons=add_ons, overrides=overrides, anchor=counted_from, id=id)
    extras = [f"add-on {name}" for name in add_ons] + [f"its own {feature}" for feature in overrides]
    text = f"{customer} is on plan {plan}" + (f", with {', '.join(extras)}" if extras else "")
    finish(answer, json, text)


def _override(feature: str, text: str) -> "Override":
    """One customer's right to a feature, in the catalog's words."""
    import msgspec

    from tallygate.schemas.requests import Override

    if text in ("true", "false"):
        return Override("boolean", text)
    if text == "credits":
        return Override("credit")
    word, colon, value = text.partition(":")
    if (word, colon) == ("value", ":") and value:
        return Override("static", value)
    fields = [each.partition(":")[::2] for each in text.split(",")]
    hint = f"--override {feature}"
    if not {"meter", "limit"} <= dict(fields).keys() or len(dict(fields)) < len(fields):
        raise typer.BadParameter(f"{text!r}: {_OVERRIDE_FORMS}", param_hint=hint)
    try:
        return msgspec.convert({"kind": "metered", **dict(fields)}, Override)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=hint) from None


@app.command(rich_help_panel="Plans and limits")
def customer(
    customer: Customer,
    suspend: Annotated[
        bool | None, typer.Option("--suspend/--resume", help="Say no to whatever it asks, or let it go on.")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="Let no client decide for it by a lease, or let them.")
    ] = None,
    id: Id = None,
    brokers: Brokers = None,
    data_dir: DataDir = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    json: Json = False,
) -> None:
    """Suspend a customer, or let it go on; let clients hold leases for it, or not. One that is not known becomes known.

    \b
    tallygate customer acme --suspend
    tallygate customer acme --resume
    tallygate customer acme --strict
    """
    if suspend is None and strict is None:
        raise typer.BadParameter("say --suspend or --resume, --strict or --no-strict")
    with client_for(brokers, data_dir, timeout) as client:
        answer = client.set_customer(customer, suspended=suspend, strict=strict, id=id)
    said = [] if suspend is None else ["is suspended" if suspend else "may go on"]
    said += [] if strict is None else ["is strict: it gets no leases" if strict else "may have leases"]
    finish(answer, json, f"{customer} {' and '.join(said)}")
