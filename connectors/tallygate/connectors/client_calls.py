"""What every client can be asked, however it reaches Tallygate: over Kafka or over HTTP."""

import asyncio
import contextlib
import random
import time as clock
from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from tallygate.connectors.client_administration import Administration
from tallygate.connectors.client_content import Amount, amounts, exact, id_of, in_order
from tallygate.connectors.client_errors import Denied, NoAnswer, RefusedRequest, TallygateError
from tallygate.connectors.client_holds import Reservation
from tallygate.connectors.client_leases import LEASE_SECONDS_DEFAULT, Lease, Leasing, terms_of
from tallygate.connectors.client_metered import F, Metered, Named, Quantities, Took, metered
from tallygate.connectors.client_usage import UsageBuffer, event_of, no_room
from tallygate.connectors.usage_batches import Value
from tallygate.schemas.answers import Answer, Statement
from tallygate.schemas.instants import format_instant
from tallygate.schemas.reasons import DENIALS, Reason, Refused
from tallygate.schemas.requests import (
    OPS,
    Balance,
    Check,
    Estimate,
    Extend,
    Release,
    Request,
    Reserve,
    Settle,
    encode_request,
    parse_request,
)

IN_FLIGHT_MAX_DEFAULT: Final = 5_000


class TallygateClient(Administration):
    """`Tallygate` and `TallygateHTTP`: code that takes this takes either.

    Without an answer in time a call raises NoAnswer: closed, unless `fail_open` names the feature and the type of event
    that its work is reported as, like `{"llm": "llm.call"}`. Then `check` and `reserve` answer `allowed` with
    `fallback`, nothing is held, and `hold.settle` reports its quantities, each under its meter's name, as usage.
    """

    _usage: UsageBuffer

    def __init__(self, timeout: float, fail_open: Mapping[str, str] | None) -> None:
        self._timeout = timeout
        self._fail_open = dict(fail_open or {})
        self._leases: set[Lease] = set()
        self._behind: set[asyncio.Task[None]] = set()
        self._random = random.Random()  # seeded by the system

    @abstractmethod
    async def _connect(self) -> None: ...

    @abstractmethod
    async def _disconnect(self) -> None: ...

    @abstractmethod
    async def _send(self, request: Request, value: bytes, within: float) -> Answer:
        """The answer to a request whose encoded form is `value`, be it a refusal. Raises NoAnswer, ClientClosed."""

    async def start(self) -> Self:
        """Connects; `async with` does it. Raises NotConnected when nobody answers in time, or a topic is missing."""
        await self._connect()
        return self

    async def close(self) -> None:
        """Closes leases, sends the usage events that wait, ends the connections; calls in flight raise ClientClosed.

        Raises UsageLost for usage events that are not confirmed within the client's time-out, and LeaseUnsettled for
        what was taken under a lease and not confirmed.
        """
        try:
            for lease in tuple(self._leases):
                await lease.close()
        finally:
            try:
                await asyncio.to_thread(self._usage.close, self._timeout)
            finally:
                await self._disconnect()
                await asyncio.gather(*self._behind, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def check(
        self,
        customer: str,
        *,
        feature: str,
        quantities: Mapping[str, Amount] | None = None,
        credits: Amount = 0,
        dimensions: Mapping[str, str] | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Answer:
        """Would this be allowed now? Changes nothing. With `explain`, `answer.trace` is the whole waterfall."""
        request = Check(
            id=self._new_id(),
            customer=customer,
            feature=feature,
            quantities=amounts(quantities),
            credits=exact("credits", credits),
            dimensions=in_order(dimensions),
            explain=explain,
        )
        return await self._ask(request, timeout)

    async def estimate(
        self,
        customer: str,
        *,
        feature: str,
        of: str,
        quantities: Mapping[str, Amount] | None = None,
        credits: Amount = 0,
        dimensions: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """What would this cost, and how much of `of`, a meter or `credits`, is affordable now? Changes nothing.

        `answer.affordable` says how much, with the rest of the call as it is; what is asked of `of` itself says what
        the call would cost, and whether it would be allowed.
        """
        request = Estimate(
            id=self._new_id(),
            customer=customer,
            feature=feature,
            of=of,
            quantities=amounts(quantities),
            credits=exact("credits", credits),
            dimensions=in_order(dimensions),
        )
        return await self._ask(request, timeout)

    def reserve(
        self,
        customer: str,
        *,
        feature: str,
        quantities: Mapping[str, Amount] | None = None,
        credits: Amount = 0,
        dimensions: Mapping[str, str] | None = None,
        at_least: Mapping[str, Amount] | None = None,
        ttl_seconds: int | None = None,
        explain: bool = False,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Reservation:
        """Set credits aside: `await` it for the answer, or enter it with `async with` for the hold.

        `quantities` by meter are priced by the feature's rates; `credits` are asked for as they are. `at_least`, like
        `{"output_tokens": 500}`, names one meter or `credits` and how little of it will do: `answer.hold` says how much
        was affordable. The hold ends by itself after `ttl_seconds`. `id` names it: give your own to ask again for the
        same hold after a restart. With `explain`, `answer.trace` is the whole waterfall.
        """
        request = Reserve(
            id=id or self._new_id(),
            customer=customer,
            feature=feature,
            quantities=amounts(quantities),
            credits=exact("credits", credits),
            dimensions=in_order(dimensions),
            at_least=amounts(at_least),
            ttl_seconds=ttl_seconds,
            explain=explain,
        )
        return Reservation(self, request, timeout)

    def lease(
        self,
        customer: str,
        *,
        feature: str,
        quantities: Mapping[str, Amount] | None = None,
        credits: Amount = 0,
        dimensions: Mapping[str, str] | None = None,
        ttl_seconds: int = LEASE_SECONDS_DEFAULT,
        timeout: float | None = None,
    ) -> Leasing:
        """Hold slices ahead, and decide within them locally: `async with` it, then `lease.take(...)`.

        `quantities` and `credits` are the first slice, and name every unit that is to be taken; a meter that counts
        calls, too, or each slice counts as one call. Later slices follow the rate of takes, a few seconds' worth, and
        shrink near a limit. A slice is a hold of `ttl_seconds`, so no limit is passed however many clients lease, and
        what a client that dies has in hand comes back when it ends. Prices in tiers and rate limits by requests see
        slices, not takes. Entering raises Denied where there is nothing to be had; with `customer_strict` the customer
        gets no leases: reserve each call.
        """
        return Leasing(self, terms_of(customer, feature, quantities, credits, dimensions, ttl_seconds), timeout)

    def metered(
        self,
        feature: str,
        *,
        customer: Named,
        quantities: Quantities | Callable[..., Quantities] | None = None,
        dimensions: Mapping[str, str] | Callable[..., Mapping[str, str]] | None = None,
        took: Took | None = None,
        ttl_seconds: int | None = None,
    ) -> Callable[[F], F]:
        """A decorator for coroutine functions: reserves before it runs, settles after it, releases when it raises.

        `customer`, `quantities` and `dimensions` may be functions of the same arguments. `took` says from what was
        returned how much it took; without it, the usage of an OpenAI or Anthropic response is read, and anything else
        is settled as it was held. Raises Denied instead of running it.
        """
        return metered(self, Metered(feature, customer, quantities, dimensions, took, ttl_seconds))

    async def settle(
        self,
        customer: str,
        hold: str,
        quantities: Mapping[str, Amount] | None = None,
        *,
        credits: Amount | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Record what the work really took; with neither quantities nor credits: what was held.

        `id` follows from the hold unless given, so that settling again is safe and settling otherwise is refused.
        """
        request = Settle(
            id=id or id_of("settle", customer, hold),
            customer=customer,
            hold=hold,
            quantities=None if quantities is None else amounts(quantities),
            credits=None if credits is None else exact("credits", credits),
        )
        return await self._ask(request, timeout)

    async def release(self, customer: str, hold: str, *, id: str | None = None, timeout: float | None = None) -> Answer:
        """Give a hold back unused. `id` follows from the hold unless given."""
        return await self._ask(
            Release(id=id or id_of("release", customer, hold), customer=customer, hold=hold), timeout
        )

    async def extend(
        self, customer: str, hold: str, ttl_seconds: int, *, id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Let a hold live `ttl_seconds` from now, if that is longer than it has. Refused when it has ended."""
        return await self._ask(
            Extend(id=id or self._new_id(), customer=customer, hold=hold, ttl_seconds=ttl_seconds), timeout
        )

    async def balance(self, customer: str, *, timeout: float | None = None) -> Statement:
        """Pools, grants, holds and budgets of a customer. Raises Denied for a customer that is not known."""
        answer = await self._ask(Balance(id=self._new_id(), customer=customer), timeout)
        if answer.statement is None:
            raise Denied(answer)
        return answer.statement

    async def usage(
        self,
        customer: str,
        type: str,
        data: Mapping[str, Value | None],
        *,
        time: datetime | None = None,
        timeout: float | None = None,
    ) -> None:
        """Report one fact of consumption: buffered, sent in a batch with others, counted once.

        `data` holds quantities (int or Decimal) and dimensions (str, bool), None is left out; `time` is when it
        happened, else when it arrives. Returns as soon as it is buffered: `flush` waits until Kafka has it. Where the
        buffer is full it waits for room, and raises UsageLost when there is none within `timeout` seconds.
        """
        event = event_of(customer, type, data, time)
        within = self._timeout if timeout is None else timeout
        if not self._usage.started:
            await asyncio.to_thread(self._usage.start, within)
        while not self._usage.add(event):
            if not await asyncio.to_thread(self._usage.wait_for_room, within):
                raise no_room(within)

    async def flush(self, *, timeout: float | None = None) -> None:
        """Returns when Kafka has every usage event so far; raises UsageLost for those that were not confirmed."""
        if self._usage.started:
            await asyncio.to_thread(self._usage.flush, self._timeout if timeout is None else timeout)

    async def ask(self, request: Request, *, timeout: float | None = None) -> Answer:
        """The answer to any request of `tallygate.schemas.requests`. Raises RefusedRequest, NoAnswer, ClientClosed."""
        return await self._ask(request, timeout)

    def _new_id(self) -> str:
        """128 random bits; uuid4 asks the system each time, which costs 40 µs in a busy program."""
        return f"{self._random.getrandbits(128):032x}"

    async def _ask(self, request: Request, timeout: float | None) -> Answer:
        """The answer to a request; what is wrong in itself is seen before it is sent where that is possible."""
        value = encode_request(request)
        try:
            parse_request(value)
        except Refused as refused:
            raise RefusedRequest(refused.reason, refused.message) from None
        try:
            answer = await self._send(request, value, self._timeout if timeout is None else timeout)
        except NoAnswer as error:
            if not isinstance(request, Check | Reserve) or request.feature not in self._fail_open:
                raise
            if isinstance(request, Reserve) and request.lease:
                raise  # a lease has nothing in hand then
            return self._fall_back(request, error)
        if not answer.allowed and answer.reason not in DENIALS:
            raise RefusedRequest(answer.reason, answer.message, answer)
        return answer

    def _fall_back(self, request: Check | Reserve, error: TallygateError) -> Answer:
        """What was asked may yet be decided: what it will hold is released right behind it, else it ends by itself."""
        if isinstance(request, Reserve):
            task = asyncio.get_running_loop().create_task(self._give_back(request))
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)
        return Answer(
            id=request.id,
            op=OPS[type(request)],
            customer=request.customer,
            allowed=True,
            reason=Reason.ALLOWED,
            at=format_instant(clock.time_ns() // 1_000_000),
            message=str(error),
            fallback=True,
        )

    async def _give_back(self, request: Reserve) -> None:
        release = Release(id=f"{request.id[:200]}/fallback", customer=request.customer, hold=request.id)
        with contextlib.suppress(TallygateError):
            await self._ask(release, None)
