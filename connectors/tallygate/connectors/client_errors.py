"""What a call of the client raises. Each error is one line that says what happened and what to do.

A denial is a value where an answer is asked for (`await client.reserve(...)`) and the exception `Denied` where work
would begin without one (`async with client.reserve(...)`). A refusal is always an exception: the request was wrong.
"""

from collections.abc import Sequence

from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Settle

__all__ = [
    "BrokersAway",
    "ClientClosed",
    "Denied",
    "LeaseUnsettled",
    "NoAnswer",
    "NotAllowed",
    "NotConnected",
    "NotHeld",
    "RefusedRequest",
    "TallygateError",
    "Unsettled",
    "UsageLost",
]


class TallygateError(Exception):
    """Any error of the client."""


class NotConnected(TallygateError):
    """The client could not start: no broker answers, or a topic is missing."""


class BrokersAway(NotConnected):
    """No broker answers: starting again may succeed."""


class NotAllowed(TallygateError):
    """The gateway does not know the API key, or the key may not do this: another key is needed."""


class NotHeld(TallygateError):
    """Nothing was held, because the work was let through without an answer: what it took is to be reported as usage."""


class Unsettled(TallygateError):
    """The work was done, and no answer to its settling came: `response` is what it gave. `__cause__` says why."""

    def __init__(self, message: str, response: object) -> None:
        super().__init__(message)
        self.response = response


class ClientClosed(TallygateError):
    """The client is not running: not started yet, closed, or broken."""


class NoAnswer(TallygateError):
    """No answer came in time. What was asked may have been recorded or not; asking again with the same id is safe.

    `op`, `id` and `customer` say which request it was.
    """

    def __init__(self, message: str, *, op: str, id: str, customer: str) -> None:
        super().__init__(message)
        self.op = op
        self.id = id
        self.customer = customer


class UsageLost(TallygateError):
    """Usage events that were not confirmed, or that found no room: `events` of them."""

    def __init__(self, message: str, *, events: int) -> None:
        super().__init__(message)
        self.events = events


class LeaseUnsettled(TallygateError):
    """Work taken under a lease that no worker confirmed. Each of `settles` may be asked again: it counts once."""

    def __init__(self, settles: Sequence[Settle]) -> None:
        self.settles = tuple(settles)
        named = ", ".join(f"{settle.hold!r} of customer {settle.customer!r}" for settle in self.settles)
        super().__init__(
            f"what was taken of hold {named} may not be recorded yet: give each of this error's `settles` to "
            "`client.ask` again; it counts once"
        )


class RefusedRequest(TallygateError, ValueError):
    """The request is wrong in itself: nothing was decided, nothing was counted.

    `answer` is None where the client saw it before anything was sent.
    """

    def __init__(self, reason: Reason, message: str, answer: Answer | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.answer = answer


class Denied(TallygateError):
    """A limit said no. `answer.limits` holds every limit that did."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_why(answer))
        self.answer = answer
        self.reason = answer.reason


def _why(answer: Answer) -> str:
    said = [
        f"{limit.kind} {limit.name!r} has {limit.remaining} of {limit.limit} {limit.unit} left, {limit.asked} asked"
        for limit in answer.limits
        if not limit.ok
    ]
    detail = "; ".join(said) or answer.message
    head = f"{answer.op} of customer {answer.customer!r} denied: {answer.reason}"
    return f"{head} ({detail})" if detail else head
