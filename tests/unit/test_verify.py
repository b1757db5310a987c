"""The ledger compared with itself: what agrees, what is named, and what compaction leaves to compare."""

import random
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import pytest

from partition import Partition, event
from tallygate.pipeline.verify import (
    ENTRIES,
    HELD,
    LIVE,
    POSTINGS,
    Account,
    Balances,
    Booked,
    Difference,
    JournalLedger,
    add,
    balances_of_postings,
    balances_of_rows,
    first_difference,
    stretches,
)
from tallygate.schemas.instants import HOUR_MS, to_datetime
from tallygate.schemas.journal import ENTRY_KIND, Entry, GrantRow, decode_record, encode_record, row_key, split_key
from tallygate.schemas.ledger import Posting
from tallygate.schemas.requests import GiveGrant, Release, Reserve, ResetPool, Settle, VoidGrant
from tallygate.topologies.exits import Trouble
from tallygate.topologies.ledger import read_beside_compaction

D = Decimal
Record = tuple[int, bytes, bytes | None]


@pytest.fixture(scope="module")
def world() -> Partition:
    """Two customers: everything that moves credits has happened, two holds are open, something is owed."""
    world = Partition()
    for customer in ("acme", "bolt"):
        soon = to_datetime(world.now + HOUR_MS)
        world.ask(GiveGrant(id="trial", customer=customer, amount=D(20), category="trial", expires_at=soon))
        world.ask(GiveGrant(id="paid", customer=customer, amount=D(100), priority=2, price=D("0.01")))
        world.ask(GiveGrant(id="side", customer=customer, amount=D(7), pool="side"))
        world.ask(Reserve(id="settled", customer=customer, feature="llm", credits=D(30)))
        world.ask(Settle(id="s", customer=customer, hold="settled", credits=D("25.5")))
        world.ask(Reserve(id="released", customer=customer, feature="llm", credits=D(10)))
        world.ask(Release(id="r", customer=customer, hold="released"))
        world.use(event("e1", customer, input_tokens=1234))
        world.tick(3600)
        world.ask(ResetPool(id="z", customer=customer, pool="side"))
        world.ask(GiveGrant(id="gone", customer=customer, amount=D(5), priority=3))
        world.ask(VoidGrant(id="v", customer=customer, grant="gone"))
        for hold in ("h1", "h2"):
            world.ask(Reserve(id=hold, customer=customer, feature="llm", credits=D(8), ttl_seconds=86_400))
        world.ask(Reserve(id="o", customer=customer, feature="owing", credits=D(1)))
        world.ask(Settle(id="p", customer=customer, hold="o", credits=D(90)))
    return world


@dataclass
class Compared:
    """The sources of one partition, each of which a test may alter."""

    records: list[Record]
    booked: Booked
    ledger: JournalLedger
    live: Balances

    @property
    def difference(self) -> Difference | None:
        known = [*self.live, *self.ledger.entries]
        return first_difference(self.ledger, self.live, self.booked, known) or self.ledger.denied(self.live)


def journal_of(world: Partition) -> list[Record]:
    return [(offset, key, value) for offset, (key, value) in enumerate(world.journal)]


def read(records: list[Record], customer: str | None = None) -> JournalLedger:
    ledger, due = JournalLedger(customer), 0
    for offset, key, value in records:
        if offset != due:
            ledger.miss(offset)
        due = offset + 1
        ledger.take(offset, key, value)
    return ledger


def postings_from(world: Partition, begin: int, customer: str | None = None) -> Balances:
    balances: Balances = {}
    for offset, key, value in journal_of(world):
        if offset >= begin and key[:1] != b"\0" and split_key(key)[1] == ENTRY_KIND and value is not None:
            entry = decode_record(value)
            assert isinstance(entry, Entry)
            if customer in (None, entry.customer):
                balances_of_postings(entry.customer, entry.postings, balances)
    return balances


def compared(world: Partition, records: list[Record] | None = None, customer: str | None = None) -> Compared:
    records = journal_of(world) if records is None else records
    ledger = read(records, customer)
    recent = postings_from(world, ledger.entries_from, customer)
    booked = Booked(postings_from(world, 0, customer), recent)
    return Compared(records, booked, ledger, balances_of_rows(ledger.rows()))


def altered(records: list[Record], key: bytes, **changes: object) -> list[Record]:
    """The journal with one more row, the last of its key with changes."""
    value = next(value for _, found, value in reversed(records) if found == key)
    assert value is not None
    row = msgspec.structs.replace(decode_record(value), **changes)
    return [*records, (records[-1][0] + 1, key, encode_record(row))]


def test_what_has_happened_agrees(world: Partition) -> None:
    found = compared(world)
    assert found.difference is None
    assert found.ledger.complete
    rows = list(found.ledger.rows())
    assert sum(isinstance(row, GrantRow) for _, row in rows) >= 4
    owed = found.live[Account("acme", "credits", "overage")]
    held = found.live[Account("acme", "credits", HELD, "paid")]
    assert (owed < 0, held) == (True, 16 * 10**9)
    assert found.live[Account("acme", "credits", "hold:h1", "paid")] == 8 * 10**9
    assert found.ledger.pools_stated == 4


def test_one_customer_alone(world: Partition) -> None:
    found = compared(world, customer="bolt")
    assert found.difference is None
    assert {account.customer for account in [*found.live, *found.ledger.entries]} == {"bolt"}


@pytest.mark.parametrize(
    ("account", "said_by"),
    [
        (Account("acme", "credits", "grant:paid"), [LIVE, ENTRIES, POSTINGS]),
        (Account("acme", "credits", "hold:h1", "paid"), [LIVE, ENTRIES, POSTINGS]),
        (Account("acme", "credits", "overage"), [LIVE, ENTRIES, POSTINGS]),
        (Account("acme", "credits", "consumed:llm"), [ENTRIES, POSTINGS]),
        (Account("bolt", "side", "breakage:forfeited"), [ENTRIES, POSTINGS]),
        (Account("bolt", "credits", "grant:never"), [LIVE, ENTRIES, POSTINGS]),
        (Account("zeta", "credits", "issued:paid"), [ENTRIES, POSTINGS]),
    ],
)
def test_a_posting_altered_in_clickhouse_is_named(world: Partition, account: Account, said_by: list[str]) -> None:
    found = compared(world)
    before = found.booked.total.get(account, 0)
    for balances in (found.booked.total, found.booked.recent):
        add(balances, account, 1)
    difference = found.difference
    assert difference is not None
    assert (difference.customer, difference.pool) == (account.customer, account.pool)
    # A hold's leg also changes what is held of its grant, which comes first by name.
    assert difference.account == ("held of grant:paid" if account.kind == "hold" else account.account)
    assert list(difference.said) == said_by
    assert len(set(difference.said.values())) == 2
    assert before == 0 or difference.said[POSTINGS] != difference.said[ENTRIES]
    assert difference.line.startswith(f"customer {account.customer}, pool {account.pool}, {difference.account}: ")
    assert "\n" not in difference.line


@pytest.mark.parametrize(
    ("key", "changes", "account"),
    [
        (row_key("acme", "grant", "paid"), {"balance_nanos": 1}, "grant:paid"),
        (row_key("acme", "grant", "paid"), {"held_nanos": 1}, "held of grant:paid"),
        (row_key("acme", "pool", "credits"), {"overage_nanos": 1}, "overage"),
        (row_key("acme", "hold", "h2"), {"receipt": ()}, "hold:h2 of grant:paid"),
    ],
)
def test_a_row_altered_in_the_journal_is_named(
    world: Partition, key: bytes, changes: dict[str, object], account: str
) -> None:
    difference = compared(world, altered(journal_of(world), key, **changes)).difference
    assert difference is not None
    assert (difference.customer, difference.account) == ("acme", account)
    assert difference.said[ENTRIES] == difference.said[POSTINGS] != difference.said[LIVE]


def test_a_row_that_is_gone_is_named(world: Partition) -> None:
    records = journal_of(world)
    key = row_key("acme", "hold", "h1")
    difference = compared(world, [*records, (len(records), key, None)]).difference
    assert difference == Difference(
        "acme", "credits", "hold:h1 of grant:paid", {LIVE: "0", ENTRIES: "8", POSTINGS: "8"}
    )


def test_the_first_of_several_is_named(world: Partition) -> None:
    found = compared(world)
    for customer in ("bolt", "acme"):
        for account in ("grant:paid", "consumed:llm"):
            for balances in (found.booked.total, found.booked.recent):
                add(balances, Account(customer, "credits", account), 5)
    difference = found.difference
    assert difference is not None
    assert (difference.customer, difference.account) == ("acme", "consumed:llm")


def test_an_entry_whose_balances_its_postings_deny(world: Partition) -> None:
    records = journal_of(world)
    at = max(i for i, (_, key, value) in enumerate(records) if b"acme\0entry" in key and value and b"postings" in value)
    entry = decode_record(records[at][2] or b"")
    assert isinstance(entry, Entry)
    [balance] = entry.balances
    wrong = msgspec.structs.replace(balance, held_nanos=balance.held_nanos + 10**9)
    value = encode_record(msgspec.structs.replace(entry, balances=(wrong,)))
    found = compared(world, [*records[:at], (at, records[at][1], value), *records[at + 1 :]])
    assert found.difference is not None
    assert found.difference.account == "held of the whole pool"
    assert found.difference.said == {f"the entry at offset {at}": "17", "its postings": "16"}


def test_postings_that_do_not_balance() -> None:
    """Also where neither the live state nor an entry knows better."""
    ledger = JournalLedger()
    ledger.miss(1000)
    legs = (Posting("credits", "issued:paid", -5, 0, 0), Posting("credits", "consumed:llm", 4, 0, 0))
    booked = Booked({}, {})
    balances_of_postings("acme", legs, booked.total)
    difference = first_difference(ledger, {}, booked, [])
    assert difference == Difference(
        "acme", "credits", "all accounts together", {POSTINGS: "-0.000000001", "they must add up to": "0"}
    )


# ---- compaction ----


def compacted(records: list[Record], until: int) -> list[Record]:
    """What is left when everything before `until` has been cleaned: of each key the last there."""
    last = {key: offset for offset, key, _ in records if offset < until}
    return [record for record in records if record[0] >= until or last[record[1]] == record[0]]


@pytest.mark.parametrize("seed", range(20))
def test_a_compacted_journal_agrees_as_far_as_it_goes(world: Partition, seed: int) -> None:
    records = journal_of(world)
    until = random.Random(seed).randrange(20, len(records))
    left = compacted(records, until)
    found = compared(world, left)
    assert not found.ledger.complete
    assert found.ledger.entries_from <= until
    assert found.difference is None, f"seed {seed}"
    assert 0 < found.ledger.pools_stated <= 4


def test_a_compacted_journal_still_shows_what_is_wrong(world: Partition) -> None:
    records = journal_of(world)
    found = compared(world, compacted(records, len(records) // 2))
    begin = found.ledger.entries_from
    account = Account("bolt", "credits", "consumed:llm")
    add(found.booked.recent, account, 10**9)
    assert found.difference is not None
    assert found.difference.account == f"consumed:llm, moved from offset {begin} on"


def test_a_pool_that_its_last_entry_denies(world: Partition) -> None:
    """Rows and postings altered alike: the entry's own balances remain as a witness."""
    records = altered(journal_of(world), row_key("acme", "grant", "paid"), balance_nanos=10**9)
    found = compared(world, compacted(records, len(records) - 1))
    grant = Account("acme", "credits", "grant:paid")
    add(found.booked.total, grant, 10**9 - found.booked.total.get(grant, 0))
    add(found.booked.total, Account("acme", "credits", "issued:paid"), -(10**9))
    assert found.difference is not None
    assert found.difference.account == "balance of the whole pool"
    assert found.difference.said == {"its last entry in the journal": "0", LIVE: "1"}


def test_compaction_that_comes_while_the_journal_is_read_is_no_difference(world: Partition) -> None:
    left = compacted(journal_of(world), len(world.journal))

    def overtaken(at: int) -> JournalLedger:
        """Compaction came when everything before `at` had been read."""
        return read([*journal_of(world)[:at], *(record for record in left if record[0] >= at)])

    found = [overtaken(at) for at in range(len(world.journal))]
    wrong = list({each.misstated.line: each for each in found if each.misstated is not None}.values())
    readings = iter([wrong[0], read(left)])
    assert read_beside_compaction(lambda: next(readings), 0).misstated is None

    always = iter(wrong)
    with pytest.raises(Trouble, match="compacted faster than it can be read"):
        read_beside_compaction(lambda: next(always), 0)


def test_an_entry_that_is_wrong_is_wrong_each_time_it_is_read(world: Partition) -> None:
    left = compacted(journal_of(world), len(world.journal) // 2)
    at = max(i for i, (_, key, _) in enumerate(left) if b"bolt\0entry" in key)
    entry = decode_record(left[at][2] or b"")
    assert isinstance(entry, Entry)
    wrong = msgspec.structs.replace(entry.balances[0], held_nanos=1)
    value = encode_record(msgspec.structs.replace(entry, balances=(wrong,)))
    left[at] = (left[at][0], left[at][1], value)
    misstated = read_beside_compaction(lambda: read(left), 0).misstated
    assert misstated is not None
    assert f"the entry at offset {left[at][0]}" in misstated.said


# ---- stretches ----


def test_stretches_hold_every_customer_once() -> None:
    chance = random.Random(3)
    for _ in range(200):
        counts = {f"c{chance.randrange(10**6)}": chance.randrange(1, 6) for _ in range(chance.randrange(20))}
        accounts = [Account(customer, "p", f"grant:{n}") for customer, count in counts.items() for n in range(count)]
        cut = stretches(accounts, 4)
        assert [account for each in cut for account in each.accounts] == sorted(accounts)
        assert (cut[0].begin, cut[-1].end) == ("", None)
        assert [each.end for each in cut[:-1]] == [each.begin for each in cut[1:]]
        for each in cut:
            assert all(each.begin <= a.customer and (each.end is None or a.customer < each.end) for a in each.accounts)
            assert len(each.accounts) <= 4 or len({account.customer for account in each.accounts}) == 1


def test_no_accounts_are_one_stretch() -> None:
    [only] = stretches([], 10)
    assert (only.begin, only.end, only.accounts) == ("", None, [])


def test_what_is_no_row_is_said() -> None:
    ledger = JournalLedger()
    with pytest.raises(msgspec.MsgspecError):
        ledger.take(0, b"acme\0entry\0", b"{")
    ledger.take(1, row_key("acme", "grant", "g"), b'{"row":"open.v1","owner":"o","at":1}')
    with pytest.raises(ValueError, match="holds OpenRow"):
        list(ledger.rows())
