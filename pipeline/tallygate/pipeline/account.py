"""One customer's state, and the same during one transition.

An `Account` is what the accepted journal says. An `AccountDraft` reads through to it and collects what a transition
changes: rows, postings, decisions, usage, ids seen. Nothing reaches the account before the journal has accepted it.
"""

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from tallygate.pipeline.hours import Hours
from tallygate.pipeline.transition import Rows
from tallygate.schemas.journal import (
    AccountRow,
    Alert,
    BudgetRow,
    Cause,
    CountedEvents,
    DecisionRecord,
    GrantRow,
    HoldRow,
    PoolRow,
    RateLimitRow,
    Row,
    ScopeRow,
    Seen,
    SubscriptionRow,
    UsageDelta,
    UsageRow,
    ValueRow,
    decode_record,
    row_key,
    split_key,
)
from tallygate.schemas.ledger import Posting

if TYPE_CHECKING:
    from tallygate.pipeline.budgets import Place
    from tallygate.pipeline.weighing import Shape

R = TypeVar("R", bound=Row)
#: When a rate limit has drained: an instant in beats, and the limit (so many beats a millisecond) and seconds then.
Drained = tuple[int, int, int]
_ABSENT: Final = object()
#: Later than every instant (ms).
FOREVER: Final = 1 << 62
#: How many usage rows, values and rate limits of a customer stay in memory.
_HISTORY_CACHED: Final = 1000


class Table(Generic[R]):
    """Rows of one kind: what is accepted (`base`), and over it what this transition changes (None: removed)."""

    __slots__ = ("base", "changes")

    def __init__(self, base: dict[str, R]) -> None:
        self.base = base
        self.changes: dict[str, R | None] = {}

    def get(self, id: str) -> R | None:
        row = self.changes.get(id, _ABSENT)
        return self.base.get(id) if row is _ABSENT else row  # type: ignore[return-value]

    def put(self, id: str, row: R) -> None:
        self.changes[id] = row

    def remove(self, id: str) -> None:
        self.changes[id] = None

    def values(self) -> list[R]:
        if not self.changes:
            return list(self.base.values())
        return [row for row in {**self.base, **self.changes}.values() if row is not None]

    def commit(self) -> None:
        for id, row in self.changes.items():
            if row is None:
                self.base.pop(id, None)
            else:
                self.base[id] = row


class Account:
    """A customer as accepted: rows by kind and id.

    `burn` caches the burn order of the active grants by pool, `places` the budgets that usage falls under. `drains` is
    where rate limits stand, in memory only.
    """

    __slots__ = (
        "budgets",
        "burn",
        "customer",
        "drains",
        "grants",
        "holds",
        "places",
        "pools",
        "rate_limits",
        "row",
        "scopes",
        "subscriptions",
        "usage",
        "values",
    )

    def __init__(self, customer: str) -> None:
        self.customer = customer
        self.row: AccountRow | None = None
        self.pools: dict[str, PoolRow] = {}
        self.grants: dict[str, GrantRow] = {}
        self.holds: dict[str, HoldRow] = {}
        self.budgets: dict[str, BudgetRow] = {}
        self.scopes: dict[str, ScopeRow] = {}
        self.rate_limits: dict[str, RateLimitRow] = {}
        self.subscriptions: dict[str, SubscriptionRow] = {}
        self.usage: dict[str, UsageRow] = {}
        self.values: dict[str, ValueRow] = {}
        self.drains: dict[str, Drained] = {}
        self.burn: dict[str, tuple[str, ...]] = {}
        self.places: dict[Shape, list[Place]] = {}

    @classmethod
    def load(cls, customer: str, rows: Rows) -> "Account":
        """The account from the local table; usage rows, its history, stay there until they are asked for."""
        account = cls(customer)
        for key, value in rows.scan(row_key(customer, "")[:-1], row_key(customer, "usage")):
            account._take(split_key(key)[2], decode_record(value))
        return account

    def _take(self, id: str, row: object) -> None:
        match row:
            case AccountRow():
                self.row = row
            case PoolRow():
                self.pools[id] = row
            case GrantRow():
                self.grants[id] = row
            case HoldRow():
                self.holds[id] = row
            case BudgetRow():
                self.budgets[id] = row
            case ScopeRow():
                self.scopes[id] = row
            case RateLimitRow():
                self.rate_limits[id] = row
            case SubscriptionRow():
                self.subscriptions[id] = row
            case _:
                raise AssertionError(f"no row of an account: {row!r}")


class AccountDraft:
    """A customer during one transition."""

    __slots__ = (
        "_rows",
        "account",
        "alerts",
        "budgets",
        "burn",
        "causes",
        "counted",
        "customer",
        "decisions",
        "deltas",
        "drains",
        "due_at",
        "grants",
        "holds",
        "hours",
        "pools",
        "postings",
        "rate_limits",
        "row",
        "scopes",
        "seen",
        "subscriptions",
        "usage",
        "values",
    )

    def __init__(self, account: Account, rows: Rows, hours: Hours) -> None:
        self.account = account
        self.hours = hours
        self.customer = account.customer
        self._rows = rows
        self.row = account.row
        self.due_at = account.row.due_at if account.row else 0
        self.pools = Table(account.pools)
        self.grants = Table(account.grants)
        self.holds = Table(account.holds)
        self.budgets = Table(account.budgets)
        self.scopes = Table(account.scopes)
        self.rate_limits = Table(account.rate_limits)
        self.subscriptions = Table(account.subscriptions)
        self.usage = Table(account.usage)
        self.values = Table(account.values)
        self.drains: dict[str, Drained] = {}
        self.burn = account.burn
        self.causes: list[Cause] = []
        self.postings: list[Posting] = []
        self.decisions: list[DecisionRecord] = []
        self.deltas: list[UsageDelta] = []
        self.seen: list[Seen] = []
        self.alerts: list[Alert] = []
        self.counted: list[tuple[CountedEvents, list[bytes]]] = []  # each with its events' digests

    @property
    def subscription(self) -> SubscriptionRow | None:
        return self.subscriptions.get("")

    @property
    def anchor(self) -> int | None:
        """From when the periods of the customer's plan count."""
        subscription = self.subscription
        return subscription.anchor if subscription else None

    def drained(self, key: str) -> Drained | None:
        """When a rate limit has drained, if anything has flowed."""
        return self.drains.get(key) or self.account.drains.get(key)

    @property
    def changed(self) -> bool:
        return bool(
            self.causes or self.seen or self.row is not self.account.row or any(t.changes for _, t in self.tables())
        )

    def tables(self) -> tuple[tuple[str, Table[Row]], ...]:
        return (  # type: ignore[return-value]
            ("budget", self.budgets),
            ("grant", self.grants),
            ("hold", self.holds),
            ("pool", self.pools),
            ("rate_limit", self.rate_limits),
            ("scope", self.scopes),
            ("subscription", self.subscriptions),
            ("usage", self.usage),
            ("value", self.values),
        )

    def know(self, at: int) -> None:
        """Make the customer a known one."""
        if self.row is None:
            self.row = AccountRow(self.customer, at)

    def pool(self, name: str) -> PoolRow:
        return self.pools.get(name) or PoolRow(name)

    def wake(self, at: int) -> None:
        """Stream time changes something at this instant."""
        if at < FOREVER and (not self.due_at or at < self.due_at):
            self.due_at = at

    def reordered(self) -> None:
        """The set of active grants has changed."""
        self.burn = {}

    def usage_row(self, id: str) -> UsageRow | None:
        """An hour of usage; the account does not load its history, so it may have to come from the table."""
        row = self.usage.changes.get(id)
        if row is None:
            key = row_key(self.customer, "usage", id)
            if key in self.hours.ended:
                return None
            row = self.usage.base.get(id)
            value = self._rows.get(key) if row is None else None
            if value is not None:
                found = decode_record(value)
                assert isinstance(found, UsageRow)
                row = found
        return row

    def has_value(self, id: str) -> bool:
        """Whether a `unique` meter has met this value."""
        return self.values.get(id) is not None or self._rows.get(row_key(self.customer, "value", id)) is not None

    def usage_hour(self, id: str, meter: str, hour: int, dimensions: dict[str, str], aggregation: str) -> UsageRow:
        """The row of an hour, or a new one. Of a closed hour it stands beside the one that has ended."""
        row = self.usage_row(id)
        if row is not None:
            return row
        if not self.hours.is_closed(hour):
            return UsageRow(meter, hour, dimensions)
        return UsageRow(meter, hour, dimensions, since=self.hours.stream_at, aggregation=aggregation)

    def cause(self, cause: Cause) -> int:
        """The index of the input that what follows is due to."""
        self.causes.append(cause)
        return len(self.causes) - 1

    def move(
        self,
        source: str,
        target: str,
        nanos: int,
        at: int,
        cause: int,
        pool: str,
        grant: GrantRow | None = None,
        feature: str = "",
    ) -> None:
        """Post a movement between two accounts of a pool: two legs that sum to zero."""
        assert nanos >= 0, f"a movement of {nanos} from {source} to {target}"
        if not nanos:
            return
        id, category, price = (grant.id, grant.category, grant.price_nanos) if grant else ("", "", 0)
        self.postings.append(Posting(pool, source, -nanos, at, cause, id, category, price, feature))
        self.postings.append(Posting(pool, target, nanos, at, cause, id, category, price, feature))

    def commit(self) -> Account:
        """The account with this transition in force."""
        account = self.account
        account.row = self.row
        account.burn = self.burn
        account.drains.update(self.drains)
        if self.budgets.changes or self.subscriptions.changes or len(account.places) > _HISTORY_CACHED:
            account.places = {}
        for _, table in self.tables():
            table.commit()
        for cache in (account.usage, account.values):
            if len(cache) > _HISTORY_CACHED:
                cache.clear()
        if len(account.drains) > _HISTORY_CACHED:
            last = sorted(account.drains.items(), key=lambda each: each[1][0] // each[1][1])[_HISTORY_CACHED // 2 :]
            account.drains = dict(last)
        return account
