"""The client's usage events: buffered, sent in batches, each counted once.

One thread makes the batches and hears what becomes of them, for asyncio programs and others alike. How they are sent is
another module's: `client_usage_kafka` and `client_usage_http`.
"""

import atexit
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Final

from tallygate.connectors.client_errors import ClientClosed, RefusedRequest, UsageLost
from tallygate.connectors.usage_batches import Event, Value
from tallygate.schemas.events import CORRECTIONS
from tallygate.schemas.instants import EPOCH, LATEST, from_datetime
from tallygate.schemas.names import NAME_MAX, has_control
from tallygate.schemas.reasons import Reason
from tallygate.schemas.usage_batch import COLUMNS_MAX, SUBJECT, TIME, TYPE

_log = logging.getLogger("tallygate.client")

LINGER_SECONDS_DEFAULT: Final = 0.05
BUFFER_EVENTS_DEFAULT: Final = 100_000
#: More make a batch no cheaper for anybody.
BATCH_EVENTS: Final = 1_000
_POLL_SECONDS: Final = 0.005
_ATTRIBUTES: Final = (SUBJECT, TYPE, TIME)
_DIGITS_MAX: Final = 28


class UsageBuffer(ABC):
    """Takes events and sends them; for any number of threads.

    At most `buffer_events` are held here until they are confirmed: then `add` has no room. An event waits `linger`
    seconds for others of its lane (over Kafka: a partition), or until they make a whole batch or the buffer is full.
    """

    def __init__(self, linger: float, buffer_events: int) -> None:
        if buffer_events < 1:
            raise ValueError(f"the buffer holds {buffer_events} events: at least one is needed")
        self._linger = linger
        self._buffer_events = buffer_events
        self._batch_events = min(BATCH_EVENTS, buffer_events)
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: dict[int, list[Event]] = {}
        self._since: dict[int, float] = {}
        self._held = 0  # events waiting or on their way
        self._added: dict[int, int] = {}  # by lane, in all
        self._ended: dict[int, int] = {}
        self._flushing = 0
        self._lost = 0
        self._why = ""
        self._closed = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def start(self, timeout: float) -> None:
        """Connects, if that is not done; blocks. Raises NotConnected."""
        with self._starting:
            if self._thread is None:
                self._start(timeout)

    def _start(self, timeout: float) -> None:
        self._connect(timeout)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="tallygate-usage", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @abstractmethod
    def _connect(self, timeout: float) -> None:
        """Raises NotConnected."""

    @abstractmethod
    def _lane_of(self, customer: str) -> int: ...

    @abstractmethod
    def _send(self, lane: int, events: list[Event]) -> None:
        """Sends events, in the thread; `_done` is called for each of them, now or during a later `_poll`."""

    def _poll(self, seconds: float) -> None:
        """Hears what became of what was sent."""
        return

    @abstractmethod
    def _disconnect(self) -> None:
        """Called in the thread, at its end."""

    def add(self, event: Event) -> bool:
        """Takes an event, or has no room for it."""
        lane = self._lane_of(event[0])
        with self._changed:
            if self._closed:
                raise ClientClosed("the client was closed: its usage events are sent")
            if self._held >= self._buffer_events:
                return False
            self._held += 1
            self._added[lane] = self._added.get(lane, 0) + 1
            waiting = self._waiting.setdefault(lane, [])
            waiting.append(event)
            if len(waiting) == 1:
                self._since[lane] = time.monotonic()
            if len(waiting) in (1, self._batch_events) or self._held == self._buffer_events:
                self._changed.notify_all()
            return True

    def wait_for_room(self, timeout: float) -> bool:
        """Whether there is room within so many seconds; blocks."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held < self._buffer_events or self._closed, timeout)

    def flush(self, timeout: float) -> None:
        """Returns when Kafka has all that was added before. Raises UsageLost for what was not confirmed."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            upto = dict(self._added)
            sent = self._changed.wait_for(lambda: not self._behind(upto), timeout)
            self._flushing -= 1
            lost, self._lost = self._lost, 0
            why, left = self._why, self._behind(upto)
        if lost or not sent:
            raise UsageLost(
                f"{lost or left} usage events were not confirmed"
                f"{f' ({why})' if why else ''}: they may or may not be counted"
                f"{'' if lost else f'; it had {timeout:g} s, and is still tried'}",
                events=lost or left,
            )

    def _behind(self, upto: Mapping[int, int]) -> int:
        return sum(max(0, added - self._ended.get(lane, 0)) for lane, added in upto.items())

    def close(self, timeout: float = 10.0) -> None:
        """Flushes and ends. Twice is once. Raises UsageLost."""
        atexit.unregister(self.close)
        if self._thread is None:
            return
        try:
            self.flush(timeout)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.join()

    # The thread

    def _work(self) -> None:
        while True:
            with self._changed:
                ready = self._ready()
                if not ready and self._closed:
                    break
                waiting = [since for lane, since in self._since.items() if self._waiting[lane]]
                on_their_way = self._held - sum(map(len, self._waiting.values()))
                if not ready and not on_their_way:
                    due = min(waiting) + self._linger - time.monotonic() if waiting else None
                    self._changed.wait(due if due is None else max(due, 0))
                    continue
            for lane, events in ready:
                self._send(lane, events)
            self._poll(0 if ready else _POLL_SECONDS)
        self._disconnect()

    def _ready(self) -> list[tuple[int, list[Event]]]:
        """What is to be sent now, in batches; taken out of what waits."""
        now = time.monotonic()
        everything = self._flushing or self._closed or self._held >= self._buffer_events
        found = []
        for lane, waiting in self._waiting.items():
            due = everything or now - self._since[lane] >= self._linger
            while waiting and (due or len(waiting) >= self._batch_events):
                found.append((lane, waiting[: self._batch_events]))
                del waiting[: self._batch_events]
                self._since[lane] = now
        return found

    def _done(self, lane: int, events: int, trouble: str) -> None:
        with self._changed:
            self._held -= events
            self._ended[lane] = self._ended.get(lane, 0) + events
            if trouble:
                if not self._lost:
                    _log.warning("usage events were not confirmed: %s", trouble)
                self._lost += events
                self._why = trouble
            self._changed.notify_all()


def event_of(customer: str, type: str, data: Mapping[str, Value | None], time: datetime | None) -> Event:
    """An event, checked as far as that is possible without the catalog. Raises RefusedRequest, TypeError."""
    for name, text in (("customer", customer), ("type", type)):
        if not 0 < len(text) <= NAME_MAX or has_control(text):
            raise RefusedRequest(Reason.MALFORMED, f"{name} is to be 1 to {NAME_MAX} characters, no controls")
    if type in CORRECTIONS:
        raise RefusedRequest(Reason.MALFORMED, f"{type} is sent as a single event, not in a batch")
    at = None
    if time is not None:
        if time.tzinfo is None or not EPOCH <= time <= LATEST:
            raise RefusedRequest(Reason.MALFORMED, "time needs an offset, and lies within the years 1970 to 9999")
        at = from_datetime(time)
    if len(data) > COLUMNS_MAX - len(_ATTRIBUTES):
        raise RefusedRequest(Reason.TOO_LARGE, f"data has {len(data)} properties: at most {COLUMNS_MAX}")
    return customer, type, at, {name: _checked(name, value) for name, value in data.items() if value is not None}


def no_room(seconds: float) -> UsageLost:
    return UsageLost(
        f"a usage event found no room in the buffer within {seconds:g} s and was not sent: is Kafka or the gateway up?",
        events=1,
    )


def _checked(name: str, value: Value) -> Value:
    if not 0 < len(name) <= NAME_MAX or name in _ATTRIBUTES:
        raise RefusedRequest(Reason.MALFORMED, f"data cannot have a property {name[:80]!r} in a batch")
    match value:
        case bool():
            return value
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise RefusedRequest(Reason.MALFORMED, f"data.{name} is no text in Unicode") from None
            return value
        case int():
            if abs(value) >= 10**_DIGITS_MAX:
                raise RefusedRequest(Reason.QUANTITY_INVALID, f"data.{name} is absurdly large")
            return value
        case Decimal():
            exponent = value.as_tuple().exponent
            if not isinstance(exponent, int) or exponent < -9 or (value and value.adjusted() >= _DIGITS_MAX):
                raise RefusedRequest(
                    Reason.QUANTITY_INVALID, f"data.{name} is {value}: at most 9 decimal places, and finite"
                )
            return value
        case _:
            raise TypeError(
                f"data.{name} is {value!r} ({type(value).__name__}): properties are str, int, Decimal or bool; "
                "a float does not hold decimal amounts exactly"
            )
