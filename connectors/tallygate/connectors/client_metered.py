"""A function behind the gate: what it will take is reserved before it runs, what it took is settled after."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from tallygate.connectors.client_content import Amount
from tallygate.connectors.client_errors import Denied
from tallygate.connectors.llm_usage import quantities_of, usage_of

F = TypeVar("F", bound=Callable[..., Any])
Named = str | Callable[..., str]
Quantities = Mapping[str, Amount]
Took = Callable[[Any], Quantities | None]


class Metered(NamedTuple):
    """How a function is metered: each may be a function of the same arguments. `took` reads what it gave back."""

    feature: str
    customer: Named
    quantities: Quantities | Callable[..., Quantities] | None
    dimensions: Mapping[str, str] | Callable[..., Mapping[str, str]] | None
    took: Took | None
    ttl_seconds: int | None

    def asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        found = [
            each(*args, **kwargs) if callable(each) else each
            for each in (self.customer, self.quantities, self.dimensions)
        ]
        customer, quantities, dimensions = found
        return cast(str, customer), {
            "feature": self.feature,
            "quantities": quantities,
            "dimensions": dimensions,
            "ttl_seconds": self.ttl_seconds,
        }

    def settled(self, result: Any, asked: Mapping[str, Any]) -> Quantities | None:
        """What the result says that it took, in the meters that were asked for; None: what was held."""
        if self.took is not None:
            return self.took(result)
        usage = usage_of(result)
        meters = tuple(asked["quantities"] or ())
        return None if usage is None or not meters else quantities_of(*usage, meters)


def metered(client: Any, how: Metered) -> Callable[[F], F]:
    """For coroutine functions, with a client for asyncio."""

    def decorate(function: F) -> F:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is no coroutine function: it needs a client without asyncio")

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            customer, asked = how.asked(args, kwargs)
            hold = await client.reserve(customer, **asked)._ask()
            if not hold.answer.allowed:
                raise Denied(hold.answer)
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                await hold._leave(error)
                raise
            await hold.settle(how.settled(result, asked))
            return result

        return cast(F, run)

    return decorate


def metered_sync(client: Any, how: Metered) -> Callable[[F], F]:
    """For functions, with a client without asyncio."""

    def decorate(function: F) -> F:
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} does not do its work when it is called: it cannot be metered so")

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            customer, asked = how.asked(args, kwargs)
            with client.reserve(customer, **asked) as hold:
                result = function(*args, **kwargs)
                hold.settle(how.settled(result, asked))
            return result

        return cast(F, run)

    return decorate
