"""What a route is: an operation with a scope, a handler and what describes it; and a call of it, authenticated."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from tallygate.connectors.gateway import bodies
from tallygate.connectors.gateway.limits import check_customers
from tallygate.connectors.gateway.problems import Problem
from tallygate.connectors.gateway.services import Gateway
from tallygate.schemas.keys import KeyRecord, Scope
from tallygate.schemas.names import NAME_MAX, has_control

T = TypeVar("T")

JSON: Final = "application/json"
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Parameter(NamedTuple):
    """A query parameter, or a header, with its JSON Schema."""

    name: str
    text: str
    schema: Mapping[str, Any]
    required: bool = False
    place: Literal["query", "header"] = "query"


class Shown(NamedTuple):
    """One answer in the description of the API: a struct's type or a JSON Schema, with an example."""

    text: str
    type: Any = None
    example: Any = None
    media: str = JSON


class Operation(NamedTuple):
    """One method of one path.

    `scope`: what the key must hold; None: no key is needed. `tenant`: keys for single customers may not. `body`: by
    media type, a struct's type or a JSON Schema, with an example. `answers`: what it says when it is well, by status.
    `described`: whether it stands in our own OpenAPI description.
    """

    method: Method
    path: str
    name: str
    summary: str
    scope: Scope | None
    handler: "Callable[[Call], Awaitable[Response]]"
    group: str = ""
    text: str = ""
    tenant: bool = False
    parameters: Sequence[Parameter] = ()
    body: Mapping[str, tuple[Any, Any]] = {}
    answers: Mapping[int, Shown] = {}
    problems: Sequence[int] = ()
    described: bool = True


class Mounted(NamedTuple):
    """An ASGI application of its own below a path, behind the same keys and limits.

    Its `scope["state"]` holds `call`, the authenticated `Call`; `build` makes it once.
    """

    path: str
    scope: Scope
    build: Callable[[Gateway], ASGIApp]


class Call:
    """One authenticated call of an operation."""

    def __init__(self, gateway: Gateway, request: Request, key: KeyRecord | None) -> None:
        self.gateway = gateway
        self.request = request
        self._key = key

    @property
    def key(self) -> KeyRecord:
        assert self._key is not None, "an operation without a scope has no key"
        return self._key

    @property
    def origin(self) -> str:
        """The address that the connection came from."""
        client = self.request.client
        return client.host if client else ""

    def customer(self) -> str:
        """The customer that the path names, if the key may name it."""
        return self.allowed(self.request.path_params["customer"])

    def allowed(self, customer: str) -> str:
        if not customer or len(customer) > NAME_MAX or has_control(customer):
            raise Problem(400, "malformed", f"a customer has 1 to {NAME_MAX} characters and no control characters")
        check_customers(self.key, (customer,))
        return customer

    def query(self, name: str, default: str | None = None) -> str | None:
        """A query parameter; given twice, it is refused."""
        found = self.request.query_params.getlist(name)
        if len(found) > 1:
            raise Problem(400, "malformed", f"the parameter {name!r} is given twice")
        return found[0] if found else default

    async def json(self, decoder: msgspec.json.Decoder[T], *, optional: bool = False) -> T:
        """The body, as a decoder's type. `optional`: no body at all is an empty object."""
        body = await bodies.read_body(self.request)
        if not body and optional:
            body = b"{}"
        else:
            bodies.content_type(self.request, (JSON,))
        return decoded(decoder, body)


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except RecursionError:
        raise Problem(400, "malformed", "the JSON is nested too deeply", reason="malformed") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, ArithmeticError) as error:
        raise Problem(400, "malformed", _line(error), reason="malformed") from None


def _line(error: Exception) -> str:
    text = str(error)
    if " matching regex " in text:
        return f"control characters are not allowed - at {text.rpartition(' - at ')[2]}"
    return text or "this is no JSON"


_encode = msgspec.json.Encoder().encode


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, JSON)
