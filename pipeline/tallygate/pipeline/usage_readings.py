"""How the columns of a batch are read under a catalog: which properties matter, and what their combinations mean."""

import msgspec

from tallygate.pipeline.metering import matches
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.usage_groups import Combination, Use
from tallygate.schemas.catalog import Meter
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import scope_text, usage_id_of
from tallygate.schemas.reasons import Reason, Refused


class Reading(msgspec.Struct, frozen=True, gc=False):
    """How events of one type are read: the properties that matter, by what they are to the type's meters."""

    type: str
    meters: tuple[Meter, ...]
    dimensions: tuple[str, ...]
    filters: tuple[str, ...]
    numbers: tuple[str, ...]
    texts: tuple[str, ...]


def reading(tariff: Tariff, type: str) -> Reading:
    """`Refused` where no meter counts the type."""
    meters = tariff.meters_of_type.get(type)
    if meters is None:
        raise Refused(Reason.TYPE_UNKNOWN, f"no meter counts events of type {type!r}")
    numbers = {m.value: None for m in meters if m.aggregation not in ("count", "unique")}
    return Reading(
        type,
        tuple(meters),
        tuple({name: None for meter in meters for name in meter.dimensions}),
        tuple({name: None for meter in meters for name in meter.where}),
        tuple(numbers),
        tuple({m.value: None for m in meters if m.aggregation == "unique"}),
    )


def counting(read: Reading, filtered: dict[str, str | None]) -> tuple[bool, ...]:
    """Which of the meters count events with these values of the properties that meters filter by."""
    return tuple(matches(meter, filtered) for meter in read.meters)


def combination(
    tariff: Tariff,
    read: Reading,
    dimensions: dict[str, str],
    counts: tuple[bool, ...],
    call_nanos: tuple[int, ...],
    at: int,
) -> Combination:
    """`call_nanos`, by meter: what one event has of it, as far as tiers tell amounts apart."""
    hour = at - at % HOUR_MS
    uses = []
    for meter, does, call in zip(read.meters, counts, call_nanos, strict=True):
        if not does:
            continue
        kept = {name: dimensions[name] for name in meter.dimensions if name in dimensions}
        feature = tariff.feature_of.get(meter.name)
        price = tariff.price(meter.name, call, dimensions, at)
        row_id = usage_id_of(meter.name, hour, scope_text(kept))
        uses.append(Use(meter, kept, row_id, feature.name if feature else "", price, _tiered(tariff, meter)))
    return Combination(read.type, dimensions, at, hour, tuple(uses))


def _tiered(tariff: Tariff, meter: Meter) -> bool:
    return meter.aggregation == "max" and meter.name in tariff.tiers
