"""LiteLLM's proxy behind the gate: a call is reserved before it is made, and settled by the usage that it returns.

    litellm_settings:
      callbacks: [tallygate.connectors.litellm.gate]
    callback_settings:
      tallygate: {url: http://127.0.0.1:8086, key: os.environ/TALLYGATE_KEY, customer: metadata.customer}

`litellm_settings.py` says what may stand there. A denied call is answered 402, or 429 with Retry-After where it was a
rate limit, and what cannot be decided 422 (a model without a price) or 503 (no answer from Tallygate): no provider is
called then. A call is priced as the model that was asked for, by the name that callers use, whichever deployment or
fallback answers it. Streams are settled at their end, or by what was seen of them. A call that fails gives its hold
back.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple

from tallygate.connectors.client_calls import TallygateClient
from tallygate.connectors.client_errors import Denied, NoAnswer, NotConnected, NotHeld, RefusedRequest, TallygateError
from tallygate.connectors.client_holds import Hold
from tallygate.connectors.client_http_transport import backoff
from tallygate.connectors.gateway.problems import llm_denial
from tallygate.connectors.litellm_calls import FREE, METERED, Pieces, estimate, took
from tallygate.connectors.litellm_settings import GateSettings, customer_of, dimensions_of, read_settings
from tallygate.connectors.llm_calls import Call, Plan
from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import Reason

try:
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.litellm_core_utils.core_helpers import get_or_create_metadata_bucket
    from litellm.proxy._types import ProxyException, UserAPIKeyAuth
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("tallygate.connectors.litellm needs litellm: pip install 'litellm[proxy]'") from error

_log = logging.getLogger("tallygate.litellm")
#: Where a call's hold is named in the proxy's own metadata, and so in what it logs of the call.
HOLD: Final = "tallygate_hold"
#: How long a reply waits for its call to be settled; it goes on behind it.
_WAIT_SECONDS: Final = 2.0
#: How long settling is tried.
_INSIST_SECONDS: Final = 300.0
#: A call of which nothing was heard for so long is forgotten: its hold has ended by itself.
_FORGET_SECONDS: Final = 6 * 3600.0

Headers = Mapping[str, str]


class _Held(NamedTuple):
    """A call under way."""

    hold: Hold
    call: Call
    meters: tuple[str, ...]
    since: float


class Gate(CustomLogger):  # type: ignore[misc] # it is Any where litellm is not installed
    """The callback. It belongs to the proxy's event loop, and connects when the first call comes."""

    def __init__(self, settings: GateSettings, client: TallygateClient | None = None) -> None:
        super().__init__()
        self._settings = settings
        self._client = client or settings.client()
        self._connecting: asyncio.Task[Any] | None = None
        self._held: dict[str, _Held] = {}
        self._behind: set[asyncio.Task[None]] = set()

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """Reserves. What it raises is the proxy's answer."""
        settings = self._settings
        api = METERED.get(call_type)
        if api is None:
            if call_type in FREE or call_type in settings.unmetered:
                return None
            raise _refusal(
                403,
                "unmetered",
                f"calls of type {call_type} are not metered, and so not allowed (unmetered may name it)",
            )
        await self._release(data)  # the proxy falls back to another model, before any was called
        customer = customer_of(settings, user_api_key_dict, data)
        if customer is None:
            fields = settings.customer if isinstance(settings.customer, str) else " or ".join(settings.customer)
            raise _refusal(403, "no_customer", f"no customer is known for this API key: it has no {fields}")
        plan = Plan(
            settings.feature,
            settings.meters,
            lambda request: estimate(api, request),
            settings.output_tokens,
            settings.at_least,
            settings.ttl_seconds,
        )
        call = Call(plan, api, dict(data))
        hold = await self._reserve(customer, call.asked(dimensions_of(settings, user_api_key_dict, data)))
        data.update(call.limited(hold.answer))
        self._keep(data, _Held(hold, call, plan.meters, time.monotonic()))
        return data

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Settles what came in one piece."""
        held = self._found(data)
        if held is None or hasattr(response, "__aiter__"):
            return
        self._held.pop(held.hold.id)
        await self._settle(held, lambda: took(response, held.meters))

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """Passes a stream on, and settles it when it ends, breaks off, or is left."""
        held = self._found(request_data)
        if held is None:
            async for chunk in response:
                yield chunk
            return
        self._held.pop(held.hold.id)
        pieces, seen = Pieces(), held.call.seen()
        try:
            async for chunk in response:
                for piece in pieces.of(chunk):
                    seen.take(piece)
                yield chunk
            for piece in pieces.last():
                seen.take(piece)
        finally:
            await self._settle(held, seen.quantities)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        """Gives the hold of a failed call back. A call that was denied comes here, too, and has none."""
        await self._release(request_data)

    async def _reserve(self, customer: str, asked: dict[str, Any]) -> Hold:
        try:
            hold = await self._ask(customer, asked)
        except RefusedRequest as error:
            raise _refusal(422, error.reason, str(error)) from None
        except TallygateError as error:
            _log.error("a call of customer %r was refused, because Tallygate did not decide: %s", customer, error)
            raise _refusal(503, "undecided", "the call's limits cannot be checked now", {"Retry-After": "1"}) from None
        if not hold.answer.allowed:
            status, headers = llm_denial(hold.answer)
            raise _refusal(status, hold.answer.reason, str(Denied(hold.answer)), headers)
        return hold

    async def _ask(self, customer: str, asked: dict[str, Any]) -> Hold:
        reservation = self._client.reserve(customer, **asked)
        try:
            await self._connected()
            return await reservation._ask()
        except NoAnswer:  # it will not be asked again, and may yet be decided
            self._go_on_behind(self._client._give_back(reservation._request))
            raise
        except NotConnected as error:
            if not self._settings.fail_open:
                raise
            answer = self._client._fall_back(reservation._request, error)
            return Hold(self._client, reservation._request, answer, None)

    async def _connected(self) -> None:
        """One connects, the others wait for it; after a failure the next call tries again."""
        task = self._connecting
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._connecting = asyncio.create_task(self._client.start())
        if not task.done():
            await asyncio.wait({task})
        task.result()

    def _keep(self, data: dict[str, Any], held: _Held) -> None:
        while self._held and (oldest := next(iter(self._held.values()))).since < held.since - _FORGET_SECONDS:
            del self._held[oldest.hold.id]
        self._held[held.hold.id] = held
        _, metadata = get_or_create_metadata_bucket(data)
        metadata[HOLD] = held.hold.id

    def _found(self, data: dict[str, Any]) -> _Held | None:
        _, metadata = get_or_create_metadata_bucket(data)
        id = metadata.get(HOLD)  # the caller may have written something there, too
        return self._held.get(id) if isinstance(id, str) else None

    async def _release(self, data: dict[str, Any]) -> None:
        held = self._found(data)
        if held is not None:
            del self._held[held.hold.id]
            await self._end(held.hold, held.hold.release)

    async def _settle(self, held: _Held, quantities: Callable[[], Mapping[str, int] | None]) -> None:
        try:
            found = quantities()
        except ValueError as error:
            _log.warning("hold %r is settled as it was held, for the usage cannot be read: %s", held.hold.id, error)
            found = None
        _log.debug("hold %r of customer %r took %s", held.hold.id, held.hold.customer, found)
        await self._end(held.hold, lambda: held.hold.settle(found))

    async def _end(self, hold: Hold, finish: Callable[[], Awaitable[Answer]]) -> None:
        await asyncio.wait({self._go_on_behind(_insist(hold, finish))}, timeout=_WAIT_SECONDS)

    def _go_on_behind(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        return task


async def _insist(hold: Hold, finish: Callable[[], Awaitable[Answer]]) -> None:
    """Until there is an answer, or it is hopeless: then the hold ends as the feature says, and the log has it."""
    until = time.monotonic() + _INSIST_SECONDS
    tries = 0
    while True:
        tries += 1
        try:
            await finish()
            return
        except (RefusedRequest, NotHeld) as error:
            if not (isinstance(error, RefusedRequest) and error.reason in (Reason.HOLD_ENDED, Reason.HOLD_UNKNOWN)):
                _log.error("hold %r of customer %r: %s", hold.id, hold.customer, error)
            return
        except TallygateError as error:
            if time.monotonic() > until:
                _log.error("hold %r of customer %r is not settled: %s", hold.id, hold.customer, error)
                return
        await asyncio.sleep(backoff(tries))


def _refusal(status: int, reason: str, message: str, headers: Headers | None = None) -> Exception:
    """What the proxy answers: an error as OpenAI words it. The SDKs do not repeat what would be refused again."""
    said = {"x-should-retry": "false"} if headers is None else dict(headers)
    made: Exception = ProxyException(message, str(reason), None, status, said)
    return made


def __getattr__(name: str) -> Any:
    """`gate`, made of the proxy's configuration when that names it. Raises ValueError: one clear line."""
    if name != "gate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = Gate(read_settings(litellm.callback_settings.get("tallygate"), UserAPIKeyAuth.model_fields))
    globals()["gate"] = found  # the proxy's settings may be read again
    return found
