"""The client over HTTP, for asyncio: each request is a call of `tallygate gateway`."""

import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from tallygate.connectors.client_calls import TallygateClient
from tallygate.connectors.client_errors import NoAnswer, NotAllowed, TallygateError
from tallygate.connectors.client_http_transport import HttpReply, HttpTransport, Unanswered
from tallygate.connectors.client_usage import BUFFER_EVENTS_DEFAULT, LINGER_SECONDS_DEFAULT
from tallygate.connectors.client_usage_http import HttpUsage
from tallygate.schemas.answers import Answer, GrantView, HoldView, LimitState, PoolView, Statement, decode_answer
from tallygate.schemas.instants import EPOCH
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import (
    OPS,
    Balance,
    Check,
    Estimate,
    Extend,
    GiveGrant,
    Release,
    Request,
    Reserve,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Settle,
    Subscribe,
    VoidGrant,
)

#: Longer than the gateway waits for its worker, so that it is the gateway that says what happens then.
TIMEOUT_SECONDS_DEFAULT: Final = 15.0
TRY_SECONDS_DEFAULT: Final = 7.0
CONNECTIONS_MAX_DEFAULT: Final = 100
_READS: Final = (Check, Estimate, Balance)

_DECISIONS: Final = (Reserve, Settle, Release, Extend, Check, Estimate)
_OF_CUSTOMERS: Final[dict[type, tuple[str, str]]] = {
    Balance: ("GET", "balance"),
    GiveGrant: ("POST", "grants"),
    VoidGrant: ("DELETE", "grants/"),
    ResetPool: ("POST", "resets"),
    SetBudget: ("POST", "budgets"),
    SetRateLimit: ("POST", "rate-limits"),
    Subscribe: ("POST", "subscriptions"),
    SetCustomer: ("POST", "status"),
}


class _Problem(msgspec.Struct):
    """What of a problem (RFC 9457) a caller is told."""

    detail: str = ""
    reason: str = ""


class _Balance(msgspec.Struct):
    at: str
    pools: tuple[PoolView, ...] = ()
    grants: tuple[GrantView, ...] = ()
    holds: tuple[HoldView, ...] = ()
    limits: tuple[LimitState, ...] = ()


class TallygateHTTP(TallygateClient):
    """`Tallygate` by way of a gateway: the same calls, on one event loop, for any number of tasks.

    `url` is the gateway's, `key` an API key (`tallygate keys create`). A call repeats itself under its id, waiting ever
    longer, up to 2 s, in between, when nothing comes within `try_timeout` seconds or the gateway says that it cannot
    answer now (429, 5xx); after `timeout` seconds it raises NoAnswer. Keep `try_timeout` above the gateway's own
    (`TALLYGATE_GATEWAY_TIMEOUT_MS`, 5 s): what the catalog lets fail open is answered by the gateway, with `fallback`;
    `fail_open` is for when no gateway answers, see `TallygateClient`. `tls` is for a certificate authority of your own.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        timeout: float = TIMEOUT_SECONDS_DEFAULT,
        try_timeout: float = TRY_SECONDS_DEFAULT,
        connections_max: int = CONNECTIONS_MAX_DEFAULT,
        tls: ssl.SSLContext | None = None,
        fail_open: Mapping[str, str] | None = None,
        usage_linger: float = LINGER_SECONDS_DEFAULT,
        usage_buffer: int = BUFFER_EVENTS_DEFAULT,
    ) -> None:
        super().__init__(timeout, fail_open)
        self._http = HttpTransport(url, key, try_timeout, connections_max, tls)
        own = HttpTransport(url, key, try_timeout, 1, tls, own_thread=True)  # of the usage buffer
        self._usage = HttpUsage(own, try_timeout, usage_linger, usage_buffer)

    async def _connect(self) -> None:
        await self._http.start(self._timeout)

    async def _disconnect(self) -> None:
        await self._http.close()

    async def _send(self, request: Request, value: bytes, within: float) -> Answer:
        method, path, body, headers = call_of(request)
        try:
            reply = await self._http.call(method, path, body, headers, within)
        except Unanswered as error:
            raise _no_answer(request, within, error) from None
        return _answer(request, reply)


def call_of(request: Request) -> tuple[str, str, bytes | None, dict[str, str]]:
    """Method, path, body and headers of a request."""
    content: dict[str, Any] = msgspec.to_builtins(request)
    del content["type"]
    id = content.pop("id")
    if isinstance(request, _DECISIONS):
        method, path = "POST", f"/v1/{OPS[type(request)]}"
    else:
        method, end = _OF_CUSTOMERS[type(request)]
        path = f"/v1/customers/{quote(content.pop('customer'), safe='')}/{end}"
    if isinstance(request, VoidGrant):
        path += quote(content.pop("grant"), safe="")
    if method == "GET":
        return method, path, None, {}
    headers = {"Content-Type": "application/json"}
    if id.isascii() and id.strip() == id:
        headers["Idempotency-Key"] = id
    else:  # a header cannot hold it
        content["id"] = id
    return method, path, msgspec.json.encode(content), headers


def _answer(request: Request, reply: HttpReply) -> Answer:
    """An answer, be it a refusal, however HTTP worded it."""
    try:
        if reply.status == 200:
            return _statement(request, reply.body) if isinstance(request, Balance) else decode_answer(reply.body)
        problem = msgspec.json.decode(reply.body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        problem = _Problem(
            f"what came cannot be read ({reply.status}): is it a Tallygate gateway, and not newer than this?"
        )
    if reply.status in (401, 403):
        raise NotAllowed(f"{OPS[type(request)]} of customer {request.customer!r} is not allowed: {problem.detail}")
    if problem.reason not in Reason.__members__.values():
        raise TallygateError(f"the gateway answered {reply.status}: {problem.detail}")
    return Answer(
        id=request.id,
        op=OPS[type(request)],
        customer=request.customer,
        allowed=False,
        reason=Reason(problem.reason),
        at=EPOCH.isoformat(),
        message=problem.detail,
    )


def _statement(request: Balance, body: bytes) -> Answer:
    found = msgspec.json.decode(body, type=_Balance)
    return Answer(
        id=request.id,
        op=OPS[Balance],
        customer=request.customer,
        allowed=True,
        reason=Reason.ALLOWED,
        at=found.at,
        statement=Statement(found.pools, found.grants, found.holds, found.limits),
    )


def _no_answer(request: Request, within: float, error: Unanswered) -> NoAnswer:
    op = OPS[type(request)]
    safe = (
        "it changes nothing"
        if isinstance(request, _READS)
        else "it may or may not have been recorded; asking again with the same id is safe"
    )
    times = "once" if error.sent == 1 else f"{error.sent} times"
    return NoAnswer(
        f"no answer to {op} {request.id!r} of customer {request.customer!r} within {within:g} s (sent {times}; last: "
        f"{error}): {safe}",
        op=op,
        id=request.id,
        customer=request.customer,
    )
