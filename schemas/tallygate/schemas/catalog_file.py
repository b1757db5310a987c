"""The catalog as people write it: YAML checked by pydantic; every error names the file and the field.

```yaml
meters:
  input_tokens: {event_type: llm.call, value: input_tokens, dimensions: [team, user, agent, model]}
  calls:        {event_type: llm.call, aggregation: count, dimensions: [team, user, agent, model]}
features:
  llm:
    pool: credits
    meters: [input_tokens, calls]
    rates:
      - {meter: input_tokens, credits: "2.50", per: 1000000}
      - {meter: input_tokens, credits: "0.15", per: 1000000, when: {model: small}, since: 2026-01-01T00:00:00Z}
    hold: {ttl_seconds: 300, at_end: release}
    overage: none          # or: unlimited, or an amount
```
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from tallygate.schemas.amounts import AMOUNT_SCHEMA, AmountError, quantity_nanos
from tallygate.schemas.catalog import Aggregation, AtEnd, Catalog, Fail, Feature, Meter, Rate
from tallygate.schemas.instants import from_datetime

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]


def _exact(value: object) -> str:
    # YAML's own reader makes a binary fraction of 0.15; its shortest text is what the person wrote.
    text = value if isinstance(value, int | str | Decimal) else repr(value)
    quantity_nanos(text)
    return str(text)


#: Never negative, at most 9 places: written as a number or, so that every reader keeps it exact, as a string.
_Decimal = Annotated[Decimal, WithJsonSchema(AMOUNT_SCHEMA)]
Amount = Annotated[_Decimal, BeforeValidator(_exact)]


def _overage(value: object) -> object:
    if value in ("none", "unlimited"):
        return value
    try:
        return Decimal(_exact(value))
    except AmountError as error:
        raise ValueError(f"neither `none` nor `unlimited` nor an amount: {error}") from None


Overage = Annotated[Literal["none", "unlimited"] | _Decimal, BeforeValidator(_overage)]


class CatalogError(ValueError):
    """What is wrong with a catalog file, a line each, ready to be shown."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeterFile(_Part):
    event_type: str = Field(min_length=1, max_length=256)
    aggregation: Aggregation = "sum"
    value: str = ""
    dimensions: tuple[Slug, ...] = ()

    @model_validator(mode="after")
    def _value_where_needed(self) -> "MeterFile":
        if self.aggregation != "count" and not self.value:
            raise ValueError(f"a {self.aggregation} meter needs `value`: the data property that holds the quantity")
        return self


class RateFile(_Part):
    meter: Slug
    credits: Amount
    per: Amount = Decimal(1)
    when: dict[Slug, str] = {}
    since: datetime | None = None

    @model_validator(mode="after")
    def _sensible(self) -> "RateFile":
        if not self.per:
            raise ValueError("`per` must be more than 0")
        if self.since is not None and self.since.tzinfo is None:
            raise ValueError("`since` needs an offset: write it in UTC, like 2026-01-31T00:00:00Z")
        return self


class HoldFile(_Part):
    ttl_seconds: int = Field(default=300, ge=1, le=30 * 24 * 3600)
    at_end: AtEnd = "release"


class FeatureFile(_Part):
    pool: Slug = "credits"
    meters: tuple[Slug, ...] = ()
    rates: tuple[RateFile, ...] = ()
    hold: HoldFile = HoldFile()
    overage: Overage = "none"
    fail: Fail = "closed"


class CatalogFile(_Part):
    meters: dict[Slug, MeterFile] = {}
    features: dict[Slug, FeatureFile] = {}

    @model_validator(mode="after")
    def _references(self) -> "CatalogFile":
        owner: dict[str, str] = {}
        for name, feature in self.features.items():
            for meter in feature.meters:
                if meter not in self.meters:
                    raise ValueError(f"features.{name}.meters: there is no meter {meter!r}")
                if meter in owner:
                    raise ValueError(f"features.{name}.meters: {meter!r} already belongs to {owner[meter]!r}")
                owner[meter] = name
            self._check_rates(name, feature)
        return self

    def _check_rates(self, name: str, feature: FeatureFile) -> None:
        for number, rate in enumerate(feature.rates):
            if rate.meter not in feature.meters:
                raise ValueError(f"features.{name}.rates.{number}: {rate.meter!r} is no meter of this feature")
            unknown = set(rate.when) - set(self.meters[rate.meter].dimensions)
            if unknown:
                raise ValueError(f"features.{name}.rates.{number}.when: {sorted(unknown)[0]!r} is no dimension there")

    def compile(self, version: int) -> Catalog:
        """The same as machines hold it, under a version number."""
        return Catalog(
            version=version,
            meters=tuple(
                Meter(n, m.event_type, m.aggregation, m.value, tuple(m.dimensions)) for n, m in self.meters.items()
            ),
            features=tuple(_feature(n, f) for n, f in self.features.items()),
        )


def _feature(name: str, file: FeatureFile) -> Feature:
    caps: dict[object, int | None] = {"none": 0, "unlimited": None}
    return Feature(
        name=name,
        pools=(file.pool,),
        meters=file.meters,
        rates=tuple(
            Rate(
                meter=r.meter,
                credits_nanos=quantity_nanos(r.credits),
                per_nanos=quantity_nanos(r.per),
                when=dict(r.when),
                since=0 if r.since is None else from_datetime(r.since),
            )
            for r in file.rates
        ),
        ttl_seconds=file.hold.ttl_seconds,
        at_end=file.hold.at_end,
        overage_nanos_max=caps[file.overage] if file.overage in caps else quantity_nanos(file.overage),
        fail=file.fail,
    )


def read_catalog(document: object, where: str) -> CatalogFile:
    """A checked catalog from a parsed YAML document; `CatalogError` names `where` and the field."""
    if not isinstance(document, Mapping):
        raise CatalogError(f"{where}: a catalog is a mapping with `meters` and `features`")
    try:
        return CatalogFile.model_validate(document)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {place}: {text}" if place else f"{where}: {text}")
        raise CatalogError("\n".join(lines)) from None
