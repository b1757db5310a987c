"""The end of usage rows: hours are closed, and their rows go, so that the journal does not grow with time.

An hour is closed when it has been over for the grace period and `usage_kept_ms`, in stream time. A tick ends the rows
of closed hours, so many at a time; what the journal's readers have made of them stays. An event that comes even later
still counts: its quantities go into a row of the same hour that stands beside the one that has ended, marked by the
instant from which it counts (`UsageRow.since`). Sums and counts go on as if nothing had ended; a least, greatest or
latest value is that of all rows of the hour together. What nobody can tell any more is decided for the customer: a
greatest value and a number of distinct values add nothing to the bill of a closed hour, and the latter stays as it is.
"""

from typing import TYPE_CHECKING

from tallygate.pipeline.replay import hour_range, of_hour
from tallygate.pipeline.rules import Rules
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.journal import UsageRow, decode_record, split_key

if TYPE_CHECKING:
    from tallygate.pipeline.draft import Draft


class Hours:
    """Which hours are closed at a transition's stream time, and the keys of rows that it has ended so far."""

    __slots__ = ("_open_ms", "ended", "stream_at")

    def __init__(self, rules: Rules, stream_at: int) -> None:
        self.stream_at = stream_at
        self.ended: dict[bytes, None] = {}
        self._open_ms = HOUR_MS + rules.grace_ms + rules.usage_kept_ms

    def is_closed(self, hour: int) -> bool:
        """`hour` is its start, in ms."""
        return hour + self._open_ms <= self.stream_at

    @property
    def closed(self) -> tuple[bytes, bytes]:
        """The range of table keys under which what belongs to closed hours is filed."""
        return hour_range(self.stream_at - self._open_ms + 1)


def end_closed(draft: "Draft") -> None:
    """End what belongs to closed hours, as much as a tick may.

    A row of this very instant stays: one that came after it at the same instant could not be told from it. And a row
    that this transition has changed is not in the journal yet.
    """
    rows, hours = draft.state.rows, draft.hours
    for filed, _ in rows.scan(*hours.closed, draft.rules.closed_per_tick_max):
        key = of_hour(filed)
        customer, kind, id = split_key(key)
        account = draft.accounts.get(customer)
        if account is not None and (id in account.usage.changes or id in account.values.changes):
            continue
        if kind == "usage":
            value = rows.get(key)
            assert value is not None, "what is filed is there"
            row = decode_record(value)
            assert isinstance(row, UsageRow)
            if row.since >= hours.stream_at:
                continue
        hours.ended[key] = None
