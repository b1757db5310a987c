"""What the routes in OpenMeter's form share: how they are listed, what they read of a call, how they say no."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.operations import JSON, Call, Method, Operation
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.instants import EPOCH, LATEST, format_instant, from_datetime, parse_instant
from tallygate.schemas.keys import Scope

T = TypeVar("T")

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1_000


def operation(
    method: Method,
    path: str,
    handler: Callable[[Call], Awaitable[Response]],
    scope: Scope,
    *,
    tenant: bool = False,
    example: Any = None,
) -> Operation:
    """A route of OpenMeter's; its description is OpenMeter's own. `example`: a JSON body that it takes."""
    return Operation(
        method=method,
        path=path,
        name=f"openmeter {method} {path}",
        summary="",
        scope=scope,
        tenant=tenant,
        handler=handler,
        body={} if example is None else {JSON: ("openmeter", example)},
        described=False,
    )


def impossible(detail: str) -> Problem:
    """What OpenMeter has and Tallygate has not."""
    return Problem(501, "not-in-tallygate", detail)


def wrong(detail: str) -> Problem:
    return Problem(400, "malformed", detail)


def refuse(call: Call, reasons: dict[str, str]) -> None:
    """Refuses a call that has a query parameter which cannot be honoured."""
    for name in call.request.query_params:
        known = name.partition("[")[0]
        if known in reasons:
            raise impossible(f"{known}: {reasons[known]}")


def several(call: Call, name: str) -> list[str]:
    """A parameter that may be given more than once, written as `name=` or as `name[]=`."""
    found = call.request.query_params
    return [value for value in (*found.getlist(name), *found.getlist(f"{name}[]")) if value]


def instant(call: Call, name: str) -> int | None:
    text = call.query(name)
    if text is None:
        return None
    try:
        # A plus sign that was not encoded is a space.
        at = parse_instant(text.replace(" ", "+"))
    except (ValueError, OverflowError):
        raise wrong(f"{name}: write an instant like 2026-01-31T00:00:00Z") from None
    return inside(name, at)


def inside(name: str, at: int) -> int:
    if not 0 <= at <= from_datetime(datetime(2105, 12, 31, tzinfo=EPOCH.tzinfo)):
        raise wrong(f"{name}: an instant in the years 1970 to 2105")
    return at


def number(call: Call, name: str, default: int, most: int, least: int = 1) -> int:
    text = call.query(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not least <= int(text) <= most:
        raise wrong(f"{name}: a number from {least} to {most}")
    return int(text)


def flag(call: Call, name: str) -> bool:
    return (call.query(name) or "").lower() in ("true", "1")


def paged(call: Call, items: Sequence[T]) -> dict[str, Any]:
    """One page of what is there, the first unless another is asked for."""
    page, size = number(call, "page", 1, 10**6), number(call, "pageSize", PAGE_SIZE, PAGE_SIZE_MAX)
    shown = items[(page - 1) * size : page * size]
    return {"totalCount": len(items), "page": page, "pageSize": size, "items": list(shown)}


def since(at: int | None) -> dict[str, str]:
    """When a thing began, if that is known. What has versions and no changes was updated when it was created."""
    return {} if not at else {"createdAt": format_instant(at), "updatedAt": format_instant(at)}


def written(at: int) -> str:
    assert at <= from_datetime(LATEST)
    return format_instant(at)


def without_none(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None}


_encode_numbers: Final = msgspec.json.Encoder(decimal_format="number").encode


def numbers_response(value: Any, status: int = 200) -> Response:
    """JSON whose amounts are numbers, as OpenMeter writes them, with all their digits."""
    return Response(_encode_numbers(value), status, media_type=JSON)
