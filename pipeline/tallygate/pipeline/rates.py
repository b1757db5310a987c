"""Rate limits: at most so much of a unit in a short time, evenly, with a burst.

The generic cell rate algorithm (GCRA; ITU-T I.371) in stream time: each limit and scope keeps one number, the instant
at which everything admitted so far has drained. It lives in the owner's memory and not in the journal: a takeover
forgets it, which admits at most one burst more.
"""

import msgspec

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.budgets import concrete
from tallygate.pipeline.tariff import Offer
from tallygate.schemas.amounts import NANOS, from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.catalog import CREDITS_UNIT, REQUESTS_UNIT
from tallygate.schemas.journal import RateLimitRow, scope_text

_MS_NS = 1_000_000


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One rate limit in one scope: when it has drained (ns), before and after what is asked."""

    limit: RateLimitRow
    key: str
    scope: dict[str, str]
    asked_nanos: int
    drained_ns: int
    then_ns: int
    now_ns: int

    @property
    def has_room(self) -> bool:
        return self.then_ns - self.now_ns <= _span_ns(self.limit, self.limit.burst_nanos)

    @property
    def retry_after_ms(self) -> int:
        """How long until this would be let through."""
        wait = self.then_ns - self.now_ns - _span_ns(self.limit, self.limit.burst_nanos)
        return max(0, -(-wait // _MS_NS))


def flows(
    draft: AccountDraft,
    offer: Offer,
    dimensions: dict[str, str],
    credits_nanos: int,
    quantities: dict[str, int],
    at: int,
) -> list[Flow]:
    """Every rate limit that a call falls under."""
    limits = draft.rate_limits.values()
    if offer.rate_limits:
        names = {limit.name for limit in limits}
        limits += [limit for limit in offer.rate_limits if limit.name not in names]
    found = []
    for limit in limits:
        scope = concrete(limit.scope, dimensions)
        asked = _asked(limit, credits_nanos, quantities)
        if scope is None or asked is None:
            continue
        key = f"{limit.name}\0{scope_text(scope)}"
        now_ns = at * _MS_NS
        drained = max(draft.drained_ns(key), now_ns)
        found.append(Flow(limit, key, scope, asked, drained, drained + _span_ns(limit, asked), now_ns))
    return found


def _asked(limit: RateLimitRow, credits_nanos: int, quantities: dict[str, int]) -> int | None:
    if limit.unit == REQUESTS_UNIT:
        return NANOS
    return credits_nanos if limit.unit == CREDITS_UNIT else quantities.get(limit.unit)


def _span_ns(limit: RateLimitRow, nanos: int) -> int:
    """How long so much takes to drain, rounded up."""
    return -(-nanos * limit.per_seconds * NANOS // limit.limit_nanos)


def pass_through(draft: AccountDraft, found: list[Flow]) -> None:
    """Let what is asked flow."""
    for flow in found:
        draft.drains[flow.key] = flow.then_ns


def limit_state(flow: Flow) -> LimitState:
    limit = flow.limit
    room_ns = _span_ns(limit, limit.burst_nanos) - (flow.drained_ns - flow.now_ns)
    remaining = max(0, room_ns * limit.limit_nanos // (limit.per_seconds * NANOS))
    return LimitState(
        kind="rate",
        name=limit.name,
        ok=flow.has_room,
        unit=limit.unit,
        asked=from_nanos(flow.asked_nanos),
        limit=from_nanos(limit.burst_nanos),
        used=from_nanos(max(0, limit.burst_nanos - remaining)),
        held="0",
        remaining=from_nanos(remaining),
        scope=flow.scope,
        observe=limit.observe,
    )
