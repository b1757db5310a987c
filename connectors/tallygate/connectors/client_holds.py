"""Holds: a reservation that is yet to be asked, and the credits it has set aside."""

from collections.abc import Coroutine, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tallygate.connectors.client_content import Amount, amounts
from tallygate.connectors.client_errors import Denied, NotHeld, RefusedRequest, TallygateError
from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Reserve

if TYPE_CHECKING:
    from tallygate.connectors.client_calls import TallygateClient


class Reservation(Coroutine[Any, Any, Answer]):
    """A reserve that is yet to be asked: `await` gives its answer, `async with` its hold; a task can be made of it."""

    def __init__(self, client: "TallygateClient", request: Reserve, timeout: float | None) -> None:
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
        return Hold(self._client, self._request, await self, self._timeout)

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
    """Credits set aside: settle them, or release them. `answer` is that of the reservation.

    Where `answer.fallback` says that nobody answered and the feature fails open, nothing is held: `settle` reports
    usage, `release` and `extend` do nothing.
    """

    def __init__(self, client: "TallygateClient", request: Reserve, answer: Answer, timeout: float | None) -> None:
        self._client = client
        self._request = request
        self._timeout = timeout
        self._ended = False
        self._reported: Answer | None = None
        self.answer = answer
        self.id = answer.id
        self.customer = answer.customer
        self._expires_at = answer.hold.expires_at if answer.hold else None

    @property
    def credits(self) -> str | None:
        """What is held, as a decimal string."""
        return self.answer.hold.credits if self.answer.hold else self.answer.credits

    @property
    def expires_at(self) -> str | None:
        """When the hold ends by itself, RFC 3339."""
        return self._expires_at

    async def settle(
        self,
        quantities: Mapping[str, Amount] | None = None,
        *,
        credits: Amount | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Record what the work took; without arguments: what was held.

        Once this was called, leaving the block releases nothing: should no answer come, the work may be recorded, and
        settling again is safe. Raises NotHeld where nothing is held and the client's `fail_open` does not say as what
        to report it.
        """
        self._ended = True
        if self.answer.fallback:
            return await self._report(quantities, credits)
        return await self._client.settle(
            self.customer, self.id, quantities, credits=credits, timeout=self._timeout if timeout is None else timeout
        )

    async def release(self, *, timeout: float | None = None) -> Answer:
        """Give the hold back unused."""
        self._ended = True
        if self.answer.fallback:
            return self.answer
        return await self._client.release(self.customer, self.id, timeout=self._timeout if timeout is None else timeout)

    def keep(self) -> None:
        """Leaving the block does not release it: whoever has it now settles it."""
        self._ended = True

    async def extend(self, ttl_seconds: int, *, timeout: float | None = None) -> Answer:
        """Let the hold live `ttl_seconds` from now, if that is longer than it has."""
        if self.answer.fallback:
            return self.answer
        answer = await self._client.extend(
            self.customer, self.id, ttl_seconds, timeout=self._timeout if timeout is None else timeout
        )
        if answer.hold is not None:
            self._expires_at = answer.hold.expires_at
        return answer

    async def _report(self, quantities: Mapping[str, Amount] | None, credits: Amount | None) -> Answer:
        """The work as a usage event, once; without quantities: what was asked for."""
        if self._reported is not None:
            return self._reported
        feature = self._request.feature
        took = amounts(quantities) if quantities is not None else self._request.quantities
        event_type = self._client._fail_open.get(feature)
        if event_type is None or not took or credits is not None:
            raise NotHeld(
                f"nothing is held under {self.id!r}: no worker answered, and feature {feature!r} fails open. Report "
                f"what it took with client.usage(), or name the type of its events: fail_open={{{feature!r}: '...'}}"
            )
        await self._client.usage(self.customer, event_type, {**self._request.dimensions, **took})
        self._reported = replace(self.answer, op="settle")
        return self._reported

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
