"""Rate limits: at most so much of a unit in a short time, evenly, with a burst.

The generic cell rate algorithm (GCRA; ITU-T I.371) in stream time: each limit and scope keeps one number, the instant
at which everything admitted so far has drained. It lives in the owner's memory and not in the journal: a takeover
forgets it, which admits at most one burst more.

Instants and spans are counted in beats, of which a limit has `limit_nanos` each millisecond: so nothing is rounded.
"""

from typing import Final

import msgspec

from tallygate.pipeline.account import AccountDraft, Drained
from tallygate.pipeline.budgets import concrete
from tallygate.pipeline.tariff import Offer
from tallygate.schemas.amounts import NANOS, from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.catalog import CREDITS_UNIT, REQUESTS_UNIT
from tallygate.schemas.instants import LATEST, SECOND_MS, format_instant, from_datetime
from tallygate.schemas.journal import RateLimitRow, scope_text

_LATEST: Final = from_datetime(LATEST)


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One rate limit in one scope: how far what was admitted is from drained, and what is asked; in beats."""

    limit: RateLimitRow
    key: str
    scope: dict[str, str]
    asked_nanos: int
    level: int
    at: int

    @property
    def _over(self) -> int:
        """By how much the asked would pass the burst."""
        return self.level + _beats(self.limit, self.asked_nanos - self.limit.burst_nanos)

    @property
    def has_room(self) -> bool:
        """What asks nothing of a limit is never stopped by it."""
        return not self.asked_nanos or self._over <= 0

    @property
    def retry_after_ms(self) -> int | None:
        """How long until this would be let through; None: never, it is more than the burst."""
        if self.has_room:
            return 0
        if self.asked_nanos > self.limit.burst_nanos:
            return None
        return -(-self._over // self.limit.limit_nanos)


def flows(
    draft: AccountDraft,
    offer: Offer,
    dimensions: dict[str, str],
    credits_nanos: int,
    quantities: dict[str, int],
    at: int,
) -> list[Flow]:
    """Every rate limit that a call falls under, narrowest first."""
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
        found.append(Flow(limit, key, scope, asked, _level(limit, draft.drained(key), at), at))
    if len(found) > 1:
        found.sort(key=lambda flow: (-len(flow.scope), flow.key))
    return found


def _level(limit: RateLimitRow, drained: Drained | None, at: int) -> int:
    """How far from drained (in beats); where the limit has changed since, the same quantity has still to drain."""
    if drained is None:
        return 0
    beats, limit_nanos, per_seconds = drained
    level = max(0, beats - at * limit_nanos)
    if (limit_nanos, per_seconds) == (limit.limit_nanos, limit.per_seconds):
        return level
    return _beats(limit, -(-level // (per_seconds * SECOND_MS)))


def _asked(limit: RateLimitRow, credits_nanos: int, quantities: dict[str, int]) -> int | None:
    if limit.unit == REQUESTS_UNIT:
        return NANOS
    return credits_nanos if limit.unit == CREDITS_UNIT else quantities.get(limit.unit)


def _beats(limit: RateLimitRow, nanos: int) -> int:
    """How long so much takes to drain."""
    return nanos * limit.per_seconds * SECOND_MS


def pass_through(draft: AccountDraft, found: list[Flow]) -> None:
    """Let what is asked flow; where a limit only observes, what it would have stopped does not count."""
    for flow in found:
        if flow.has_room and flow.asked_nanos:
            limit = flow.limit
            beats = flow.at * limit.limit_nanos + flow.level + _beats(limit, flow.asked_nanos)
            draft.drains[flow.key] = (beats, limit.limit_nanos, limit.per_seconds)


def limit_state(flow: Flow) -> LimitState:
    limit = flow.limit
    used = -(-flow.level // _beats(limit, 1))
    drained_at = flow.at - (-flow.level // limit.limit_nanos)
    return LimitState(
        kind="rate",
        name=limit.name,
        ok=flow.has_room,
        unit=limit.unit,
        asked=from_nanos(flow.asked_nanos),
        limit=from_nanos(limit.burst_nanos),
        used=from_nanos(used),
        held="0",
        remaining=from_nanos(max(0, limit.burst_nanos - used)),
        scope=flow.scope,
        resets_at=format_instant(drained_at) if flow.level and drained_at <= _LATEST else None,
        observe=limit.observe,
    )
