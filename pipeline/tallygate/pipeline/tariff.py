"""The catalog prepared for look-ups: meters by event type, rates by meter, what a plan with its add-ons offers."""

from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from tallygate.pipeline.rate_table import RateTable
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, from_nanos
from tallygate.schemas.catalog import Catalog, Entitlement, Meter, Plan, Rate
from tallygate.schemas.journal import BudgetRow, RateLimitRow
from tallygate.schemas.reasons import Reason, Refused

#: For so many subscriptions, a plan's budgets are kept as they count for each.
_ANCHORS_MAX: Final = 20_000


@dataclass(frozen=True)
class Offer:
    """What a plan and its add-ons give together: allowances add up; of anything else the last word counts."""

    entitlements: dict[str, tuple[Entitlement, ...]] = field(default_factory=dict)
    budgets: tuple[BudgetRow, ...] = ()
    rate_limits: tuple[RateLimitRow, ...] = ()
    _from: dict[int | None, tuple[BudgetRow, ...]] = field(default_factory=dict)

    def budgets_from(self, anchor: int | None) -> tuple[BudgetRow, ...]:
        """The budgets with their periods counted from an anchor."""
        found = self._from.get(anchor)
        if found is None:
            if len(self._from) >= _ANCHORS_MAX:
                self._from.clear()
            found = self._from[anchor] = tuple(replace(each, anchor=anchor) for each in self.budgets)
        return found


NOTHING = Offer()


class Tariff:
    """One catalog version."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.version = catalog.version
        self.meters = {meter.name: meter for meter in catalog.meters}
        self.features = {feature.name: feature for feature in catalog.features}
        self.feature_of = {meter: feature for feature in catalog.features for meter in feature.meters}
        self.plans = {plan.name: plan for plan in catalog.plans}
        self.add_ons = {plan.name: plan for plan in catalog.add_ons}
        self.meters_of_type: dict[str, list[Meter]] = {}
        for meter in catalog.meters:
            self.meters_of_type.setdefault(meter.event_type, []).append(meter)
        rates: dict[str, list[Rate]] = {}
        for feature in catalog.features:
            for rate in feature.rates:
                rates.setdefault(rate.meter, []).append(rate)
        self._rates = {meter: RateTable(own) for meter, own in rates.items()}
        #: When a rate begins to hold, and where a tier of a meter begins: events between two of them cost alike.
        self.instants = tuple(sorted({rate.since for own in rates.values() for rate in own if rate.since}))
        self.tiers = {
            meter: tuple(sorted({tier.above_nanos for rate in own for tier in rate.tiers}))
            for meter, own in rates.items()
            if any(rate.tiers for rate in own)
        }
        #: Which budgets combinations fall under; `batches` keeps it.
        self.falling: dict[tuple[int, int], Any] = {}
        self._offers: dict[tuple[str, tuple[str, ...]], Offer] = {}

    def cost(self, meter: str, quantity: int, dimensions: dict[str, str], at: int) -> int:
        """Nanos of credits for a quantity of a meter at an instant; a meter without rates costs nothing.

        Rounded half up to a nano: the one rounding in Tallygate, for each call and meter by itself, so that a total
        does not depend on how calls were grouped.
        """
        rates = self._rates.get(meter)
        if rates is None:
            return 0
        rate = rates.find(dimensions, at)
        if rate is not None:
            price = rate.credits_nanos
            for tier in rate.tiers:
                if quantity > tier.above_nanos:
                    price = tier.credits_nanos
            return _bounded(meter, (2 * quantity * price + rate.per_nanos) // (2 * rate.per_nanos))
        raise self._unpriced(meter, dimensions)

    def rate_at(self, meter: str, dimensions: dict[str, str], at: int) -> tuple[Rate | None, int, int]:
        """The rate that holds at an instant (None: a meter without rates), and from when until when at least it does.

        `Refused` where a meter has rates and none holds.
        """
        rates = self._rates.get(meter)
        if rates is None:
            return None, 0, 1 << 62
        rate = rates.find(dimensions, at)
        if rate is None:
            raise self._unpriced(meter, dimensions)
        return rate, *rates.unchanged(at)

    @staticmethod
    def _unpriced(meter: str, dimensions: dict[str, str]) -> Refused:
        named = ", ".join(f"{k}={v}" for k, v in sorted(dimensions.items()))
        return Refused(Reason.UNPRICED, f"no rate of meter {meter!r} holds for {named or 'no dimensions'} at that time")

    def price(self, meter: str, call_nanos: int, dimensions: dict[str, str], at: int) -> tuple[int, int] | None:
        """Nanos of credits for so many nanos of a meter, where each call has `call_nanos` of it; None: unpriced."""
        rates = self._rates.get(meter)
        if rates is None:
            return 0, 1
        rate = rates.find(dimensions, at)
        if rate is None:
            return None
        price = rate.credits_nanos
        for tier in rate.tiers:
            if call_nanos > tier.above_nanos:
                price = tier.credits_nanos
        return price, rate.per_nanos

    def offer(self, plan: str, add_ons: tuple[str, ...]) -> Offer:
        """What a plan (empty: the default one) and add-ons give; names that this catalog does not know give nothing."""
        key = (plan or self.catalog.default_plan, add_ons)
        found = self._offers.get(key)
        if found is None:
            parts = [self.plans.get(key[0]), *(self.add_ons.get(name) for name in add_ons)]
            found = self._offers[key] = _combined([part for part in parts if part is not None])
        return found


def _bounded(meter: str, cost: int) -> int:
    """What one call costs stays as far from the largest sum as what an input may carry."""
    if cost > AMOUNT_NANOS_MAX:
        raise Refused(
            Reason.QUANTITY_INVALID,
            f"this much of meter {meter!r} costs {from_nanos(cost)} credits, an absurd sum: check quantity and rate",
        )
    return cost


def _combined(parts: list[Plan]) -> Offer:
    entitlements: dict[str, dict[str, Entitlement]] = {}
    for part in parts:
        for each in part.entitlements:
            by_meter = entitlements.setdefault(each.feature, {})
            if any(other.kind != each.kind for other in by_meter.values()):
                by_meter.clear()
            before = by_meter.get(each.meter)
            if before is not None and each.kind == "metered":
                total = before.limit_nanos + each.limit_nanos
                by_meter[each.meter] = Entitlement(
                    each.feature, "metered", "", each.meter, total, each.period, each.beyond, each.observe
                )
            else:
                by_meter[each.meter] = each
    budgets = {each.name: each for part in parts for each in part.budgets}
    limits = {each.name: each for part in parts for each in part.rate_limits}
    return Offer(
        entitlements={feature: tuple(by_meter.values()) for feature, by_meter in entitlements.items()},
        budgets=tuple(
            BudgetRow(
                b.name, b.limit_nanos, b.scope, b.unit, b.period, b.hard, None, tuple(sorted(b.thresholds)), b.observe
            )
            for b in budgets.values()
        ),
        rate_limits=tuple(
            RateLimitRow(r.name, r.limit_nanos, r.per_seconds, r.burst_nanos, r.scope, r.unit, r.observe)
            for r in limits.values()
        ),
    )
