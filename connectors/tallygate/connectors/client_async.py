"""The client for asyncio: requests built, sent, and their answers sorted into values and exceptions."""

import hashlib
import random
from collections.abc import Coroutine, Generator, Mapping
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self

from tallygate.connectors.client_errors import Denied, RefusedRequest, TallygateError
from tallygate.connectors.client_transport import Transport
from tallygate.schemas.amounts import AmountError, from_nanos, quantity_nanos
from tallygate.schemas.answers import Answer, Statement
from tallygate.schemas.reasons import DENIALS, Reason, Refused
from tallygate.schemas.requests import (
    Balance,
    Category,
    Check,
    GiveGrant,
    Period,
    Release,
    Request,
    Reserve,
    SetBudget,
    Settle,
    encode_request,
    parse_request,
)

Amount = int | str | Decimal

TIMEOUT_SECONDS_DEFAULT: Final = 5.0
IN_FLIGHT_MAX_DEFAULT: Final = 5_000


class Tallygate:
    """A client on one event loop, for any number of tasks.

    `brokers` are Kafka's addresses, `service` names the reply topic (`tallygate topics --service NAME` declares it) and
    `kafka` adds settings of librdkafka, e.g. `{"security.protocol": "SASL_SSL", ...}`. More than `in_flight_max` calls
    at once wait for each other, within their time-outs.
    """

    def __init__(
        self,
        brokers: str,
        *,
        service: str,
        timeout: float = TIMEOUT_SECONDS_DEFAULT,
        in_flight_max: int = IN_FLIGHT_MAX_DEFAULT,
        kafka: Mapping[str, str] | None = None,
    ) -> None:
        self._timeout = timeout
        self._transport = Transport(brokers, service, in_flight_max, kafka or {})
        self._random = random.Random()  # seeded by the system

    async def start(self) -> Self:
        """Connects; `async with` does it. Raises NotConnected when no broker answers in time, or a topic is missing."""
        await self._transport.start(self._timeout)
        return self

    async def close(self) -> None:
        """Ends the connections; calls in flight raise ClientClosed."""
        await self._transport.close()

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
        """Would this be allowed now? Changes nothing. `explain` lists every limit looked at, not only denials."""
        request = Check(
            id=self._new_id(),
            customer=customer,
            feature=feature,
            quantities=_quantities(quantities),
            credits=_amount("credits", credits),
            dimensions=_sorted(dimensions),
            explain=explain,
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
        ttl_seconds: int | None = None,
        explain: bool = False,
        id: str | None = None,
        timeout: float | None = None,
    ) -> "Reservation":
        """Set credits aside: `await` it for the answer, or enter it with `async with` for the hold.

        `quantities` by meter are priced by the feature's rates; `credits` are asked for as they are. The hold ends by
        itself after `ttl_seconds`. `id` names it: give your own to ask again for the same hold after a restart.
        """
        request = Reserve(
            id=id or self._new_id(),
            customer=customer,
            feature=feature,
            quantities=_quantities(quantities),
            credits=_amount("credits", credits),
            dimensions=_sorted(dimensions),
            ttl_seconds=ttl_seconds,
            explain=explain,
        )
        return Reservation(self, request, timeout)

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
            id=id or _id_of("settle", customer, hold),
            customer=customer,
            hold=hold,
            quantities=None if quantities is None else _quantities(quantities),
            credits=None if credits is None else _amount("credits", credits),
        )
        return await self._ask(request, timeout)

    async def release(self, customer: str, hold: str, *, id: str | None = None, timeout: float | None = None) -> Answer:
        """Give a hold back unused. `id` follows from the hold unless given."""
        return await self._ask(
            Release(id=id or _id_of("release", customer, hold), customer=customer, hold=hold), timeout
        )

    async def balance(self, customer: str, *, timeout: float | None = None) -> Statement:
        """Pools, grants, holds and budgets of a customer. Raises Denied for a customer that is not known."""
        answer = await self._ask(Balance(id=self._new_id(), customer=customer), timeout)
        if answer.statement is None:
            raise Denied(answer)
        return answer.statement

    async def grant(
        self,
        customer: str,
        amount: Amount,
        *,
        id: str | None = None,
        pool: str = "credits",
        priority: int = 1,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        category: Category = "paid",
        price: Amount = 0,
        timeout: float | None = None,
    ) -> Answer:
        """Give credits, once for each `id`. Priority 0 burns first; `price` is what was paid for one credit."""
        request = GiveGrant(
            id=id or self._new_id(),
            customer=customer,
            amount=_amount("amount", amount),
            pool=pool,
            priority=priority,
            effective_at=effective_at,
            expires_at=expires_at,
            category=category,
            price=_amount("price", price),
        )
        return await self._ask(request, timeout)

    async def set_budget(
        self,
        customer: str,
        name: str,
        limit: Amount,
        *,
        scope: Mapping[str, str] | None = None,
        unit: str = "credits",
        period: Period = "lifetime",
        hard: bool = True,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Limit a scope over a period, e.g. `scope={"team": "research"}`; the same name again changes the limit.

        `"*"` as a value means one budget for each value; `unit` is `credits` or a meter's name; a soft budget
        (`hard=False`) allows and reports.
        """
        request = SetBudget(
            id=id or self._new_id(),
            customer=customer,
            name=name,
            limit=_amount("limit", limit),
            scope=_sorted(scope),
            unit=unit,
            period=period,
            hard=hard,
        )
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
        answer = await self._transport.ask(request, value, self._timeout if timeout is None else timeout)
        if not answer.allowed and answer.reason not in DENIALS:
            raise RefusedRequest(answer.reason, answer.message, answer)
        return answer


class Reservation(Coroutine[Any, Any, Answer]):
    """A reserve that is yet to be asked: `await` gives its answer, `async with` its hold; a task can be made of it."""

    def __init__(self, client: Tallygate, request: Reserve, timeout: float | None) -> None:
        self._client = client
        self._request = request
        self._timeout = timeout
        self._hold: Hold | None = None
        self._asking: Coroutine[Any, Any, Answer] | None = None

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._client._ask(self._request, self._timeout).__await__()

    def send(self, value: Any, /) -> Any:
        if self._asking is None:
            self._asking = self._client._ask(self._request, self._timeout)
        return self._asking.send(value)

    def throw(self, *error: Any) -> Any:
        if self._asking is None:
            self._asking = self._client._ask(self._request, self._timeout)
        return self._asking.throw(*error)

    def close(self) -> None:
        if self._asking is not None:
            self._asking.close()

    async def _ask(self) -> "Hold":
        return Hold(self._client, await self, self._timeout)

    async def __aenter__(self) -> "Hold":
        self._hold = await self._ask()
        if not self._hold.answer.allowed:
            raise Denied(self._hold.answer)
        return self._hold

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._hold is not None
        await self._hold._leave(error)


class Hold:
    """Credits set aside: settle them, or release them."""

    def __init__(self, client: Tallygate, answer: Answer, timeout: float | None) -> None:
        self._client = client
        self._timeout = timeout
        self._ended = False
        self.answer = answer
        self.id = answer.id
        self.customer = answer.customer

    @property
    def credits(self) -> str | None:
        """What is held, as a decimal string."""
        return self.answer.hold.credits if self.answer.hold else self.answer.credits

    @property
    def expires_at(self) -> str | None:
        """When the hold ends by itself, RFC 3339."""
        return self.answer.hold.expires_at if self.answer.hold else None

    async def settle(
        self,
        quantities: Mapping[str, Amount] | None = None,
        *,
        credits: Amount | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Record what the work took; without arguments: what was held.

        Once this was called, leaving the block releases nothing: should no answer come, the work may be recorded, and
        settling again is safe.
        """
        self._ended = True
        return await self._client.settle(
            self.customer, self.id, quantities, credits=credits, timeout=self._timeout if timeout is None else timeout
        )

    async def release(self, *, timeout: float | None = None) -> Answer:
        """Give the hold back unused."""
        self._ended = True
        return await self._client.release(self.customer, self.id, timeout=self._timeout if timeout is None else timeout)

    async def _leave(self, error: BaseException | None) -> None:
        if self._ended:
            return
        try:
            await self.release()
        except TallygateError as trouble:
            if isinstance(trouble, RefusedRequest) and trouble.reason in (Reason.HOLD_ENDED, Reason.HOLD_UNKNOWN):
                return  # its time to live was over: nothing is held any more
            if error is None:
                raise
            error.add_note(f"hold {self.id!r} could not be released and ends at {self.expires_at}: {trouble}")


def _id_of(op: str, customer: str, hold: str) -> str:
    """The one id under which a hold is ended this way, so that a repetition is known as one."""
    return hashlib.blake2b(f"{op}\0{customer}\0{hold}".encode(), digest_size=16).hexdigest()


def _amount(name: str, value: Amount) -> Decimal:
    """An amount in its shortest form: the same amount is the same content, however it was written."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}): amounts are int, str or Decimal, "
            "because a float does not hold decimal amounts exactly"
        )
    try:
        return Decimal(from_nanos(quantity_nanos(value)))
    except AmountError as error:
        raise RefusedRequest(Reason.QUANTITY_INVALID, f"{name}: {error}") from None


def _quantities(quantities: Mapping[str, Amount] | None) -> dict[str, Decimal]:
    return {meter: _amount(meter, quantities[meter]) for meter in sorted(quantities)} if quantities else {}


def _sorted(dimensions: Mapping[str, str] | None) -> dict[str, str]:
    return {name: dimensions[name] for name in sorted(dimensions)} if dimensions else {}
