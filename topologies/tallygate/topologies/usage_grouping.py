"""From the columns of a run of batches to groups: what the rules count. Once a run, with numpy, off the event loop.

Each row gets a number for its combination (type, dimensions, filters, tier, hour and rates in force) and one for its
customer; what the two make together numbers the groups, and `bincount` and `reduceat` sum up by that number. Only what
is there once in a run, texts and combinations and groups, is touched by Python.

A row that is wrong makes its whole record wrong: it is found by its number, and the groups are made again without it.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tallygate.pipeline.metering import dimension
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.usage_groups import Combination, Figure, Group
from tallygate.pipeline.usage_readings import Reading, combination, counting, reading
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, NANOS, UNITS_MAX, from_nanos
from tallygate.schemas.catalog import Meter
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import scope_text
from tallygate.schemas.reasons import Reason, Refused
from tallygate.topologies.usage_columns import Array, Columns, Numbers
from tallygate.topologies.usage_joined import JoinedColumns, WrongRecords
from tallygate.topologies.usage_sums import dense, latest, ranks, reduced, sums

#: A key this large is numbered anew before it is multiplied again.
_KEY_MAX: Final = 1 << 40
_COMBINATIONS_KEPT_MAX: Final = 50_000

Customers = list[tuple[str, tuple[Group, ...]]]


class Grouper:
    """Groups under one catalog; remembers the combinations that it has met."""

    def __init__(self, tariff: Tariff, grace_ms: int) -> None:
        self._tariff = tariff
        self._grace_ms = grace_ms
        self._readings: dict[str, Reading] = {}
        self._combinations: dict[Any, tuple[Combination, tuple[int, ...], str]] = {}

    def group(self, batches: Sequence[Columns], customers: list[str]) -> Customers:
        """The groups by customer, in the order of names; raises `WrongRecords`. Batches have `customers` by number."""
        if not batches:
            return []
        if len(self._combinations) > _COMBINATIONS_KEPT_MAX:
            self._combinations.clear()
        run = JoinedColumns(batches, customers)
        found: Customers = []
        for type, rows in run.types():
            read = self._reading(type, run, rows)
            found += _Typed(self._tariff, read, run, rows, self._combinations, self._grace_ms).customers()
        return found if len(run.type_names) == 1 else _merged(found)

    def _reading(self, type: str, run: JoinedColumns, rows: Array | None) -> Reading:
        found = self._readings.get(type)
        if found is None:
            try:
                found = self._readings[type] = reading(self._tariff, type)
            except Refused as refused:
                raise WrongRecords(dict.fromkeys(run.places(rows), refused)) from None
        return found


def _merged(found: Customers) -> Customers:
    by_name: dict[str, tuple[Group, ...]] = {}
    for name, groups in found:
        by_name[name] = by_name.get(name, ()) + groups
    return sorted(by_name.items())


class _Typed:
    """The rows of one type in a run."""

    def __init__(
        self,
        tariff: Tariff,
        read: Reading,
        run: JoinedColumns,
        rows: Array | None,
        known: dict[Any, tuple[Combination, tuple[int, ...], str]],
        grace_ms: int,
    ) -> None:
        self._tariff = tariff
        self._read = read
        self._run = run
        self._rows = rows
        self._known = known
        self._at = self._of_type(run.at)
        self._numbers = {name: self._of_numbers(run.numbers(name)) for name in read.numbers}
        self._late = self._at < self._of_type(
            np.repeat([batch.source.at - grace_ms for batch in run.batches], np.diff(run.begins))
        )

    def _of_type(self, column: Array) -> Array:
        return column if self._rows is None else column[self._rows]

    def _of_numbers(self, column: Numbers) -> Numbers:
        valid = None if column.valid is None else self._of_type(column.valid)
        return Numbers(self._of_type(column.values), column.places, None if valid is None or valid.all() else valid)

    def customers(self) -> Customers:
        found, kinds = self._combinations()
        customer, kind = dense(self._of_type(self._run.customer), len(self._run.customers))
        names = [self._run.customers[number] for number in customer.tolist()]
        self._check(found, kinds)
        group, of_row = dense(kind * len(found) + kinds, len(names) * len(found))
        whose, what = group // len(found), group % len(found)
        order = np.lexsort((ranks([text for _, _, text in found])[what], ranks(names)[whose]))
        counts = np.bincount(of_row, minlength=len(group))
        figures = [self._figures(meter, of_row, len(group), counts) for meter in self._read.meters]
        if all(len(uses) == len(figures) for _, uses, _ in found):
            each_figures: list[tuple[Figure, ...]] = list(zip(*figures, strict=True))
        else:
            each_figures = [
                tuple(figures[use][number] for use in found[kind][1]) for number, kind in enumerate(what.tolist())
            ]
        late = self._late_groups(of_row, len(group))
        events = counts.tolist()
        combinations = [each[0] for each in found]
        result: Customers = []
        before, own = -1, list[Group]()
        whose_of, what_of = whose.tolist(), what.tolist()
        for number in order.tolist():
            if whose_of[number] != before:
                if own:
                    result.append((names[before], tuple(own)))
                before, own = whose_of[number], []
            own.append(Group(combinations[what_of[number]], events[number], late[number], each_figures[number]))
        result.append((names[before], tuple(own)))
        return result

    # Combinations

    def _combinations(self) -> tuple[list[tuple[Combination, tuple[int, ...], str]], Array]:
        """The combinations that occur, each with the numbers of the meters that count it; and which one a row has."""
        read = self._read
        parts: list[tuple[Array, list[Any]]] = [self._dimension(name) for name in read.dimensions]
        parts += [self._filter(name) for name in read.filters]
        parts += [self._tier(meter) for meter in read.meters]
        parts += [self._times(), self._lateness()]
        key = np.zeros(len(self._at), np.int64)
        size = 1
        for codes, kinds in parts:
            if len(kinds) == 1:
                continue
            if size * len(kinds) > _KEY_MAX:
                present, key = dense(key, size)
                size = len(present)
            key, size = key * len(kinds) + codes, size * len(kinds)
        present, kind = dense(key, size)
        sample = np.empty(len(present), np.int64)
        sample[kind[::-1]] = np.arange(len(kind) - 1, -1, -1)
        columns = [
            kinds * len(sample) if len(kinds) == 1 else [kinds[code] for code in codes[sample].tolist()]
            for codes, kinds in parts
        ]
        return [self._combination(tuple(row)) for row in zip(*columns, strict=True)], kind

    def _combination(self, row: tuple[Any, ...]) -> tuple[Combination, tuple[int, ...], str]:
        read = self._read
        key = (read.type, row)
        found = self._known.get(key)
        if found is None:
            rest = iter(row)
            dimensions = {name: value for name in read.dimensions if (value := next(rest)) is not None}
            counts = counting(read, {name: next(rest) for name in read.filters})
            calls = tuple(next(rest) for _ in read.meters)
            at, late = rest
            uses = tuple(number for number, does in enumerate(counts) if does)
            text = f"{scope_text(dimensions)}\0{at:020}\0{counts}\0{calls}\0{late}"
            found = self._known[key] = combination(self._tariff, read, dimensions, counts, calls, at), uses, text
        return found

    def _dimension(self, name: str) -> tuple[Array, list[Any]]:
        texts, codes = self._run.strings(name)
        for number, text in enumerate(texts):
            if text is None:
                continue
            try:
                dimension(name, text)
            except Refused as refused:
                self._blame(self._of_type(codes) == number, refused)
        return self._of_type(codes), texts

    def _filter(self, name: str) -> tuple[Array, list[Any]]:
        """Of a property that is filtered by, only what the filters tell apart."""
        texts, codes = self._run.strings(name)
        wanted = [meter.where[name] for meter in self._read.meters if name in meter.where]
        kinds: dict[tuple[bool, ...], int] = {}
        samples: list[str | None] = []
        own = []
        for text in texts:
            kind = tuple(text in each for each in wanted)
            if kind not in kinds:
                kinds[kind] = len(kinds)
                samples.append(text)
            own.append(kinds[kind])
        return self._of_type(np.array(own, np.int64)[codes]), samples

    def _tier(self, meter: Meter) -> tuple[Array, list[Any]]:
        """In which tier an event's own quantity lies, and a quantity that lies there."""
        if meter.aggregation in ("count", "unique"):
            return self._late, [NANOS]
        tiers = self._tariff.tiers.get(meter.name)
        if tiers is None or meter.aggregation != "sum":
            return self._late, [0]
        column = self._numbers[meter.value]
        scale = 10 ** (9 - column.places)
        bounds = np.array([above // scale for above in tiers], column.values.dtype)
        return np.searchsorted(bounds, column.values, side="left"), [0, *(above + 1 for above in tiers)]

    def _lateness(self) -> tuple[Array, list[Any]]:
        first = bool(self._late[0])
        mixed = bool(self._late.any()) and not bool(self._late.all())
        return self._late.astype(np.int64), [False, True] if mixed else [first]

    def _times(self) -> tuple[Array, list[Any]]:
        """Hours, cut where a rate begins: each by its begin."""
        first, last = int(self._at.min()), int(self._at.max())
        begins = set(range(first - first % HOUR_MS, last + 1, HOUR_MS)) if last - first < 10_000 * HOUR_MS else set()
        if not begins:
            begins = set((np.unique(self._at // HOUR_MS) * HOUR_MS).tolist())
        begins.update(at for at in self._tariff.instants if first - first % HOUR_MS < at <= last)
        found = sorted(begins)
        if len(found) == 1:
            return self._late, found
        return np.searchsorted(np.array(found, np.int64), self._at, side="right") - 1, found

    # Figures

    def _figures(self, meter: Meter, of_row: Array, groups: int, counts: Array) -> list[Figure]:
        if meter.aggregation == "count":
            return [Figure(events, events * NANOS) for events in counts.tolist()]
        if meter.aggregation == "unique":
            return self._unique(meter, of_row, groups)
        column = self._numbers[meter.value]
        scale = 10 ** (9 - column.places)
        if column.valid is None:
            values, own, events = column.values, of_row, counts
        else:
            values, own = column.values[column.valid], of_row[column.valid]
            events = np.bincount(own, minlength=groups)
        ats = [0] * groups
        match meter.aggregation:
            case "sum":
                found = sums(values, own, groups)
            case "min":
                found = reduced(np.minimum.reduceat, values, own, groups)
            case "max":
                found = reduced(np.maximum.reduceat, values, own, groups)
            case _:
                at = self._at if column.valid is None else self._at[column.valid]
                found, ats = latest(values, at, own, groups)
        return [Figure(n, q * scale, at) for n, q, at in zip(events.tolist(), found, ats, strict=True)]

    def _unique(self, meter: Meter, of_row: Array, groups: int) -> list[Figure]:
        texts, codes = self._run.strings(meter.value)
        codes = self._of_type(codes)
        if self._run.is_boolean(meter.value):
            texts = [text if text is None else text.title() for text in texts]  # as the other lane writes them
        pairs = np.unique(of_row * len(texts) + codes)
        values: list[list[str]] = [[] for _ in range(groups)]
        for group, code in zip((pairs // len(texts)).tolist(), (pairs % len(texts)).tolist(), strict=True):
            text = texts[code]
            if text is not None:
                values[group].append(text)
        there = np.array([text is not None for text in texts])[codes]
        events = np.bincount(of_row[there], minlength=groups).tolist()
        latest = reduced(np.maximum.reduceat, self._at, of_row, groups)
        return [Figure(n, n * NANOS, at, tuple(sorted(own))) for n, at, own in zip(events, latest, values, strict=True)]

    def _late_groups(self, of_row: Array, groups: int) -> list[bool]:
        if not self._late.any():
            return [False] * groups
        return (np.bincount(of_row[self._late], minlength=groups) > 0).tolist()  # type: ignore[no-any-return]

    # What is wrong

    def _check(self, found: list[tuple[Combination, tuple[int, ...], str]], kinds: Array) -> None:
        nothing: list[Array] | None = []  # by meter, the rows that it would count and that have no value for it
        for number, meter in enumerate(self._read.meters):
            counting = np.array([number in uses for _, uses, _ in found])
            counts = None if counting.all() else counting[kinds]
            there = None if meter.aggregation == "count" else self._there(meter)
            if there is None:
                nothing = None
            elif nothing is not None:
                nothing.append(~there if counts is None else ~there & counts)
            has = there if counts is None else counts if there is None else there & counts
            self._check_quantities(meter, has)
            self._check_prices(meter, number, found, kinds, has)
        if nothing:
            wanted = ", ".join(sorted(meter.value for meter in self._read.meters))
            refused = Refused(Reason.QUANTITY_INVALID, f"data has none of: {wanted}")
            self._blame(np.logical_and.reduce(nothing), refused)

    def _there(self, meter: Meter) -> Array | None:
        """The rows that have a value for the meter; None are all."""
        if meter.aggregation != "unique":
            return self._numbers[meter.value].valid
        texts, codes = self._run.strings(meter.value)
        if None not in texts:
            return None
        return self._of_type(codes) != texts.index(None)  # type: ignore[no-any-return]

    def _check_quantities(self, meter: Meter, has: Array | None) -> None:
        if meter.value not in self._numbers or meter.aggregation in ("count", "unique"):
            return
        column = self._numbers[meter.value]
        low, high = int(column.values.min()), int(column.values.max())
        most = UNITS_MAX * 10**column.places
        if low >= 0 and high <= most:
            return
        wrong = (column.values < 0) | (column.values > most)
        wrong = wrong if has is None else wrong & has
        if wrong.any():
            first = int(column.values[np.flatnonzero(wrong)[0]])
            why = "is negative" if first < 0 else f"is absurdly large: at most {UNITS_MAX} units"
            text = from_nanos(first * 10 ** (9 - column.places))
            self._blame(wrong, Refused(Reason.QUANTITY_INVALID, f"data.{meter.value}: {text[:40]} {why}"))

    def _check_prices(
        self,
        meter: Meter,
        number: int,
        found: list[tuple[Combination, tuple[int, ...], str]],
        kinds: Array,
        has: Array | None,
    ) -> None:
        scale, values = NANOS, None
        most = 1
        if meter.aggregation not in ("count", "unique"):
            column = self._numbers[meter.value]
            scale, values = 10 ** (9 - column.places), column.values
            most = int(values.max())
        for kind, (combined, uses, _) in enumerate(found):
            if number not in uses:
                continue
            use = combined.uses[uses.index(number)]
            if use.price is not None and use.cost(most * scale) <= AMOUNT_NANOS_MAX:
                continue
            rows = kinds == kind if has is None else (kinds == kind) & has
            if use.price is None:
                self._blame(rows, _unpriced(meter.name, combined.dimensions))
                continue
            if values is not None:
                rows = rows & (values > AMOUNT_NANOS_MAX * use.price[1] // (use.price[0] * scale))
            self._blame(
                rows, Refused(Reason.QUANTITY_INVALID, f"this much of meter {meter.name!r} costs an absurd sum")
            )

    def _blame(self, rows: Array, refused: Refused) -> None:
        wrong = np.flatnonzero(rows)
        if len(wrong):
            places = self._run.places(wrong if self._rows is None else self._rows[wrong])
            raise WrongRecords(dict.fromkeys(places, refused))


def _unpriced(meter: str, dimensions: dict[str, str]) -> Refused:
    named = ", ".join(f"{k}={v}" for k, v in sorted(dimensions.items()))
    return Refused(Reason.UNPRICED, f"no rate of meter {meter!r} holds for {named or 'no dimensions'} at that time")
