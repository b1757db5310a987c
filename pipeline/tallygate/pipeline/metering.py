"""Meters: from events and calls to quantities, hour by hour of the event's own time.

A meter's hour is a sum, a count, the least, greatest or latest value, or the number of distinct ones. What a call adds
to its bill is what it adds to a sum or count, by how much it raises the greatest value, or whether a value is new.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.usage_groups import Figure
from tallygate.schemas.amounts import NANOS, AmountError, quantity_nanos
from tallygate.schemas.catalog import Feature, Meter
from tallygate.schemas.events import NAME_MAX, UsageEvent
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import UsageDelta, UsageRow, ValueRow, scope_text, usage_id_of
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
        if meter.where and not matches(meter, data):
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
    dimensions = dimensions_of(meters, data)
    at = event.at
    if at is None:
        at = arrived_at
    for name, quantity in quantities.items():
        tariff.cost(name, quantity, dimensions, at)
    return Measured(event, at, quantities, values, dimensions)


def matches(meter: Meter, data: Mapping[str, object]) -> bool:
    """Whether the meter counts an event with these properties."""
    return all(_text(data.get(name)) in wanted for name, wanted in meter.where.items())


def _quantity(meter: Meter, value: object) -> int:
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise Refused(Reason.QUANTITY_INVALID, f"data.{meter.value}: {error}") from None


def dimensions_of(meters: list[Meter], data: dict[str, object]) -> dict[str, str]:
    """What of an event's data its meters keep; `Refused` where that is no dimension."""
    found = {}
    for meter in meters:
        for name in meter.dimensions:
            if name in found or data.get(name) is None:
                continue
            found[name] = dimension(name, _text(data[name]))
    return found


def dimension(name: str, value: str | None) -> str:
    """A property's text as a dimension; `Refused` where it cannot be one."""
    if value is None or not 0 < len(value) <= NAME_MAX or not value.isprintable():
        raise Refused(Reason.MALFORMED, f"data.{name}: a dimension is 1 to {NAME_MAX} printable characters")
    return value


def _text(value: object) -> str | None:
    """A property as a dimension's text; booleans as in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | Decimal):
        return str(value).lower()
    return None


def call_quantities(
    feature: Feature, tariff: Tariff, asked: dict[str, Decimal], held: tuple[str, ...] = ()
) -> dict[str, int]:
    """A request's quantities in nanos; each counting meter of the feature counts one, unless it is named.

    `held` names meters that count because a hold was placed on them, even where a later catalog has dropped them.
    """
    quantities: dict[str, int] = {}
    for name, value in asked.items():
        if name not in feature.meters and name not in held:
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
    for name, quantity, meter, kept, id in _hours(tariff, quantities, dimensions, hour):
        row = draft.usage_hour(id, name, hour, kept, meter.aggregation if meter else "sum")
        added, total, latest_at = quantity, row.quantity_nanos + quantity, row.latest_at
        if meter is not None and meter.aggregation not in _ADDITIVE:
            total, added = _aggregated(draft, meter, row, id, quantity, at, (values or {}).get(name, ""))
            latest_at = max(latest_at, at) if meter.aggregation == "latest" else 0
        late_events = row.late_events + late
        draft.usage.put(
            id, UsageRow(name, hour, kept, total, row.events + 1, late_events, latest_at, row.since, row.aggregation)
        )
        draft.deltas.append(UsageDelta(name, hour, kept, quantity, 1, int(late), cause))
        billed[name] = added
    return billed


_ADDITIVE: Final = ("sum", "count")
_Hour = tuple[str, int, Meter | None, dict[str, str], str]


def _hours(tariff: Tariff, quantities: dict[str, int], dimensions: dict[str, str], hour: int) -> Iterator[_Hour]:
    """For each quantity: its meter (None: a later catalog has dropped it), the dimensions it keeps, its row's id."""
    texts: dict[tuple[str, ...], tuple[dict[str, str], str]] = {}
    for name, quantity in quantities.items():
        meter = tariff.meters.get(name)
        names = meter.dimensions if meter else ()
        found = texts.get(names)
        if found is None:
            kept = {k: dimensions[k] for k in names if k in dimensions}
            found = texts[names] = kept, scope_text(kept)
        yield name, quantity, meter, found[0], usage_id_of(name, hour, found[1])


def _aggregated(
    draft: AccountDraft, meter: Meter, row: UsageRow, id: str, quantity: int, at: int, value: str
) -> tuple[int, int]:
    """The hour's quantity with one more value, and what that adds to the bill."""
    before, closed = row.quantity_nanos, draft.hours.is_closed(row.hour)
    match meter.aggregation:
        case "min":
            return (min(before, quantity) if row.events else quantity), 0
        case "max":
            return max(before, quantity), 0 if closed else max(0, quantity - before)
        case "latest":
            return (quantity if at >= row.latest_at else before), 0
        case "unique":
            new = 0 if closed else _is_new(draft, id, value, at)
            return before + new, new
        case other:
            raise AssertionError(f"no such aggregation: {other}")


def _is_new(draft: AccountDraft, id: str, value: str, at: int) -> int:
    """Remember a value of a usage row; one, if it was not met before."""
    value_id = f"{id}\0{blake2b(value.encode(), digest_size=16).hexdigest()}"
    if draft.has_value(value_id):
        return 0
    draft.values.put(value_id, ValueRow(at))
    return NANOS


def add_figure(draft: AccountDraft, meter: Meter, row: UsageRow, id: str, figure: Figure) -> tuple[int, int, int]:
    """The hour's quantity with a whole group's, what that adds to the bill, and the instant of the latest value."""
    if meter.aggregation == "unique":
        closed = draft.hours.is_closed(row.hour)
        new = 0 if closed else sum(_is_new(draft, id, value, figure.at) for value in figure.values)
        return row.quantity_nanos + new, new, 0
    total, added = _aggregated(draft, meter, row, id, figure.quantity_nanos, figure.at, "")
    return total, added, max(row.latest_at, figure.at) if meter.aggregation == "latest" else 0


def unrecord(
    draft: AccountDraft,
    tariff: Tariff,
    quantities: dict[str, int],
    dimensions: dict[str, str],
    at: int,
    late: bool,
    cause: int,
) -> None:
    """Take an event's quantities out of its hour again: of sums and counts, the others cannot be undone."""
    hour = at - at % HOUR_MS
    for name, quantity, meter, kept, id in _hours(tariff, quantities, dimensions, hour):
        if meter is None or meter.aggregation not in _ADDITIVE:
            continue
        if draft.usage_row(id) is None and not draft.hours.is_closed(hour):
            continue  # counted under other dimensions of the meter
        row = draft.usage_hour(id, name, hour, kept, meter.aggregation)
        left, events, late_events = row.quantity_nanos - quantity, row.events - 1, row.late_events - late
        if not row.since:
            left, events, late_events = max(0, left), max(0, events), max(0, late_events)
        draft.usage.put(id, replace(row, quantity_nanos=left, events=events, late_events=late_events))
        draft.deltas.append(UsageDelta(name, hour, kept, -quantity, -1, -int(late), cause))
