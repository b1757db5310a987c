"""The ASGI application: every operation behind its key, its limits, and one form of errors."""

import logging
import re
import time
from collections.abc import Mapping
from typing import Final

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallygate.connectors.gateway import mounts
from tallygate.connectors.gateway.audit import now_ms
from tallygate.connectors.gateway.bodies import BODY_BYTES_MAX, too_large
from tallygate.connectors.gateway.confirmed import Outgoing
from tallygate.connectors.gateway.limits import check_scope, check_whole_tenant
from tallygate.connectors.gateway.operations import Call, Mounted, Operation
from tallygate.connectors.gateway.problems import Problem, unavailable
from tallygate.connectors.gateway.services import Gateway
from tallygate.schemas import keys
from tallygate.schemas.keys import KeyRecord, encode_keyed, record_key
from tallygate.schemas.topics import KEYS

logger = logging.getLogger(__name__)

_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")


def build_app(gateway: Gateway) -> ASGIApp:
    """Everything that `mounts` lists."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in mounts.operations():
        here = by_path.setdefault(operation.path, {})
        assert operation.method not in here, f"{operation.method} {operation.path} is there twice"
        here[operation.method] = operation
    routes: list[BaseRoute] = [
        Route(route_path(path), _Path(gateway, path, operations)) for path, operations in by_path.items()
    ]
    for each in mounts.mounted():
        guarded = _Guarded(gateway, each)
        routes += [Route(each.path, _AtItsRoot(each.path, guarded)), Mount(each.path, guarded)]
    return Router(routes, redirect_slashes=False, default=_Nothing(gateway))


class _AnyText(PathConvertor):
    """A name, whatever is in it: slashes, which are not told from those of the path, and what a name may not hold."""

    regex = "(?s:.*)"


register_url_convertor("any", _AnyText())


def route_path(path: str) -> str:
    """As Starlette writes it."""
    return _PARAMETER.sub(r"{\1:any}", path)


async def authenticate(gateway: Gateway, request: Request, scope: keys.Scope) -> KeyRecord:
    """The key of a call, if it may do this now. Raises Problem 401, 403, 429 or 503."""
    if not gateway.ready:
        raise unavailable("not-connected", "the gateway has no connection to Kafka yet")
    found = request.headers.getlist("authorization")
    now = now_ms()
    key = gateway.keys.find(found[0] if len(found) == 1 else None, now)
    gateway.rates.take(key, time.monotonic_ns())
    check_scope(key, scope)
    use = gateway.keys.note_use(key.id, now)
    if use is not None:
        gateway.producer.begin([Outgoing(KEYS, record_key(use), encode_keyed(use))])
    return key


class _Path:
    """The operations of one path, by method."""

    def __init__(self, gateway: Gateway, path: str, operations: Mapping[str, Operation]) -> None:
        self._gateway = gateway
        self._operations = operations
        self._seconds = gateway.figures.seconds.labels(path)
        self._path = path
        self._allow = ", ".join(sorted(operations))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request = Request(scope, receive, send)
        operation = self._operations.get(request.method)
        try:
            if operation is None:
                raise _method(request.method, self._allow)
            response = await self._answer(operation, request)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the last place: the caller gets a problem, the log the rest
            response = _response_to(error, f"{request.method} {self._path}")
        self._seconds.observe(time.perf_counter() - started)
        method = request.method if operation else "other"
        self._gateway.figures.calls.labels(method, self._path, str(response.status_code)).inc()
        await response(scope, receive, send)

    async def _answer(self, operation: Operation, request: Request) -> Response:
        if operation.scope is None:
            return await operation.handler(Call(self._gateway, request, None))
        key = await authenticate(self._gateway, request, operation.scope)
        if operation.tenant:
            check_whole_tenant(key)
        return await operation.handler(Call(self._gateway, request, key))


class _Guarded:
    """An application of its own, behind the same keys and limits."""

    def __init__(self, gateway: Gateway, mounted: Mounted) -> None:
        self._gateway = gateway
        self._mounted = mounted
        self._app = mounted.build(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            key = await authenticate(self._gateway, request, self._mounted.scope)
            scope.setdefault("state", {})["call"] = Call(self._gateway, request, key)
            await self._app(scope, _limited(request, receive), sending)
        except ClientDisconnect:
            return
        except Exception as error:
            if status:
                raise  # the answer has begun: all that is left is to break it off
            response = _response_to(error, self._mounted.path)
            status = response.status_code
            await response(scope, receive, send)
        self._gateway.figures.calls.labels(request.method, self._mounted.path, str(status)).inc()


class _AtItsRoot:
    """`/mcp` is `/mcp/` to the application below, without a redirect that not every client follows."""

    def __init__(self, path: str, app: ASGIApp) -> None:
        self._path = path
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "") + self._path
        await self._app({**scope, "root_path": root, "path": f"{root}/"}, receive, send)


def _limited(request: Request, receive: Receive) -> Receive:
    """No more of a body than is allowed, however it comes."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:19]) > BODY_BYTES_MAX:
        raise too_large(BODY_BYTES_MAX)
    size = 0

    async def receiving() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > BODY_BYTES_MAX:
            raise too_large(BODY_BYTES_MAX)
        return message

    return receiving


class _Nothing:
    """What no route answers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        problem = Problem(404, "no-such-route", "there is nothing here: /openapi.json describes what there is")
        self._gateway.figures.calls.labels("other", "other", "404").inc()
        await problem.response()(scope, receive, send)


def _method(method: str, allow: str) -> Problem:
    said = method if method in HTTP_METHODS else "that method"
    return Problem(405, "method-not-allowed", f"{said} is not possible here: {allow}", headers={"Allow": allow})


HTTP_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


def _response_to(error: Exception, where: str) -> Response:
    if isinstance(error, Problem):
        return error.response()
    logger.error("%s failed: %s", where, type(error).__name__, exc_info=error)
    return Problem(500, "fault", "a fault in Tallygate itself: its log says more").response()
