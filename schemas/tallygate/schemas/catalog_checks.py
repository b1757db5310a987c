"""What only the whole catalog can tell: every name that is used exists, and every rule can do what it says."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from tallygate.schemas.catalog import CREDITS_UNIT, REQUESTS_UNIT
from tallygate.schemas.catalog_features import FeatureFile, RateFile
from tallygate.schemas.catalog_plans import EntitlementFile, MeteredFile, PlanFile
from tallygate.schemas.instants import parse_instant

if TYPE_CHECKING:
    from tallygate.schemas.catalog_file import CatalogFile

#: Where in the document: the keys and positions that lead there.
Place = tuple[str | int, ...]

#: Aggregations whose every call adds a known quantity, so that it can be charged or limited.
CHARGEABLE: Final = ("sum", "count", "max", "unique")


class Problem(NamedTuple):
    place: Place
    text: str


def problems(file: "CatalogFile") -> Iterator[Problem]:
    """Everything that is wrong across the parts of a catalog, in the file's order."""
    yield from _meters(file)
    yield from _features(file)
    yield from _rates(file)
    for section, plans in (("plans", file.plans), ("add_ons", file.add_ons)):
        for name, plan in plans.items():
            yield from _Plan(file, (section, name), plan).problems()
    for name in file.add_ons:
        if name in file.plans:
            yield Problem(("add_ons", name), "a plan has this name")
    yield from _periods(file)
    if file.default_plan and file.default_plan not in file.plans:
        yield Problem(("default_plan",), _missing("plan", file.default_plan, file.plans))


def _missing(what: str, name: str, known: Iterable[str]) -> str:
    return f"there is no {what} {name!r}; there are: {', '.join(sorted(known)) or 'none'}"


def _meters(file: "CatalogFile") -> Iterator[Problem]:
    for name in (CREDITS_UNIT, REQUESTS_UNIT):
        if name in file.meters:
            yield Problem(("meters", name), f"{name!r} is what budgets and rate limits count: choose another name")


def _features(file: "CatalogFile") -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for name, feature in file.features.items():
        for number, meter in enumerate(feature.meters):
            place = ("features", name, "meters", number)
            if meter not in file.meters:
                yield Problem(place, _missing("meter", meter, file.meters))
            elif meter in owner:
                yield Problem(place, f"{meter!r} already belongs to feature {owner[meter]!r}")
            owner.setdefault(meter, name)


def _rates(file: "CatalogFile") -> Iterator[Problem]:
    first: dict[tuple[str, frozenset[tuple[str, str]], int], Place] = {}
    for name, feature in file.features.items():
        for number, rate in enumerate(feature.rates):
            yield from _rate(file, name, feature, rate, ("features", name, "rates", number), first)
    for card_name, card in file.rate_cards.items():
        found = file.features.get(card.feature)
        if found is None:
            yield Problem(("rate_cards", card_name, "feature"), _missing("feature", card.feature, file.features))
            continue
        for number, rate in enumerate(card.rates):
            yield from _rate(file, card.feature, found, rate, ("rate_cards", card_name, "rates", number), first)


def _rate(
    file: "CatalogFile",
    name: str,
    feature: FeatureFile,
    rate: RateFile,
    place: Place,
    first: dict[tuple[str, frozenset[tuple[str, str]], int], Place],
) -> Iterator[Problem]:
    meter = file.meters.get(rate.meter)
    if rate.meter not in feature.meters:
        yield Problem((*place, "meter"), f"{rate.meter!r} is no meter of feature {name!r}")
        return
    if meter is None:  # the feature's own problem
        return
    if meter.aggregation not in CHARGEABLE:
        yield Problem(
            (*place, "meter"),
            f"{rate.meter!r} is a {meter.aggregation} meter: only {', '.join(CHARGEABLE)} can be charged",
        )
    for dimension in rate.when:
        if dimension not in meter.dimensions:
            known = ", ".join(meter.dimensions) or "none"
            yield Problem((*place, "when", dimension), f"{rate.meter!r} has no such dimension; it has: {known}")
    since = 0 if rate.since is None else parse_instant(rate.since)
    before = first.setdefault((rate.meter, frozenset(rate.when.items()), since), place)
    if before is not place:
        yield Problem(place, f"{written(before)} prices the same already")


def written(place: Place) -> str:
    """A place as people read it: `features.llm.rates.0`."""
    return ".".join(str(part) for part in place)


class _Plan:
    """One plan or add-on."""

    def __init__(self, file: "CatalogFile", place: Place, plan: PlanFile) -> None:
        self._file = file
        self._place = place
        self._plan = plan
        self._pools = {pool for feature in file.features.values() for pool in feature.paid_from}
        self._dimensions = {name for meter in file.meters.values() for name in meter.dimensions}

    def problems(self) -> Iterator[Problem]:
        for name, entitlement in self._plan.entitlements.items():
            yield from self._entitlement(name, entitlement)
        for name, grant in self._plan.grants.items():
            if grant.pool not in self._pools:
                yield self._no_pool(("grants", name, "pool"), grant.pool)
        for name, budget in self._plan.budgets.items():
            place = (*self._place, "budgets", name)
            yield from self._unit(place, budget.unit, (CREDITS_UNIT,))
            yield from self._scope(place, budget.scope)
        for name, limit in self._plan.rate_limits.items():
            place = (*self._place, "rate_limits", name)
            yield from self._unit(place, limit.unit, (REQUESTS_UNIT, CREDITS_UNIT))
            yield from self._scope(place, limit.scope)
        for pool in self._plan.resets:
            if pool not in self._pools:
                yield self._no_pool(("resets", pool), pool)

    def _no_pool(self, place: Place, pool: str) -> Problem:
        known = ", ".join(sorted(self._pools)) or "none"
        return Problem((*self._place, *place), f"no feature is paid from pool {pool!r}; pools in use: {known}")

    def _unit(self, place: Place, unit: str, beside: tuple[str, ...]) -> Iterator[Problem]:
        if unit in beside:
            return
        meter = self._file.meters.get(unit)
        if meter is None:
            yield Problem((*place, "unit"), f"{unit!r} is neither {' nor '.join(beside)} nor a meter")
        elif meter.aggregation not in CHARGEABLE:
            yield Problem((*place, "unit"), f"{unit!r} is a {meter.aggregation} meter: it cannot be limited")

    def _scope(self, place: Place, scope: dict[str, str]) -> Iterator[Problem]:
        for name in scope:
            if self._dimensions and name not in self._dimensions:
                known = ", ".join(sorted(self._dimensions))
                yield Problem((*place, "scope", name), f"no meter has this dimension; there are: {known}")

    def _entitlement(self, name: str, entitlement: EntitlementFile) -> Iterator[Problem]:
        place = (*self._place, "entitlements", name)
        feature = self._file.features.get(name)
        if feature is None:
            yield Problem(place, _missing("feature", name, self._file.features))
            return
        metered = metered_of(entitlement)
        seen = set()
        for number, each in enumerate(metered):
            here = (*place, number) if isinstance(entitlement, tuple) else place
            yield from self._metered(here, name, feature, each)
            if each.meter in seen:
                yield Problem((*here, "meter"), f"{each.meter!r} has an allowance here already")
            seen.add(each.meter)

    def _metered(self, place: Place, name: str, feature: FeatureFile, each: MeteredFile) -> Iterator[Problem]:
        meter = self._file.meters.get(each.meter)
        if each.meter not in feature.meters:
            yield Problem((*place, "meter"), f"{each.meter!r} is no meter of feature {name!r}")
        elif meter is not None and meter.aggregation not in CHARGEABLE:
            yield Problem((*place, "meter"), f"{each.meter!r} is a {meter.aggregation} meter: it has no allowance")
        elif each.beyond == "credits" and not self._is_priced(name, feature, each.meter):
            yield Problem(
                (*place, "beyond"), f"{each.meter!r} has no rate, so beyond the allowance it would cost nothing"
            )

    def _is_priced(self, name: str, feature: FeatureFile, meter: str) -> bool:
        cards = [card.rates for card in self._file.rate_cards.values() if card.feature == name]
        return any(rate.meter == meter for rates in (feature.rates, *cards) for rate in rates)


def metered_of(entitlement: EntitlementFile) -> tuple[MeteredFile, ...]:
    """The allowances in an entitlement."""
    if isinstance(entitlement, tuple):
        return entitlement
    return (entitlement,) if isinstance(entitlement, MeteredFile) else ()


def _periods(file: "CatalogFile") -> Iterator[Problem]:
    """An add-on's allowance adds to a plan's: it must be of a period that some plan has."""
    of_plans: dict[tuple[str, str], dict[str, Place]] = {}
    for name, plan in file.plans.items():
        for feature, entitlement in plan.entitlements.items():
            for each in metered_of(entitlement):
                periods = of_plans.setdefault((feature, each.meter), {})
                periods.setdefault(each.period, ("plans", name, "entitlements", feature))
    for name, add_on in file.add_ons.items():
        for feature, entitlement in add_on.entitlements.items():
            for each in metered_of(entitlement):
                periods = of_plans.get((feature, each.meter), {})
                if periods and each.period not in periods:
                    period, place = next(iter(periods.items()))
                    yield Problem(
                        ("add_ons", name, "entitlements", feature, "period"),
                        f"an allowance a {each.period} cannot be added to that of {written(place)}, a {period}",
                    )
