"""What the tools return: typed, so that every tool has an output schema. Amounts are decimal strings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tallygate.schemas.answers import Answer, HoldView, LimitState, Step


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class Limit(_Result):
    """One limit as it was looked at: `asked` of `remaining` = `limit` - `used` - `held`."""

    kind: str
    name: str
    ok: bool
    unit: str
    asked: str
    limit: str
    used: str
    held: str
    remaining: str
    scope: dict[str, str]
    resets_at: str | None


class Decision(_Result):
    """May it go ahead? Only where `allowed` is true."""

    allowed: Annotated[bool, Field(description="Go ahead only if this is true.")]
    reason: str
    message: Annotated[str, Field(description="The decision in words.")]
    customer: str
    hold: Annotated[str | None, Field(description="What to settle or release; null: nothing is held.")] = None
    expires_at: str | None = None
    quantities: Annotated[dict[str, str], Field(description="What is held of each meter.")] = {}
    credits: str | None = None
    balance: Annotated[str | None, Field(description="Credits left.")] = None
    limits: Annotated[list[Limit], Field(description="The limits that said no.")] = []
    retry_after_ms: Annotated[int | None, Field(description="Waiting this long helps.")] = None
    fallback: Annotated[
        bool,
        Field(description="Nobody answered, and the feature fails open: nothing is held; report_usage afterwards."),
    ] = False


class Ended(_Result):
    """What became of a hold."""

    hold: str
    credits: Annotated[str | None, Field(description="What was charged.")]
    overage: Annotated[str | None, Field(description="What no grant covered.")]
    balance: str | None
    late: Annotated[bool, Field(description="The hold had ended before; what was used is recorded all the same.")]


class Extended(_Result):
    """How long a hold lives now."""

    hold: str
    expires_at: str


class Estimated(_Result):
    """What it would cost, and how much could be had. Nothing is set aside."""

    allowed: Annotated[bool, Field(description="Would this itself be allowed now?")]
    reason: str
    message: Annotated[str, Field(description="The decision in words.")]
    customer: str
    credits: Annotated[str | None, Field(description="What this would cost.")] = None
    balance: Annotated[str | None, Field(description="Credits left.")] = None
    affordable: Annotated[dict[str, str], Field(description="How much of it every limit leaves room for now.")] = {}
    limits: Annotated[list[Limit], Field(description="The limits that said no.")] = []


class Reported(_Result):
    """The event is in Kafka. One with the same source and id counts once in 24 hours."""

    customer: str
    source: str
    id: str


class Pool(_Result):
    pool: str
    balance: str
    held: str
    overage: str


class Hold(_Result):
    hold: str
    feature: str
    credits: str
    expires_at: str


class Balances(_Result):
    customer: str
    at: str
    pools: list[Pool]
    holds: list[Hold]


class Limits(_Result):
    customer: str
    limits: list[Limit]


class Looked(_Result):
    """One step of the decision, in its order."""

    step: str
    ok: bool
    reason: str
    limits: list[Limit]


class Explanation(_Result):
    """Why something is denied, or that it is allowed now."""

    allowed: bool
    reason: str
    explanation: str
    customer: str
    steps: list[Looked]
    retry_after_ms: int | None = None


def limits_of(limits: tuple[LimitState, ...]) -> list[Limit]:
    return [
        Limit(
            kind=each.kind,
            name=each.name,
            ok=each.ok,
            unit=each.unit,
            asked=each.asked,
            limit=each.limit,
            used=each.used,
            held=each.held,
            remaining=each.remaining,
            scope=each.scope,
            resets_at=each.resets_at,
        )
        for each in limits
    ]


def decision_of(answer: Answer, message: str) -> Decision:
    hold = answer.hold
    return Decision(
        allowed=answer.allowed,
        reason=answer.reason.value,
        message=message,
        customer=answer.customer,
        hold=hold.id if hold else None,
        expires_at=hold.expires_at if hold else None,
        quantities=hold.quantities if hold else {},
        credits=answer.credits,
        balance=answer.balance,
        limits=limits_of(answer.limits),
        retry_after_ms=answer.retry_after_ms,
        fallback=answer.fallback,
    )


def ended_of(answer: Answer, hold: str) -> Ended:
    return Ended(hold=hold, credits=answer.credits, overage=answer.overage, balance=answer.balance, late=answer.late)


def extended_of(hold: HoldView) -> Extended:
    return Extended(hold=hold.id, expires_at=hold.expires_at)


def estimated_of(answer: Answer, message: str) -> Estimated:
    return Estimated(
        allowed=answer.allowed,
        reason=answer.reason.value,
        message=message,
        customer=answer.customer,
        credits=answer.credits,
        balance=answer.balance,
        affordable=answer.affordable or {},
        limits=limits_of(answer.limits),
    )


def hold_of(hold: HoldView) -> Hold:
    return Hold(hold=hold.id, feature=hold.feature, credits=hold.credits, expires_at=hold.expires_at)


def looked_of(step: Step) -> Looked:
    return Looked(step=step.step, ok=step.ok, reason=step.reason.value, limits=limits_of(step.limits))
