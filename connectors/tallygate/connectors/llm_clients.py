"""Provider clients behind the gate: each call of a model is reserved before it is made, and settled by its usage.

    openai = wrap(AsyncOpenAI(), tallygate, customer="acme", dimensions={"agent": "crawler"})
    reply = await openai.chat.completions.create(model="gpt-4o", messages=[...], max_tokens=800)

Works with clients shaped like OpenAI's (`chat.completions.create`, `responses.create`) and Anthropic's
(`messages.create`), also streaming: asynchronous ones with `Tallygate` or `TallygateHTTP`, others with
`TallygateSync` or `TallygateHTTPSync`. What is denied raises Denied, and the provider is not called. A call that fails
releases its hold.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NoReturn, TypeVar, cast

from tallygate.connectors.client_calls import TallygateClient
from tallygate.connectors.client_errors import Denied, TallygateError, Unsettled
from tallygate.connectors.client_holds import Hold
from tallygate.connectors.client_sync import HoldSync, TallygateClientSync
from tallygate.connectors.llm_calls import OUTPUT_TOKENS_DEFAULT, Arguments, Call, Plan
from tallygate.connectors.llm_usage import APIS, METERS, Api

C = TypeVar("C")
#: Ways around `create`, which nothing here would see.
_UNMETERED: Final = frozenset({"stream", "parse", "with_raw_response", "with_streaming_response"})
_COPIES: Final = frozenset({"with_options", "copy"})


class _Plan(Plan, Generic[C]):
    """How the calls of one client are metered, and for whom."""

    def __init__(
        self,
        tallygate: TallygateClient | TallygateClientSync,
        customer: str | Callable[[Arguments], str],
        dimensions: Mapping[str, str] | Callable[[Arguments], Mapping[str, str]] | None,
        *plan: Any,
    ) -> None:
        super().__init__(*plan)
        self.tallygate = tallygate
        self.customer = customer
        self.dimensions = dimensions

    def asked(self, call: Call) -> tuple[str, dict[str, Any]]:
        """Whom, and what, `reserve` is asked."""
        customer = self.customer(call.arguments) if callable(self.customer) else self.customer
        dimensions = self.dimensions(call.arguments) if callable(self.dimensions) else self.dimensions or {}
        return customer, call.asked(dimensions)


def wrap(
    client: C,
    tallygate: TallygateClient | TallygateClientSync,
    *,
    customer: str | Callable[[Arguments], str],
    feature: str = "llm",
    dimensions: Mapping[str, str] | Callable[[Arguments], Mapping[str, str]] | None = None,
    meters: Sequence[str] = METERS,
    input_tokens: Callable[[Arguments], int] | None = None,
    output_tokens: int = OUTPUT_TOKENS_DEFAULT,
    at_least: int | None = None,
    ttl_seconds: int | None = None,
) -> C:
    """The same client, its models' calls metered; everything else (embeddings, files, ...) passes as it is.

    `customer` and `dimensions` may be functions of a call's arguments; the dimension `model` is added. `meters` are
    those of `input_tokens`, `cached_input_tokens`, `cache_write_tokens` and `output_tokens` that the feature has;
    cached tokens without a meter are input. Before the call, `input_tokens` says how many it will take (else: 4
    characters a token), and the call's own limit, else `output_tokens`, how many it may answer. With `at_least`, fewer
    will do: the call's limit is lowered to what is affordable. Helpers around `create` (`stream`, `parse`, raw
    responses) are refused, because they would go unmetered.

    A stream is settled when it ends. If it fails, or is closed early, it is settled by what was seen (`Seen`); one that
    is neither read to its end nor closed is left to its hold's time to live. Raises Denied, and Unsettled where the
    model has answered and Tallygate has not: `error.response` is the model's answer.
    """
    plan: _Plan[C] = _Plan(
        tallygate, customer, dimensions, feature, meters, input_tokens, output_tokens, at_least, ttl_seconds
    )
    return cast(C, _Wrapped(client, plan, ()))


class _Wrapped:
    """A client, or a part of it on the way to a metered call."""

    def __init__(self, inner: Any, plan: _Plan[Any], path: tuple[str, ...]) -> None:
        self._inner = inner
        self._plan = plan
        self._path = path

    def __getattr__(self, name: str) -> Any:
        path = (*self._path, name)
        for api in APIS:
            if path == (*api.path, "create"):
                return self._metered(api, self._inner.create)
            if path[:-1] == api.path and name in _UNMETERED:
                raise AttributeError(f"{'.'.join(path)} is not metered: use {'.'.join(api.path)}.create")
        found = getattr(self._inner, name)
        if not self._path and name in _COPIES:
            return lambda *args, **kwargs: _Wrapped(found(*args, **kwargs), self._plan, ())
        if not self._path and name in _UNMETERED:
            raise AttributeError(f"{name} is not metered: use the client's own calls")
        if any(path == api.path[: len(path)] for api in APIS):
            return _Wrapped(found, self._plan, path)
        return found

    def _metered(self, api: Api, create: Callable[..., Any]) -> Callable[..., Any]:
        async def waiting(**arguments: Any) -> Any:
            return await _create(self._plan, create, Call(self._plan, api, arguments))

        def blocking(**arguments: Any) -> Any:
            return _create_sync(self._plan, create, Call(self._plan, api, arguments))

        return waiting if isinstance(self._plan.tallygate, TallygateClient) else blocking

    async def __aenter__(self) -> "_Wrapped":
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._inner.__aexit__(*error)

    def __enter__(self) -> "_Wrapped":
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)


async def _create(plan: _Plan[Any], create: Callable[..., Any], call: Call) -> Any:
    tallygate = plan.tallygate
    assert isinstance(tallygate, TallygateClient)
    customer, asked = plan.asked(call)
    hold = await tallygate.reserve(customer, **asked)._ask()
    if not hold.answer.allowed:
        raise Denied(hold.answer)
    try:
        response = create(**call.sent(hold.answer))
        if not inspect.isawaitable(response):
            raise TypeError("a client that does not wait needs TallygateSync or TallygateHTTPSync")
        response = await response
    except BaseException as error:
        await hold._leave(error)
        raise
    if call.streams:
        return _Stream(response, hold, call)
    try:
        await hold.settle(call.quantities(response))
    except (TallygateError, ValueError) as error:
        _unsettled(hold.id, error, response)
    return response


def _create_sync(plan: _Plan[Any], create: Callable[..., Any], call: Call) -> Any:
    tallygate = plan.tallygate
    assert isinstance(tallygate, TallygateClientSync)
    customer, asked = plan.asked(call)
    hold = tallygate.reserve(customer, **asked)
    with hold:
        response = create(**call.sent(hold.answer))
        if inspect.isawaitable(response):
            if inspect.iscoroutine(response):
                response.close()
            raise TypeError("an asynchronous client needs Tallygate or TallygateHTTP")
        if call.streams:
            hold.keep()
            return _StreamSync(response, hold, call)
        try:
            hold.settle(call.quantities(response))
        except (TallygateError, ValueError) as error:
            hold.keep()
            _unsettled(hold.id, error, response)
    return response


def _unsettled(id: str, error: Exception, response: Any) -> NoReturn:
    raise Unsettled(f"the model has answered, but hold {id!r} could not be settled: {error}", response) from error


class _Stream:
    """A provider's stream that settles its hold at its end, however it ends."""

    def __init__(self, inner: Any, hold: Hold, call: Call) -> None:
        self._inner = inner
        self._pieces = aiter(inner)
        self._hold = hold
        self._call = call
        self._seen = call.seen()
        self._settled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                piece = await anext(self._pieces)
            except BaseException as error:
                await self._settle(None if isinstance(error, StopAsyncIteration) else error)
                raise
            self._seen.take(piece)
            if self._call.shown(piece):
                return piece

    async def close(self) -> None:
        try:
            await self._inner.close()
        finally:
            await self._settle(None)

    aclose = close

    async def __aenter__(self) -> "_Stream":
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        await self.close()

    async def _settle(self, cause: BaseException | None) -> None:
        if self._settled:
            return
        self._settled = True
        try:
            await self._hold.settle(self._seen.quantities())
        except (TallygateError, ValueError) as error:
            _say(self._hold.id, error, cause)


class _StreamSync:
    """The same without asyncio."""

    def __init__(self, inner: Any, hold: HoldSync, call: Call) -> None:
        self._inner = inner
        self._pieces = iter(inner)
        self._hold = hold
        self._call = call
        self._seen = call.seen()
        self._settled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> "_StreamSync":
        return self

    def __next__(self) -> Any:
        while True:
            try:
                piece = next(self._pieces)
            except BaseException as error:
                self._settle(None if isinstance(error, StopIteration) else error)
                raise
            self._seen.take(piece)
            if self._call.shown(piece):
                return piece

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._settle(None)

    def __enter__(self) -> "_StreamSync":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        self.close()

    def _settle(self, cause: BaseException | None) -> None:
        if self._settled:
            return
        self._settled = True
        try:
            self._hold.settle(self._seen.quantities())
        except (TallygateError, ValueError) as error:
            _say(self._hold.id, error, cause)


def _say(id: str, error: Exception, cause: BaseException | None) -> None:
    if cause is None:
        _unsettled(id, error, None)
    cause.add_note(f"hold {id!r} could not be settled: {error}")
