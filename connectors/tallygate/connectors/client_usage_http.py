"""Usage events over HTTP: CloudEvents in batches, acknowledged when Kafka has them.

An event's source is the buffer's own name, never used again, and its id a number: sent twice, it counts once.
"""

import asyncio
import itertools
import time
import uuid
from typing import Any, Final, NamedTuple

import msgspec

from tallygate.connectors.client_errors import NotConnected
from tallygate.connectors.client_http_transport import HttpReply, HttpTransport, Unanswered, backoff
from tallygate.connectors.client_usage import UsageBuffer
from tallygate.connectors.usage_batches import Event
from tallygate.schemas.events import BATCH
from tallygate.schemas.instants import format_instant

#: What the gateway takes; a batch that is larger goes in halves.
_BODY_BYTES_MAX: Final = 1 << 20
#: How long a batch is tried: as long as librdkafka tries one.
_DELIVERY_SECONDS: Final = 300.0
_HEADERS: Final = {"Content-Type": BATCH.decode()}
_encode = msgspec.json.Encoder(decimal_format="number").encode


class _Outcome(NamedTuple):
    """What was wrong, or nothing; and whether it is so for all events of the batch, or perhaps for one of them."""

    trouble: str
    whole: bool = True


class HttpUsage(UsageBuffer):
    """One lane, one batch on its way."""

    def __init__(self, http: HttpTransport, try_seconds: float, linger: float, buffer_events: int) -> None:
        super().__init__(linger, buffer_events)
        self._http = http
        self._try_seconds = try_seconds
        self._source = f"/tallygate-client/{uuid.uuid4().hex}"
        self._numbers = itertools.count(1)
        self._runner: asyncio.Runner | None = None

    def _connect(self, timeout: float) -> None:
        """The connection is made by the first batch."""

    def _lane_of(self, customer: str) -> int:
        return 0

    def _disconnect(self) -> None:
        if self._runner is not None:
            self._runner.run(self._http.close())
            self._runner.close()
            self._runner = None

    def _send(self, lane: int, events: list[Event]) -> None:
        self._send_numbered(lane, [self._cloud_event(event) for event in events])

    def _cloud_event(self, event: Event) -> dict[str, Any]:
        customer, type, at, data = event
        made = {
            "specversion": "1.0",
            "id": str(next(self._numbers)),
            "source": self._source,
            "type": type,
            "subject": customer,
            "data": data,
        }
        if at is not None:
            made["time"] = format_instant(at)
        return made

    def _send_numbered(self, lane: int, events: list[dict[str, Any]]) -> None:
        body = _encode(events)
        found = _Outcome("the events are too large", whole=False)
        if len(body) <= _BODY_BYTES_MAX:
            found = self._send_body(body)
        if found.trouble and not found.whole and len(events) > 1:
            half = len(events) // 2  # what is wrong with one of them is not to cost the others
            self._send_numbered(lane, events[:half])
            self._send_numbered(lane, events[half:])
        else:
            self._done(lane, len(events), found.trouble)

    def _send_body(self, body: bytes) -> _Outcome:
        """Tries until the gateway has taken it or refused it, the buffer is closed, or the time is over."""
        until = time.monotonic() + _DELIVERY_SECONDS
        for sent in itertools.count(1):
            wait = backoff(sent)
            try:
                reply = self._try(body)
                if reply.status < 300:
                    return _Outcome("")
                trouble = f"the gateway answered {reply.status}: {_detail(reply)}"
                if not reply.passing:
                    return _Outcome(trouble, whole=reply.status not in (400, 413))
                wait = max(wait, reply.retry_after)
            except (Unanswered, NotConnected) as error:
                trouble = str(error)
            except RuntimeError as error:  # the program is ending: no name can be looked up any more
                return _Outcome(f"{error}: close the client before the program ends")
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, wait) or time.monotonic() > until:
                    return _Outcome(trouble)
        raise AssertionError("counted to the end of all numbers")

    def _try(self, body: bytes) -> HttpReply:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self._post(body))

    async def _post(self, body: bytes) -> HttpReply:
        if not self._http.running:
            await self._http.start(self._try_seconds)
        return await self._http.once("POST", "/v1/usage", body, _HEADERS, self._try_seconds)


def _detail(reply: HttpReply) -> str:
    try:
        return str(msgspec.json.decode(reply.body)["detail"])[:300]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return "what it said cannot be read"
