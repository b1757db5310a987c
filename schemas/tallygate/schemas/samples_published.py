"""Samples of what the relay publishes: the same story as in `samples`."""

from typing import Final

from tallygate.schemas.answers import LimitState
from tallygate.schemas.published import EntryPlace, PublishedAlert, PublishedCause, PublishedDecision, PublishedPosting
from tallygate.schemas.reasons import Reason
from tallygate.schemas.samples_requests import WHO, Sample

_AT: Final = "2026-01-01T12:00:00Z"
_PLACE: Final = EntryPlace(3, 1207, 4, 311, 1)
_CAUSE: Final = PublishedCause("tallygate.requests.v1", 3, 511, "call-7")
_LIMIT: Final = LimitState(
    kind="budget",
    name="agents",
    ok=False,
    unit="credits",
    asked="12.5",
    limit="500",
    used="480",
    held="10",
    remaining="10",
    scope={"agent": "drafter"},
    hard=False,
    resets_at="2026-01-02T00:00:00Z",
    observe=True,
)

PUBLISHED: Final = (
    Sample(
        "published-decision",
        PublishedDecision(
            customer="acme",
            at=_AT,
            catalog=3,
            entry=_PLACE,
            cause=_CAUSE,
            id="call-7",
            op="settle",
            allowed=True,
            reason=Reason.ALLOWED,
            feature="llm",
            credits="10.25",
            overage="0.25",
            dimensions=WHO,
            hold="call-7",
            limits=(_LIMIT,),
            late=True,
            quantities={"input_tokens": "4808"},
            asked="0.5",
            at_least={"input_tokens": "500"},
            ttl_seconds=120,
            request="{}",
        ),
        PublishedDecision(
            customer="acme",
            at=_AT,
            catalog=3,
            entry=_PLACE,
            id="call-8",
            op="reserve",
            allowed=False,
            reason=Reason.BUDGET_EXHAUSTED,
            credits="12.5",
            overage="0",
            asked="0",
        ),
    ),
    Sample(
        "published-posting",
        PublishedPosting(
            customer="acme",
            at=_AT,
            catalog=3,
            entry=_PLACE,
            cause=_CAUSE,
            pool="credits",
            account="hold:call-7",
            amount="-10.25",
            grant="order-1",
            category="paid",
            price="0.01",
            feature="llm",
        ),
        PublishedPosting(
            customer="acme", at=_AT, catalog=3, entry=_PLACE, pool="credits", account="overage", amount="-1", price="0"
        ),
    ),
    Sample(
        "published-alert",
        PublishedAlert(
            customer="acme",
            at=_AT,
            catalog=3,
            entry=_PLACE,
            cause=_CAUSE,
            budget="agents",
            scope={"agent": "drafter"},
            unit="credits",
            threshold=80,
            limit="500",
            used="410.25",
            period_at="2026-01-01T00:00:00Z",
        ),
        PublishedAlert(
            customer="acme",
            at=_AT,
            catalog=3,
            entry=_PLACE,
            budget="agents",
            scope={},
            unit="credits",
            threshold=80,
            limit="500",
            used="400",
        ),
    ),
)
