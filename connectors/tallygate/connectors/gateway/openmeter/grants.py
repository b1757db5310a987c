"""Grants in OpenMeter's form: those of an entitlement are those of its feature's pools; new ones go to the first."""

import calendar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.administration import carry_out
from tallygate.connectors.gateway.asking import request_id
from tallygate.connectors.gateway.openmeter.asked import flag, impossible, numbers_response, operation, paged, wrong
from tallygate.connectors.gateway.openmeter.rights import Right, right_of
from tallygate.connectors.gateway.operations import Call
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.answers import GrantView
from tallygate.schemas.requests import GiveGrant, Recurring

_UNITS: Final = {"HOUR": "PT{}H", "DAY": "P{}D", "WEEK": "P{}W", "MONTH": "P{}M", "YEAR": "P{}Y"}


class Expiration(msgspec.Struct, frozen=True):
    duration: Literal["HOUR", "DAY", "WEEK", "MONTH", "YEAR"]
    count: int


class Rhythm(msgspec.Struct, frozen=True):
    """`DAY`, `WEEK`, `MONTH`, `YEAR` or ISO 8601, counted from `anchor`."""

    interval: str
    anchor: datetime | None = None

    @property
    def iso(self) -> str:
        return _UNITS[self.interval].format(1) if self.interval in _UNITS else self.interval


class GrantBody(msgspec.Struct, frozen=True, rename="camel"):
    amount: Decimal
    effective_at: datetime
    priority: int = 1
    expiration: Expiration | None = None
    min_rollover_amount: Decimal = Decimal(0)
    max_rollover_amount: Decimal | None = None
    recurrence: Rhythm | None = None
    metadata: dict[str, str] | None = None
    annotations: dict[str, Any] | None = None


_decoder: Final = msgspec.json.Decoder(GrantBody)


def request_of(call: Call, right: Right, body: GrantBody, id: str | None = None) -> GiveGrant:
    """The grant as a worker is asked for it. Raises Problem where it cannot be said."""
    if not right.on_credits:
        raise Problem(
            422,
            "not-paid-by-grants",
            f"the entitlement to {right.feature.name!r} is {right.shown.kind}: grants pay for credits alone",
        )
    if body.metadata or body.annotations:
        raise impossible("metadata and annotations of grants are not kept")
    if not 0 <= body.priority <= 255:
        raise wrong("priority: a number from 0 to 255")
    if body.effective_at.tzinfo is None:
        raise wrong("effectiveAt: write an instant like 2026-01-31T00:00:00Z")
    rolls = body.amount if body.max_rollover_amount is None else body.max_rollover_amount
    content = {"customer": right.customer, "amount": body.amount}
    recurs = body.recurrence
    return GiveGrant(
        id=request_id(call, msgspec.UNSET, content, GiveGrant) if id is None else id,
        customer=right.customer,
        amount=body.amount,
        pool=right.feature.pools[0],
        priority=body.priority,
        effective_at=body.effective_at,
        expires_at=None if body.expiration is None else _end(body.effective_at, body.expiration),
        recurrence=None if recurs is None else Recurring(recurs.iso, recurs.anchor),
        rollover_min=body.min_rollover_amount,
        rollover_max=rolls,
    )


def _end(begin: datetime, expiration: Expiration) -> datetime:
    """So much later; months are clamped to the last day of the month."""
    count = expiration.count
    if not 1 <= count <= 1_000:
        raise wrong("expiration.count: a number from 1 to 1000")
    begin = begin.astimezone(UTC)
    match expiration.duration:
        case "HOUR" | "DAY" | "WEEK":
            hours = {"HOUR": 1, "DAY": 24, "WEEK": 168}[expiration.duration]
            return begin + count * timedelta(hours=hours)
        case "MONTH" | "YEAR":
            months = begin.month - 1 + count * (12 if expiration.duration == "YEAR" else 1)
            year, month = begin.year + months // 12, months % 12 + 1
            return begin.replace(year=year, month=month, day=min(begin.day, calendar.monthrange(year, month)[1]))


def told(right: Right, grant: GrantView) -> dict[str, Any]:
    """A grant as far as it is kept: neither recurrence nor rollover are told."""
    return {
        "id": grant.id,
        "entitlementId": right.feature.name,
        "amount": Decimal(grant.amount),
        "priority": grant.priority,
        "effectiveAt": grant.effective_at,
        **({"expiresAt": grant.expires_at} if grant.expires_at else {}),
    }


async def _list(call: Call) -> Response:
    right = await right_of(call, call.customer(), call.request.path_params["entitlement"])
    every = flag(call, "includeDeleted")
    grants = [each for each in right.statement.grants if each.pool in right.feature.pools and (every or each.active)]
    return numbers_response(paged(call, [told(right, each) for each in grants]))


async def _create(call: Call) -> Response:
    customer = call.customer()
    body = await call.json(_decoder)
    right = await right_of(call, customer, call.request.path_params["entitlement"])
    request = request_of(call, right, body)
    await carry_out(call, request)
    right = await right_of(call, customer, right.feature.name)
    [given] = [each for each in right.statement.grants if each.id == request.id]
    return numbers_response(told(right, given), 201)


_EXAMPLE: Final = {"amount": 10, "effectiveAt": "2026-01-01T00:00:00Z"}
_PATH: Final = "/api/v2/customers/{customer}/entitlements/{entitlement}/grants"

OPERATIONS: Final = (
    operation("GET", _PATH, _list, "read"),
    operation("POST", _PATH, _create, "admin", example=_EXAMPLE),
)
