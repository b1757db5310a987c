"""A catalog as people write it: plain values for YAML or JSON, amounts as Decimals, defaults left out.

The same as `CatalogFile` reads, so that what `document` gives compiles to the catalog it was given.
"""

from decimal import Decimal
from typing import Any

from tallygate.schemas.amounts import NANOS, from_nanos
from tallygate.schemas.catalog import (
    Catalog,
    Entitlement,
    Feature,
    Meter,
    Plan,
    PlanBudget,
    PlanGrant,
    PoolReset,
    Rate,
    RateLimit,
)
from tallygate.schemas.catalog_features import POOL_DEFAULT
from tallygate.schemas.catalog_values import span_text
from tallygate.schemas.instants import format_instant

Document = dict[str, Any]


def document(catalog: Catalog) -> Document:
    """The whole catalog, without its version."""
    return _told(
        meters={each.name: _meter(each) for each in catalog.meters},
        features={each.name: _feature(each) for each in catalog.features},
        plans={each.name: _plan(each) for each in catalog.plans},
        add_ons={each.name: _plan(each) for each in catalog.add_ons},
        default_plan=catalog.default_plan,
    )


def _told(**fields: Any) -> Document:
    """Only what says something: no empty text, mapping or list, nothing false, nothing that is None."""
    return {name: value for name, value in fields.items() if value or (value == 0 and value is not False)}


def _meter(meter: Meter) -> Document:
    return _told(
        event_type=meter.event_type,
        aggregation="" if meter.aggregation == "sum" else meter.aggregation,
        value=meter.value,
        dimensions=list(meter.dimensions),
        where={name: list(wanted) for name, wanted in meter.where.items()},
    )


def _feature(feature: Feature) -> Document:
    hold = _told(
        ttl_seconds=None if feature.ttl_seconds == 300 else feature.ttl_seconds,
        at_end="" if feature.at_end == "release" else feature.at_end,
    )
    owed = feature.overage_nanos_max
    return _told(
        pools=[] if feature.pools == (POOL_DEFAULT,) else list(feature.pools),
        meters=list(feature.meters),
        rates=[rate_document(each) for each in feature.rates],
        hold=hold,
        overage="unlimited" if owed is None else _number(owed) if owed else "",
        fail="" if feature.fail == "closed" else feature.fail,
        observe=feature.observe,
    )


def rate_document(rate: Rate) -> Document:
    return _told(
        meter=rate.meter,
        credits=_number(rate.credits_nanos),
        per="" if rate.per_nanos == NANOS else _number(rate.per_nanos),
        when=dict(rate.when),
        since=format_instant(rate.since) if rate.since else "",
        tiers=[{"above": _number(tier.above_nanos), "credits": _number(tier.credits_nanos)} for tier in rate.tiers],
    )


def _plan(plan: Plan) -> Document:
    by_feature: dict[str, list[Entitlement]] = {}
    for each in plan.entitlements:
        by_feature.setdefault(each.feature, []).append(each)
    return _told(
        entitlements={name: _entitlement(each) for name, each in by_feature.items()},
        grants={each.name: _grant(each) for each in plan.grants},
        budgets={each.name: _budget(each) for each in plan.budgets},
        rate_limits={each.name: _rate_limit(each) for each in plan.rate_limits},
        resets={each.pool: _reset(each) for each in plan.resets},
    )


def _entitlement(of_feature: list[Entitlement]) -> Any:
    first = of_feature[0]
    match first.kind:
        case "boolean":
            return first.value != "false"
        case "credit":
            return "credits"
        case "static":
            return {"value": first.value}
        case "metered":
            forms = [_allowance(each) for each in of_feature]
            return forms if len(forms) > 1 else forms[0]


def _allowance(each: Entitlement) -> Document:
    return _told(
        meter=each.meter,
        limit=_number(each.limit_nanos),
        period="" if each.period == "month" else each.period,
        beyond="" if each.beyond == "deny" else each.beyond,
        observe=each.observe,
    )


def _grant(grant: PlanGrant) -> Document:
    return _told(
        pool="" if grant.pool == POOL_DEFAULT else grant.pool,
        amount=_number(grant.amount_nanos),
        priority=None if grant.priority == 1 else grant.priority,
        category="" if grant.category == "paid" else grant.category,
        price=_amount(grant.price_nanos),
        every=grant.every,
        expires_after=grant.expires_after,
        rollover_min=_amount(grant.rollover_min_nanos),
        rollover_max=_amount(grant.rollover_max_nanos),
    )


def _budget(budget: PlanBudget) -> Document:
    fields = _told(
        limit=_number(budget.limit_nanos),
        scope=dict(budget.scope),
        unit="" if budget.unit == "credits" else budget.unit,
        period="" if budget.period == "lifetime" else budget.period,
        thresholds=list(budget.thresholds),
        observe=budget.observe,
    )
    return fields if budget.hard else fields | {"hard": False}


def _rate_limit(limit: RateLimit) -> Document:
    return _told(
        limit=_number(limit.limit_nanos),
        per=span_text(limit.per_seconds),
        burst="" if limit.burst_nanos == limit.limit_nanos else _number(limit.burst_nanos),
        scope=dict(limit.scope),
        unit="" if limit.unit == "requests" else limit.unit,
        observe=limit.observe,
    )


def _reset(reset: PoolReset) -> Any:
    return {"every": reset.every, "preserve_overage": True} if reset.preserve_overage else reset.every


def _number(nanos: int) -> Decimal:
    return Decimal(from_nanos(nanos))


def _amount(nanos: int) -> Decimal | None:
    """An amount whose default is 0."""
    return _number(nanos) if nanos else None
