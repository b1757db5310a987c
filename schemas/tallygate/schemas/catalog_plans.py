"""Plans and add-ons as people write them: entitlements, grants, budgets, rate limits, resets."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tallygate.schemas.amounts import quantity_nanos
from tallygate.schemas.catalog import (
    CREDITS_UNIT,
    REQUESTS_UNIT,
    Beyond,
    Entitlement,
    Period,
    Plan,
    PlanBudget,
    PlanGrant,
    PoolReset,
    RateLimit,
)
from tallygate.schemas.catalog_features import POOL_DEFAULT
from tallygate.schemas.catalog_values import Amount, Interval, Part, Property, Slug, Span, Text, span_seconds
from tallygate.schemas.requests import Category

Percent = Annotated[int, Field(ge=1, le=1000, strict=True)]
#: A dimension's value, or `"*"` for each value.
Scope = dict[Property, Text]


class StaticFile(Part):
    value: Text

    def compile(self, feature: str) -> Entitlement:
        return Entitlement(feature, "static", self.value)


class MeteredFile(Part):
    meter: Slug
    limit: Amount
    period: Period = "month"
    beyond: Beyond = "deny"
    observe: bool = False

    def compile(self, feature: str) -> Entitlement:
        limit = quantity_nanos(self.limit)
        return Entitlement(feature, "metered", "", self.meter, limit, self.period, self.beyond, self.observe)


ENTITLEMENT_FORMS: Final = (
    "write `true`, `false`, `credits`, `{value: …}`, `{meter: …, limit: …}`, or a list of the last for several meters"
)


def _form(value: object) -> str | None:
    """Which form of entitlement this is; tags in angle brackets, since no name has them."""
    match value:
        case bool():
            return "<boolean>"
        case "credits":
            return "<credits>"
        case list() | tuple():
            return "<meters>"
        case Mapping() if "value" in value and "meter" not in value:
            return "<static>"
        case Mapping():
            return "<metered>"
        case _:
            return None


EntitlementFile = Annotated[
    Annotated[bool, Tag("<boolean>")]
    | Annotated[Literal["credits"], Tag("<credits>")]
    | Annotated[StaticFile, Tag("<static>")]
    | Annotated[MeteredFile, Tag("<metered>")]
    | Annotated[tuple[MeteredFile, ...], Field(min_length=1), Tag("<meters>")],
    Discriminator(_form),
]


def compile_entitlement(feature: str, written: EntitlementFile) -> tuple[Entitlement, ...]:
    match written:
        case bool():
            return (Entitlement(feature, "boolean", "" if written else "false"),)
        case str():
            return (Entitlement(feature, "credit"),)
        case tuple():
            return tuple(each.compile(feature) for each in written)
        case _:
            return (written.compile(feature),)


class GrantFile(Part):
    pool: Slug = POOL_DEFAULT
    amount: Amount
    priority: int = Field(default=1, ge=0, le=255, strict=True)
    category: Category = "paid"
    price: Amount = Decimal(0)
    every: Interval = ""
    expires_after: Interval = ""
    rollover_min: Amount = Decimal(0)
    rollover_max: Amount = Decimal(0)

    @model_validator(mode="after")
    def _sensible(self) -> "GrantFile":
        if self.rollover_min > self.rollover_max:
            raise ValueError(f"`rollover_min` {self.rollover_min} is more than `rollover_max` {self.rollover_max}")
        return self

    def compile(self, name: str) -> PlanGrant:
        return PlanGrant(
            name=name,
            pool=self.pool,
            amount_nanos=quantity_nanos(self.amount),
            priority=self.priority,
            category=self.category,
            price_nanos=quantity_nanos(self.price),
            every=self.every,
            expires_after=self.expires_after,
            rollover_min_nanos=quantity_nanos(self.rollover_min),
            rollover_max_nanos=quantity_nanos(self.rollover_max),
        )


class BudgetFile(Part):
    limit: Amount
    scope: Scope = Field(default_factory=dict)
    unit: Slug = CREDITS_UNIT
    period: Period = "lifetime"
    hard: bool = True
    thresholds: tuple[Percent, ...] = ()
    observe: bool = False

    def compile(self, name: str) -> PlanBudget:
        return PlanBudget(
            name=name,
            limit_nanos=quantity_nanos(self.limit),
            scope=dict(self.scope),
            unit=self.unit,
            period=self.period,
            hard=self.hard,
            thresholds=tuple(sorted(set(self.thresholds))),
            observe=self.observe,
        )


class RateLimitFile(Part):
    limit: Amount
    per: Span
    burst: Amount | None = None
    scope: Scope = Field(default_factory=dict)
    unit: Slug = REQUESTS_UNIT
    observe: bool = False

    @model_validator(mode="after")
    def _lets_something_through(self) -> "RateLimitFile":
        if not self.limit:
            raise ValueError("`limit` must be more than 0; a budget of 0 stops everything")
        if self.burst == 0:
            raise ValueError("`burst` must be more than 0: it is the most that is let through at once")
        if self.unit == REQUESTS_UNIT and (self.limit if self.burst is None else self.burst) < 1:
            raise ValueError("a `burst` under 1 lets no request through; it is `limit` unless written")
        return self

    def compile(self, name: str) -> RateLimit:
        return RateLimit(
            name=name,
            limit_nanos=quantity_nanos(self.limit),
            per_seconds=span_seconds(self.per),
            burst_nanos=quantity_nanos(self.limit if self.burst is None else self.burst),
            scope=dict(self.scope),
            unit=self.unit,
            observe=self.observe,
        )


class ResetFields(Part):
    every: Interval
    preserve_overage: bool = False


def _reset(value: object) -> object:
    return {"every": value} if isinstance(value, str) else value


#: An interval alone, or with what else there is to say.
ResetFile = Annotated[ResetFields, BeforeValidator(_reset, json_schema_input_type=Interval | ResetFields)]


class PlanFile(Part):
    """A plan or an add-on."""

    entitlements: dict[Slug, EntitlementFile] = Field(default_factory=dict)
    grants: dict[Slug, GrantFile] = Field(default_factory=dict)
    budgets: dict[Slug, BudgetFile] = Field(default_factory=dict)
    rate_limits: dict[Slug, RateLimitFile] = Field(default_factory=dict)
    resets: dict[Slug, ResetFile] = Field(default_factory=dict)

    def compile(self, name: str) -> Plan:
        return Plan(
            name=name,
            entitlements=tuple(
                each for feature, written in self.entitlements.items() for each in compile_entitlement(feature, written)
            ),
            grants=tuple(each.compile(name) for name, each in self.grants.items()),
            budgets=tuple(each.compile(name) for name, each in self.budgets.items()),
            rate_limits=tuple(each.compile(name) for name, each in self.rate_limits.items()),
            resets=tuple(PoolReset(pool, each.every, each.preserve_overage) for pool, each in self.resets.items()),
        )
