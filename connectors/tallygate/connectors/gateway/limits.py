"""What is checked before Kafka is touched: how often a key calls, whose customers it may name."""

from collections.abc import Iterable
from typing import Final

from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.keys import KeyRecord, Scope

_FORGET_ABOVE: Final = 10_000
_SECOND_NS: Final = 1_000_000_000


class CallRates:
    """A token bucket for each key: so many calls a second, twice as many at once. In this process's memory alone."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._full_at: dict[str, int] = {}  # when the bucket of a key will be full again

    def take(self, key: KeyRecord, now: int) -> None:
        """One call, at an instant of the monotonic clock in nanoseconds. Raises Problem 429."""
        rate = key.per_second or self._per_second
        if not rate:
            return
        full_at = max(now, self._full_at.get(key.id, now)) + _SECOND_NS // rate
        wait = full_at - now - 2 * _SECOND_NS
        if wait > 0:
            raise Problem(
                429,
                "rate-limited",
                f"this API key may make {rate} calls a second",
                headers={"Retry-After": str(-(-wait // _SECOND_NS))},
            )
        if len(self._full_at) > _FORGET_ABOVE:
            self._full_at = {id: at for id, at in self._full_at.items() if at > now}
        self._full_at[key.id] = full_at


def check_scope(key: KeyRecord, scope: Scope) -> None:
    if scope not in key.scopes:
        raise Problem(403, "scope-missing", f"this API key may not do that: it needs the scope {scope!r}")


def check_customers(key: KeyRecord, customers: Iterable[str]) -> None:
    """Whether a key may name these customers. One that may not learns nothing about them, not even that they exist."""
    if key.customers and not all(customer in key.customers for customer in customers):
        raise Problem(403, "customer-not-allowed", "this API key is not for that customer")


def check_whole_tenant(key: KeyRecord) -> None:
    if key.customers:
        raise Problem(
            403, "customer-not-allowed", "this API key is for single customers, and this concerns all of them"
        )
