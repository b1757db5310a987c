"""Errors as HTTP says them: problem details (RFC 9457), one line for people in `detail`, `reason` for machines."""

from collections.abc import Mapping
from typing import Final, assert_never

import msgspec
from starlette.responses import Response

from tallygate.connectors.client_errors import ClientClosed, NoAnswer, NotConnected, RefusedRequest, TallygateError
from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import Reason

PROBLEM_JSON: Final = "application/problem+json"
RETRY_SECONDS: Final = 1

_TITLES: Final = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request too slow",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported content",
    422: "Refused",
    429: "Too many requests",
    500: "Fault in Tallygate",
    501: "Not possible here",
    503: "Unavailable",
}


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error (RFC 9457). `reason` is one of a closed list where a decision's reasons are meant."""

    type: str
    title: str
    status: int
    detail: str
    reason: str = ""
    errors: tuple[str, ...] = ()


class Problem(Exception):
    """What a call ends with instead of an answer. `slug` names the kind of problem and is never renamed."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        reason: str = "",
        errors: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.reason = reason
        self.errors = errors
        self.headers = dict(headers or {})

    def details(self) -> ProblemDetails:
        return ProblemDetails(
            type=f"urn:tallygate:problem:{self.slug}",
            title=_TITLES[self.status],
            status=self.status,
            detail=self.detail,
            reason=self.reason,
            errors=self.errors,
        )

    def response(self) -> Response:
        return Response(_encode(self.details()), self.status, self.headers, PROBLEM_JSON)


_encode = msgspec.json.Encoder().encode


def unavailable(slug: str, detail: str) -> Problem:
    return Problem(503, slug, detail, headers={"Retry-After": str(RETRY_SECONDS)})


def refusal(reason: Reason, message: str) -> Problem:
    """A request that was refused: nothing was decided, nothing was counted."""
    return Problem(_status_of(reason), reason.value.replace("_", "-"), message, reason=reason.value)


def problem_of(error: TallygateError) -> Problem:
    """What an error of the client is over HTTP."""
    match error:
        case RefusedRequest():
            return refusal(error.reason, error.message)
        case NoAnswer():
            return unavailable("no-answer", str(error))
        case NotConnected() | ClientClosed():
            return unavailable("not-connected", "the gateway has no connection to Kafka now")
        case _:
            return unavailable("no-answer", str(error))


def denial(answer: Answer) -> Problem:
    """A denial on a route that does not ask for a decision: there was no such customer, or it may not do that."""
    return refusal(answer.reason, answer.message or f"{answer.op} of customer {answer.customer!r}: {answer.reason}")


def llm_denial(answer: Answer) -> tuple[int, Mapping[str, str]]:
    """Status and headers of a denial on routes shaped like an LLM API.

    402, or 429 with Retry-After for a rate limit. The OpenAI and Anthropic SDKs repeat 409, 429 and 5xx by themselves
    unless `x-should-retry` says no; asking again at once would only be denied again.
    """
    headers = {"x-should-retry": "false"}
    if answer.retry_after_ms is not None:
        headers["Retry-After"] = str(max(1, -(-answer.retry_after_ms // 1000)))
    if answer.reason is not Reason.RATE_LIMITED:
        return 402, headers
    return 429, {"Retry-After": str(RETRY_SECONDS), **headers}


def _status_of(reason: Reason) -> int:
    match reason:
        case (
            Reason.MALFORMED
            | Reason.TYPE_UNKNOWN
            | Reason.CUSTOMER_MISSING
            | Reason.QUANTITY_INVALID
            | Reason.TIME_IN_FUTURE
        ):
            return 400
        case (
            Reason.CUSTOMER_UNKNOWN
            | Reason.FEATURE_UNKNOWN
            | Reason.HOLD_UNKNOWN
            | Reason.GRANT_UNKNOWN
            | Reason.EVENT_UNKNOWN
        ):
            return 404
        case Reason.ID_CONFLICT | Reason.HOLD_ENDED | Reason.GRANT_ENDED:
            return 409
        case Reason.TOO_LARGE:
            return 413
        case (
            Reason.METER_UNKNOWN
            | Reason.GRANT_BACKDATED
            | Reason.RESET_REFUSED
            | Reason.BUDGET_FIXED
            | Reason.PLAN_UNKNOWN
            | Reason.UNPRICED
            | Reason.CUSTOMER_SUSPENDED
            | Reason.CUSTOMER_STRICT
            | Reason.FEATURE_NOT_ENTITLED
            | Reason.RATE_LIMITED
            | Reason.BUDGET_EXHAUSTED
            | Reason.ALLOWANCE_EXHAUSTED
            | Reason.CREDITS_EXHAUSTED
        ):
            return 422
        case Reason.WRONG_PARTITION | Reason.REPLY_TOPIC_NOT_ALLOWED:
            return 503  # of how Tallygate is set up; not the caller's doing
        case Reason.ALLOWED:
            raise AssertionError("an allowed answer is no problem")
        case _:
            assert_never(reason)
