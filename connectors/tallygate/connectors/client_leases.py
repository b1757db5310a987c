"""Leases: slices of a budget or pool, held ahead, so that a program decides by itself for a while.

    async with client.lease("acme", feature="llm", quantities={"output_tokens": 20_000}) as lease:
        if lease.take({"output_tokens": 500}):
            ...

`take` is local: it takes microseconds and asks nobody. A task reserves the next slice before the one in hand is used
up, settles what was taken (a settle for each slice, not for each take), and gives the rest back.
"""

import asyncio
import threading
import time
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tallygate.connectors.client_content import Amount, exact
from tallygate.connectors.client_errors import (
    ClientClosed,
    Denied,
    LeaseUnsettled,
    NoAnswer,
    RefusedRequest,
    TallygateError,
)
from tallygate.connectors.client_slices import Amounts, Asked, LeaseDecision, LeaseTerms, Slice, Slices, ending_of
from tallygate.schemas.amounts import NANOS, UNITS_MAX, to_nanos
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import CREDITS_UNIT
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Release, Settle

if TYPE_CHECKING:
    from tallygate.connectors.client_calls import TallygateClient

LEASE_SECONDS_DEFAULT: Final = 30
_LEASE_SECONDS_MIN: Final = 3
_LOOK_SECONDS_MAX: Final = 3600.0
#: A machine that slept has not stopped this clock, where there is one.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def terms_of(
    customer: str,
    feature: str,
    quantities: Mapping[str, Amount] | None,
    credits: Amount,
    dimensions: Mapping[str, str] | None,
    ttl_seconds: int,
) -> LeaseTerms:
    """Raises RefusedRequest for what cannot be leased."""
    first = in_nanos(quantities, credits)
    if not first or not all(first.values()):
        raise RefusedRequest(Reason.QUANTITY_INVALID, "a lease needs a first slice: quantities by meter, or credits")
    if ttl_seconds < _LEASE_SECONDS_MIN:
        raise RefusedRequest(Reason.MALFORMED, f"ttl_seconds: a lease lives {_LEASE_SECONDS_MIN} seconds or longer")
    return LeaseTerms(customer, feature, first, dict(sorted((dimensions or {}).items())), ttl_seconds)


def in_nanos(quantities: Mapping[str, Amount] | None, credits: Amount) -> Amounts:
    found: Amounts = {}
    for unit, value in (quantities or {}).items():
        if type(value) is int and 0 <= value <= UNITS_MAX:  # the usual case, at once
            found[unit] = value * NANOS
        else:
            found[unit] = to_nanos(exact(unit, value))
    if credits:
        found[CREDITS_UNIT] = to_nanos(exact(CREDITS_UNIT, credits))
    return found


class Lease:
    """Slices in hand. `take` decides; closing settles what was taken and gives back what was not."""

    def __init__(self, client: "TallygateClient", terms: LeaseTerms, timeout: float | None) -> None:
        self._client = client
        self._timeout = timeout
        self._terms = terms
        self._slices = Slices(terms)
        self._wake = asyncio.Event()
        self._woken = False
        self._news = asyncio.Event()
        self._closing = False
        self._asking: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._unsettled: list[Settle | Release] = []
        self._work: asyncio.Task[None] | None = None
        self.late = 0
        self.settled = 0

    @property
    def allowed(self) -> int:
        """How many takes were allowed so far."""
        return self._slices.allowed

    def take(self, quantities: Mapping[str, Amount] | None = None, *, credits: Amount = 0) -> LeaseDecision:
        """May this go ahead? Decided here and at once, from any thread; what is allowed is taken.

        A no has the worker's `reason`; without one nothing is in hand just now and a slice is on its way: `acquire`
        waits for it. What the work takes in the end is what was taken: take more, or take less, but say it here.
        """
        amounts = in_nanos(quantities, credits)
        if not amounts.keys() <= self._terms.first.keys():
            strange = ", ".join(sorted(amounts.keys() - self._terms.first.keys()))
            raise RefusedRequest(Reason.METER_UNKNOWN, f"the lease does not hold {strange}: name it in its first slice")
        decision, due = self._slices.take(amounts, _now())
        if due and not self._woken:
            self._woken = True
            if threading.get_ident() == self._thread:
                self._wake.set()
            else:
                self._loop.call_soon_threadsafe(self._wake.set)
        return decision

    async def acquire(
        self, quantities: Mapping[str, Amount] | None = None, *, credits: Amount = 0, timeout: float | None = None
    ) -> LeaseDecision:
        """As `take`, but waits for a slice that is on its way, for `timeout` seconds at most (the client's)."""
        until = time.monotonic() + (self._client._timeout if timeout is None else timeout)
        while True:
            self._news.clear()
            decision = self.take(quantities, credits=credits)
            left = until - time.monotonic()
            if decision.allowed or decision.reason is not None or self._closing or left <= 0:
                return decision
            try:
                await asyncio.wait_for(self._news.wait(), min(left, 0.2))
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Settles what was taken and gives the rest back. Twice is once.

        Raises LeaseUnsettled for what no worker confirmed within the time-out: it names the settles to repeat.
        """
        self._closing = True
        self._slices.close()
        self._wake.set()
        self._news.set()
        if self._work is not None:
            await asyncio.shield(self._work)
        while self._settling:
            await asyncio.wait(set(self._settling))
        self._client._leases.discard(self)
        unsettled, self._unsettled = self._unsettled, []
        if settles := [each for each in unsettled if isinstance(each, Settle)]:
            raise LeaseUnsettled(settles)

    async def _start(self) -> None:
        """Raises Denied where there is no first slice to be had, and what a reserve raises."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        asked, _ = self._slices.due(_now(), self._client._new_id())
        while asked is not None:
            answer = await self._client._ask(asked.request, self._timeout)
            asked = self._slices.answered(answer, _now(), self._client._new_id())
            if asked is None and not answer.allowed:
                raise Denied(answer)
        self._client._leases.add(self)
        self._work = asyncio.create_task(self._run(), name=f"lease of {self._terms.customer}")

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._woken = False
            now = _now()
            asked, ended = self._slices.due(now, self._client._new_id())
            for each in ended:
                task = asyncio.create_task(self._settle(each))
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)
            if asked is not None:
                self._asking = asyncio.create_task(self._ask(asked))
            if self._closing and self._asking is None:
                return
            at = self._slices.next_at(now)
            wait = _LOOK_SECONDS_MAX if at is None else max(0.0, at - now)
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    async def _ask(self, asked: Asked) -> None:
        """Gets a slice, or hears why there is none."""
        try:
            following: Asked | None = asked
            while following is not None:
                answer = await self._reserve(following)
                if answer is None:
                    return
                following = self._slices.answered(answer, _now(), self._client._new_id())
        except RefusedRequest as refused:
            self._slices.refused(refused.reason, refused.message, _now())
        except TallygateError as trouble:
            self._slices.refused(None, str(trouble), _now())
        finally:
            self._asking = None
            self._wake.set()
            self._news.set()

    async def _reserve(self, asked: Asked) -> Answer | None:
        """The answer, asked for with the same id until the slice would be over anyway: it may be held already."""
        while True:
            try:
                return await self._client._ask(asked.request, self._timeout)
            except NoAnswer as trouble:
                over = _now() - asked.at > self._terms.ttl_seconds - self._terms.margin_seconds
                if over or self._closing:  # what may be held ends by itself
                    self._slices.refused(None, str(trouble), _now())
                    return None

    async def _settle(self, slice: Slice) -> None:
        """Ends a slice; after its hold's end, too, when it is recorded as usage. Asks until it is answered."""
        request = ending_of(self._terms, slice)
        while True:
            try:
                answer = await self._client._ask(request, self._timeout)
            except NoAnswer:
                if not self._closing:
                    continue
                self._unsettled.append(request)
            except RefusedRequest as refused:
                if isinstance(request, Release) and refused.reason in (Reason.HOLD_ENDED, Reason.HOLD_UNKNOWN):
                    return  # nothing was taken, and nothing is held any more
                self._unsettled.append(request)
            except ClientClosed:
                self._unsettled.append(request)
            else:
                self.settled += isinstance(request, Settle)
                self.late += answer.late
            return


class Leasing:
    """A lease that is yet to begin: `async with` it, or `await` it and close it yourself."""

    def __init__(self, client: "TallygateClient", terms: LeaseTerms, timeout: float | None) -> None:
        self._made = (client, terms, timeout)
        self._lease: Lease | None = None

    def __await__(self) -> Generator[Any, None, Lease]:
        return self._begin().__await__()

    async def _begin(self) -> Lease:
        lease = Lease(*self._made)
        await lease._start()
        return lease

    async def __aenter__(self) -> Lease:
        self._lease = await self._begin()
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._lease is not None
        try:
            await self._lease.close()
        except LeaseUnsettled as unsettled:
            if error is None:
                raise
            error.add_note(str(unsettled))
