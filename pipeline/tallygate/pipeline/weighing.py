"""What an event amounts to, prepared by type and dimensions: the quick way to what `metering.measure` says.

Sums and counts of whole numbers are nearly all there is. For each event type the catalog is prepared once (`Kind`),
and for each set of dimensions that comes by its names and prices (`Shape`), so that an event costs a few look-ups and
one multiplication a meter: 3 µs instead of 13. Whatever is out of the ordinary (conditions, other aggregations, wrong
or missing data, no price) is `None` here and goes the long way, which also says what is wrong with it.
"""

from typing import Final

import msgspec

from tallygate.pipeline.budgets import Place
from tallygate.pipeline.metering import dimensions_of
from tallygate.pipeline.tariff import Tariff
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, NANOS, UNITS_MAX, AmountError, quantity_nanos
from tallygate.schemas.catalog import Feature, Meter, Rate
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import scope_text
from tallygate.schemas.reasons import Refused

_ADDITIVE: Final = ("sum", "count")
#: More sets of dimensions of one type than these are prepared anew.
_SHAPES_MAX: Final = 20_000
#: The quantity of a meter that finds no value in an event.
ABSENT: Final = -1


class Shape:
    """Events of one type with the same dimensions; `rates` hold for event times in `[since, until)`."""

    __slots__ = ("dimensions", "kept", "kind", "places", "rates", "since", "until")

    def __init__(self, kind: "Kind", dimensions: dict[str, str]) -> None:
        self.kind = kind
        self.dimensions = dimensions
        kept = [{name: dimensions[name] for name in m.dimensions if name in dimensions} for m in kind.meters]
        #: By meter: the dimensions that it keeps, and their text.
        self.kept = [(each, scope_text(each)) for each in kept]
        #: By a plan's offer (its identity: the catalog keeps them): the budgets that these dimensions fall under.
        self.places: dict[int, list[Place]] = {}
        self.since = self.until = 0
        self.rates: list[Rate | None] = []

    def price(self, tariff: Tariff, at: int) -> None:
        """Find the rates that hold at an instant, and for how long. Raises `Refused` where there is none."""
        found, since, until = [], 0, 1 << 62
        for meter in self.kind.meters:
            rate, begins, ends = tariff.rate_at(meter.name, self.dimensions, at)
            found.append(rate)
            since, until = max(since, begins), min(until, ends)
        self.rates, self.since, self.until = found, since, until


class Kind:
    """An event type whose meters are all sums and counts without conditions."""

    __slots__ = ("features", "meters", "names", "properties", "shapes")

    def __init__(self, tariff: Tariff, meters: list[Meter]) -> None:
        self.meters = meters
        self.properties = [None if meter.aggregation == "count" else meter.value for meter in meters]
        self.names = list(dict.fromkeys(name for meter in meters for name in meter.dimensions))
        self.shapes: dict[tuple[object, ...], Shape] = {}
        #: By meter.
        self.features: list[Feature | None] = [tariff.feature_of.get(meter.name) for meter in meters]


class Weighed(msgspec.Struct, frozen=True, gc=False):
    """By meter of the shape's kind: what an event counts (`ABSENT`: nothing) and costs."""

    shape: Shape
    at: int
    quantities: list[int]
    costs: list[int]

    @property
    def hour(self) -> int:
        return self.at - self.at % HOUR_MS


class Scales:
    """One catalog version's kinds."""

    def __init__(self, tariff: Tariff) -> None:
        self._tariff = tariff
        self._kinds: dict[str, Kind] = {}
        for type, meters in tariff.meters_of_type.items():
            if all(meter.aggregation in _ADDITIVE and not meter.where for meter in meters):
                self._kinds[type] = Kind(tariff, meters)

    def weigh(self, event: UsageEvent, arrived_at: int) -> Weighed | None:
        """What `measure` says of an event, or None: then `measure` is to be asked."""
        kind = self._kinds.get(event.type)
        if kind is None:
            return None
        data = event.data
        shape = self._shape(kind, data)
        if shape is None:
            return None
        at = event.at
        if at is None:
            at = arrived_at
        if not shape.since <= at < shape.until:
            try:
                shape.price(self._tariff, at)
            except Refused:
                return None
        quantities, costs = [], []
        for name, rate in zip(kind.properties, shape.rates, strict=True):
            if name is None:
                quantity = NANOS
            else:
                value = data.get(name)
                if type(value) is int and 0 <= value <= UNITS_MAX:
                    quantity = value * NANOS
                elif value is None and name not in data:
                    quantities.append(ABSENT)
                    costs.append(0)
                    continue
                else:
                    try:
                        quantity = quantity_nanos(value)
                    except AmountError:
                        return None
            cost = 0
            if rate is not None:
                price, per = rate.credits_nanos, rate.per_nanos
                for tier in rate.tiers:
                    if quantity > tier.above_nanos:
                        price = tier.credits_nanos
                cost = (2 * quantity * price + per) // (2 * per)  # as in `Tariff.cost`
                if cost > AMOUNT_NANOS_MAX:
                    return None
            quantities.append(quantity)
            costs.append(cost)
        if max(quantities) == ABSENT:
            return None
        return Weighed(shape, at, quantities, costs)

    def _shape(self, kind: Kind, data: dict[str, object]) -> Shape | None:
        values = tuple([data.get(name) for name in kind.names])
        try:
            shape = kind.shapes.get(values)
        except TypeError:  # an object or array, which is no dimension
            return None
        if shape is None:
            # Only texts are kept: True, 1 and 1.0 are the same key and different dimensions.
            if not all(value is None or type(value) is str for value in values):
                return None
            try:
                shape = Shape(kind, dimensions_of(kind.meters, data))
            except Refused:
                return None
            if len(kind.shapes) >= _SHAPES_MAX:
                kind.shapes.clear()
            kind.shapes[values] = shape
        return shape
