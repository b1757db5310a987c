"""What a customer has a right to, as its worker says, and how OpenMeter tells it.

A `metered` entitlement there is one of two here: an allowance of a period, or credits, on which grants are given. A
feature that several of a plan's entitlements concern is told by the first that counts something.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from tallygate.connectors.gateway.asking import ask
from tallygate.connectors.gateway.customers import statement_of
from tallygate.connectors.gateway.openmeter.features import feature_of
from tallygate.connectors.gateway.operations import Call
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.answers import EntitlementState, PoolView, Statement
from tallygate.schemas.catalog import Feature
from tallygate.schemas.requests import Check

#: The least that can be asked for: whether anything at all is left.
LEAST: Final = Decimal("0.000000001")

_TOLD_FIRST: Final = ("metered", "static", "credit", "boolean")
_PERIODS: Final = {"hour": ("PT1H", "PT1H"), "day": ("DAY", "P1D"), "week": ("WEEK", "P1W"), "month": ("MONTH", "P1M")}


class Right(NamedTuple):
    """A customer's right to a feature, as it is `at`, an instant's text.

    `all_of`: every entitlement to it, `shown` the one that OpenMeter is told of.
    """

    customer: str
    feature: Feature
    shown: EntitlementState
    all_of: tuple[EntitlementState, ...]
    statement: Statement
    at: str

    @property
    def pools(self) -> list[PoolView]:
        return [pool for pool in self.statement.pools if pool.pool in self.feature.pools]

    @property
    def on_credits(self) -> bool:
        """Whether grants pay for it."""
        return any(each.kind == "credit" or each.beyond == "credits" for each in self.all_of)


async def rights_of(call: Call, customer: str) -> dict[str, Right]:
    """By feature. Raises Problem 404 for a customer that is not known."""
    answer, statement = await statement_of(call, customer)
    catalog = call.gateway.newest.catalog
    found: dict[str, Right] = {}
    for feature in catalog.features:
        given = tuple(each for each in statement.entitlements if each.feature == feature.name)
        if not given and not catalog.plans:  # without plans everything is open to everybody
            given = (EntitlementState(feature.name, "credit" if feature.rates else "boolean"),)
        if given:
            shown = min(given, key=lambda each: _TOLD_FIRST.index(each.kind))
            found[feature.name] = Right(customer, feature, shown, given, statement, answer.at)
    return found


async def right_of(call: Call, customer: str, wanted: str) -> Right:
    """The right to one feature. Raises Problem 404 where there is none."""
    feature_of(call, wanted)
    found = (await rights_of(call, customer)).get(wanted)
    if found is None:
        raise Problem(404, "no-entitlement", f"the customer has no entitlement to {wanted!r}")
    return found


def told(right: Right) -> dict[str, Any]:
    """An entitlement. What is not kept (when it was made, by whom) is left out."""
    shown, subscription = right.shown, right.statement.subscription
    common: dict[str, Any] = {
        "id": shown.feature,
        "type": "metered" if shown.kind == "credit" else shown.kind,
        "featureId": shown.feature,
        "featureKey": shown.feature,
        "customerId": right.customer,
        "customerKey": right.customer,
        **({"activeFrom": subscription.since, "createdAt": subscription.since} if subscription else {}),
    }
    match shown.kind:
        case "static":
            return {**common, "config": shown.value}
        case "metered":
            return {
                **common,
                "isSoftLimit": shown.beyond != "deny",
                "issueAfterReset": Decimal(shown.limit),
                "preserveOverageAtReset": False,
                **_period(right),
            }
        case "credit":
            begins = [pool.period_at for pool in right.pools if pool.period_at]
            soft = right.feature.overage_nanos_max != 0
            return {**common, "isSoftLimit": soft, **({"lastReset": min(begins)} if begins else {})}
        case "boolean":
            return common


def _period(right: Right) -> Mapping[str, Any]:
    shown, subscription = right.shown, right.statement.subscription
    if shown.period_at is None or shown.period not in _PERIODS:
        return {}
    interval, iso = _PERIODS[shown.period]
    return {
        "lastReset": shown.period_at,
        "measureUsageFrom": shown.period_at,
        "currentUsagePeriod": {"from": shown.period_at, "to": shown.resets_at},
        "usagePeriod": {
            "interval": interval,
            "intervalISO": iso,
            "anchor": subscription.anchor if subscription else shown.period_at,
        },
    }


async def value_of(call: Call, right: Right) -> dict[str, Any]:
    """May it be used now, for the least thing, and what is left of it."""
    shown = right.shown
    on_credits = any(
        each.kind == "credit" or (each.beyond == "credits" and Decimal(each.remaining) <= 0) for each in right.all_of
    )
    request = Check(
        id=call.gateway.new_id(),
        customer=right.customer,
        feature=right.feature.name,
        quantities={each.meter: LEAST for each in right.all_of if each.kind == "metered"},
        credits=LEAST if on_credits else Decimal(0),
    )
    said: dict[str, Any] = {"hasAccess": (await ask(call, request)).allowed}
    match shown.kind:
        case "static":
            said["config"] = shown.value
        case "metered":
            left = Decimal(shown.remaining)
            said |= {"balance": max(left, Decimal(0)), "usage": Decimal(shown.used), "overage": max(-left, Decimal(0))}
            said["totalAvailableGrantAmount"] = Decimal(shown.limit)
        case "credit":
            for name in ("balance", "used", "overage"):
                total = sum((Decimal(getattr(pool, name)) for pool in right.pools), Decimal(0))
                said["usage" if name == "used" else name] = total
            active = (each for each in right.statement.grants if each.active and each.pool in right.feature.pools)
            said["totalAvailableGrantAmount"] = sum((Decimal(each.amount) for each in active), Decimal(0))
        case "boolean":
            pass
    return said
