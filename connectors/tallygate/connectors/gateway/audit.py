"""The audit log: nothing administrative happens unless Kafka holds that it was asked for, and by whom."""

import time
import uuid
from typing import Any

from msgspec.structs import replace

from tallygate.connectors.gateway.confirmed import ConfirmedProducer, Outgoing
from tallygate.schemas.audit import AuditRecord, Outcome, encode_audit
from tallygate.schemas.topics import AUDIT


class Audited:
    """One change under way; `end` is to be called with its outcome."""

    def __init__(self, log: "AuditLog", asked: AuditRecord) -> None:
        self._log = log
        self._asked = asked

    async def end(self, outcome: Outcome, reason: str = "", target: str = "") -> None:
        """Returns when Kafka holds the outcome. Raises Problem 503."""
        ended = replace(
            self._asked,
            at=now_ms(),
            outcome=outcome,
            reason=reason[:500],
            target=target or self._asked.target,
            details={},
        )
        await self._log.append(ended)


class AuditLog:
    def __init__(self, producer: ConfirmedProducer, timeout_seconds: float) -> None:
        self._producer = producer
        self._timeout_seconds = timeout_seconds

    async def begin(
        self, *, who: str, origin: str, action: str, customer: str, target: str, details: dict[str, Any]
    ) -> Audited:
        """Returns when Kafka holds that this was asked for. Raises Problem 503: then it is not to be done."""
        asked = AuditRecord(
            id=str(uuid.uuid4()),
            at=now_ms(),
            who=who,
            action=action,
            outcome="asked",
            origin=origin,
            customer=customer,
            target=target,
            details=details,
        )
        await self.append(asked)
        return Audited(self, asked)

    async def append(self, record: AuditRecord) -> None:
        sent = Outgoing(AUDIT, record.id.encode(), encode_audit(record))
        await self._producer.send([sent], self._timeout_seconds)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
