"""Does the ledger agree with itself? Balances by account, from rows and from postings, and the first difference.

Three sources tell the same story. The *live state* is the newest rows of the journal: what each grant has left, what
each hold holds of it, what each pool owes. The *journal's entries* and *ClickHouse's postings* are two copies of the
movements, which rebuild every balance from nothing. Accounts that no row keeps (`issued`, `consumed`, `breakage`,
`write_off`) are compared between the two copies.

Compaction takes entries that later ones of their customer follow, after the journal's `min.compaction.lag.ms`; what is
left of a customer's entries is always the end of them. Then the copies are compared from the last gap on, and the
balances that each entry states are followed from the first entry left of each pool to the live state.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.journal import (
    ENTRY_KIND,
    GrantRow,
    HoldRow,
    PoolBalance,
    PoolRow,
    decode_record,
    split_key,
)
from tallygate.schemas.ledger import OVERAGE, Posting, granted, held

LIVE: Final = "the live state"
ENTRIES: Final = "the journal's entries"
POSTINGS: Final = "ClickHouse's postings"

#: What all holds together hold of a grant: no account of the ledger, but a figure that the grant's row keeps.
HELD: Final = "held"
_KEPT: Final = frozenset({"grant", "hold", HELD, OVERAGE})
_ROWS: Final = frozenset({"grant", "hold", "pool"})


class Account(NamedTuple):
    """An account of the ledger; a hold's is told apart by the grant whose credits it holds."""

    customer: str
    pool: str
    account: str
    grant: str = ""

    @property
    def kind(self) -> str:
        return self.account.partition(":")[0]


#: Nanos by account. What is owed stands negative in `overage`, as it is posted.
Balances = dict[Account, int]


class Difference(msgspec.Struct, frozen=True):
    """Where sources disagree; `said` has what each says. Without a customer it concerns a whole partition."""

    customer: str
    pool: str
    account: str
    said: dict[str, str]

    @property
    def line(self) -> str:
        said = ", ".join(f"{source}: {amount}" for source, amount in self.said.items())
        whose = f"customer {self.customer}, pool {self.pool}, " if self.customer else ""
        return f"{whose}{self.account}: {said}"


class Booked(msgspec.Struct, frozen=True):
    """Sums of postings by account: all of them, and those from the offset on from which the journal has its entries."""

    total: Balances
    recent: Balances


def add(balances: Balances, account: Account, nanos: int) -> None:
    """Add to an account, and to what is held of its grant where it is a hold's."""
    balances[account] = balances.get(account, 0) + nanos
    if account.kind == "hold":
        whole = account._replace(account=HELD)
        balances[whole] = balances.get(whole, 0) + nanos


def balances_of_postings(customer: str, postings: Iterable[Posting], balances: Balances) -> None:
    """Add a customer's postings to `balances`."""
    for leg in postings:
        grant = leg.grant if leg.account.startswith("hold:") else ""
        add(balances, Account(customer, leg.asset, leg.account, grant), leg.amount_nanos)


def balances_of_rows(rows: Iterable[tuple[str, GrantRow | HoldRow | PoolRow]]) -> Balances:
    """What rows keep, given with their customers. A hold's share lies in the pool of its grant."""
    balances: Balances = {}
    pools: dict[tuple[str, str], str] = {}
    holds: list[tuple[str, HoldRow]] = []
    for customer, row in rows:
        match row:
            case GrantRow():
                pools[customer, row.id] = row.pool
                balances[Account(customer, row.pool, granted(row.id))] = row.balance_nanos
                balances[Account(customer, row.pool, HELD, row.id)] = row.held_nanos
            case PoolRow():
                balances[Account(customer, row.pool, OVERAGE)] = -row.overage_nanos
            case HoldRow():
                holds.append((customer, row))
    for customer, hold in holds:
        for share in hold.receipt:
            pool = pools.get((customer, share.id), hold.pool)
            balances[Account(customer, pool, held(hold.id), share.id)] = share.nanos
    return balances


class _Books(msgspec.Struct):
    """Of an entry, only what moves and states balances."""

    customer: str
    postings: tuple[Posting, ...] = ()
    balances: tuple[PoolBalance, ...] = ()


_books = msgspec.json.Decoder(_Books)


class JournalLedger:
    """One partition's accepted records, taken in order: the live state, and what its entries say.

    `entries` are sums from `entries_from` on, the offset after the last gap; `complete`: there is none. `until` is the
    offset after the last record that concerns the ledger. `misstated`: an entry whose balances its postings deny.
    """

    def __init__(self, customer: str | None = None) -> None:
        self.entries: Balances = {}
        self.entries_from = 0
        self.complete = True
        self.postings = 0
        self.until = 0
        self.misstated: Difference | None = None
        self._only = None if customer is None else f"{customer}\0".encode()
        self._rows: dict[bytes, bytes] = {}
        self._stated: dict[tuple[str, str], PoolBalance] = {}

    def miss(self, offset: int) -> None:
        """Records before this offset are gone."""
        self.complete = False
        self.entries_from = offset
        self.entries.clear()
        self.postings = 0

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """Take an accepted record. Raises ValueError or MsgspecError where it cannot be read."""
        if key[:1] == b"\0" or (self._only is not None and not key.startswith(self._only)):
            return
        kind = split_key(key)[1]
        if kind in _ROWS:
            self.until = offset + 1
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value
        elif kind == ENTRY_KIND and value is not None:
            self.until = offset + 1
            self._enter(offset, _books.decode(value))

    def _enter(self, offset: int, entry: _Books) -> None:
        balances_of_postings(entry.customer, entry.postings, self.entries)
        self.postings += len(entry.postings)
        for after in entry.balances:
            place = (entry.customer, after.pool)
            before = self._stated.get(place) or (PoolBalance(after.pool, 0, 0, 0) if self.complete else None)
            if before is not None and self.misstated is None:
                due = _moved(before, entry.postings)
                self.misstated = _between(place, due, after, f"the entry at offset {offset}", "its postings")
            self._stated[place] = after

    def rows(self) -> Iterator[tuple[str, GrantRow | HoldRow | PoolRow]]:
        """The newest rows with their customers. Raises ValueError or MsgspecError where one cannot be read."""
        for key, value in self._rows.items():
            row = decode_record(value)
            if not isinstance(row, GrantRow | HoldRow | PoolRow):
                raise ValueError(f"the row {key!r} holds {type(row).__name__}")
            yield split_key(key)[0], row

    @property
    def pools_stated(self) -> int:
        """How many pools have an entry left that states their balances."""
        return len(self._stated)

    def denied(self, live: Balances) -> Difference | None:
        """The first pool whose last entry states other balances than its rows have."""
        if self.misstated is not None:
            return self.misstated
        totals = {place: [0, 0, 0] for place in self._stated}
        for account, nanos in live.items():
            total = totals.get((account.customer, account.pool))
            if total is not None and account.kind != "hold":
                total[("grant", HELD, OVERAGE).index(account.kind)] += nanos
        for place in sorted(totals):
            balance, held_nanos, owed = totals[place]
            found = PoolBalance(place[1], balance, held_nanos, -owed)
            if difference := _between(place, found, self._stated[place], "its last entry in the journal", LIVE):
                return difference
        return None


def _moved(before: PoolBalance, postings: Iterable[Posting]) -> PoolBalance:
    """A pool's balances after these postings."""
    change = {"grant": 0, "hold": 0, OVERAGE: 0}
    for leg in postings:
        kind = leg.account.partition(":")[0]
        if leg.asset == before.pool and kind in change:
            change[kind] += leg.amount_nanos
    return PoolBalance(
        before.pool,
        before.balance_nanos + change["grant"],
        before.held_nanos + change["hold"],
        before.overage_nanos - change[OVERAGE],
    )


def _between(
    place: tuple[str, str], found: PoolBalance, stated: PoolBalance, stater: str, finder: str
) -> Difference | None:
    if found == stated:
        return None
    figures = ("balance", found.balance_nanos, stated.balance_nanos), ("held", found.held_nanos, stated.held_nanos)
    owed = ("overage", found.overage_nanos, stated.overage_nanos)
    name, right, wrong = next(figure for figure in (*figures, owed) if figure[1] != figure[2])
    return Difference(*place, f"{name} of the whole pool", {stater: from_nanos(wrong), finder: from_nanos(right)})


class Stretch(NamedTuple):
    """Customers in `[begin, end)` (None: to the last), and the accounts known of them."""

    begin: str
    end: str | None
    accounts: list[Account]


def stretches(accounts: Iterable[Account], size: int) -> list[Stretch]:
    """All customers there can be, cut so that about `size` of the known accounts fall into each stretch."""
    known = sorted(accounts)
    found: list[Stretch] = []
    begin, start = "", 0
    while len(known) - start > size:
        after = bisect_left(known, (known[start + size].customer,))
        if after == start:  # one customer alone has more
            after = bisect_left(known, (known[start].customer + "\0",))
        if after == len(known):
            break
        found.append(Stretch(begin, known[after].customer, known[start:after]))
        begin, start = known[after].customer, after
    found.append(Stretch(begin, None, known[start:]))
    return found


def first_difference(ledger: JournalLedger, live: Balances, booked: Booked, known: list[Account]) -> Difference | None:
    """The first account, in order of customer, pool and name, on which the three sources do not agree."""
    for account in sorted({*known, *booked.total, *booked.recent}):
        said = {POSTINGS: booked.total.get(account, 0)}
        if ledger.complete:
            said = {ENTRIES: ledger.entries.get(account, 0), **said}
        if account.kind in _KEPT:
            said = {LIVE: live.get(account, 0), **said}
        if len(set(said.values())) > 1:
            return _difference(account, said)
        said = {ENTRIES: ledger.entries.get(account, 0), POSTINGS: booked.recent.get(account, 0)}
        if not ledger.complete and len(set(said.values())) > 1:
            return _difference(account, said, f", moved from offset {ledger.entries_from} on")
    return _unbalanced(booked.total)


def _difference(account: Account, said: dict[str, int], when: str = "") -> Difference:
    of = f" of grant:{account.grant}" if account.grant else ""
    amounts = {source: from_nanos(nanos) for source, nanos in said.items()}
    return Difference(account.customer, account.pool, f"{account.account}{of}{when}", amounts)


def _unbalanced(booked: Balances) -> Difference | None:
    """Double entry: a pool's accounts add up to nothing."""
    sums: dict[tuple[str, str], int] = {}
    for account, nanos in booked.items():
        if account.kind != HELD:
            place = (account.customer, account.pool)
            sums[place] = sums.get(place, 0) + nanos
    for place in sorted(sums):
        if sums[place]:
            said = {POSTINGS: from_nanos(sums[place]), "they must add up to": "0"}
            return Difference(*place, "all accounts together", said)
    return None
