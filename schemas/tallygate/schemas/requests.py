"""Requests: what a service asks on `tallygate.requests.v1`, keyed by customer, one JSON object a record.

Amounts are decimal strings (JSON numbers are read exactly, too). Every request has an `id`: the same id with the same
content is answered as it was the first time, the same id with another content is refused. Unknown fields are refused,
so that a misspelt limit is never ignored.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from tallygate.schemas.instants import EPOCH, LATEST
from tallygate.schemas.names import Name
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.topics import EVENT_BYTES_MAX

Instant = Annotated[datetime, Meta(tz=True)]
Seconds = Annotated[int, Meta(ge=1, le=30 * 24 * 3600)]
Priority = Annotated[int, Meta(ge=0, le=255)]
Quantities = dict[Name, Decimal]
Dimensions = dict[Name, Name]
Period = Literal["lifetime", "hour", "day", "week", "month"]
Percent = Annotated[int, Meta(ge=1, le=1000)]
Category = Literal["paid", "trial", "promotional"]

TTL_SECONDS_DEFAULT: Final = 300


class _Request(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="type",
):
    id: Name
    customer: Name


class Recurring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Every `interval` (ISO 8601, like `P1M`), counted from `anchor` (default: when the grant takes effect)."""

    interval: str
    anchor: Instant | None = None


class Reserve(_Request, frozen=True, tag="tallygate.reserve.v1"):
    """Set credits aside before the work. `id` names the hold.

    What is asked: `quantities` by meter, priced by the feature's rates, or `credits` directly, or both. `at_least`
    names one meter (or `credits`) and how little of it will do: as much as is affordable up to what is asked. With
    `lease`, whoever asks decides within the hold by itself: a strict customer gets none, and its end gives it back.
    """

    feature: Name
    quantities: Quantities = {}
    credits: Decimal = Decimal(0)
    dimensions: Dimensions = {}
    at_least: Quantities = {}
    ttl_seconds: Seconds | None = None
    explain: bool = False
    lease: bool = False


class Settle(_Request, frozen=True, tag="tallygate.settle.v1"):
    """Record what the work really took; neither quantities nor credits means: what was held."""

    hold: Name
    quantities: Quantities | None = None
    credits: Decimal | None = None


class Release(_Request, frozen=True, tag="tallygate.release.v1"):
    """Give a hold back unused."""

    hold: Name


class Extend(_Request, frozen=True, tag="tallygate.extend.v1"):
    """Let a hold live `ttl_seconds` from now, if that is longer than it has."""

    hold: Name
    ttl_seconds: Seconds


class Estimate(_Request, frozen=True, tag="tallygate.estimate.v1"):
    """What would this cost, and how much of `of` (a meter, or `credits`) is affordable now? Changes nothing."""

    feature: Name
    of: Name
    quantities: Quantities = {}
    credits: Decimal = Decimal(0)
    dimensions: Dimensions = {}


class Check(_Request, frozen=True, tag="tallygate.check.v1"):
    """Would this be allowed now? Changes nothing."""

    feature: Name
    quantities: Quantities = {}
    credits: Decimal = Decimal(0)
    dimensions: Dimensions = {}
    explain: bool = False


class Balance(_Request, frozen=True, tag="tallygate.balance.v1"):
    """Pools, grants, holds and budgets of a customer, as they are. Changes nothing."""


class GiveGrant(_Request, frozen=True, tag="tallygate.grant.v1"):
    """Give credits. `id` names the grant; `price` is what was paid per credit; it takes effect now unless said."""

    amount: Decimal
    pool: Name = "credits"
    priority: Priority = 1
    effective_at: Instant | None = None
    expires_at: Instant | None = None
    category: Category = "paid"
    price: Decimal = Decimal(0)
    recurrence: Recurring | None = None
    rollover_min: Decimal = Decimal(0)
    rollover_max: Decimal = Decimal(0)


class VoidGrant(_Request, frozen=True, tag="tallygate.void-grant.v1"):
    """End a grant now; what is left of it is breakage."""

    grant: Name


class ResetPool(_Request, frozen=True, tag="tallygate.reset.v1"):
    """End a pool's usage period now: grants roll over, the counters begin at 0, overage is dropped or burnt at once."""

    pool: Name = "credits"
    preserve_overage: bool = False


class SetBudget(_Request, frozen=True, tag="tallygate.budget.v1"):
    """Limit a scope over a period; the same `name` again changes the limit.

    `scope` maps dimensions to a value or `"*"` (one budget for each value); empty means the whole customer.
    `unit` is `credits` or a meter's name. A soft budget allows and reports.
    """

    name: Name
    limit: Decimal
    scope: Dimensions = {}
    unit: Name = "credits"
    period: Period = "lifetime"
    hard: bool = True
    anchor: Instant | None = None
    thresholds: tuple[Percent, ...] = ()
    observe: bool = False


class SetRateLimit(_Request, frozen=True, tag="tallygate.rate-limit.v1"):
    """Limit a scope to `limit` of `unit` (`requests`, `credits` or a meter) each `per_seconds`, with a burst."""

    name: Name
    limit: Decimal
    per_seconds: Seconds
    burst: Decimal | None = None
    scope: Dimensions = {}
    unit: Name = "requests"
    observe: bool = False


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One customer's own entitlement to a feature, in place of the plan's."""

    kind: Literal["boolean", "static", "metered", "credit"]
    value: str = ""
    meter: str = ""
    limit: Decimal = Decimal(0)
    period: Period = "month"
    beyond: Literal["deny", "credits", "allow"] = "deny"


class Subscribe(_Request, frozen=True, tag="tallygate.subscribe.v1"):
    """Put a customer on a plan: its grants are given, a former plan's are ended. Periods count from `anchor` (now)."""

    plan: Name
    add_ons: tuple[Name, ...] = ()
    overrides: dict[Name, Override] = {}
    anchor: Instant | None = None


class SetCustomer(_Request, frozen=True, tag="tallygate.customer.v1"):
    """Make a customer known, suspend it or let it go on; a `strict` one gets no leases. `null` leaves it as it is."""

    suspended: bool | None = False
    strict: bool | None = None


Request = (
    Reserve
    | Settle
    | Release
    | Extend
    | Check
    | Estimate
    | Balance
    | GiveGrant
    | VoidGrant
    | ResetPool
    | SetBudget
    | SetRateLimit
    | Subscribe
    | SetCustomer
)

#: Operation names, as they appear in answers, metrics and ClickHouse.
OPS: Final[dict[type, str]] = {
    Reserve: "reserve",
    Settle: "settle",
    Release: "release",
    Extend: "extend",
    Check: "check",
    Estimate: "estimate",
    Balance: "balance",
    GiveGrant: "grant",
    VoidGrant: "void-grant",
    ResetPool: "reset",
    SetBudget: "budget",
    SetRateLimit: "rate-limit",
    Subscribe: "subscribe",
    SetCustomer: "customer",
}

KNOWN_TYPES: Final = tuple(f"tallygate.{op}.v1" for op in OPS.values())

#: How msgspec words what is wrong with the type tag and with a customer that is not there.
_TYPE_TROUBLE: Final = ("Object missing required field `type`", " - at `$.type`")
_NO_CUSTOMER: Final = (
    "Object missing required field `customer`",
    "Expected `str`, got `null` - at `$.customer`",
    "Expected `str` of length >= 1 - at `$.customer`",
)

encode_request = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def parse_request(value: bytes | None) -> Request:
    """The request in a record's value; `Refused` says what is wrong with it."""
    if value is None:
        raise Refused(Reason.MALFORMED, "the record has no value")
    if len(value) > EVENT_BYTES_MAX:
        raise Refused(Reason.TOO_LARGE, f"the request has {len(value)} bytes: at most {EVENT_BYTES_MAX}")
    try:
        request = _decoder.decode(value)
    except RecursionError:
        raise Refused(Reason.MALFORMED, "the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, ArithmeticError) as error:
        text = str(error)
        if " matching regex " in text:
            text = f"control characters are not allowed - at {text.rpartition(' - at ')[2]}"
        if text.endswith(_TYPE_TROUBLE):
            raise Refused(Reason.TYPE_UNKNOWN, f"{text}; known: {', '.join(KNOWN_TYPES)}") from None
        raise Refused(Reason.CUSTOMER_MISSING if text in _NO_CUSTOMER else Reason.MALFORMED, text) from None
    for field, instant in _instants(request):
        if instant is not None and not EPOCH <= instant <= LATEST:
            raise Refused(Reason.MALFORMED, f"{field} lies outside the years 1970 to 9999 in UTC")
    return request


def _instants(request: Request) -> tuple[tuple[str, datetime | None], ...]:
    match request:
        case GiveGrant():
            own = (("effective_at", request.effective_at), ("expires_at", request.expires_at))
            recurs = request.recurrence
            return own if recurs is None else (*own, ("recurrence.anchor", recurs.anchor))
        case SetBudget() | Subscribe():
            return (("anchor", request.anchor),)
        case _:
            return ()
