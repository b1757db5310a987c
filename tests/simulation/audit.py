"""A partition under audit: every chunk is decided several ways, and the journal keeps the books a second time."""

from collections import defaultdict
from collections.abc import Callable

import msgspec

from partition import Partition
from stories import WORDS
from tallygate.pipeline.account import Account
from tallygate.pipeline.decide import decide
from tallygate.pipeline.replay import due_customer, due_range, forgotten_range, table_writes
from tallygate.pipeline.rows import MemoryRows
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import Input, Tick, Transition
from tallygate.schemas import topics
from tallygate.schemas.answers import Statement, decode_answer
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.journal import ENTRY_KIND, Entry, UsageRow, decode_record, split_key, usage_id
from tallygate.schemas.requests import Balance, Request, encode_request

OnReply = Callable[[bytes], None]


class Pending(msgspec.Struct):
    input: Input
    on_reply: OnReply | None


class Audit:
    """Inputs gather until they are flushed as one chunk."""

    def __init__(self, chunk: int) -> None:
        self.partition = Partition(WORDS)
        self.chunk = chunk
        self.counted = [0, 0, 0]  # events, duplicates, dead letters
        self._pending: list[Pending] = []
        self._legs: dict[tuple[str, str, str], int] = defaultdict(int)
        self._usage: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._hours: dict[tuple[str, str], dict[int, UsageRow]] = defaultdict(dict)
        self._written_at: list[int] = []

    def push(self, each: Input, on_reply: OnReply | None = None) -> None:
        self._pending.append(Pending(each, on_reply))
        if len(self._pending) >= self.chunk:
            self.flush()

    def ask(self, request: Request, on_reply: OnReply) -> None:
        self.push(self.partition.record(topics.REQUESTS, encode_request(request)), on_reply)

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        inputs = [each.input for each in pending]
        decided = self._decide_purely(inputs)
        transition = self.partition.apply(*inputs)
        assert _told(transition) == decided
        waiting = [each.on_reply for each in pending if each.on_reply is not None]
        assert len(transition.replies) == len(waiting)
        for on_reply, reply in zip(waiting, transition.replies, strict=True):
            on_reply(reply.answer)
        for number, count in enumerate((transition.events, transition.duplicates, len(transition.dead_letters))):
            self.counted[number] += count
        self._written_at += [self.partition.now] * len(transition.records)
        self._post(transition)
        if len(inputs) == 1 and isinstance(inputs[0], Tick):
            self._nothing_is_due(inputs[0].at)

    def restart(self, accounts_max: int) -> None:
        """Memory is lost; the new owner keeps so many accounts in memory."""
        self.flush()
        loaded = PartitionState.load(self.partition.rows, 0)
        self.partition.state = PartitionState(0, loaded.rows, loaded.row, accounts_max)

    def statement(self, customer: str) -> Statement | None:
        """What a customer has now. The question is decided, never applied."""
        asked = self.partition.record(topics.REQUESTS, encode_request(Balance(id="look", customer=customer)))
        [reply] = decide(self.partition.state, [asked], self.partition.catalog, self.partition.rules).replies
        return decode_answer(reply.answer).statement

    def account(self, customer: str) -> Account:
        """The customer as the table has it."""
        return PartitionState.load(self.partition.rows, 0).account(customer)

    def usage(self, customer: str) -> dict[str, list[int]]:
        """Per usage row: quantity in nanos, events, late events; from the journal's entries."""
        return {id: row for (who, id), row in self._usage.items() if who == customer}

    def consumed(self, customer: str, feature: str) -> int:
        found = (
            n for (who, _, account), n in self._legs.items() if (who, account) == (customer, f"consumed:{feature}")
        )
        return sum(found)

    # ---- the laws ----

    def _decide_purely(self, inputs: list[Input]) -> tuple[object, ...]:
        """The same arguments give the same transition, whatever is in memory; and nothing changes."""
        partition = self.partition
        before = partition.rows.items()
        first = _told(decide(partition.state, inputs, partition.catalog, partition.rules))
        second = _told(decide(partition.state, inputs, partition.catalog, partition.rules))
        fresh = PartitionState.load(partition.rows, 0)
        third = _told(decide(fresh, inputs, partition.catalog, partition.rules))
        assert first == second, "decide() has changed the state"
        assert first == third, "memory and table disagree"
        assert partition.rows.items() == before, "decide() has written rows"
        return first

    def _post(self, transition: Transition) -> None:
        """Keep the books from the entries alone, and compare them with the rows."""
        for key, value in transition.records:
            kind = "" if key[:1] == b"\0" else split_key(key)[1]
            if kind == "usage" and value is not None:
                self._note_hour(key, value)
            if kind != ENTRY_KIND:
                continue
            assert value is not None
            entry = decode_record(value)
            assert isinstance(entry, Entry)
            sums: dict[str, int] = defaultdict(int)
            for leg in entry.postings:
                sums[leg.asset] += leg.amount_nanos
                self._legs[entry.customer, leg.asset, leg.account] += leg.amount_nanos
                assert -1 <= leg.cause < len(entry.causes)
            assert not any(sums.values()), "an entry's postings sum to zero"
            for delta in entry.usage:
                row = self._usage[entry.customer, usage_id(delta.meter, delta.hour, delta.dimensions)]
                for number, added in enumerate((delta.quantity_nanos, delta.events, delta.late_events)):
                    row[number] += added
            self._agree(entry)

    def _note_hour(self, key: bytes, value: bytes) -> None:
        """The newest of each row of an hour, as ClickHouse keeps them, also after they have ended."""
        customer, _, id = split_key(key)
        row = decode_record(value)
        assert isinstance(row, UsageRow)
        self._hours[customer, id][row.since] = row

    def _agree(self, entry: Entry) -> None:
        """Postings rebuild balances, holds and debts; usage deltas rebuild the hours; receipts rebuild what is held."""
        account = self.account(entry.customer)
        rebuilt = {name: n for (who, _, name), n in self._legs.items() if who == entry.customer and n}
        expected = {f"grant:{g.id}": g.balance_nanos for g in account.grants.values()}
        expected |= {f"hold:{h.id}": sum(share.nanos for share in h.receipt) for h in account.holds.values()}
        standing = {name: n for name, n in rebuilt.items() if name.partition(":")[0] in ("grant", "hold")}
        assert standing == {name: n for name, n in expected.items() if n}
        held: dict[str, int] = defaultdict(int)
        for hold in account.holds.values():
            assert hold.credits_nanos == sum(share.nanos for share in hold.receipt) + hold.overage_nanos
            for share in (*hold.receipt, *hold.scopes):
                held[share.id] += share.nanos
        for grant in account.grants.values():
            assert grant.balance_nanos >= 0
            assert grant.held_nanos == held[grant.id]
        for scope in account.scopes.values():
            assert scope.held_nanos == held[scope.id]
        for pool in account.pools.values():
            owed = self._legs.get((entry.customer, pool.pool, "overage"), 0)
            assert pool.overage_nanos == -owed
            mine = [hold for hold in account.holds.values() if hold.pool == pool.pool]
            assert pool.overage_held_nanos == sum(hold.overage_nanos for hold in mine)
        for balance in entry.balances:
            own = [grant for grant in account.grants.values() if grant.pool == balance.pool]
            assert balance.balance_nanos == sum(grant.balance_nanos for grant in own)
            assert balance.held_nanos == sum(grant.held_nanos for grant in own)
            assert balance.overage_nanos == account.pools[balance.pool].overage_nanos

    def _nothing_is_due(self, at: int) -> None:
        """After a tick, nobody waits for an instant that has passed."""
        assert self.partition.rows.scan(*due_range(at)) == []
        for customer in {split_key(key)[0] for key, _ in self.partition.rows.items() if key[:1] != b"\0"}:
            account = self.account(customer)
            assert all(hold.expires_at > at for hold in account.holds.values())
            for grant in account.grants.values():
                assert grant.active or grant.held_nanos or grant.effective_at > at
                assert not grant.active or grant.expires_at is None or grant.expires_at > at

    def close(self) -> None:
        """The journal alone rebuilds the table, byte for byte; compacted, too, but for forgotten ids."""
        self.flush()
        rows = self.partition.rows.items()
        assert self.partition.replayed().items() == rows
        for hour, usage in self._usage.items():
            found = self._hours[hour].values()
            totals = [(row.quantity_nanos, row.events, row.late_events) for row in found]
            assert [sum(column) for column in zip(*totals, strict=True)] == usage
        due = [due_customer(key) for key, _ in self.partition.rows.scan(*due_range(1 << 62))]
        assert len(due) == len(set(due)), "a customer waits for two instants"
        assert _remembered(self._compacted()) == _remembered(self.partition.rows)

    def _compacted(self) -> MemoryRows:
        """A table from a journal in which records older than a day are gone where their key was written again."""
        journal = self.partition.journal
        last = {key: number for number, (key, _) in enumerate(journal)}
        rows = MemoryRows()
        for number, ((key, value), at) in enumerate(zip(journal, self._written_at, strict=True)):
            if last[key] == number or self.partition.now - at < DAY_MS:
                rows.apply(table_writes(key, value))
        return rows


def _told(transition: Transition) -> tuple[object, ...]:
    """A transition by what the world sees of it."""
    t = transition
    return (t.records, t.replies, t.dead_letters, t.outcomes, t.events, t.duplicates, t.row)


def _remembered(rows: MemoryRows) -> list[tuple[bytes, bytes]]:
    """A table without the ids that are past remembering."""
    state = PartitionState.load(rows, 0)
    begin, end = forgotten_range(state.row.stream_at)
    found = []
    for key, value in rows.items():
        if key.startswith(begin):
            seen_at = int(value.partition(b" ")[0])
            if key < end or state.row.stream_at - seen_at >= DAY_MS:
                continue
        found.append((key, value))
    return found
