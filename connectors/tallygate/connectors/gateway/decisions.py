"""May this go ahead? check, reserve, settle, release, extend, estimate.

A decision is 200 and says `allowed`. Where no worker answers in time: 503, or, for a feature that the catalog lets fail
open, 200 with `fallback`: then nothing is held, and what the work took is to be reported as usage.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.responses import Response

from tallygate.connectors.client_errors import ClientClosed, NoAnswer, TallygateError
from tallygate.connectors.gateway.asking import ID_PARAMETER, Form, ask, ask_allowed, made
from tallygate.connectors.gateway.operations import JSON, Call, Operation, Shown, json_response
from tallygate.connectors.gateway.problems import problem_of
from tallygate.connectors.gateway.services import Gateway
from tallygate.schemas.answers import Answer
from tallygate.schemas.instants import format_instant
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import OPS, Check, Estimate, Extend, Release, Reserve, Settle
from tallygate.schemas.samples import ANSWER
from tallygate.schemas.samples_requests import REQUESTS

_FALLBACK: Final = "no worker answered in time, and the feature fails open: report what the work took as usage"


async def decide(gateway: Gateway, request: Check | Reserve) -> Answer:
    """A worker's decision, or what the feature says where there is none. Raises Problem."""
    try:
        return await gateway.client.ask(request)
    except (NoAnswer, ClientClosed) as error:
        # A lease that nobody has granted is nothing to decide within: its caller asks for each call, which may go on.
        lease = isinstance(request, Reserve) and request.lease
        if lease or not gateway.newest.fails_open(request.feature):
            raise problem_of(error) from None
        return _fall_back(gateway, request)
    except TallygateError as error:
        raise problem_of(error) from None


def _fall_back(gateway: Gateway, request: Check | Reserve) -> Answer:
    op = OPS[type(request)]
    gateway.figures.fallbacks.labels(op).inc()
    if isinstance(request, Reserve):
        gateway.behind(_give_back(gateway, request))
    return Answer(
        id=request.id,
        op=op,
        customer=request.customer,
        allowed=True,
        reason=Reason.ALLOWED,
        at=format_instant(time.time_ns() // 1_000_000),
        catalog=gateway.newest.catalog.version,
        message=_FALLBACK,
        fallback=True,
    )


async def _give_back(gateway: Gateway, request: Reserve) -> None:
    """The reservation may yet be decided, by a worker that comes back: what it will hold is released right behind it.

    Both lie in one partition, in this order. Should this not reach Kafka, the hold ends by its time to live.
    """
    release = Release(id=f"{request.id[:200]}/fallback", customer=request.customer, hold=request.id)
    with contextlib.suppress(TallygateError):
        await gateway.client.ask(release)


def _deciding(form: Form) -> Callable[[Call], Awaitable[Response]]:
    read = made(form)

    async def answer(call: Call) -> Response:
        return json_response(await decide(call.gateway, await read(call)))

    return answer


def _recording(form: Form) -> Callable[[Call], Awaitable[Response]]:
    read = made(form)

    async def record(call: Call) -> Response:
        return json_response(await ask_allowed(call, await read(call)))

    return record


def _estimating(form: Form) -> Callable[[Call], Awaitable[Response]]:
    read = made(form)

    async def estimate(call: Call) -> Response:
        return json_response(await ask(call, await read(call)))

    return estimate


def example_of(kind: type[Any], *without: str) -> dict[str, Any]:
    """The body of a request's sample."""
    sample = next(sample.full for sample in REQUESTS if type(sample.full) is kind)
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(sample))
    return {name: value for name, value in found.items() if name not in ("type", *without)}


ANSWERED: Final = {200: Shown("The worker's answer.", Answer, ANSWER.full)}


def _operation(
    kind: type[Any], handle: Callable[[Form], Callable[[Call], Awaitable[Response]]], summary: str, text: str
) -> Operation:
    form = Form(kind)
    return Operation(
        method="POST",
        path=f"/v1/{form.op}",
        name=form.op,
        summary=summary,
        text=text,
        group="Decisions",
        scope="decide",
        handler=handle(form),
        parameters=(ID_PARAMETER,),
        body={JSON: (form.body, example_of(kind))},
        answers=ANSWERED,
        problems=(400, 404, 409, 413, 415, 422),
    )


OPERATIONS: Final = (
    _operation(
        Reserve,
        _deciding,
        "Set credits aside before the work",
        "`allowed: false` says why not, and nothing has changed. With `fallback: true` nothing is held: no worker "
        "answered in time, the feature fails open, and what the work took is to be reported on `/v1/usage`.",
    ),
    _operation(Settle, _recording, "Record what the work took", "Without quantities and credits: what was held."),
    _operation(Check, _deciding, "Would this be allowed now?", "Changes nothing."),
    _operation(Release, _recording, "Give a hold back unused", "Sending it again is safe."),
    _operation(Extend, _recording, "Hold for longer", "Lets a hold live `ttl_seconds` from now."),
    _operation(
        Estimate,
        _estimating,
        "How much is affordable now?",
        "`affordable` says how much of `of`, a meter or `credits`; changes nothing.",
    ),
)
