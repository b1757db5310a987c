"""The past again: recorded calls decided anew, under another catalog.

What is recorded of a call is what was asked (decisions), and what each input added to usage. The grain: reservations,
settles, releases and extensions as they were asked; usage events by what their meters counted, with the dimensions that
those meters kept, their own time to the hour. What cannot be known is assumed, and every assumption made is counted in
`notes`:

* A call that was denied then and is allowed now is settled at once, at what it asked.
* A call that was allowed then and is denied now has done no work: its settle, release and extensions are left out.
* An event passes the `where` of a meter of the same name as the one that counted it, unless its dimensions say no.
* Each value of a `unique` meter is a new one.
* Events that were counted together are equal parts of their sum.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.simulation import Simulation, Step
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.catalog import CREDITS_UNIT, Catalog, Meter
from tallygate.schemas.events import VOIDED, UsageEvent
from tallygate.schemas.instants import HOUR_MS, to_datetime
from tallygate.schemas.journal import DecisionRecord, scope_text
from tallygate.schemas.reasons import DENIALS, Reason
from tallygate.schemas.requests import Extend, Release, Request, Reserve, Settle, parse_request

GRAIN: Final = "calls as they were asked; usage events by their meters' quantities, their own time to the hour"
#: The operations of those who use; the others run the books.
CALLS: Final = ("reserve", "settle", "release", "extend")
_SOURCE: Final = "record"


class PastDecision(msgspec.Struct, frozen=True):
    """A decision and the place of its entry in the journal."""

    offset: int
    number: int
    record: DecisionRecord


class PastUsage(msgspec.Struct, frozen=True):
    """What one input added to one hour of one meter; `cause` numbers the inputs of the entry at `offset`."""

    offset: int
    number: int
    cause: int
    at: int
    meter: str
    hour: int
    dimensions: dict[str, str]
    quantity_nanos: int
    events: int


class Call(msgspec.Struct, frozen=True):
    """One recorded input. `denied`: so it was decided; `hold`: whose end or extension it is."""

    step: Step
    order: tuple[int, int, int]
    denied: bool = False
    hold: str = ""


class Past:
    """Recorded inputs of one customer as calls under a catalog."""

    def __init__(self, customer: str, catalog: Catalog) -> None:
        self.notes: Counter[str] = Counter()
        self._customer = customer
        self._meters = {meter.name: meter for meter in catalog.meters}
        self._features = {feature.name: feature for feature in catalog.features}
        self._reserved: dict[str, DecisionRecord] = {}
        self._counted: dict[tuple[tuple[Any, ...], ...], list[list[UsageEvent]]] = {}

    def calls(self, decisions: Iterable[PastDecision], usage: Iterable[PastUsage]) -> list[Call]:
        """All of them, in the order in which they were decided."""
        found = [call for each in decisions if (call := self._call(each)) is not None]
        inputs: dict[tuple[int, int], list[PastUsage]] = {}
        for each in usage:
            inputs.setdefault((each.offset, each.cause), []).append(each)
        for deltas in sorted(inputs.values(), key=lambda deltas: (deltas[0].at, deltas[0].offset, deltas[0].cause)):
            found += self._events(deltas)
        return sorted(found, key=lambda call: call.order)

    def _call(self, past: PastDecision) -> Call | None:
        """A recorded decision's request; None for one of an older record that does not have it."""
        each = past.record
        if each.op == "reserve" and each.allowed:
            self._reserved[each.hold] = each
        request = self._request(each)
        if request is None:
            return None
        hold = each.hold if each.op in CALLS[1:] else ""
        step = Step(each.at, request, "the record")
        return Call(step, (each.at, past.offset, past.number), not each.allowed, hold)

    def _request(self, each: DecisionRecord) -> Request | None:
        customer = self._customer
        match each.op:
            case "reserve":
                return self._reserve(each)
            case "settle":
                return self._settle(each)
            case "release":
                return Release(id=each.id, customer=customer, hold=each.hold)
            case "extend":
                return Extend(id=each.id, customer=customer, hold=each.hold, ttl_seconds=each.ttl_seconds)
            case _:
                if each.request:
                    return parse_request(each.request.encode())
                self.notes[f"{each.op} requests that older records do not hold are left out"] += 1
                return None

    def _reserve(self, each: DecisionRecord) -> Reserve:
        quantities = self._known(each.feature, each.quantities)
        least = {unit: n for unit, n in each.at_least.items() if unit == CREDITS_UNIT or unit in quantities}
        if each.reason is Reason.FEATURE_UNKNOWN:
            self.notes["calls of an unknown feature have no recorded quantities"] += 1
        return Reserve(
            id=each.id,
            customer=self._customer,
            feature=each.feature,
            quantities=_units(quantities),
            credits=_unit(each.asked_nanos),
            dimensions=each.dimensions,
            at_least=_units(least),
            ttl_seconds=each.ttl_seconds or None,
        )

    def _settle(self, each: DecisionRecord) -> Settle:
        held = self._reserved.get(each.hold)
        as_held = held is not None and (held.quantities, held.credits_nanos) == (each.quantities, each.credits_nanos)
        if as_held and held is not None and held.asked_nanos and not each.asked_nanos:
            return Settle(id=each.id, customer=self._customer, hold=each.hold)
        quantities = _units(self._known(each.feature, each.quantities))
        credits = _unit(each.asked_nanos)
        return Settle(id=each.id, customer=self._customer, hold=each.hold, quantities=quantities, credits=credits)

    def _known(self, feature: str, quantities: dict[str, int]) -> dict[str, int]:
        """What this catalog's feature counts of it."""
        found = self._features.get(feature)
        if found is None:
            return quantities
        for meter in quantities:
            if meter not in found.meters:
                self.notes[f"feature {feature!r} does not have meter {meter!r}: its quantities are left out"] += 1
        return {meter: nanos for meter, nanos in quantities.items() if meter in found.meters}

    # ---- usage events ----

    def _events(self, deltas: list[PastUsage]) -> Iterator[Call]:
        """An input's events; negative quantities undo an earlier event, which is found by what it had counted."""
        undone = [each for each in deltas if each.events < 0]
        counted = [each for each in deltas if each.events > 0]
        first = deltas[0]
        order = (first.at, first.offset, first.number)
        if undone:
            before = self._counted.get(_content(undone, -1))
            if before:
                for event in before.pop():
                    yield Call(Step(first.at, _void(event), "the record"), order)
            else:
                self.notes["voids of events from before are left out"] += 1
        if any(each.events > 1 for each in counted):
            self.notes["events that were counted together are taken for equal parts of their sum"] += 1
        for number, part in enumerate(_parts(counted)):
            events = self._measured(part, f"{first.offset}/{first.cause}/{number}")
            self._counted.setdefault(_content(part, 1), []).append(events)
            for event in events:
                yield Call(Step(first.at, event, "the record"), order)

    def _measured(self, deltas: list[PastUsage], id: str) -> list[UsageEvent]:
        """Events that this catalog's meters count as the recorded meters did: one, where they read one type."""
        drafts: list[tuple[str, dict[str, Any]]] = []
        dimensions = {name: value for each in deltas for name, value in each.dimensions.items()}
        for each in deltas:
            meter = self._meters.get(each.meter)
            if meter is None:
                self.notes[f"meter {each.meter!r} is not in the catalog: its quantities are left out"] += 1
                continue
            data = self._data(meter, each, id)
            for type, draft in drafts:
                if type == meter.event_type and all(draft.get(name, value) == value for name, value in data.items()):
                    draft.update(data)
                    break
            else:
                drafts.append((meter.event_type, {**dimensions, **data}))
        hour, at = deltas[0].hour, deltas[0].at
        time = to_datetime(at if hour <= at < hour + HOUR_MS else hour)
        return [
            UsageEvent(
                specversion="1.0",
                id=f"{id}/{number}",
                source=_SOURCE,
                type=type,
                subject=self._customer,
                time=time,
                data=data,
            )
            for number, (type, data) in enumerate(drafts)
        ]

    def _data(self, meter: Meter, each: PastUsage, id: str) -> dict[str, Any]:
        """The properties in which this meter finds the quantity."""
        data: dict[str, Any] = {}
        for name, wanted in meter.where.items():
            if name not in each.dimensions and wanted:
                self.notes[f"events are taken to pass the `where` of meter {meter.name!r}"] += 1
                data[name] = wanted[0]
        if meter.aggregation == "unique":
            self.notes[f"each value of meter {meter.name!r} is taken for a new one"] += 1
            data[meter.value] = id
        elif meter.aggregation != "count":
            data[meter.value] = from_nanos(each.quantity_nanos)
        return data


def _parts(deltas: list[PastUsage]) -> Iterator[list[PastUsage]]:
    """What was counted together, as so many single events; what does not divide falls to the last of them."""
    for count in dict.fromkeys(each.events for each in deltas):
        alike = [each for each in deltas if each.events == count]
        for number in range(count):
            parts = [divmod(each.quantity_nanos, count) for each in alike]
            nanos = [part + (rest if number == count - 1 else 0) for part, rest in parts]
            yield [
                replace(each, number=each.number + number, events=1, quantity_nanos=own)
                for each, own in zip(alike, nanos, strict=True)
            ]


def _content(deltas: Iterable[PastUsage], sign: int) -> tuple[tuple[Any, ...], ...]:
    return tuple(sorted((d.meter, d.hour, scope_text(d.dimensions), sign * d.quantity_nanos) for d in deltas))


def _void(event: UsageEvent) -> UsageEvent:
    named = {"source": event.source, "id": event.id}
    return msgspec.structs.replace(event, id=f"{event.id}/void", type=VOIDED, time=None, data=named)


def _unit(nanos: int) -> Decimal:
    return Decimal(from_nanos(nanos))


def _units(quantities: dict[str, int]) -> dict[str, Decimal]:
    return {name: _unit(nanos) for name, nanos in quantities.items()}


class Again:
    """Plays calls on a simulation; `notes` counts what had to be assumed, `refused` inputs that were wrong here."""

    def __init__(self, simulation: Simulation, notes: Counter[str]) -> None:
        self._simulation = simulation
        self.notes = notes
        self._denied: set[str] = set()
        self.refused: Counter[str] = Counter()

    def play(self, call: Call) -> list[dict[str, Any]]:
        """The answers: none where the call is left out, two where one has to be settled that was denied then."""
        request = call.step.input
        if call.hold and call.hold in self._denied:
            self.notes["calls denied now have done no work: their settles, releases and extensions are left out"] += 1
            return []
        answer = self._take(call.step)
        if not isinstance(request, Reserve):
            return [answer]
        if not answer["allowed"]:
            self._denied.add(request.id)
            return [answer]
        self._denied.discard(request.id)
        if not call.denied:
            return [answer]
        self.notes["calls denied then and allowed now are settled at once, at what they asked"] += 1
        settle = Settle(id=f"{request.id}/assumed", customer=request.customer, hold=request.id)
        return [answer, self._take(Step(call.step.at, settle, call.step.place))]

    def _take(self, step: Step) -> dict[str, Any]:
        answer = self._simulation.take(step)
        if not answer["allowed"] and answer["reason"] not in DENIALS:
            self.refused[f"{answer['op']}: {answer['reason']}"] += 1
        return answer


def limits_of(text: str) -> tuple[LimitState, ...]:
    """The limits of a decision as ClickHouse holds them: JSON."""
    return _limits(text) if text else ()


_limits = msgspec.json.Decoder(tuple[LimitState, ...]).decode
