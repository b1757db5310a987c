"""What is there of a customer: balance, grants and entitlements as its worker says, now."""

import asyncio
from typing import Any, Final

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.asking import ask, ask_allowed
from tallygate.connectors.gateway.operations import Call, Operation, Parameter, Shown, json_response
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.answers import Answer, GrantView, HoldView, LimitState, PoolView, Statement
from tallygate.schemas.names import NAME_MAX
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Balance, Check
from tallygate.schemas.samples import ANSWER

_AT_ONCE: Final = 16


class CustomerBalance(msgspec.Struct, frozen=True):
    """Pools, grants, holds, and the limits set on the customer itself, at `at`."""

    customer: str
    at: str
    pools: tuple[PoolView, ...]
    grants: tuple[GrantView, ...]
    holds: tuple[HoldView, ...]
    limits: tuple[LimitState, ...]


class CustomerGrants(msgspec.Struct, frozen=True):
    customer: str
    at: str
    grants: tuple[GrantView, ...]


class EntitlementView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a feature may be used now, and every limit on it; `value` is that of a static entitlement."""

    feature: str
    allowed: bool
    reason: Reason
    value: str | None = None
    balance: str | None = None
    limits: tuple[LimitState, ...] = ()


class CustomerEntitlements(msgspec.Struct, frozen=True):
    customer: str
    entitlements: tuple[EntitlementView, ...]


async def statement_of(call: Call, customer: str) -> tuple[Answer, Statement]:
    """What the worker says is there. Raises Problem 404 for a customer that is not known."""
    answer = await ask_allowed(call, Balance(id=call.gateway.new_id(), customer=customer))
    return answer, answer.statement or Statement()


async def _balance(call: Call) -> Response:
    customer = call.customer()
    answer, found = await statement_of(call, customer)
    return json_response(CustomerBalance(customer, answer.at, found.pools, found.grants, found.holds, found.limits))


async def _grants(call: Call) -> Response:
    customer = call.customer()
    answer, found = await statement_of(call, customer)
    return json_response(CustomerGrants(customer, answer.at, found.grants))


async def _entitlements(call: Call) -> Response:
    customer = call.customer()
    names = [feature.name for feature in call.gateway.newest.catalog.features]
    wanted = call.query("feature")
    if wanted is not None:
        if wanted not in names:
            raise Problem(404, "feature-unknown", "the catalog has no such feature", reason=Reason.FEATURE_UNKNOWN)
        names = [wanted]
    room = asyncio.Semaphore(_AT_ONCE)

    async def look(feature: str) -> EntitlementView:
        async with room:
            request = Check(id=call.gateway.new_id(), customer=customer, feature=feature, explain=True)
            answer = await ask(call, request)
        return EntitlementView(
            feature, answer.allowed, answer.reason, answer.value, answer.balance, tuple(answer.limits)
        )

    await statement_of(call, customer)  # 404 for one that is not known
    found = await asyncio.gather(*map(look, names))
    return json_response(CustomerEntitlements(customer, tuple(found)))


_SHOWN: Final = ANSWER.full.statement
_AT: Final = ANSWER.full.at


def _read(path: str, summary: str, handler: Any, shown: Shown, parameters: tuple[Parameter, ...] = ()) -> Operation:
    return Operation(
        method="GET",
        path=f"/v1/customers/{{customer}}/{path}",
        name=path,
        summary=summary,
        group="Customers",
        scope="read",
        handler=handler,
        parameters=parameters,
        answers={200: shown},
        problems=(400, 404),
    )


OPERATIONS: Final = (
    _read(
        "balance",
        "Pools, grants, holds and limits",
        _balance,
        Shown(
            "As it is now.",
            CustomerBalance,
            CustomerBalance("acme", _AT, _SHOWN.pools, _SHOWN.grants, _SHOWN.holds, _SHOWN.limits),
        ),
    ),
    _read(
        "grants",
        "Grants, in the order in which they burn",
        _grants,
        Shown("As they are now.", CustomerGrants, CustomerGrants("acme", _AT, _SHOWN.grants)),
    ),
    _read(
        "entitlements",
        "What the customer may use now",
        _entitlements,
        Shown(
            "Every feature of the catalog, or the one asked for.",
            CustomerEntitlements,
            CustomerEntitlements("acme", (EntitlementView("llm", True, Reason.ALLOWED, None, "987.5"),)),
        ),
        (Parameter("feature", "This feature alone.", {"type": "string", "minLength": 1, "maxLength": NAME_MAX}),),
    ),
)
