"""An auditor's own reading of the journal: no `Fence`, no `Follower`, no `decide`, only what the records say.

It hears of every batch when it lands, of every answer when it is sent, and of every local table when it is written,
and raises `Violation` at the first thing that must not be. Its rule for what is in force is stricter than the fence's:
of the highest term opened so far, exactly the next sequence number.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tallygate.pipeline.memory import digest
from tallygate.pipeline.replay import OF_HOURS, counted_writes, due_instant, due_key, hour_write, seen_key
from tallygate.schemas.answers import decode_answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.journal import (
    OPEN_KEY,
    PARTITION_KEY,
    AccountRow,
    DecisionRecord,
    Entry,
    GrantRow,
    HoldRow,
    PartitionRow,
    decode_record,
    split_key,
)
from tallygate.schemas.reasons import DENIALS, Reason
from tallygate.schemas.records import Record
from tallygate.schemas.topics import DAY_MS, REQUESTS, USAGE

Table = dict[bytes, bytes]
_READS: Final = frozenset({"check", "balance", "estimate"})


class _Groups(msgspec.Struct):
    """Of an entry, its groups of events as they are written."""

    counted: tuple[msgspec.Raw, ...] = ()


_groups: Final = msgspec.json.Decoder(_Groups).decode


class Violation(AssertionError):
    """Something has happened that must never happen."""


def must(holds: object, what: str, *more: object) -> None:
    if not holds:
        raise Violation(" ".join([what, *map(str, more)]))


class Asked(msgspec.Struct):
    """What an input record is to the auditor: `ids` by digest, or nothing where it is garbage."""

    ids: tuple[bytes, ...] = ()
    garbage: bool = False


class Admitted(msgspec.Struct):
    """A hold that was let through, and what of it has been used."""

    customer: str
    team: str
    feature: str
    credits: int
    calls: int
    expires_at: int = 0
    open: bool = True


class Books:
    """Everything in force so far. `catalogs` by version; `inputs` by topic, in order of their offsets."""

    def __init__(self, catalogs: Mapping[int, Catalog], fresh_ms: int) -> None:
        self.catalogs = catalogs
        self.inputs: dict[str, list[Asked]] = {USAGE: [], REQUESTS: []}
        self.questions: dict[tuple[str, str], int] = {}  # when each was asked first
        self.dead: set[tuple[str, int]] = set()
        self.table: Table = {}  # what a local table must hold
        self.before: dict[int, Table] = {0: {}}  # the same as of the end of each batch
        self.term = self.seq = self.end = 0
        self.row = PartitionRow({}, 0, 0)
        self.entries = self.stale = self.events = 0
        self.seen_at: dict[bytes, tuple[int, int]] = {}  # stream time and the broker's
        self._kept_at: dict[tuple[bytes, bytes], int] = {}
        self.answers_of: dict[bytes, list[bytes]] = defaultdict(list)  # one; another after a day, when it is forgotten
        self.legs: Counter[tuple[str, str]] = Counter()
        self._fresh_ms = fresh_ms
        self._due: dict[str, bytes] = {}
        self._rows: dict[bytes, Any] = {}
        self._of: dict[str, set[bytes]] = defaultdict(set)
        self._causes: set[tuple[str, int, str]] = set()
        self._admitted: dict[tuple[str, str], Admitted] = {}
        self._used: Counter[tuple[str, str, str]] = Counter()  # of what was admitted
        self._landed: list[tuple[int, int]] = []  # end and instant of each batch in force

    # ---- the journal ----

    def land(self, batch: Sequence[Record], term: int, seq: int, now_ms: int) -> None:
        self.end = batch[-1].offset + 1
        if batch[0].key == OPEN_KEY:
            if term > self.term:
                self.term, self.seq = term, 0
        elif (term, seq) == (self.term, self.seq + 1):
            self.seq = seq
            self._take(batch, now_ms)
            self._landed.append((self.end, now_ms))
        else:
            self.stale += len(batch)
        self.before[self.end] = dict(self.table)

    def _take(self, batch: Sequence[Record], now_ms: int) -> None:
        must(batch[-1].key == PARTITION_KEY, "a batch ends with the partition row")
        touched: dict[str, Entry | None] = {}
        row = decode_record(batch[-1].value or b"")
        assert isinstance(row, PartitionRow)
        for record in batch:
            key, value = record.key or b"", record.value
            if key == PARTITION_KEY:
                self.table[key] = value or b""
                continue
            customer, kind, _ = split_key(key)
            if kind != "entry":
                self._put(customer, key, value)
                touched.setdefault(customer, None)
            elif value is not None:
                entry = decode_record(value)
                assert isinstance(entry, Entry)
                self._enter(entry, now_ms)
                self._count_groups(entry, _groups(value).counted, now_ms)
                touched[customer] = entry
        self._advance(row, now_ms)
        for customer, entry in touched.items():
            self._agree(customer, entry)

    def _put(self, customer: str, key: bytes, value: bytes | None) -> None:
        if split_key(key)[1] in OF_HOURS:
            hour, _ = hour_write(key, value)
            if value is None:
                self.table.pop(hour, None)
            else:
                self.table[hour] = b""
        if value is None:
            self.table.pop(key, None)
            self._rows.pop(key, None)
            self._of[customer].discard(key)
            return
        self.table[key] = value
        row = self._rows[key] = decode_record(value)
        self._of[customer].add(key)
        if isinstance(row, AccountRow):
            before = self._due.pop(customer, None)
            if before is not None:
                self.table.pop(before, None)
            if row.due_at:
                self._due[customer] = due_key(row.due_at, customer)
                self.table[self._due[customer]] = b""

    def _advance(self, row: PartitionRow, now_ms: int) -> None:
        """Every input up to the applied offsets is in the books now, or was put aside; none twice."""
        must(row.stream_at >= self.row.stream_at, "stream time goes back")
        must(row.catalog >= self.row.catalog, "a decision was taken under an older catalog than the one before it")
        day = row.stream_at // DAY_MS
        if day != self.row.stream_at // DAY_MS:
            first = seen_key(max(0, day - 1), b"")
            for key in [key for key in self.table if key[:6] == first[:6] and key < first]:
                del self.table[key]
        for topic, asked in self.inputs.items():
            begin, end = (each.applied.get(topic, -1) + 1 for each in (self.row, row))
            must(begin <= end, "applied offsets go back:", topic, begin - 1, end - 1)
            for offset in range(begin, end):
                each = asked[offset]
                if each.garbage:
                    must((topic, offset) in self.dead, "a bad record was passed over without a dead letter:", offset)
                elif (topic, offset) not in self.dead and topic == USAGE:
                    must(all(id in self.seen_at for id in each.ids), "usage is lost: offset", offset)
        self.row = row

    def _enter(self, entry: Entry, now_ms: int) -> None:
        self.entries += 1
        for cause in entry.causes:
            place = (cause.topic, cause.offset, cause.id)
            must(place not in self._causes, "an input is in the books twice:", place)
            self._causes.add(place)
            asked = self.inputs[cause.topic][cause.offset]
            must(not asked.garbage, "a bad record is in the books:", place)
        for delta in entry.usage:
            self.events += delta.events
        sums: Counter[str] = Counter()
        held: Counter[tuple[int, str]] = Counter()
        for leg in entry.postings:
            sums[leg.asset] += leg.amount_nanos
            self.legs[entry.customer, leg.account] += leg.amount_nanos
            held[leg.cause, leg.account] += leg.amount_nanos
            if leg.account[:5] in ("hold:", "grant"):
                must(self.legs[entry.customer, leg.account] >= 0, "overdrawn:", entry.customer, leg.account)
        must(not any(sums.values()), "postings do not balance:", entry)
        for decision in entry.decisions:
            self._admit(entry, decision, held[decision.cause, f"hold:{decision.hold}"])
        for seen in entry.seen:
            self._remember(bytes.fromhex(seen.key), bytes(seen.value), entry.at, now_ms)

    def _count_groups(self, entry: Entry, groups: Sequence[bytes], now_ms: int) -> None:
        """Events that were counted together: each of them once, as if it had come alone."""
        for raw, group in zip(groups, entry.counted, strict=True):
            ids = [digest(entry.customer, "event", group.source, id) for id in group.ids]
            must(len(ids) == len(set(ids)) == len(group.offsets), "a group counts an event twice:", group)
            for offset, id in zip(group.offsets, ids, strict=True):
                must(id in self.inputs[USAGE][offset].ids, "a group counts what did not come:", offset)
            for key, value in counted_writes(entry.at, ids, bytes(raw)):
                self._keep(key, value, now_ms)
            for id in ids:
                must(self._may_come_again(id, entry.at, now_ms), "an event counts twice:", group)
                self.seen_at[id] = entry.at, now_ms

    def _keep(self, key: bytes, value: bytes, now_ms: int) -> None:
        self.table[key] = value
        self._kept_at[key, value] = now_ms

    def _may_come_again(self, id: bytes, at: int, now_ms: int) -> bool:
        """Ids are known for a day of stream time, and by a reader from the beginning for a day of the broker's."""
        known = self.seen_at.get(id)
        return known is None or at - known[0] >= DAY_MS or now_ms - known[1] >= DAY_MS

    def _remember(self, id: bytes, value: bytes, at: int, now_ms: int) -> None:
        """An id of a request or an event is seen once in the time for which ids are known."""
        self._keep(seen_key(at // DAY_MS, id), b"%d " % at + value, now_ms)
        if value[:1] == b"[":  # a request and its answer
            must(self._may_come_again(id, at, now_ms), "a request is decided twice:", value)
            self.answers_of[id].append(value.split(b",", 1)[1][:-1])
        elif b'"how":' not in value:
            must(self._may_come_again(id, at, now_ms), "an event counts twice:", value)
        self.seen_at[id] = at, now_ms

    # ---- limits: what was let through, from the decisions alone ----

    def _admit(self, entry: Entry, decision: DecisionRecord, held_nanos: int) -> None:
        customer = entry.customer
        if decision.op == "reserve" and decision.allowed:
            must(
                held_nanos == decision.credits_nanos - decision.overage_nanos and not decision.overage_nanos,
                "allowed without a hold in the ledger:",
                decision,
            )
            hold = Admitted(
                customer,
                decision.dimensions.get("team", ""),
                decision.feature,
                decision.credits_nanos,
                decision.quantities.get("calls", 0),
                decision.at + (decision.ttl_seconds or 300) * 1000,
            )
            self._admitted[customer, decision.id] = hold
            self._within_limits(hold, entry.catalog, decision.at)
        elif decision.op in ("settle", "release") and not decision.late:
            hold = self._admitted[customer, decision.hold]
            must(hold.open, "a hold ends twice:", decision)
            hold.open = False
            if decision.op == "settle":
                self._used[customer, "team", hold.team] += min(hold.credits, decision.credits_nanos)
                self._used[customer, "calls", ""] += min(hold.calls, decision.quantities.get("calls", 0))

    def _within_limits(self, admitted: Admitted, version: int, at: int) -> None:
        customer, team = admitted.customer, admitted.team
        plan = self.catalogs[version].plans[0]
        credits, calls = self._used[customer, "team", team], self._used[customer, "calls", ""]
        for hold in self._admitted.values():
            if hold.customer != customer:
                continue  # in a batch, one customer's decisions all come before the next one's
            if hold.open and hold.expires_at <= at:
                hold.open = False
            if hold.open:
                credits += hold.credits if hold.team == team else 0
                calls += hold.calls
        [budget] = plan.budgets
        [allowance] = [each.limit_nanos for each in plan.entitlements if each.kind == "metered"]
        must(not team or not admitted.credits or credits <= budget.limit_nanos, "over budget:", customer, team, credits)
        must(not admitted.calls or calls <= allowance, "over the allowance:", customer, calls)

    # ---- rows against the ledger ----

    def _agree(self, customer: str, entry: Entry | None) -> None:
        """The ledger alone rebuilds what grants and holds have, and receipts what is held of each grant."""
        held: Counter[str] = Counter()
        standing: dict[str, int] = {}
        grants: list[GrantRow] = []
        for key in self._of[customer]:
            row = self._rows[key]
            if isinstance(row, GrantRow):
                grants.append(row)
                standing[f"grant:{row.id}"] = row.balance_nanos
            elif isinstance(row, HoldRow):
                standing[f"hold:{row.id}"] = sum(share.nanos for share in row.receipt)
                for share in row.receipt:
                    held[share.id] += share.nanos
        rebuilt = {
            name: n for (who, name), n in self.legs.items() if n and who == customer and name[:5] in ("hold:", "grant")
        }
        must(rebuilt == {name: n for name, n in standing.items() if n}, "rows and ledger differ:", rebuilt, standing)
        for grant in grants:
            must(grant.balance_nanos >= 0, "a grant is overdrawn:", grant)
            must(grant.held_nanos == held[grant.id], "holds and grants differ:", grant)
        for balance in entry.balances if entry else ():
            must(balance.balance_nanos == sum(g.balance_nanos for g in grants), "a stated balance is not the rows'")

    # ---- answers ----

    def answered(self, answer: bytes, known_to: int, now_ms: int) -> str:
        """An answer, by an owner that has read the journal up to `known_to`. Returns what it says, for the trace."""
        told = decode_answer(answer)
        if told.op in _READS:
            missed = next((at for end, at in self._landed if end > known_to), now_ms)
            fresh = now_ms - missed <= self._fresh_ms or missed >= self.questions[told.customer, told.id]
            must(fresh, "answered from a state that was over when the question came:", told.id)
        elif told.allowed or told.reason in DENIALS:
            decided = self.answers_of[digest(told.customer, told.op, told.id)]
            must(answer in decided, "an answer was given that is not in the journal:", told)
        else:
            must(told.reason is not Reason.ALLOWED, "refused and allowed:", told)
        return f"{told.id} {told.reason}"

    # ---- readers ----

    def compare(self, rows: Table, end: int, reader: str, now_ms: int, at_rest: bool = False) -> None:
        """A reader's table, when it has read the journal up to `end`, which is the end of a batch.

        `at_rest`: it is that of an owner whose ticks have nothing left to do.
        """
        expected = self.table if end == self.end else self.before[end]
        overdue = [customer for customer, key in self._due.items() if due_instant(key) <= self.row.stream_at]
        must(not at_rest or not overdue, "what was due has not happened:", overdue)
        if rows == expected:
            return
        for key in rows.keys() | expected.keys():
            if rows.get(key) == expected.get(key) or self._may_differ(key, expected.get(key), now_ms, at_rest):
                continue
            raise Violation(f"{reader} and the auditor differ in {key!r}: {rows.get(key)!r}, {expected.get(key)!r}")

    def _may_differ(self, key: bytes, wanted: bytes | None, now_ms: int, at_rest: bool) -> bool:
        first = seen_key(max(0, self.row.stream_at // DAY_MS - 1), b"")
        if key[:6] == first[:6]:  # an id: past remembering, or gone with an entry that compaction took after its day
            return key < first or now_ms - self._kept_at.get((key, wanted or b""), now_ms) >= DAY_MS
        if key[:5] == b"\0due\0" and wanted is None:
            # compaction had taken the row that moved this wake-up: a tick removes it when its instant comes
            return not at_rest or due_instant(key) > self.row.stream_at
        return False
