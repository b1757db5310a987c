"""The catalog as machines hold it: one immutable version a record of `tallygate.catalog.v1`.

People write it as YAML (`catalog_file.py`). The record's key is its version number, so that compaction keeps every
version: each decision names the one it was made under.
"""

from typing import Final, Literal

import msgspec

Aggregation = Literal["sum", "count", "min", "max", "latest", "unique"]
AtEnd = Literal["release", "settle"]
Beyond = Literal["deny", "credits", "allow"]
Fail = Literal["closed", "open"]
Period = Literal["lifetime", "hour", "day", "week", "month"]

#: What a rate limit counts unless it names a meter or credits.
REQUESTS_UNIT: Final = "requests"
CREDITS_UNIT: Final = "credits"


class Meter(msgspec.Struct, frozen=True, omit_defaults=True):
    """How events become a quantity: events of `event_type`, the number in data property `value`, by `dimensions`.

    `where`: only events whose data properties have one of these values.
    """

    name: str
    event_type: str
    aggregation: Aggregation
    value: str = ""
    dimensions: tuple[str, ...] = ()
    where: dict[str, tuple[str, ...]] = {}


class Tier(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The price of a call whose quantity is above `above_nanos`."""

    above_nanos: int
    credits_nanos: int


class Rate(msgspec.Struct, frozen=True, omit_defaults=True):
    """`credits_nanos` for each `per_nanos` of the meter's quantity, for events since an instant `when` these hold.

    A call with a quantity above a tier's pays that tier's price for all of it.
    """

    meter: str
    credits_nanos: int
    per_nanos: int
    when: dict[str, str] = {}
    since: int = 0
    tiers: tuple[Tier, ...] = ()


class Feature(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is sold, paid from `pools` in order.

    `overage_nanos_max`: how much may be owed, in the last pool: 0 nothing, None without limit. `observe`: credits that
    are missing are reported and not denied.
    """

    name: str
    pools: tuple[str, ...]
    meters: tuple[str, ...] = ()
    rates: tuple[Rate, ...] = ()
    ttl_seconds: int = 300
    at_end: AtEnd = "release"
    overage_nanos_max: int | None = 0
    fail: Fail = "closed"
    observe: bool = False


class Entitlement(msgspec.Struct, frozen=True, omit_defaults=True):
    """A right to a feature.

    `boolean`: yes, or no where `value` is "false". `static`: a `value` to be told. `metered`: `limit_nanos` of `meter`
    a period for nothing, and `beyond` it: deny, pay credits, or allow. `credit`: paid from the feature's pools.
    """

    feature: str
    kind: Literal["boolean", "static", "metered", "credit"]
    value: str = ""
    meter: str = ""
    limit_nanos: int = 0
    period: Period = "month"
    beyond: Beyond = "deny"
    observe: bool = False


class PlanGrant(msgspec.Struct, frozen=True, omit_defaults=True):
    """A grant that a subscription gives: once, or again every `every`; intervals are ISO 8601."""

    name: str
    pool: str
    amount_nanos: int
    priority: int = 1
    category: str = "paid"
    price_nanos: int = 0
    every: str = ""
    expires_after: str = ""
    rollover_min_nanos: int = 0
    rollover_max_nanos: int = 0


class PlanBudget(msgspec.Struct, frozen=True, omit_defaults=True):
    """A budget that everyone on the plan has; `thresholds` are per cent of the limit, each reported once a period."""

    name: str
    limit_nanos: int
    scope: dict[str, str] = {}
    unit: str = CREDITS_UNIT
    period: Period = "lifetime"
    hard: bool = True
    thresholds: tuple[int, ...] = ()
    observe: bool = False


class RateLimit(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most `limit_nanos` of `unit` each `per_seconds`, evenly, with a burst of `burst_nanos`, on a scope."""

    name: str
    limit_nanos: int
    per_seconds: int
    burst_nanos: int
    scope: dict[str, str] = {}
    unit: str = REQUESTS_UNIT
    observe: bool = False


class PoolReset(msgspec.Struct, frozen=True, omit_defaults=True):
    """The usage period of a pool ends every `every` (ISO 8601), counted from the subscription's anchor."""

    pool: str
    every: str
    preserve_overage: bool = False


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """Entitlements, grants, budgets and rate limits under one name. An add-on has the same form."""

    name: str
    entitlements: tuple[Entitlement, ...] = ()
    grants: tuple[PlanGrant, ...] = ()
    budgets: tuple[PlanBudget, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    resets: tuple[PoolReset, ...] = ()


class Catalog(msgspec.Struct, frozen=True, tag_field="type", tag="tallygate.catalog.v1", omit_defaults=True):
    """Without plans, every known customer may use every feature. `default_plan` is the plan of those who have none."""

    version: int
    meters: tuple[Meter, ...] = ()
    features: tuple[Feature, ...] = ()
    plans: tuple[Plan, ...] = ()
    add_ons: tuple[Plan, ...] = ()
    default_plan: str = ""


EMPTY: Final = Catalog(version=0)

encode_catalog = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Catalog] = msgspec.json.Decoder(Catalog)


def decode_catalog(value: bytes) -> Catalog:
    return _decoder.decode(value)


def catalog_key(version: int) -> bytes:
    return b"%d" % version
