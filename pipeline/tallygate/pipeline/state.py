"""A partition's state: what the accepted journal says, in memory first and in the local table behind it."""

from collections.abc import Sequence
from typing import Final

from tallygate.pipeline.account import Account
from tallygate.pipeline.memory import decode_counted_events, encode_memory, one_of
from tallygate.pipeline.replay import ALONE, SHARED, group_key, seen_key
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.transition import Rows, Transition
from tallygate.pipeline.weighing import Scales
from tallygate.schemas.catalog import EMPTY, Catalog
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.journal import (
    PARTITION_KEY,
    PartitionRow,
    ProducerRow,
    decode_record,
    producer_key,
    split_key,
)

ACCOUNTS_CACHED_MAX: Final = 100_000


def remembered_at(values: Sequence[bytes], stream_at: int, remember_ms: int) -> bytes | None:
    """What is still remembered of an id at this stream time, or None."""
    for value in values:
        seen_at, _, memory = value.partition(b" ")
        if stream_at - int(seen_at) < remember_ms:
            return memory
    return None


class PartitionState:
    """`row` says where the partition stands; accounts come from memory, else from the local table."""

    def __init__(self, partition: int, rows: Rows, row: PartitionRow, accounts_max: int = ACCOUNTS_CACHED_MAX) -> None:
        self.partition = partition
        self.rows = rows
        self.row = row
        self._accounts: dict[str, Account] = {}
        self._accounts_max = accounts_max
        self._tariff = Tariff(EMPTY)
        self._scales = Scales(self._tariff)

    @classmethod
    def load(cls, rows: Rows, partition: int, accounts_max: int = ACCOUNTS_CACHED_MAX) -> "PartitionState":
        """The state as the local table has it; an empty table is a new partition."""
        value = rows.get(PARTITION_KEY)
        if value is None:
            return cls(partition, rows, PartitionRow({}, 0, 0), accounts_max)
        row = decode_record(value)
        assert isinstance(row, PartitionRow)
        return cls(partition, rows, row, accounts_max)

    def account(self, customer: str) -> Account:
        return self._accounts.get(customer) or Account.load(customer, self.rows)

    def producer(self, name: str) -> ProducerRow | None:
        """Where a producer of batches stands."""
        value = self.rows.get(producer_key(name))
        if value is None:
            return None
        row = decode_record(value)
        assert isinstance(row, ProducerRow)
        return row

    def tariff(self, catalog: Catalog) -> Tariff:
        """The catalog prepared for look-ups; kept while the same one is asked for."""
        if self._tariff.catalog is not catalog:
            self._tariff = Tariff(catalog)
            self._scales = Scales(self._tariff)
        return self._tariff

    @property
    def scales(self) -> Scales:
        """The same catalog's, for usage events."""
        return self._scales

    def remembered(self, digests: Sequence[bytes], first_at: int, last_at: int) -> dict[bytes, list[bytes]]:
        """What the table holds of ids that may be asked for between two instants of stream time, the latest first."""
        found: dict[bytes, list[bytes]] = {digest: [] for digest in digests}
        for day in range(last_at // DAY_MS, max(0, first_at // DAY_MS - 1) - 1, -1):
            values = self.rows.get_many([seen_key(day, digest) for digest in digests])
            for digest, value in zip(digests, values, strict=True):
                if value is not None:
                    found[digest].append(self._resolved(day, value))
        return found

    def _resolved(self, day: int, value: bytes) -> bytes:
        """What is remembered of an event that was counted with others stands in their group's record."""
        seen_at, _, memory = value.partition(b" ")
        if memory[:1] == ALONE:
            return seen_at + b" " + encode_memory(one_of(decode_counted_events(memory[1:]), 0))
        if memory[:1] != SHARED:
            return value
        first, number = memory[1:17], int(memory[17:])
        group = self.rows.get(group_key(day, first))
        assert group is not None, "a group's record is as old as its events' ids"
        return seen_at + b" " + encode_memory(one_of(decode_counted_events(group.partition(b" ")[2]), number))

    def commit(self, transition: Transition) -> None:
        """Put a transition in force that the journal has accepted and the table has taken."""
        for draft in transition.drafts:
            account = draft.commit()
            self._accounts.pop(account.customer, None)
            self._accounts[account.customer] = account
        for key in transition.ended:
            customer, kind, id = split_key(key)
            if (cached := self._accounts.get(customer)) is not None:
                (cached.usage if kind == "usage" else cached.values).pop(id, None)
        if transition.row is not None:
            self.row = transition.row
        while len(self._accounts) > self._accounts_max:
            del self._accounts[next(iter(self._accounts))]
