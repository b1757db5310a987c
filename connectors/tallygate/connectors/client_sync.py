"""The clients for programs without asyncio: the asyncio clients, each on a loop in a thread of its own."""

import asyncio
import concurrent.futures
import functools
import ssl
import threading
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from tallygate.connectors import client_async, client_http
from tallygate.connectors.client_calls import IN_FLIGHT_MAX_DEFAULT, TallygateClient
from tallygate.connectors.client_content import Amount
from tallygate.connectors.client_errors import ClientClosed, Denied, LeaseUnsettled
from tallygate.connectors.client_holds import Hold, Reservation
from tallygate.connectors.client_leases import Lease, Leasing
from tallygate.connectors.client_metered import F, Metered, Named, Quantities, Took, metered_sync
from tallygate.connectors.client_slices import LeaseDecision
from tallygate.connectors.client_usage import BUFFER_EVENTS_DEFAULT, LINGER_SECONDS_DEFAULT, event_of, no_room
from tallygate.connectors.usage_batches import Value
from tallygate.schemas.reasons import Reason

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The same method of the object inside, waiting for its result."""

    @functools.wraps(method)
    def call(self: "TallygateClientSync | HoldSync | LeaseSync", /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._run(method(self._inner, *args, **kwargs))
        return result

    return call


class HoldSync:
    """What `reserve` was answered: look at it, or enter it with `with`."""

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

    def keep(self) -> None:
        """Leaving the block does not release it: whoever has it now settles it."""
        self._inner.keep()

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
    """`lease`, begun at once; raises Denied where there is nothing to be had."""

    @functools.wraps(method)
    def call(self: "TallygateClientSync", /, *args: P.args, **kwargs: P.kwargs) -> LeaseSync:
        return LeaseSync(self._run(method(self._inner, *args, **kwargs)._begin()), self._run)

    return call


def _reserving(method: Callable[Concatenate[Any, P], Reservation]) -> Callable[Concatenate[Any, P], HoldSync]:
    """`reserve`, asked at once."""

    @functools.wraps(method)
    def call(self: "TallygateClientSync", /, *args: P.args, **kwargs: P.kwargs) -> HoldSync:
        return HoldSync(self._run(method(self._inner, *args, **kwargs)._ask()), self._run)

    return call


class TallygateClientSync:
    """`TallygateSync` and `TallygateHTTPSync`: the calls of the asyncio clients, each waiting for its answer.

    For many threads. `reserve` asks at once: its `HoldSync` has the answer; `with` enters it, or raises Denied.
    """

    def __init__(self, inner: TallygateClient) -> None:
        self._inner = inner
        self._timeout = inner._timeout
        self._lock = threading.Lock()  # no call slips in behind the end of the loop
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> Self:
        """Connects; `with` does it. Raises NotConnected when nobody answers in time, or a topic is missing."""
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

        Raises UsageLost for usage events that are not confirmed within the client's time-out.
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

    ask = _blocking(TallygateClient.ask)
    check = _blocking(TallygateClient.check)
    estimate = _blocking(TallygateClient.estimate)
    reserve = _reserving(TallygateClient.reserve)
    lease = _leasing(TallygateClient.lease)
    settle = _blocking(TallygateClient.settle)
    release = _blocking(TallygateClient.release)
    extend = _blocking(TallygateClient.extend)
    balance = _blocking(TallygateClient.balance)
    grant = _blocking(TallygateClient.grant)
    void_grant = _blocking(TallygateClient.void_grant)
    reset_pool = _blocking(TallygateClient.reset_pool)
    set_budget = _blocking(TallygateClient.set_budget)
    set_rate_limit = _blocking(TallygateClient.set_rate_limit)
    subscribe = _blocking(TallygateClient.subscribe)
    set_customer = _blocking(TallygateClient.set_customer)

    flush = _blocking(TallygateClient.flush)

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
        """A decorator for functions: reserves before it runs, settles after it, releases when it raises.

        `customer`, `quantities` and `dimensions` may be functions of the same arguments. `took` says from what was
        returned how much it took; without it, the usage of an OpenAI or Anthropic response is read, and anything else
        is settled as it was held. Raises Denied instead of running it.
        """
        return metered_sync(self, Metered(feature, customer, quantities, dimensions, took, ttl_seconds))

    def usage(
        self,
        customer: str,
        type: str,
        data: Mapping[str, Value | None],
        *,
        time: datetime | None = None,
        timeout: float | None = None,
    ) -> None:
        """As that of the asyncio clients; blocks where the buffer is full. What waits is sent when the program ends."""
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


class TallygateSync(TallygateClientSync):
    """`Tallygate` without asyncio: the same arguments and calls."""

    def __init__(
        self,
        brokers: str,
        *,
        service: str,
        timeout: float = client_async.TIMEOUT_SECONDS_DEFAULT,
        in_flight_max: int = IN_FLIGHT_MAX_DEFAULT,
        kafka: Mapping[str, str] | None = None,
        fail_open: Mapping[str, str] | None = None,
        usage_linger: float = LINGER_SECONDS_DEFAULT,
        usage_buffer: int = BUFFER_EVENTS_DEFAULT,
    ) -> None:
        super().__init__(
            client_async.Tallygate(
                brokers,
                service=service,
                timeout=timeout,
                in_flight_max=in_flight_max,
                kafka=kafka,
                fail_open=fail_open,
                usage_linger=usage_linger,
                usage_buffer=usage_buffer,
            )
        )


class TallygateHTTPSync(TallygateClientSync):
    """`TallygateHTTP` without asyncio: the same arguments and calls."""

    def __init__(
        self,
        url: str,
        *,
        key: str,
        timeout: float = client_http.TIMEOUT_SECONDS_DEFAULT,
        try_timeout: float = client_http.TRY_SECONDS_DEFAULT,
        connections_max: int = client_http.CONNECTIONS_MAX_DEFAULT,
        tls: ssl.SSLContext | None = None,
        fail_open: Mapping[str, str] | None = None,
        usage_linger: float = LINGER_SECONDS_DEFAULT,
        usage_buffer: int = BUFFER_EVENTS_DEFAULT,
    ) -> None:
        super().__init__(
            client_http.TallygateHTTP(
                url,
                key=key,
                timeout=timeout,
                try_timeout=try_timeout,
                connections_max=connections_max,
                tls=tls,
                fail_open=fail_open,
                usage_linger=usage_linger,
                usage_buffer=usage_buffer,
            )
        )


def _run_loop(ready: "concurrent.futures.Future[asyncio.AbstractEventLoop]") -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        ready.set_result(loop)
        loop.run_forever()
