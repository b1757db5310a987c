"""What decisions and postings come to, by customer and feature: the figures of `simulate` and `backtest`."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import LimitState
from tallygate.schemas.journal import DecisionRecord
from tallygate.schemas.ledger import OVERAGE, WRITE_OFF, Posting, consumed
from tallygate.schemas.reasons import Reason

_CONSUMED: Final = consumed("")
_REASONS: Final = {
    "rate": Reason.RATE_LIMITED,
    "budget": Reason.BUDGET_EXHAUSTED,
    "allowance": Reason.ALLOWANCE_EXHAUSTED,
    "credits": Reason.CREDITS_EXHAUSTED,
}


class Line(msgspec.Struct):
    """Reservations allowed, and denied by reason; what limits in observe mode would have denied of the allowed ones.

    `charged_nanos` is what was consumed, `overage_nanos` and `written_off_nanos` the parts of it that no grant paid.
    """

    allowed: int = 0
    denied: Counter[str] = msgspec.field(default_factory=Counter)
    would_deny: Counter[str] = msgspec.field(default_factory=Counter)
    charged_nanos: int = 0
    overage_nanos: int = 0
    written_off_nanos: int = 0

    def add(self, other: "Line") -> None:
        self.allowed += other.allowed
        self.denied += other.denied
        self.would_deny += other.would_deny
        self.charged_nanos += other.charged_nanos
        self.overage_nanos += other.overage_nanos
        self.written_off_nanos += other.written_off_nanos

    def as_json(self) -> dict[str, Any]:
        return {
            "allowed": self.allowed,
            "denied": dict(sorted(self.denied.items())),
            "would_deny": dict(sorted(self.would_deny.items())),
            "charged": from_nanos(self.charged_nanos),
            "overage": from_nanos(self.overage_nanos),
            "written_off": from_nanos(self.written_off_nanos),
        }


class Tally:
    """Lines by (customer, feature)."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Line] = {}

    def line(self, customer: str, feature: str) -> Line:
        return self.lines.setdefault((customer, feature), Line())

    def decided(self, customer: str, decision: DecisionRecord) -> None:
        """Count a reservation's decision; other operations are not gated."""
        if decision.op != "reserve":
            return
        line = self.line(customer, decision.feature)
        if not decision.allowed:
            line.denied[str(decision.reason)] += 1
            return
        line.allowed += 1
        for reason in observed(decision.limits):
            line.would_deny[str(reason)] += 1

    def posted(self, customer: str, postings: Iterable[Posting]) -> None:
        for leg in postings:
            if leg.account.startswith(_CONSUMED):
                self.line(customer, leg.feature).charged_nanos += leg.amount_nanos
            elif leg.feature and leg.account == OVERAGE:
                self.line(customer, leg.feature).overage_nanos -= leg.amount_nanos
            elif leg.account == WRITE_OFF:
                self.line(customer, leg.feature).written_off_nanos -= leg.amount_nanos

    def features(self) -> dict[str, Line]:
        """All customers together, by feature."""
        total: dict[str, Line] = {}
        for (_, feature), line in sorted(self.lines.items()):
            total.setdefault(feature, Line()).add(line)
        return total


def observed(limits: Iterable[LimitState]) -> list[Reason]:
    """What recorded limits in observe mode would have denied, each reason once."""
    found = [_REASONS[limit.kind] for limit in limits if limit.observe and limit.hard and not limit.ok]
    return list(dict.fromkeys(found))
