"""From an entry of the journal to what the relay publishes of it; pure."""

from collections.abc import Iterator
from typing import Final

from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import Entry, ShownEntry
from tallygate.schemas.published import (
    EntryPlace,
    Published,
    PublishedAlert,
    PublishedCause,
    PublishedDecision,
    PublishedPosting,
)
from tallygate.schemas.topics import ALERTS, DECISIONS, POSTINGS

#: What can be relayed, as the settings name it, and where to.
TOPICS: Final = {"decisions": DECISIONS, "postings": POSTINGS, "alerts": ALERTS}


class Relayed:
    """One entry's records, by kind; `partition` to `seq` are the place of its record in the journal."""

    def __init__(self, entry: Entry | ShownEntry, partition: int, offset: int, term: int, seq: int) -> None:
        self._entry = entry
        self._place = (partition, offset, term, seq)
        self._causes = [PublishedCause(c.topic, c.partition, c.offset, c.id) for c in entry.causes]

    def of(self, kind: str) -> Iterator[Published]:
        """The records of a kind, numbered as they stand in the entry."""
        match kind:
            case "decisions":
                return self._decisions()
            case "postings":
                return self._postings()
            case "alerts":
                return self._alerts()
            case _:
                raise AssertionError(f"nothing of this kind is relayed: {kind}")

    def _decisions(self) -> Iterator[PublishedDecision]:
        entry = self._entry
        for number, each in enumerate(entry.decisions):
            yield PublishedDecision(
                customer=entry.customer,
                at=format_instant(each.at),
                catalog=entry.catalog,
                entry=self._at(number),
                cause=self._cause(each.cause),
                id=each.id,
                op=each.op,
                allowed=each.allowed,
                reason=each.reason,
                feature=each.feature,
                credits=from_nanos(each.credits_nanos),
                overage=from_nanos(each.overage_nanos),
                dimensions=each.dimensions,
                hold=each.hold,
                limits=each.limits,
                late=each.late,
                quantities=_amounts(each.quantities),
                asked=from_nanos(each.asked_nanos),
                at_least=_amounts(each.at_least),
                ttl_seconds=each.ttl_seconds,
                request=each.request,
            )

    def _postings(self) -> Iterator[PublishedPosting]:
        entry = self._entry
        for number, leg in enumerate(entry.postings):
            yield PublishedPosting(
                customer=entry.customer,
                at=format_instant(leg.at),
                catalog=entry.catalog,
                entry=self._at(number),
                cause=self._cause(leg.cause),
                pool=leg.asset,
                account=leg.account,
                amount=from_nanos(leg.amount_nanos),
                grant=leg.grant,
                category=leg.category,
                price=from_nanos(leg.price_nanos),
                feature=leg.feature,
            )

    def _alerts(self) -> Iterator[PublishedAlert]:
        entry = self._entry
        for number, alert in enumerate(entry.alerts):
            yield PublishedAlert(
                customer=entry.customer,
                at=format_instant(alert.at),
                catalog=entry.catalog,
                entry=self._at(number),
                cause=self._cause(alert.cause),
                budget=alert.budget,
                scope=alert.scope,
                unit=alert.unit,
                threshold=alert.threshold,
                limit=from_nanos(alert.limit_nanos),
                used=from_nanos(alert.used_nanos),
                period_at=format_instant(alert.period_at) if alert.period_at else None,
            )

    def _at(self, number: int) -> EntryPlace:
        return EntryPlace(*self._place, number)

    def _cause(self, index: int) -> PublishedCause | None:
        return self._causes[index] if index >= 0 else None


def _amounts(nanos: dict[str, int]) -> dict[str, str]:
    return {name: from_nanos(each) for name, each in nanos.items()}
