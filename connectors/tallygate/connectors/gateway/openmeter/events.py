"""Events in OpenMeter's form: into Kafka, and the newest of them out of it again."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

from starlette.responses import Response

from tallygate.connectors.gateway import usage
from tallygate.connectors.gateway.openmeter.asked import instant, number, numbers_response, operation, several, written
from tallygate.connectors.gateway.operations import Call
from tallygate.connectors.gateway.problems import unavailable
from tallygate.connectors.kafka_acls import GROUP_GATEWAY
from tallygate.connectors.usage_tail import TailAway, newest_usage
from tallygate.schemas.events import UsageEvent, decode_events
from tallygate.schemas.reasons import Refused
from tallygate.schemas.records import Record

_LIMIT: Final = 100
_AT_ONCE: Final = 2
_looking: Final = asyncio.Semaphore(_AT_ONCE)


async def _ingest(call: Call) -> Response:
    await usage.take(call)
    return Response(status_code=204)


async def _list(call: Call) -> Response:
    """What Kafka has last, newest first. Columnar batches hold events without ids, and are not listed."""
    named = several(call, "customerId")
    for customer in named:
        call.allowed(customer)
    customers = named or list(call.key.customers)
    wanted = _Wanted(call, frozenset(customers))
    limit = number(call, "limit", _LIMIT, _LIMIT)
    config = call.gateway.config
    async with _looking:
        try:
            records = await asyncio.to_thread(
                newest_usage, config.brokers, config.kafka, customers, config.timeout_seconds, GROUP_GATEWAY
            )
        except TailAway as away:
            raise unavailable("not-connected", f"events cannot be read now: {away}") from None
    records.sort(key=lambda record: (record.timestamp_ms, record.offset), reverse=True)
    shown = []
    for record in records:
        shown += [_shown(record, event) for event in _events(record) if wanted.fits(record, event)]
        if len(shown) >= limit:
            break
    return numbers_response(shown[:limit])


class _Wanted:
    """Which events are asked for; `id` and `subject` may be parts, as with OpenMeter."""

    def __init__(self, call: Call, customers: frozenset[str]) -> None:
        self._customers = customers
        self._id = call.query("id") or ""
        self._subject = call.query("subject") or ""
        self._span = instant(call, "from"), instant(call, "to")
        self._ingested = instant(call, "ingestedAtFrom"), instant(call, "ingestedAtTo")

    def fits(self, record: Record, event: UsageEvent) -> bool:
        return (
            (not self._customers or event.subject in self._customers)
            and self._id in event.id
            and self._subject in event.subject
            and _within(record.timestamp_ms if event.at is None else event.at, self._span)
            and _within(record.timestamp_ms, self._ingested)
        )


def _within(at: int, span: tuple[int | None, int | None]) -> bool:
    begin, end = span
    return (begin is None or begin <= at) and (end is None or at <= end)


def _events(record: Record) -> Iterator[UsageEvent]:
    try:
        yield from reversed(decode_events(record.value, dict(record.headers)))
    except Refused:
        return  # a worker has put it aside, or it is a columnar batch


def _shown(record: Record, event: UsageEvent) -> dict[str, Any]:
    came = written(record.timestamp_ms)
    told = {"id": event.id, "source": event.source, "specversion": event.specversion, "type": event.type}
    told |= {"subject": event.subject, "time": written(record.timestamp_ms if event.at is None else event.at)}
    return {"event": {**told, "data": event.data}, "customerId": event.subject, "ingestedAt": came, "storedAt": came}


_EXAMPLE: Final = {
    "specversion": "1.0",
    "id": "call-7",
    "source": "/gateway",
    "type": "llm.call",
    "subject": "acme",
    "data": {"tokens": 1},
}

OPERATIONS: Final = (
    operation("POST", "/api/v1/events", _ingest, "ingest", example=_EXAMPLE),
    operation("GET", "/api/v1/events", _list, "read"),
)
