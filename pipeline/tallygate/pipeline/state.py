"""A partition's state: what the accepted journal says, in memory first and in the local table behind it."""

from typing import Final

from tallygate.pipeline.account import Account
from tallygate.pipeline.replay import seen_key
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.transition import Rows, Transition
from tallygate.schemas.catalog import EMPTY, Catalog
from tallygate.schemas.instants import DAY_MS
from tallygate.schemas.journal import PARTITION_KEY, PartitionRow, ProducerRow, decode_record, producer_key

ACCOUNTS_CACHED_MAX: Final = 100_000


class PartitionState:
    """`row` says where the partition stands; accounts come from memory, else from the local table."""

    def __init__(self, partition: int, rows: Rows, row: PartitionRow, accounts_max: int = ACCOUNTS_CACHED_MAX) -> None:
        self.partition = partition
        self.rows = rows
        self.row = row
        self._accounts: dict[str, Account] = {}
        self._accounts_max = accounts_max
        self._tariff = Tariff(EMPTY)

    @classmethod
    def load(cls, rows: Rows, partition: int) -> "PartitionState":
        """The state as the local table has it; an empty table is a new partition."""
        value = rows.get(PARTITION_KEY)
        if value is None:
            return cls(partition, rows, PartitionRow({}, 0, 0))
        row = decode_record(value)
        assert isinstance(row, PartitionRow)
        return cls(partition, rows, row)

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
        return self._tariff

    def seen(self, digest: bytes, stream_at: int, remember_ms: int) -> bytes | None:
        """What is remembered of an id at this stream time, or None."""
        today = stream_at // DAY_MS
        for day in (today, today - 1):
            value = self.rows.get(seen_key(day, digest)) if day >= 0 else None
            if value is not None:
                seen_at, _, memory = value.partition(b" ")
                if stream_at - int(seen_at) < remember_ms:
                    return memory
        return None

    def commit(self, transition: Transition) -> None:
        """Put a transition in force that the journal has accepted and the table has taken."""
        for draft in transition.drafts:
            account = draft.commit()
            self._accounts.pop(account.customer, None)
            self._accounts[account.customer] = account
        if transition.row is not None:
            self.row = transition.row
        while len(self._accounts) > self._accounts_max:
            del self._accounts[next(iter(self._accounts))]
