"""Whether the gateway lives, whether it is ready, and its description: no key is needed for these."""

from typing import Final

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.operations import JSON, Call, Operation, Shown, json_response
from tallygate.connectors.gateway.problems import unavailable


class Health(msgspec.Struct, frozen=True):
    status: str


async def _live(call: Call) -> Response:
    return json_response(Health("live"))


async def _ready(call: Call) -> Response:
    if not call.gateway.ready:
        raise unavailable("not-connected", "the gateway has no connection to Kafka yet")
    return json_response(Health("ready"))


async def _describe(call: Call) -> Response:
    from tallygate.connectors.gateway.openapi import description

    return Response(description(call.gateway.config.url), media_type=JSON)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/healthz",
        name="live",
        summary="Is the process alive?",
        group="System",
        scope=None,
        handler=_live,
        answers={200: Shown("It is.", Health, Health("live"))},
    ),
    Operation(
        method="GET",
        path="/readyz",
        name="ready",
        summary="Is the gateway connected?",
        text="It knows the keys and the catalog, and can ask and record. Whether a worker runs is another question.",
        group="System",
        scope=None,
        handler=_ready,
        answers={200: Shown("It is.", Health, Health("ready"))},
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="This description",
        group="System",
        scope=None,
        handler=_describe,
        answers={200: Shown("OpenAPI 3.1.", {"type": "object"}, {"openapi": "3.1.0"})},
    ),
)
