"""Meters and rates: from events to quantities, from quantities to credits.

The cost of one event (or call) and meter is its quantity times the rate, rounded half up to a nano: the one rounding in
Tallygate, so that a total does not depend on how events were grouped.
"""

from decimal import Decimal

import msgspec

from tallygate.pipeline.account import AccountDraft
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, AmountError, from_nanos, quantity_nanos
from tallygate.schemas.catalog import Catalog, Feature, Meter, Rate
from tallygate.schemas.events import NAME_MAX, UsageEvent
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import UsageDelta
from tallygate.schemas.reasons import Reason, Refused


class Tariff:
    """A catalog prepared for look-ups."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.version = catalog.version
        self.meters = {meter.name: meter for meter in catalog.meters}
        self.features = {feature.name: feature for feature in catalog.features}
        self.feature_of = {meter: feature for feature in catalog.features for meter in feature.meters}
        self.meters_of_type: dict[str, list[Meter]] = {}
        for meter in catalog.meters:
            self.meters_of_type.setdefault(meter.event_type, []).append(meter)
        self._rates: dict[str, list[Rate]] = {}
        for feature in catalog.features:
            for rate in feature.rates:
                self._rates.setdefault(rate.meter, []).append(rate)
        for rates in self._rates.values():  # the most specific first, then the latest
            rates.sort(key=lambda rate: (-len(rate.when), -rate.since))

    def cost(self, meter: str, quantity: int, dimensions: dict[str, str], at: int) -> int:
        """Nanos of credits for a quantity of a meter at an instant; a meter without rates costs nothing."""
        rates = self._rates.get(meter)
        if rates is None:
            return 0
        for rate in rates:
            if rate.since <= at and all(dimensions.get(k) == v for k, v in rate.when.items()):
                return _bounded(meter, (2 * quantity * rate.credits_nanos + rate.per_nanos) // (2 * rate.per_nanos))
        named = ", ".join(f"{k}={v}" for k, v in sorted(dimensions.items()))
        raise Refused(Reason.UNPRICED, f"no rate of meter {meter!r} holds for {named or 'no dimensions'} at that time")

    def call_cost(self, quantities: dict[str, int], dimensions: dict[str, str], at: int) -> int:
        return sum(self.cost(meter, quantity, dimensions, at) for meter, quantity in quantities.items())


def _bounded(meter: str, cost: int) -> int:
    """What one event costs stays as far from the largest sum as what an input may carry."""
    if cost > AMOUNT_NANOS_MAX:
        raise Refused(
            Reason.QUANTITY_INVALID,
            f"this much of meter {meter!r} costs {from_nanos(cost)} credits, an absurd sum: check quantity and rate",
        )
    return cost


class Measured(msgspec.Struct, frozen=True, gc=False):
    """One event as its meters see it: quantities by meter, the cost by feature, its dimensions and its instant."""

    event: UsageEvent
    at: int
    quantities: dict[str, int]
    costs: dict[str, int]
    dimensions: dict[str, str]


def measure(tariff: Tariff, event: UsageEvent, arrived_at: int) -> Measured:
    """What an event amounts to; `Refused` where it amounts to nothing."""
    meters = tariff.meters_of_type.get(event.type)
    if meters is None:
        raise Refused(Reason.TYPE_UNKNOWN, f"no meter counts events of type {event.type!r}")
    quantities: dict[str, int] = {}
    for meter in meters:
        if meter.aggregation == "count":
            quantities[meter.name] = 1_000_000_000
        elif meter.value in event.data:
            quantities[meter.name] = _quantity(meter, event.data[meter.value])
    if not quantities:
        wanted = ", ".join(sorted(meter.value for meter in meters))
        raise Refused(Reason.QUANTITY_INVALID, f"data has none of: {wanted}")
    dimensions = _dimensions(meters, event)
    at = event.at
    if at is None:
        at = arrived_at
    costs: dict[str, int] = {}
    for name, quantity in quantities.items():
        feature = tariff.feature_of.get(name)
        if feature is not None:
            costs[feature.name] = costs.get(feature.name, 0) + tariff.cost(name, quantity, dimensions, at)
    return Measured(event, at, quantities, costs, dimensions)


def _quantity(meter: Meter, value: object) -> int:
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise Refused(Reason.QUANTITY_INVALID, f"data.{meter.value}: {error}") from None


def _dimensions(meters: list[Meter], event: UsageEvent) -> dict[str, str]:
    found = {}
    for name in dict.fromkeys(d for meter in meters for d in meter.dimensions):
        value = event.data.get(name)
        if value is None:
            continue
        if isinstance(value, bool | int | Decimal):
            value = str(value).lower()
        if not isinstance(value, str) or not 0 < len(value) <= NAME_MAX or not value.isprintable():
            raise Refused(Reason.MALFORMED, f"data.{name}: a dimension is 1 to {NAME_MAX} printable characters")
        found[name] = value
    return found


def call_quantities(feature: Feature, tariff: Tariff, asked: dict[str, Decimal]) -> dict[str, int]:
    """A request's quantities in nanos; each counting meter of the feature counts one, unless it is named."""
    quantities: dict[str, int] = {}
    for name, value in asked.items():
        if name not in feature.meters:
            known = ", ".join(feature.meters) or "none"
            raise Refused(Reason.METER_UNKNOWN, f"feature {feature.name!r} has no meter {name!r}; it has: {known}")
        try:
            quantities[name] = quantity_nanos(value)
        except AmountError as error:
            raise Refused(Reason.QUANTITY_INVALID, f"quantities.{name}: {error}") from None
    for name in feature.meters:
        if name not in quantities and tariff.meters[name].aggregation == "count":
            quantities[name] = 1_000_000_000
    return quantities


def record(
    draft: AccountDraft,
    tariff: Tariff,
    quantities: dict[str, int],
    dimensions: dict[str, str],
    at: int,
    late: bool,
    cause: int,
) -> None:
    """Add quantities to the hour of `at`, by each meter's own dimensions."""
    hour = at - at % HOUR_MS
    for name, quantity in quantities.items():
        meter = tariff.meters.get(name)  # None: a later catalog has dropped it under an open hold
        kept = {k: dimensions[k] for k in meter.dimensions if k in dimensions} if meter else {}
        row = draft.usage_row(name, hour, kept)
        draft.put_usage(
            msgspec.structs.replace(
                row,
                quantity_nanos=row.quantity_nanos + quantity,
                events=row.events + 1,
                late_events=row.late_events + late,
            )
        )
        draft.deltas.append(UsageDelta(name, hour, kept, quantity, 1, int(late), cause))
