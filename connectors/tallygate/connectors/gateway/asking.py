"""From a body to a request, and from an answer to a response: what all routes that ask a worker share."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import FieldInfo, fields, replace

from tallygate.connectors.client_content import exact, id_of
from tallygate.connectors.client_errors import TallygateError
from tallygate.connectors.gateway.operations import Call, Parameter
from tallygate.connectors.gateway.problems import Problem, denial, problem_of
from tallygate.schemas.answers import Answer
from tallygate.schemas.names import NAME_MAX, Name, has_control
from tallygate.schemas.requests import OPS, Override, Release, Request, Settle, VoidGrant

IDEMPOTENCY_KEY: Final = "Idempotency-Key"

ID_PARAMETER: Final = Parameter(
    IDEMPOTENCY_KEY,
    "The request's id, unless the body says it: the same id with the same content is answered as the first time, "
    "the same id with other content is refused (409).",
    {"type": "string", "minLength": 1, "maxLength": NAME_MAX},
    place="header",
)


class Form:
    """A kind of request as a body: without its type, with an optional id, and without what the path says.

    `given` names the fields that come from elsewhere.
    """

    def __init__(self, request: type[Any], given: tuple[str, ...] = ()) -> None:
        self.request = request
        self.op = OPS[request]
        own = [field for field in fields(request) if field.name not in ("id", *given)]
        self.names = tuple(field.name for field in own)
        name = f"{request.__name__}Body"
        self.body: type[Any] = msgspec.defstruct(
            name,
            [("id", Name | UnsetType, UNSET), *map(_declared, own)],
            frozen=True,
            kw_only=True,
            forbid_unknown_fields=True,
            omit_defaults=True,
            namespace={"__doc__": request.__doc__},
        )
        self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self.body)

    def fill(self, call: Call, body: Any, **given: str) -> Request:
        """The request, with the id that the call names or one that is made for it."""
        content = {name: _canonical(name, getattr(body, name)) for name in self.names}
        content |= given
        return self.request(id=request_id(call, body.id, content, self.request), **content)  # type: ignore[no-any-return]


def _declared(field: FieldInfo) -> tuple[Any, ...]:
    if field.required:
        return field.encode_name, field.type
    if field.default_factory is not msgspec.NODEFAULT:
        return field.encode_name, field.type, msgspec.field(default_factory=field.default_factory)
    return field.encode_name, field.type, field.default


def _canonical(name: str, value: Any) -> Any:
    """The same content in one form, however it was written: a repetition is then known as one."""
    match value:
        case Decimal():
            return exact(name, value)
        case dict():
            return {key: _canonical(f"{name}.{key}", value[key]) for key in sorted(value)}
        case Override():
            return replace(value, limit=exact(f"{name}.limit", value.limit))
        case _:
            return value


def request_id(call: Call, in_body: str | UnsetType, content: Mapping[str, Any], kind: type[Any]) -> str:
    """The id of a request: the body's, the header's, what follows from what it ends, or a new one."""
    header = call.request.headers.get(IDEMPOTENCY_KEY)
    if header is not None and (not header or len(header) > NAME_MAX or has_control(header)):
        raise Problem(400, "malformed", f"{IDEMPOTENCY_KEY} has 1 to {NAME_MAX} characters and no control characters")
    if header is not None and in_body not in (UNSET, header):
        raise Problem(400, "malformed", f"the body's id and {IDEMPOTENCY_KEY} differ: send one of them")
    if header is not None:
        return header
    if not isinstance(in_body, UnsetType):
        return in_body
    for ending, ended in _ENDINGS.items():
        if kind is ending:
            return id_of(OPS[kind], content["customer"], content[ended])
    return call.gateway.new_id()


#: Requests that end something have an id that follows from it, so that sending them again is safe.
_ENDINGS: Final[dict[type[Any], str]] = {Settle: "hold", Release: "hold", VoidGrant: "grant"}


async def ask(call: Call, request: Request) -> Answer:
    """A worker's answer. Raises Problem where there is none, or where the request was refused."""
    try:
        return await call.gateway.client.ask(request)
    except TallygateError as error:
        raise problem_of(error) from None


async def ask_allowed(call: Call, request: Request) -> Answer:
    """As `ask`, for requests that are no questions: a denial is a problem, too."""
    answer = await ask(call, request)
    if not answer.allowed:
        raise denial(answer)
    return answer


def made(form: Form, **given: Callable[[Call], str]) -> Callable[[Call], Any]:
    """Reads a call's body into the form's request, and checks that the key may name its customer."""

    optional = not any(field.required for field in fields(form.body))

    async def read(call: Call) -> Request:
        filled = {name: find(call) for name, find in given.items()}
        body = await call.json(form.decoder, optional=optional)
        try:
            request = form.fill(call, body, **filled)
        except TallygateError as error:
            raise problem_of(error) from None
        call.allowed(request.customer)
        return request

    return read
