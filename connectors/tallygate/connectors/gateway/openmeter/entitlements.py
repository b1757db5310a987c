"""Entitlements in OpenMeter's form: what a customer has a right to, what is left of it, and changes of it.

What is made is the customer's own entitlement, in place of its plan's: `metered` with `issueAfterReset` is an allowance
of a period, without it credits, on which grants are given. Subscriptions are put in force whole, so two changes of one
customer's entitlements at the same time may leave the last of them alone.
"""

from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.administration import carry_out
from tallygate.connectors.gateway.customers import statement_of
from tallygate.connectors.gateway.openmeter import grants, history
from tallygate.connectors.gateway.openmeter.asked import impossible, numbers_response, operation, paged, refuse, wrong
from tallygate.connectors.gateway.openmeter.features import feature_of
from tallygate.connectors.gateway.openmeter.grants import GrantBody, Rhythm
from tallygate.connectors.gateway.openmeter.rights import Right, right_of, rights_of, told, value_of
from tallygate.connectors.gateway.operations import Call
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.answers import Statement
from tallygate.schemas.catalog import Feature
from tallygate.schemas.instants import from_datetime, parse_instant, to_datetime
from tallygate.schemas.requests import Override, Period, ResetPool, Subscribe

_PERIODS: Final[dict[str, Period]] = {
    "PT1H": "hour",
    "P1D": "day",
    "P1W": "week",
    "P1M": "month",
}


class Issue(msgspec.Struct, frozen=True):
    amount: Decimal
    priority: int = 1


class EntitlementBody(msgspec.Struct, frozen=True, rename="camel"):
    """An entitlement to be, of any of the three types."""

    type: Literal["metered", "static", "boolean"]
    feature_key: str | None = None
    feature_id: str | None = None
    config: str | None = None
    is_soft_limit: bool = False
    usage_period: Rhythm | None = None
    issue_after_reset: Decimal | None = None
    issue: Issue | None = None
    preserve_overage_at_reset: bool = False
    grants: tuple[GrantBody, ...] = ()
    metadata: dict[str, str] | None = None

    @property
    def issued(self) -> Decimal | None:
        return self.issue.amount if self.issue else self.issue_after_reset


class ResetBody(msgspec.Struct, frozen=True, rename="camel"):
    effective_at: str | None = None
    retain_anchor: bool | None = None
    preserve_overage: bool = False


_decoder: Final = msgspec.json.Decoder(EntitlementBody)
_reset_decoder: Final = msgspec.json.Decoder(ResetBody)


def _named(call: Call) -> str:
    return str(call.request.path_params["entitlement"])


async def _list(call: Call) -> Response:
    rights = await rights_of(call, call.customer())
    return numbers_response(paged(call, [told(each) for each in rights.values()]))


async def _get(call: Call) -> Response:
    return numbers_response(told(await right_of(call, call.customer(), _named(call))))


async def _value(call: Call) -> Response:
    customer = call.customer()
    refuse(call, {"time": "only what is now is known: leave it out"})
    return numbers_response(await value_of(call, await right_of(call, customer, _named(call))))


async def _value_or_none(call: Call) -> Response:
    """Of a feature without an entitlement: no access, where the other route says 404."""
    customer = call.customer()
    refuse(call, {"time": "only what is now is known: leave it out"})
    feature = feature_of(call, _named(call))
    right = (await rights_of(call, customer)).get(feature.name)
    return numbers_response({"hasAccess": False} if right is None else await value_of(call, right))


async def _create(call: Call) -> Response:
    return await _put(call, fresh=True)


async def _replace(call: Call) -> Response:
    return await _put(call, fresh=False)


async def _put(call: Call, *, fresh: bool) -> Response:
    """Makes the customer's own entitlement, and then its grants; `fresh`: it must have none yet."""
    customer = call.customer()
    body = await call.json(_decoder)
    feature = feature_of(call, body.feature_key or body.feature_id or ("" if fresh else _named(call)))
    override = _override(body, feature)
    _, statement = await statement_of(call, customer)
    overrides = _overrides(call, statement)
    if fresh and feature.name in overrides:
        raise Problem(
            409, "entitlement-exists", f"the customer has an entitlement of its own to {feature.name!r}: override it"
        )
    _check_anchor(body, statement)
    request = _subscribing(call, customer, statement, {**overrides, feature.name: override}, body)
    await carry_out(call, request)
    right = await right_of(call, customer, feature.name)
    for number, grant in enumerate(body.grants):
        await carry_out(call, grants.request_of(call, right, grant, f"{request.id}:{number}"))
    return numbers_response(told(right), 201)


async def _delete(call: Call) -> Response:
    """The plan's entitlement holds again, if it has one."""
    customer = call.customer()
    wanted = feature_of(call, _named(call)).name
    _, statement = await statement_of(call, customer)
    overrides = _overrides(call, statement)
    if wanted not in overrides:
        raise Problem(404, "no-entitlement", f"the customer has no entitlement of its own to {wanted!r}")
    del overrides[wanted]
    await carry_out(call, _subscribing(call, customer, statement, overrides, None))
    return Response(status_code=204)


def _override(body: EntitlementBody, feature: Feature) -> Override:
    if body.metadata:
        raise impossible("metadata of entitlements is not kept")
    if body.type != "metered":
        if body.grants or body.issued is not None:
            raise wrong(f"a {body.type} entitlement has no grants")
        if body.type == "boolean":
            return Override("boolean", "true")
        if not body.config:
            raise wrong("config: what does a static entitlement tell?")
        return Override("static", body.config)
    if body.issued is None:
        if body.is_soft_limit:
            raise impossible("isSoftLimit: whether credits may be overdrawn is a feature's `overage` in the catalog")
        return Override("credit")
    if len(feature.meters) != 1:
        raise Problem(422, "meter-unknown", f"the feature {feature.name!r} has {len(feature.meters)} meters, not one")
    if body.grants:
        raise impossible("grants: an allowance (issueAfterReset) has none; leave issueAfterReset out for credits")
    if body.preserve_overage_at_reset:
        raise impossible("preserveOverageAtReset: an allowance begins anew with each period")
    if body.usage_period is None or body.usage_period.iso not in _PERIODS:
        raise impossible("usagePeriod.interval: periods of an allowance are PT1H, DAY, WEEK and MONTH")
    beyond: Literal["allow", "deny"] = "allow" if body.is_soft_limit else "deny"
    period = _PERIODS[body.usage_period.iso]
    return Override("metered", meter=feature.meters[0], limit=body.issued, period=period, beyond=beyond)


def _overrides(call: Call, statement: Statement) -> dict[str, Override]:
    """The customer's own entitlements, as a new subscription must name them again."""
    known = {feature.name for feature in call.gateway.newest.catalog.features}
    found = {}
    for each in statement.entitlements:
        if not each.own or each.feature not in known:
            continue
        if each.kind == "metered":
            found[each.feature] = Override(
                "metered",
                meter=each.meter,
                limit=Decimal(each.limit),
                period=each.period,  # type: ignore[arg-type]
                beyond=each.beyond,  # type: ignore[arg-type]
            )
        else:
            found[each.feature] = Override(each.kind, each.value)
    return found


def _check_anchor(body: EntitlementBody, statement: Statement) -> None:
    anchor = body.usage_period.anchor if body.usage_period and body.issued is not None else None
    if anchor is None or statement.subscription is None:
        return
    if from_datetime(anchor) != parse_instant(statement.subscription.anchor):
        raise impossible(
            f"usagePeriod.anchor: the customer's periods count from {statement.subscription.anchor}, all of them"
        )


def _subscribing(
    call: Call, customer: str, statement: Statement, overrides: dict[str, Override], body: EntitlementBody | None
) -> Subscribe:
    """The same subscription with these overrides; without one, the default plan's."""
    catalog, before = call.gateway.newest.catalog, statement.subscription
    plan = before.plan if before else catalog.default_plan
    if not plan:
        raise impossible("the customer is on no plan, and the catalog has no default_plan: put it on one first")
    first = body.usage_period.anchor if before is None and body and body.usage_period else None
    return Subscribe(
        id=call.gateway.new_id(),
        customer=customer,
        plan=plan,
        add_ons=before.add_ons if before else (),
        overrides=overrides,
        anchor=to_datetime(parse_instant(before.anchor)) if before else first,
    )


async def _reset(call: Call) -> Response:
    """Ends the usage period of the pools that pay for it."""
    customer = call.customer()
    body = await call.json(_reset_decoder, optional=True)
    right: Right = await right_of(call, customer, _named(call))
    if body.effective_at is not None:
        raise impossible("effectiveAt: a period is reset now: leave it out")
    if body.retain_anchor is False:
        raise impossible("retainAnchor: a reset now leaves the rhythm of the next ones as it is: send true, or nothing")
    if not right.on_credits:
        raise impossible(
            f"an entitlement that is {right.shown.kind} is not reset: an allowance's periods end by themselves"
        )
    for pool in right.feature.pools:
        request = ResetPool(
            id=call.gateway.new_id(), customer=customer, pool=pool, preserve_overage=body.preserve_overage
        )
        await carry_out(call, request)
    return Response(status_code=204)


_V2: Final = "/api/v2/customers/{customer}/entitlements"
_EXAMPLE: Final[dict[str, Any]] = {"type": "boolean", "featureKey": "llm"}

OPERATIONS: Final = (
    operation("GET", _V2 + "/{entitlement}/value", _value, "read"),
    operation("GET", "/api/v1/customers/{customer}/entitlements/{entitlement}/value", _value_or_none, "read"),
    operation("GET", "/api/v1/subjects/{customer}/entitlements/{entitlement}/value", _value_or_none, "read"),
    *grants.OPERATIONS,
    *history.OPERATIONS,
    operation("POST", _V2 + "/{entitlement}/reset", _reset, "admin", example={}),
    operation("PUT", _V2 + "/{entitlement}/override", _replace, "admin", example=_EXAMPLE),
    operation("GET", _V2, _list, "read"),
    operation("POST", _V2, _create, "admin", example=_EXAMPLE),
    operation("GET", _V2 + "/{entitlement}", _get, "read"),
    operation("DELETE", _V2 + "/{entitlement}", _delete, "admin"),
)
