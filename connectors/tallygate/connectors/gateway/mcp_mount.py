"""The tools for agents at `/mcp`: streamable HTTP without sessions, so that any gateway answers any call.

The key must hold `decide`; report_usage needs `ingest`, balance and limits need `read` as well.
"""

import asyncio
import logging
from typing import Any, Final

from mcp.server.mcpserver import Context
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import ASGIApp, Receive, Scope, Send

from tallygate.connectors.gateway.bodies import BODY_BYTES_MAX
from tallygate.connectors.gateway.operations import Call, Mounted
from tallygate.connectors.gateway.problems import Problem
from tallygate.connectors.gateway.services import Gateway
from tallygate.connectors.mcp.desks import KeyDesk
from tallygate.connectors.mcp.tools import build_server


class _Mcp:
    """Every call is a session of its own; the manager's tasks live beside the gateway's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._running: asyncio.Future[StreamableHTTPSessionManager] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise Problem(405, "method-not-allowed", "there are no sessions here: POST", headers={"Allow": "POST"})
        manager = await asyncio.shield(self._manager())
        await manager.handle_request(scope, receive, send)

    def _manager(self) -> "asyncio.Future[StreamableHTTPSessionManager]":
        if self._running is None:
            self._running = asyncio.get_running_loop().create_future()
            self._gateway.behind(self._run(self._running))
        return self._running

    async def _run(self, running: "asyncio.Future[StreamableHTTPSessionManager]") -> None:
        server = build_server(_desk_of)
        server.streamable_http_app(
            stateless_http=True, json_response=True, max_request_body_size=BODY_BYTES_MAX, host=""
        )
        async with server.session_manager.run():
            running.set_result(server.session_manager)
            await asyncio.Event().wait()


def _desk_of(context: Context) -> KeyDesk:
    request: Any = context.request_context.request
    call: Call = request.state.call
    return KeyDesk(call)


def _build(gateway: Gateway) -> ASGIApp:
    logging.getLogger("mcp").setLevel(logging.WARNING)  # what callers get wrong is theirs to read
    return _Mcp(gateway)


MOUNTED: Final = (Mounted("/mcp", "decide", _build),)
