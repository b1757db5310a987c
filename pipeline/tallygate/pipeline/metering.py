"""Meters: from events and calls to quantities, hour by hour of the event's own time.

A meter's hour is a sum, a count, the least, greatest or latest value, or the number of distinct ones. What a call adds
to its bill is what it adds to a sum or count, by how much it raises the greatest value, or whether a value is new.
"""

from decimal import Decimal
from hashlib import blake2b

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.tariff import Tariff
from tallygate.schemas.amounts import NANOS, AmountError, quantity_nanos
from tallygate.schemas.catalog import Feature, Meter
from tallygate.schemas.events import NAME_MAX, UsageEvent
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import UsageDelta, UsageRow, ValueRow, usage_id
from tallygate.schemas.reasons import Reason, Refused


class Measured(msgspec.Struct, frozen=True, gc=False):
    """One event as its meters see it: a quantity by meter, the values that `unique` meters look at, its dimensions."""

    event: UsageEvent
    at: int
    quantities: dict[str, int]
    values: dict[str, str]
    dimensions: dict[str, str]


def measure(tariff: Tariff, event: UsageEvent, arrived_at: int) -> Measured:
    """What an event amounts to; `Refused` where it amounts to nothing or has no price."""
    meters = tariff.meters_of_type.get(event.type)
    if meters is None:
        raise Refused(Reason.TYPE_UNKNOWN, f"no meter counts events of type {event.type!r}")
    quantities: dict[str, int] = {}
    values: dict[str, str] = {}
    data = event.data
    counts = False
    for meter in meters:
        if meter.where and not _matches(meter, data):
            counts = True
            continue
        if meter.aggregation == "count":
            quantities[meter.name] = NANOS
        elif meter.value not in data:
            continue
        elif meter.aggregation == "unique":
            quantities[meter.name] = NANOS
            values[meter.name] = str(data[meter.value])
        else:
            quantities[meter.name] = _quantity(meter, data[meter.value])
    if not quantities and not counts:
        wanted = ", ".join(sorted(meter.value for meter in meters))
        raise Refused(Reason.QUANTITY_INVALID, f"data has none of: {wanted}")
    dimensions = _dimensions(meters, data)
    at = event.at
    if at is None:
        at = arrived_at
    for name, quantity in quantities.items():
        tariff.cost(name, quantity, dimensions, at)
    return Measured(event, at, quantities, values, dimensions)


def _matches(meter: Meter, data: dict[str, object]) -> bool:
    return all(_text(data.get(name)) in wanted for name, wanted in meter.where.items())


def _quantity(meter: Meter, value: object) -> int:
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise Refused(Reason.QUANTITY_INVALID, f"data.{meter.value}: {error}") from None


def _dimensions(meters: list[Meter], data: dict[str, object]) -> dict[str, str]:
    found = {}
    for meter in meters:
        for name in meter.dimensions:
            if name in found or data.get(name) is None:
                continue
            value = _text(data[name])
            if value is None or not 0 < len(value) <= NAME_MAX or not value.isprintable():
                raise Refused(Reason.MALFORMED, f"data.{name}: a dimension is 1 to {NAME_MAX} printable characters")
            found[name] = value
    return found


def _text(value: object) -> str | None:
    """A property as a dimension's text; booleans as in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | Decimal):
        return str(value).lower()
    return None


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
            quantities[name] = NANOS
    return quantities


def record(
    draft: AccountDraft,
    tariff: Tariff,
    quantities: dict[str, int],
    dimensions: dict[str, str],
    at: int,
    late: bool,
    cause: int,
    values: dict[str, str] | None = None,
) -> dict[str, int]:
    """Take quantities into the hour of `at`, by each meter's own dimensions; returns what each adds to the bill."""
    hour = at - at % HOUR_MS
    billed: dict[str, int] = {}
    for name, quantity in quantities.items():
        meter = tariff.meters.get(name)  # None: a later catalog has dropped it under an open hold
        kept = {k: dimensions[k] for k in meter.dimensions if k in dimensions} if meter else {}
        row = draft.usage_row(name, hour, kept)
        after, added = _aggregated(draft, meter, row, quantity, at, (values or {}).get(name, ""))
        draft.put_usage(replace(after, events=row.events + 1, late_events=row.late_events + late))
        draft.deltas.append(UsageDelta(name, hour, kept, quantity, 1, int(late), cause))
        billed[name] = added
    return billed


def _aggregated(
    draft: AccountDraft, meter: Meter | None, row: UsageRow, quantity: int, at: int, value: str
) -> tuple[UsageRow, int]:
    """The hour with one more quantity, and what it adds to the bill."""
    before = row.quantity_nanos
    match meter.aggregation if meter else "sum":
        case "sum" | "count":
            return replace(row, quantity_nanos=before + quantity), quantity
        case "min":
            return replace(row, quantity_nanos=min(before, quantity) if row.events else quantity), 0
        case "max":
            return replace(row, quantity_nanos=max(before, quantity)), max(0, quantity - before)
        case "latest":
            if at < row.latest_at:
                return row, 0
            return replace(row, quantity_nanos=quantity, latest_at=at), 0
        case "unique":
            digest = blake2b(value.encode(), digest_size=16).hexdigest()
            id = f"{usage_id(row.meter, row.hour, row.dimensions)}\0{digest}"
            if draft.has_value(id):
                return row, 0
            draft.values.put(id, ValueRow(at))
            return replace(row, quantity_nanos=before + NANOS), NANOS
        case other:
            raise AssertionError(f"no aggregation: {other}")


def unrecord(
    draft: AccountDraft,
    tariff: Tariff,
    quantities: dict[str, int],
    dimensions: dict[str, str],
    at: int,
    cause: int,
) -> None:
    """Take an event's quantities out of its hour again: of sums and counts, the others cannot be undone."""
    hour = at - at % HOUR_MS
    for name, quantity in quantities.items():
        meter = tariff.meters.get(name)
        if meter is None or meter.aggregation not in ("sum", "count"):
            continue
        kept = {k: dimensions[k] for k in meter.dimensions if k in dimensions}
        row = draft.usage_row(name, hour, kept)
        left = max(0, row.quantity_nanos - quantity)
        draft.put_usage(replace(row, quantity_nanos=left, events=max(0, row.events - 1)))
        draft.deltas.append(UsageDelta(name, hour, kept, -quantity, -1, 0, cause))
