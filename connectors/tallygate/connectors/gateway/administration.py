"""What those who run the books change: grants, pools, budgets, rate limits, subscriptions, customers; all audited.

Each change is in the audit log before it is asked of a worker, and its outcome before it is acknowledged.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.responses import Response

from tallygate.connectors.client_errors import RefusedRequest, TallygateError
from tallygate.connectors.gateway.asking import ID_PARAMETER, Form, made
from tallygate.connectors.gateway.decisions import ANSWERED, example_of
from tallygate.connectors.gateway.operations import JSON, Call, Method, Operation, json_response
from tallygate.connectors.gateway.problems import denial, problem_of
from tallygate.schemas.audit import details_of
from tallygate.schemas.requests import (
    OPS,
    GiveGrant,
    Request,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Subscribe,
    VoidGrant,
)


def _changing(form: Form, **given: Callable[[Call], str]) -> Callable[[Call], Awaitable[Response]]:
    read = made(form, customer=Call.customer, **given)

    async def change(call: Call) -> Response:
        return await carry_out(call, await read(call))

    return change


async def carry_out(call: Call, request: Request) -> Response:
    """Asks a worker for a change and answers with what it said; audited before and after."""
    audited = await call.gateway.audit.begin(
        who=call.key.id,
        origin=call.origin,
        action=OPS[type(request)],
        customer=request.customer,
        target=request.id,
        details=details_of(request),
    )
    try:
        answer = await call.gateway.client.ask(request)
    except RefusedRequest as error:
        await audited.end("refused", str(error))
        raise problem_of(error) from None
    except TallygateError as error:
        await audited.end("failed", str(error))
        raise problem_of(error) from None
    if not answer.allowed:
        await audited.end("denied", answer.reason.value)
        raise denial(answer)
    await audited.end("done")
    return json_response(answer)


def _operation(
    kind: type[Any],
    path: str,
    summary: str,
    text: str,
    *,
    method: Method = "POST",
    **given: Callable[[Call], str],
) -> Operation:
    form = Form(kind, ("customer", *given))
    body = {} if given else {JSON: (form.body, example_of(kind, "customer", *given))}
    return Operation(
        method=method,
        path=f"/v1/customers/{{customer}}/{path}",
        name=form.op,
        summary=summary,
        text=text,
        group="Administration",
        scope="admin",
        handler=_changing(form, **given),
        parameters=(ID_PARAMETER,),
        body=body,
        answers=ANSWERED,
        problems=(400, 404, 409, 413, 415, 422),
    )


def _grant_of(call: Call) -> str:
    return str(call.request.path_params["grant"])


OPERATIONS: Final = (
    _operation(
        GiveGrant, "grants", "Give credits", "Once for each id; the id names the grant. Makes a customer known."
    ),
    _operation(
        VoidGrant,
        "grants/{grant}",
        "End a grant",
        "It ends now; what is left of it is breakage.",
        method="DELETE",
        grant=_grant_of,
    ),
    _operation(SetBudget, "budgets", "Set a budget", "The same name again changes its limit, period and thresholds."),
    _operation(SetRateLimit, "rate-limits", "Set a rate limit", "The same name again changes it."),
    _operation(
        Subscribe,
        "subscriptions",
        "Put a customer on a plan",
        "With all the add-ons and overrides that it is to have from now on.",
    ),
    _operation(ResetPool, "resets", "End a pool's usage period", "Grants keep what rolls over."),
    _operation(
        SetCustomer,
        "status",
        "Suspend a customer, or let it go on",
        "One that is not known becomes known. A strict one gets no leases. `null` for `suspended` leaves it as it is.",
    ),
)
