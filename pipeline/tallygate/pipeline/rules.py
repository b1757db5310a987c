"""The few numbers that every decision of one installation shares."""

import msgspec

from tallygate.schemas.instants import DAY_MS, MINUTE_MS


class Rules(msgspec.Struct, frozen=True):
    """Instants and spans in ms.

    `future_ms_max`: an event's time may lie this far ahead of stream time. `grace_ms`: later events are marked late.
    `usage_kept_ms`: so long after its grace period an hour of usage is closed, and its rows end.
    `remember_ms`: how long a request or event id is known; at most the journal's `min.compaction.lag.ms`.
    `due_per_tick_max`: how many customers one tick may advance. `closed_per_tick_max`: how many rows of closed hours
    it may end.
    """

    future_ms_max: int = 5 * MINUTE_MS
    grace_ms: int = DAY_MS
    usage_kept_ms: int = 7 * DAY_MS
    remember_ms: int = DAY_MS
    due_per_tick_max: int = 1000
    closed_per_tick_max: int = 1000
