"""`tallygate ledger verify`: the live state, the journal's entries and ClickHouse's postings, as of the same offset.

Each partition by itself: the journal is read to its end, the sink is waited for until it has come as far, and its
postings are summed up to that very offset, whatever it has written since.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from tallygate.connectors.clickhouse_questions import QuestionError
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.pipeline.verify import (
    ENTRIES,
    HELD,
    POSTINGS,
    Account,
    Balances,
    Booked,
    Difference,
    JournalLedger,
    Stretch,
    add,
    balances_of_rows,
    first_difference,
    stretches,
)
from tallygate.schemas.amounts import NANOS, from_nanos
from tallygate.schemas.journal import GrantRow, HoldRow, PoolRow
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.records import Record
from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM, JOURNAL
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.settings import Settings
from tallygate.topologies.sink_journal import find_journal
from tallygate.topologies.sql_server import ask
from tallygate.topologies.topic_reading import bounds, records

#: How many accounts are asked about at once. The rest of an answer this long can only be accounts too many.
_ACCOUNTS_AT_ONCE: Final = 20_000
_ROWS_MAX: Final = 60_000
_PAUSE_SECONDS: Final = 0.2
_READINGS_MAX: Final = 5
_TELL_RECORDS: Final = 2_000

#: Hears of progress: what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


class PartitionVerified(msgspec.Struct, frozen=True):
    """`offset`: as of which journal offset. Entries before `entries_from` are gone from the journal, if `complete` is
    false."""

    partition: int
    offset: int
    complete: bool
    entries_from: int


class Verification(msgspec.Struct):
    """What was compared, up to the first difference. `sums` are ClickHouse's, by kind of account.

    `pools_stated` of the pools have an entry left in the journal that states their balances.
    """

    customers: int = 0
    grants: int = 0
    holds: int = 0
    pools: int = 0
    pools_stated: int = 0
    postings: int = 0
    sums: dict[str, str] = {}
    partitions: list[PartitionVerified] = []
    difference: Difference | None = None


def verify(settings: Settings, customer: str | None, wait_seconds: float, progress: Progress) -> Verification:
    """Compares everything, or one customer. Raises Trouble, KafkaUnreachable, KafkaRefused."""
    found = Verification()
    sums: dict[str, int] = {}
    journal = bounds(settings, JOURNAL)
    for number in sorted(journal) if customer is None else [partition_of(customer, len(journal))]:
        begin, end = journal[number]
        ledger = read_beside_compaction(partial(_read, settings, number, begin, end, customer, progress), number)
        offset = ledger.until or journal[number][1]
        if ledger.until:
            _wait_for_sink(settings, number, offset, wait_seconds)
        books = _Books(settings, number, offset, ledger, customer)
        found.difference = _compare(books, found, sums, progress)
        found.partitions.append(PartitionVerified(number, offset, ledger.complete, ledger.entries_from))
        if found.difference is not None:
            break
    if customer is not None and not (found.postings or found.pools or found.difference):
        raise Trouble(Exit.WRONG, f"the ledger has nothing of a customer {customer!r}")
    found.sums = {kind: from_nanos(nanos) for kind, nanos in sorted(sums.items())}
    return found


def read_beside_compaction(read: Callable[[], JournalLedger], number: int) -> JournalLedger:
    """A reading that compaction did not overtake. Raises Trouble where each one was overtaken.

    Compaction that comes while the journal is read takes entries that follow one that was read before, and the next one
    left then seems to be wrong. Read again, it is not there any more; an entry that is wrong is wrong each time.
    """
    found = read()
    for _ in range(_READINGS_MAX):
        if found.complete or found.misstated is None:
            return found
        again = read()
        if again.misstated == found.misstated:
            return again
        found = again
    raise Trouble(
        Exit.AWAY, f"partition {number} of the journal is compacted faster than it can be read: try again in a while"
    )


def _read(
    settings: Settings, number: int, begin: int, end: int, customer: str | None, progress: Progress
) -> JournalLedger:
    """A partition's journal, through the fence."""
    ledger, fence, due = JournalLedger(customer), Fence(), 0
    what = f"reading partition {number} of the journal"
    for record in records(settings, JOURNAL, number, begin, end):
        if record.offset != due:
            ledger.miss(record.offset)
        due = record.offset + 1
        try:
            if _judge(fence, record) is Verdict.ACCEPTED:
                assert record.key is not None
                ledger.take(record.offset, record.key, record.value)
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise Trouble(
                Exit.WRONG, f"{JOURNAL} partition {number} offset {record.offset} is no journal record: {error}"
            ) from error
        if record.offset % _TELL_RECORDS == 0:
            progress(what, record.offset - begin, end - begin)
    return ledger


def _judge(fence: Fence, record: Record) -> Verdict:
    headers = dict(record.headers)
    if record.key is None:
        raise ValueError("it has no key")
    return fence.judge(int(headers[HEADER_TERM]), int(headers[HEADER_SEQ]), record.key)


def _wait_for_sink(settings: Settings, number: int, offset: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (stands := _sink_position(settings, number)) < offset:
        if time.monotonic() > until:
            raise Trouble(
                Exit.AWAY,
                f"the sink stands at offset {stands} of the {offset} in partition {number} of the journal and did not "
                f"come there within {seconds:g} s: is it running? --wait waits longer",
            )
        time.sleep(_PAUSE_SECONDS)


def _sink_position(settings: Settings, number: int) -> int:
    rows = _ask(settings, f"SELECT journal, next_offset FROM sink_offsets FINAL WHERE partition = {number}")
    if not rows:
        return 0
    journal = find_journal(settings.librdkafka, threading.Event())
    assert journal is not None
    if rows[0]["journal"] != journal.id:
        raise Trouble(
            Exit.WRONG,
            f"ClickHouse holds the figures of another journal ({rows[0]['journal']}), not of the one on "
            f"{settings.kafka_brokers} ({journal.id})",
        )
    return int(rows[0]["next_offset"])


class _Books:
    """What ClickHouse has of one partition, up to where its journal was read."""

    def __init__(
        self, settings: Settings, number: int, offset: int, ledger: JournalLedger, customer: str | None
    ) -> None:
        self.ledger = ledger
        self.number = number
        self._settings = settings
        self._where = f"partition = {number} AND offset < {offset}"
        if customer is not None:
            self._where += f" AND customer = {_quoted(customer)}"

    def postings(self) -> tuple[int, int]:
        """How many there are, and how many from the offset on from which the journal has its entries."""
        recent = f"countIf(offset >= {self.ledger.entries_from})"
        [row] = _ask(self._settings, f"SELECT count() AS all, {recent} AS recent FROM postings WHERE {self._where}")
        return int(row["all"]), int(row["recent"])

    def sums(self, stretch: Stretch) -> Booked:
        """By account, leaving out those that add up to nothing."""
        where = f"{self._where} AND customer >= {_quoted(stretch.begin)}"
        if stretch.end is not None:
            where += f" AND customer < {_quoted(stretch.end)}"
        booked = Booked({}, {})
        for row in _ask(
            self._settings,
            "SELECT customer, asset, account, if(startsWith(account, 'hold:'), grant, '') AS held_of, "
            f"sum(amount) AS total, sumIf(amount, offset >= {self.ledger.entries_from}) AS recent "
            f"FROM postings WHERE {where} GROUP BY ALL HAVING total != 0 OR recent != 0 "
            f"ORDER BY customer, asset, account, held_of LIMIT {_ROWS_MAX}",
        ):
            account = Account(row["customer"], row["asset"], row["account"], row["held_of"])
            add(booked.total, account, _nanos(row["total"]))
            add(booked.recent, account, _nanos(row["recent"]))
        return booked


def _compare(books: _Books, found: Verification, sums: dict[str, int], progress: Progress) -> Difference | None:
    """One partition; adds to what was compared."""
    ledger = books.ledger
    rows = list(ledger.rows())
    live = balances_of_rows(rows)
    found.customers += len({customer for customer, _ in rows})
    found.grants += sum(isinstance(row, GrantRow) for _, row in rows)
    found.holds += sum(isinstance(row, HoldRow) for _, row in rows)
    found.pools += sum(isinstance(row, PoolRow) for _, row in rows)
    found.pools_stated += ledger.pools_stated
    cut = stretches({*live, *ledger.entries}, _ACCOUNTS_AT_ONCE)
    for done, stretch in enumerate(cut):
        progress(f"comparing partition {books.number}", done, len(cut))
        booked = books.sums(stretch)
        difference = first_difference(ledger, live, booked, stretch.accounts)
        if difference is not None:
            return difference
        _sum_up(booked.total, sums)
    count, recent = books.postings()
    found.postings += count
    return ledger.denied(live) or _miscounted(books, recent)


def _sum_up(booked: Balances, sums: dict[str, int]) -> None:
    for account, nanos in booked.items():
        if account.kind != HELD:
            sums[account.kind] = sums.get(account.kind, 0) + nanos


def _miscounted(books: _Books, recent: int) -> Difference | None:
    """Postings that cancel each other out are missing from one of the two."""
    ledger = books.ledger
    if recent == ledger.postings:
        return None
    where = f"number of postings in partition {books.number} from offset {ledger.entries_from} on"
    return Difference("", "", where, {ENTRIES: str(ledger.postings), POSTINGS: str(recent)})


def _ask(settings: Settings, sql: str) -> list[dict[str, Any]]:
    try:
        return [msgspec.json.decode(line) for line in ask(settings, sql, "jsonl").splitlines()]
    except QuestionError as error:
        raise Trouble(Exit.AWAY, str(error)) from error


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _nanos(text: str) -> int:
    """Nanos of an exact decimal, as large as ClickHouse may hold it."""
    whole, _, rest = text.removeprefix("-").partition(".")
    nanos = int(whole) * NANOS + int(rest.ljust(9, "0") or "0")
    return -nanos if text.startswith("-") else nanos
