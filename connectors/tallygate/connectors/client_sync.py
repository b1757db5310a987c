"""The client for programs without asyncio: the asyncio client, on a loop in a thread of its own."""

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from tallygate.connectors.client_async import IN_FLIGHT_MAX_DEFAULT, TIMEOUT_SECONDS_DEFAULT, Tallygate
from tallygate.connectors.client_content import Amount
from tallygate.connectors.client_errors import ClientClosed, Denied, LeaseUnsettled
from tallygate.connectors.client_holds import Hold, Reservation
from tallygate.connectors.client_leases import Lease, Leasing
from tallygate.connectors.client_slices import LeaseDecision
from tallygate.connectors.client_usage import BUFFER_EVENTS_DEFAULT, LINGER_SECONDS_DEFAULT, event_of, no_room
from tallygate.connectors.usage_batches import Value
from tallygate.schemas.reasons import Reason

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The same method of the object inside, waiting for its result."""

    @functools.wraps(method)
    def call(self: "TallygateSync | HoldSync | LeaseSync", /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._run(method(self._inner, *args, **kwargs))
        return result

    return call


class HoldSync:
    """What `TallygateSync.reserve` was answered: look at it, or enter it with `with`."""

    def __init__(self, inner: Hold, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._inner = inner
        self._run = run
        self.answer = inner.answer
        self.id = inner.id
        self.customer = inner.customer

    @property
    def allowed(self) -> bool:
        return self.answer.allowed

    @property
    def reason(self) -> Reason:
        return self.answer.reason

    @property
    def credits(self) -> str | None:
        """What is held, as a decimal string."""
        return self._inner.credits

    @property
    def expires_at(self) -> str | None:
        """When the hold ends by itself, RFC 3339."""
        return self._inner.expires_at

    settle = _blocking(Hold.settle)
    release = _blocking(Hold.release)
    extend = _blocking(Hold.extend)

    def __enter__(self) -> Self:
        if not self.allowed:
            raise Denied(self.answer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._run(self._inner._leave(error))


class LeaseSync:
    """A lease for many threads; `with` closes it."""

    def __init__(self, inner: Lease, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._inner = inner
        self._run = run

    def take(self, quantities: Mapping[str, Amount] | None = None, *, credits: Amount = 0) -> LeaseDecision:
        """As `Lease.take`."""
        return self._inner.take(quantities, credits=credits)

    acquire = _blocking(Lease.acquire)
    close = _blocking(Lease.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except LeaseUnsettled as unsettled:
            if error is None:
                raise
            error.add_note(str(unsettled))


def _leasing(method: Callable[Concatenate[Any, P], Leasing]) -> Callable[Concatenate[Any, P], LeaseSync]:
    """`Tallygate.lease`, begun at once; raises Denied where there is nothing to be had."""

    @functools.wraps(method)
    def call(self: "TallygateSync", /, *args: P.args, **kwargs: P.kwargs) -> LeaseSync:
        return LeaseSync(self._run(method(self._inner, *args, **kwargs)._begin()), self._run)

    return call


def _reserving(method: Callable[Concatenate[Any, P], Reservation]) -> Callable[Concatenate[Any, P], HoldSync]:
    """`Tallygate.reserve`, asked at once."""

    @functools.wraps(method)
    def call(self: "TallygateSync", /, *args: P.args, **kwargs: P.kwargs) -> HoldSync:
        return HoldSync(self._run(method(self._inner, *args, **kwargs)._ask()), self._run)

    return call


class TallygateSync:
    """`Tallygate` without asyncio: the same arguments and calls, each waiting for its answer, for many threads.

    `reserve` asks at once: its `HoldSync` has the answer; `with` enters it, or raises Denied.
    """

    def __init__(
        self,
        brokers: str,
        *,
        service: str,
        timeout: float = TIMEOUT_SECONDS_DEFAULT,
        in_flight_max: int = IN_FLIGHT_MAX_DEFAULT,
        kafka: Mapping[str, str] | None = None,
        usage_linger: float = LINGER_SECONDS_DEFAULT,
        usage_buffer: int = BUFFER_EVENTS_DEFAULT,
    ) -> None:
        self._timeout = timeout
        self._inner = Tallygate(
            brokers,
            service=service,
            timeout=timeout,
            in_flight_max=in_flight_max,
            kafka=kafka,
            usage_linger=usage_linger,
            usage_buffer=usage_buffer,
        )
        self._lock = threading.Lock()  # no call slips in behind the end of the loop
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> Self:
        """Connects; `with` does it. Raises NotConnected when no broker answers in time, or a topic is missing."""
        ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        with self._lock:
            if self._loop is not None:
                return self
            self._thread = threading.Thread(target=_run_loop, args=(ready,), name="tallygate-client", daemon=True)
            self._thread.start()
            self._loop = ready.result()
        try:
            self._run(self._inner.start())
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Sends the usage events that wait and ends the connections; calls in flight raise ClientClosed. Twice is once.

        Raises UsageLost for usage events that the broker does not confirm within the client's time-out.
        """
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._wind_down(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    async def _wind_down(self) -> None:
        try:
            await self._inner.close()
        finally:
            await self._others()

    async def _others(self) -> None:
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    ask = _blocking(Tallygate.ask)
    check = _blocking(Tallygate.check)
    estimate = _blocking(Tallygate.estimate)
    reserve = _reserving(Tallygate.reserve)
    lease = _leasing(Tallygate.lease)
    settle = _blocking(Tallygate.settle)
    release = _blocking(Tallygate.release)
    extend = _blocking(Tallygate.extend)
    balance = _blocking(Tallygate.balance)
    grant = _blocking(Tallygate.grant)
    void_grant = _blocking(Tallygate.void_grant)
    reset_pool = _blocking(Tallygate.reset_pool)
    set_budget = _blocking(Tallygate.set_budget)
    set_rate_limit = _blocking(Tallygate.set_rate_limit)
    subscribe = _blocking(Tallygate.subscribe)
    set_customer = _blocking(Tallygate.set_customer)

    flush = _blocking(Tallygate.flush)

    def usage(
        self,
        customer: str,
        type: str,
        data: Mapping[str, Value | None],
        *,
        time: datetime | None = None,
        timeout: float | None = None,
    ) -> None:
        """As `Tallygate.usage`; blocks where the buffer is full. What waits is sent when the program ends, too."""
        if self._loop is None:
            raise ClientClosed("the client is not running: use it in a with block")
        event = event_of(customer, type, data, time)
        within = self._timeout if timeout is None else timeout
        buffer = self._inner._usage
        if not buffer.started:
            buffer.start(within)
        while not buffer.add(event):
            if not buffer.wait_for_room(within):
                raise no_room(within)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                call.close()
                raise ClientClosed("the client is not running: use it in a with block")
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise


def _run_loop(ready: "concurrent.futures.Future[asyncio.AbstractEventLoop]") -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        ready.set_result(loop)
        loop.run_forever()
