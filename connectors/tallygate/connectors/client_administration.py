"""The calls of those who run the books: grants, pools, budgets, rate limits, subscriptions, customers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec.structs import replace

from tallygate.connectors.client_content import Amount, exact, id_of, in_order
from tallygate.connectors.client_errors import RefusedRequest
from tallygate.schemas.answers import Answer
from tallygate.schemas.intervals import parse_interval
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import (
    Category,
    GiveGrant,
    Override,
    Period,
    Recurring,
    Request,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Subscribe,
    VoidGrant,
)


class Administration(ABC):
    """The part of the client that gives and limits; each call counts once for its `id`."""

    @abstractmethod
    def _new_id(self) -> str: ...

    @abstractmethod
    async def _ask(self, request: Request, timeout: float | None) -> Answer: ...

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
        every: str | None = None,
        anchor: datetime | None = None,
        rollover_min: Amount = 0,
        rollover_max: Amount = 0,
        timeout: float | None = None,
    ) -> Answer:
        """Give credits, once for each `id`. Priority 0 burns first; `price` is what was paid for one credit.

        `every` sets the grant back to its amount at each interval (ISO 8601, like `P1M`), counted from `anchor`, or
        from when it takes effect. A reset of the pool keeps what is left of it, between the two rollovers.
        """
        request = GiveGrant(
            id=id or self._new_id(),
            customer=customer,
            amount=exact("amount", amount),
            pool=pool,
            priority=priority,
            effective_at=effective_at,
            expires_at=expires_at,
            category=category,
            price=exact("price", price),
            recurrence=_recurring(every, anchor),
            rollover_min=exact("rollover_min", rollover_min),
            rollover_max=exact("rollover_max", rollover_max),
        )
        return await self._ask(request, timeout)

    async def void_grant(
        self, customer: str, grant: str, *, id: str | None = None, timeout: float | None = None
    ) -> Answer:
        """End a grant now; what was left of it is breakage. `id` follows from the grant's unless given."""
        request = VoidGrant(id=id or id_of("void-grant", customer, grant), customer=customer, grant=grant)
        return await self._ask(request, timeout)

    async def reset_pool(
        self,
        customer: str,
        pool: str = "credits",
        *,
        preserve_overage: bool = False,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """End a pool's usage period now: grants keep what rolls over; overage is dropped, or burnt at once."""
        request = ResetPool(id=id or self._new_id(), customer=customer, pool=pool, preserve_overage=preserve_overage)
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
        anchor: datetime | None = None,
        thresholds: Iterable[int] = (),
        observe: bool = False,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Limit a scope over a period, e.g. `scope={"team": "research"}`; the same name again changes the limit.

        `"*"` as a value means one budget for each value; `unit` is `credits` or a meter's name; a soft budget
        (`hard=False`) allows and reports. Periods count from `anchor`, else in UTC. `thresholds` are percentages that
        raise an alert once a period. With `observe` it never denies: `answer.would_deny` says what it would have.
        """
        request = SetBudget(
            id=id or self._new_id(),
            customer=customer,
            name=name,
            limit=exact("limit", limit),
            scope=in_order(scope),
            unit=unit,
            period=period,
            hard=hard,
            anchor=anchor,
            thresholds=tuple(sorted(set(thresholds))),
            observe=observe,
        )
        return await self._ask(request, timeout)

    async def set_rate_limit(
        self,
        customer: str,
        name: str,
        limit: Amount,
        *,
        per_seconds: int,
        burst: Amount | None = None,
        scope: Mapping[str, str] | None = None,
        unit: str = "requests",
        observe: bool = False,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Limit a scope to `limit` each `per_seconds`, `burst` (the limit, unless given) at once.

        The same name again changes it. `unit` is `requests`, `credits` or a meter's name; scopes and `observe` are as
        those of budgets.
        """
        request = SetRateLimit(
            id=id or self._new_id(),
            customer=customer,
            name=name,
            limit=exact("limit", limit),
            per_seconds=per_seconds,
            burst=None if burst is None else exact("burst", burst),
            scope=in_order(scope),
            unit=unit,
            observe=observe,
        )
        return await self._ask(request, timeout)

    async def subscribe(
        self,
        customer: str,
        plan: str,
        *,
        add_ons: Sequence[str] = (),
        overrides: Mapping[str, Override] | None = None,
        anchor: datetime | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Put a customer on a plan of the catalog, with all the add-ons and overrides it is to have from now on.

        Grants of what stays are kept, of what is new given, of what is left ended. `overrides` are by feature, e.g.
        `{"search": Override("metered", meter="searches", limit=Decimal(5000))}`. Periods count from `anchor` (now).
        """
        request = Subscribe(
            id=id or self._new_id(),
            customer=customer,
            plan=plan,
            add_ons=tuple(add_ons),
            overrides=_overrides(overrides or {}),
            anchor=anchor,
        )
        return await self._ask(request, timeout)

    async def set_customer(
        self,
        customer: str,
        *,
        suspended: bool | None = None,
        strict: bool | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Suspend a customer, to whom the gate then says no, or let it go on. One that is not known becomes known.

        A `strict` customer gets no leases: each of its calls is decided by the worker. None leaves either as it is.
        """
        request = SetCustomer(id=id or self._new_id(), customer=customer, suspended=suspended, strict=strict)
        return await self._ask(request, timeout)


def _recurring(every: str | None, anchor: datetime | None) -> Recurring | None:
    if every is None:
        if anchor is not None:
            raise RefusedRequest(Reason.MALFORMED, "anchor: only what recurs is counted from it; say `every`, too")
        return None
    try:
        parse_interval(every)
    except ValueError as error:
        raise RefusedRequest(Reason.MALFORMED, f"every: {error}") from None
    return Recurring(every, anchor)


def _overrides(given: Mapping[str, Override]) -> dict[str, Override]:
    return {
        feature: replace(given[feature], limit=exact(f"overrides.{feature}.limit", given[feature].limit))
        for feature in sorted(given)
    }
