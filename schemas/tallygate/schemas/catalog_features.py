"""Meters, features and rate cards as people write them."""

from decimal import Decimal
from typing import Final

from pydantic import Field, model_validator

from tallygate.schemas.amounts import quantity_nanos
from tallygate.schemas.catalog import Aggregation, AtEnd, Fail, Feature, Meter, Rate, Tier
from tallygate.schemas.catalog_values import Amount, Instant, Overage, Part, Property, Slug, Text, Texts
from tallygate.schemas.instants import parse_instant

POOL_DEFAULT: Final = "credits"


class MeterFile(Part):
    event_type: str = Field(min_length=1, max_length=256)
    aggregation: Aggregation = "sum"
    value: str = Field(default="", max_length=256)
    dimensions: tuple[Property, ...] = ()
    where: dict[Property, Texts] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sensible(self) -> "MeterFile":
        if self.aggregation != "count" and not self.value:
            raise ValueError(f"a {self.aggregation} meter needs `value`: the data property that it looks at")
        if self.aggregation == "count" and self.value:
            raise ValueError("a count meter counts events: leave `value` out, or choose another aggregation")
        if len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError("`dimensions` names one twice")
        if not all(self.where.values()):
            raise ValueError("`where` needs a value for each property")
        return self

    def compile(self, name: str) -> Meter:
        return Meter(name, self.event_type, self.aggregation, self.value, self.dimensions, dict(self.where))


class TierFile(Part):
    above: Amount
    credits: Amount


class RateFile(Part):
    meter: Slug
    credits: Amount
    per: Amount = Decimal(1)
    when: dict[Property, Text] = Field(default_factory=dict)
    since: Instant | None = None
    tiers: tuple[TierFile, ...] = ()

    @model_validator(mode="after")
    def _sensible(self) -> "RateFile":
        if not self.per:
            raise ValueError("`per` must be more than 0")
        above, credits = Decimal(0), self.credits
        for tier in self.tiers:
            if tier.above <= above:
                raise ValueError(f"`tiers` must rise, beginning above 0: {tier.above} is not above {above}")
            if tier.credits < credits:
                raise ValueError(
                    f"prices must not fall with the quantity: {tier.credits} credits above {tier.above} "
                    f"are less than {credits}"
                )
            above, credits = tier.above, tier.credits
        return self

    def compile(self) -> Rate:
        return Rate(
            meter=self.meter,
            credits_nanos=quantity_nanos(self.credits),
            per_nanos=quantity_nanos(self.per),
            when=dict(self.when),
            since=0 if self.since is None else parse_instant(self.since),
            tiers=tuple(Tier(quantity_nanos(tier.above), quantity_nanos(tier.credits)) for tier in self.tiers),
        )


class RateCardFile(Part):
    """Rates of a feature in a place of their own, for lists that are made by a program."""

    feature: Slug
    rates: tuple[RateFile, ...] = ()


class HoldFile(Part):
    ttl_seconds: int = Field(default=300, ge=1, le=30 * 24 * 3600)
    at_end: AtEnd = "release"


class FeatureFile(Part):
    pool: Slug | None = None
    pools: tuple[Slug, ...] = ()
    meters: tuple[Slug, ...] = ()
    rates: tuple[RateFile, ...] = ()
    hold: HoldFile = HoldFile()
    overage: Overage = "none"
    fail: Fail = "closed"
    observe: bool = False

    @model_validator(mode="after")
    def _one_way_to_name_pools(self) -> "FeatureFile":
        if self.pool is not None and self.pools:
            raise ValueError("write `pool` for one or `pools` for several in order, not both")
        if len(set(self.pools)) < len(self.pools):
            raise ValueError("`pools` names one twice")
        return self

    @property
    def paid_from(self) -> tuple[str, ...]:
        return self.pools or (self.pool or POOL_DEFAULT,)

    def compile(self, name: str, more: tuple[RateFile, ...]) -> Feature:
        caps: dict[object, int | None] = {"none": 0, "unlimited": None}
        return Feature(
            name=name,
            pools=self.paid_from,
            meters=self.meters,
            rates=tuple(rate.compile() for rate in (*self.rates, *more)),
            ttl_seconds=self.hold.ttl_seconds,
            at_end=self.hold.at_end,
            overage_nanos_max=caps[self.overage] if self.overage in caps else quantity_nanos(self.overage),
            fail=self.fail,
            observe=self.observe,
        )
