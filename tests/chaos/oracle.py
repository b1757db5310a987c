"""The oracles: pure functions from what was asked, answered, journaled and booked to what is wrong with it.

Five numbers must be zero. *Lost*: an event or an answered request that the journal or ClickHouse does not hold, a
poison record that is no dead letter. *Doubled*: one that counts more than once. *Overdraft*: a pool, budget or
allowance of which more is consumed and held than there is, after any accepted entry, or one request id with two
answers. *Unanswered*: a request without an answer. *Ledger mismatches*: journal, rows, ClickHouse, what was
published and `ledger verify` say different things.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from chaos.evidence import Books, Evidence, Transition
from chaos.load import AGENT_LIMIT, CREDITS, SEARCHES_LIMIT
from tallygate.schemas.journal import Entry, GrantRow, ScopeRow
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.reasons import DENIALS
from tallygate.schemas.topics import HEADER_RECORD_ID, USAGE

#: Requests that change nothing: asked twice, they may be answered differently.
READS = frozenset({"check", "estimate", "balance", "unknown"})


@dataclass
class Findings:
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    overdraft: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    ledger_mismatches: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {name: len(found) for name, found in vars(self).items()}

    @property
    def clean(self) -> bool:
        return not any(self.counts().values())


def judge(evidence: Evidence) -> Findings:
    findings = Findings()
    ledger = Ledger(findings)
    for transition in evidence.journal.transitions:
        ledger.take(transition)
    findings.ledger_mismatches += evidence.journal.broken
    findings.ledger_mismatches += evidence.disagreements
    _answers(evidence, findings)
    _requests(evidence, ledger, findings)
    _events(evidence, ledger, findings)
    _inputs(evidence, ledger, findings)
    _dead_letters(evidence, findings)
    _published(evidence, ledger, findings)
    ledger.compare_rows()
    for books in evidence.books:
        _books(evidence, books, ledger, findings)
    return findings


class Ledger:
    """The journal's entries added up, one after the other; complains of what no entry may lead to."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.sums: dict[tuple[str, str, str], int] = {}
        self.decisions: Counter[tuple[str, str, str, bool]] = Counter()
        self.events: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.deltas: dict[str, list[int]] = {}  # by the cause's event
        self.applied: dict[tuple[str, int], int] = {}
        self._usage: Counter[tuple[str, str]] = Counter()
        self._agents: dict[tuple[str, str], str] = {}  # by customer and hold
        self._used: Counter[tuple[str, str]] = Counter()  # by customer and agent
        self._held: dict[tuple[str, str], set[str]] = {}  # by customer and agent: open holds
        self._searching: dict[str, dict[str, int]] = {}  # by customer and hold
        self._searched: Counter[str] = Counter()
        self._grants: dict[bytes, GrantRow] = {}
        self._scopes: dict[bytes, ScopeRow] = {}

    def take(self, transition: Transition) -> None:
        place = f"partition {transition.partition}, term {transition.term}, transition {transition.seq}"
        self._check_applied(transition, place)
        for entry in transition.entries:
            self._take(entry, f"{place}, {entry.customer}")
        for key, row in transition.rows:
            if isinstance(row, GrantRow):
                self._grants[key] = row
                if row.balance_nanos < 0 or row.held_nanos < 0:
                    self._findings.overdraft.append(f"{place}: grant {row.id} is below zero")
            elif isinstance(row, ScopeRow):
                self._scopes[key] = row
                limit = _limit_of(row)
                if limit is not None and row.used_nanos + row.held_nanos > limit:
                    self._findings.overdraft.append(f"{place}: scope {row.id!r} has more used and held than {limit}")
            elif row is None:
                self._grants.pop(key, None)

    def _check_applied(self, transition: Transition, place: str) -> None:
        """Inputs come once: after those of the transitions before, and not after the last that this one applied."""
        if transition.end is None:
            return
        new = {(topic, transition.partition): offset for topic, offset in transition.end.applied.items()}
        for entry in transition.entries:
            for topic, offset in _offsets_of(entry):
                input = (topic, transition.partition)
                if offset <= self.applied.get(input, -1):
                    self._findings.doubled.append(f"{place}: {topic}@{offset} once more")
                if offset > new.get(input, -1):
                    self._findings.ledger_mismatches.append(f"{place}: applies less than it says it was caused by")
        for input, offset in new.items():
            if offset < self.applied.get(input, -1):
                self._findings.ledger_mismatches.append(f"{place}: {input} goes back to {offset}")
        self.applied.update(new)

    def _take(self, entry: Entry, place: str) -> None:
        customer = entry.customer
        self._take_usage(entry, place)
        for decision in entry.decisions:
            self.decisions[customer, decision.op, decision.id, decision.allowed] += 1
            match decision.op:
                case "reserve" if decision.allowed:
                    if agent := decision.dimensions.get("agent"):
                        self._agents[customer, decision.hold] = agent
                        self._held.setdefault((customer, agent), set()).add(decision.hold)
                    if searches := decision.quantities.get("searches"):
                        self._searching.setdefault(customer, {})[decision.hold] = searches
                case "settle":
                    agent = self._agents.get((customer, decision.hold), "")
                    self._used[customer, agent] += decision.credits_nanos
                    if self._searching.get(customer, {}).pop(decision.hold, None) is not None:
                        self._searched[customer] += decision.quantities.get("searches", 0)
                case "release":
                    self._searching.get(customer, {}).pop(decision.hold, None)
        changed: Counter[str] = Counter()
        for leg in entry.postings:
            account = (customer, leg.asset, leg.account)
            self.sums[account] = self.sums.get(account, 0) + leg.amount_nanos
            changed[leg.asset] += leg.amount_nanos
        for asset, total in changed.items():
            if total:
                self._findings.ledger_mismatches.append(f"{place}: postings of {asset} add up to {total}")
        self._check(entry, place)

    def _take_usage(self, entry: Entry, place: str) -> None:
        """Events that were counted together have one cause, that of the first, and one delta a meter."""
        added: Counter[int] = Counter()
        for delta in entry.usage:
            self._usage[entry.customer, delta.meter] += delta.quantity_nanos
            if delta.meter == "tokens":
                added[delta.cause] += delta.quantity_nanos
                self.deltas.setdefault(entry.causes[delta.cause].id, []).append(delta.quantity_nanos)
        together: dict[int, Counter[str]] = {}
        for group in entry.counted:
            column = group.quantities[group.meters.index("tokens")]
            for id, quantity in zip(group.ids, column, strict=True):
                together.setdefault(group.cause, Counter())[id] += quantity
                self.events[id] += 1
        for number, cause in enumerate(entry.causes):
            if cause.topic != USAGE:
                continue
            counted = together.get(number)
            if counted is None:
                self.events[cause.id] += 1
                counted = Counter({cause.id: added[number]})
            if counted.total() != added[number]:
                self._findings.ledger_mismatches.append(f"{place}: {added[number]} added for {counted.total()} counted")
            self.tokens += counted

    def _check(self, entry: Entry, place: str) -> None:
        customer = entry.customer
        for leg in entry.postings:
            total = self.sums[customer, leg.asset, leg.account]
            if leg.account.startswith(("grant:", "hold:")) and total < 0:
                self._findings.overdraft.append(f"{place}: {leg.account} is at {total}")
        if owed := self.sums.get((customer, "credits", "overage"), 0):
            self._findings.overdraft.append(f"{place}: {owed} of pool credits were taken beyond its grants")
        for agent in {self._agents.get((customer, decision.hold), "") for decision in entry.decisions} - {""}:
            if self._agent_holds(customer, agent) + self._used[customer, agent] > AGENT_LIMIT * CREDITS:
                self._findings.overdraft.append(f"{place}: agent {agent} is beyond its budget")
        searching = sum(self._searching.get(customer, {}).values())
        if searching + self._searched[customer] > SEARCHES_LIMIT * CREDITS:
            self._findings.overdraft.append(f"{place}: beyond the allowance of searches")

    def _agent_holds(self, customer: str, agent: str) -> int:
        total, held = 0, self._held[customer, agent]
        for hold in list(held):
            nanos = self.sums.get((customer, "credits", f"hold:{hold}"), 0)
            if not nanos:
                held.discard(hold)
            total += nanos
        return total

    def compare_rows(self) -> None:
        """The newest rows of grants say what the entries add up to."""
        for key, row in self._grants.items():
            customer = key.split(b"\0")[0].decode()
            posted = self.sums.get((customer, row.pool, f"grant:{row.id}"), 0)
            if posted != row.balance_nanos:
                self._findings.ledger_mismatches.append(
                    f"{customer}: grant {row.id} has {row.balance_nanos}, its postings {posted}"
                )

    @property
    def usage(self) -> dict[tuple[str, str], int]:
        return dict(self._usage)

    @property
    def balances(self) -> dict[tuple[str, str], tuple[int, int]]:
        return {
            (key.split(b"\0")[0].decode(), row.id): (row.balance_nanos, row.held_nanos)
            for key, row in self._grants.items()
        }


def _offsets_of(entry: Entry) -> Iterator[tuple[str, int]]:
    """The inputs that the entry says it came of."""
    for cause in entry.causes:
        yield cause.topic, cause.offset
    for group in entry.counted:
        for offset in group.offsets:
            yield USAGE, offset


def _limit_of(row: ScopeRow) -> int | None:
    if row.id.startswith("allowance:search"):
        return SEARCHES_LIMIT * CREDITS
    return AGENT_LIMIT * CREDITS if row.budget == "agents" else None


def _answers(evidence: Evidence, findings: Findings) -> None:
    """Every request is answered, and always alike: by the client's log, and by the reply topic itself."""
    said: dict[tuple[str, str, str], set[bytes]] = {}
    for reply in evidence.replies:
        answer = reply.answer
        if answer.op not in READS and (answer.allowed or answer.reason in DENIALS):
            said.setdefault((answer.customer, answer.op, answer.id), set()).add(reply.value)
    for id, ways in said.items():
        if len(ways) > 1:
            findings.overdraft.append(f"{id} was answered in {len(ways)} ways")
    for asked in evidence.record.asked:
        if not asked.answers:
            findings.unanswered.append(f"{asked.op} {asked.id} of {asked.customer}, asked {asked.tries} times")
        if any(answer != asked.answers[0] for answer in asked.answers):
            findings.overdraft.append(f"{asked.op} {asked.id} of {asked.customer} was answered in two ways")


def _requests(evidence: Evidence, ledger: Ledger, findings: Findings) -> None:
    """What was answered is in the journal once, as it was answered; what was refused is not."""
    answered = set()
    for asked in evidence.record.asked:
        for answer in asked.answers[:1]:
            decided = answer.allowed or answer.reason in DENIALS
            key = (asked.customer, asked.op, asked.id)
            answered.add(key)
            found = ledger.decisions[*key, answer.allowed]
            if found < decided:
                findings.lost.append(f"{key} was answered {answer.reason} and is not in the journal")
            if not decided and found:
                findings.ledger_mismatches.append(f"{key} was refused ({answer.reason}) and is in the journal")
            if ledger.decisions[*key, not answer.allowed]:
                findings.ledger_mismatches.append(f"{key} is in the journal otherwise than it was answered")
    for key, number in Counter(decision[:3] for decision in ledger.decisions.elements()).items():
        if number > 1:
            findings.doubled.append(f"{key} was decided {number} times")


def _events(evidence: Evidence, ledger: Ledger, findings: Findings) -> None:
    for id, event in evidence.record.events.items():
        times = ledger.events[id]
        if not times:
            findings.lost.append(f"event {id} of {event.customer} was confirmed and is not in the journal")
        elif ledger.tokens[id] != event.tokens * CREDITS:
            (findings.doubled if ledger.tokens[id] > event.tokens * CREDITS else findings.lost).append(
                f"event {id}: {ledger.tokens[id]} counted of {event.tokens}"
            )
    for id, times in ledger.events.items():
        if times > 1:
            findings.doubled.append(f"event {id} was counted {times} times")
        if id not in evidence.record.events:
            findings.doubled.append(f"event {id} was counted and never sent")


def _inputs(evidence: Evidence, ledger: Ledger, findings: Findings) -> None:
    """Everything that lies in the input topics was applied. The newest requests may only have asked something."""
    for (topic, number), end in evidence.input_ends.items():
        if topic == USAGE and end and ledger.applied.get((topic, number), -1) != end - 1:
            findings.lost.append(
                f"{topic} {number}: applied up to {ledger.applied.get((topic, number))}, ends at {end}"
            )


def _dead_letters(evidence: Evidence, findings: Findings) -> None:
    """Each poison record is there with its original bytes, perhaps again after a crash, and nothing else is."""
    found: dict[str, set[bytes | None]] = {}
    for letter in evidence.dead_letters:
        found.setdefault((letter.key or b"").decode(), set()).add(letter.value)
    for (topic, number, offset), value in evidence.record.poison.items():
        letters = found.pop(f"{topic}/{number}/{offset}", None)
        if letters is None:
            findings.lost.append(f"poison record {topic}/{number}/{offset} is no dead letter")
        elif letters != {value}:
            findings.ledger_mismatches.append(f"the dead letter of {topic}/{number}/{offset} has other bytes")
    for place in found:
        findings.ledger_mismatches.append(f"{place} is a dead letter and was no poison")


def _published(evidence: Evidence, ledger: Ledger, findings: Findings) -> None:
    """Every decision was published; one that was published again says the same, byte for byte, under the same id."""
    said: dict[bytes, set[bytes]] = {}
    for record in evidence.published:
        said.setdefault(record.headers[HEADER_RECORD_ID], set()).add(record.value or b"")
    found: Counter[tuple[str, str, str, bool]] = Counter()
    for id, values in said.items():
        if len(values) > 1:
            findings.ledger_mismatches.append(f"{id!r} was published with {len(values)} contents")
        one = json.loads(next(iter(values)))
        found[one["customer"], one["op"], one["id"], one["allowed"]] += 1
    findings.lost += [f"decision {decision} was not published" for decision in ledger.decisions - found]
    findings.doubled += [f"decision {decision} was published under two ids" for decision in found - ledger.decisions]


def _books(evidence: Evidence, books: Books, ledger: Ledger, findings: Findings) -> None:
    """ClickHouse holds what the journal holds, each once."""
    booked = Counter(books.decisions)
    for decision, number in (ledger.decisions - booked).items():
        findings.lost.append(f"{books.name}: decision {decision} is missing, {number} times")
    for decision, number in (booked - ledger.decisions).items():
        findings.doubled.append(f"{books.name}: decision {decision} is there {number} times too often")
    for id, deltas in ledger.deltas.items():
        counted = books.usage.get(id, [])
        if len(counted) < len(deltas):
            findings.lost.append(f"{books.name}: usage caused by event {id} is missing")
        elif len(counted) > len(deltas):
            findings.doubled.append(f"{books.name}: usage caused by event {id} is there {len(counted)} times")
        elif sorted(counted) != sorted(deltas):
            findings.ledger_mismatches.append(f"{books.name}: usage caused by event {id} is {counted}, not {deltas}")
    for id in books.usage.keys() - ledger.deltas.keys():
        findings.doubled.append(f"{books.name}: usage caused by event {id} is not in the journal")
    what = f"{books.name} and the journal: "
    findings.ledger_mismatches += [
        *(f"{what}postings of {each}" for each in _differing(ledger.sums, books.postings)),
        *(f"{what}usage of {each}" for each in _differing(ledger.usage, books.hourly)),
        *(f"{what}balance of {each}" for each in _differing(ledger.balances, books.balances)),
    ]


def _differing(one: dict[tuple[str, ...], object], other: dict[tuple[str, ...], object]) -> Iterable[str]:
    """Keys with different values; what is nothing may be missing."""
    nothing = (0, (0, 0), None)
    for key in sorted(one.keys() | other.keys()):
        here, there = one.get(key), other.get(key)
        if here != there and not (here in nothing and there in nothing):
            yield f"{key}: {here} and {there}"


def takeovers(evidence: Evidence) -> list[int]:
    """For each partition that a killed worker owned: ms from the kill to the first answer from that partition.

    It owned a partition if the term that was open at its end was one that it had opened. An answer counts if its sender
    handed it over after the kill: the killed one can have sent no such answer.
    """
    answered: dict[int, list[int]] = {}
    for reply in evidence.replies:
        if reply.answer.op != "unknown":  # that of a poison record may name any customer
            home = partition_of(reply.answer.customer, evidence.partitions)
            answered.setdefault(home, []).append(reply.at_ms)
    for times in answered.values():
        times.sort()
    found = []
    for killed in evidence.killed:
        at = killed.life.ended_ms
        for partition, term in killed.terms:
            opened = [number for number, began in evidence.journal.opened.get(partition, []) if began <= at]
            if opened and opened[-1] == term:
                after = next((time for time in answered.get(partition, []) if time > at), None)
                if after is not None:
                    found.append(after - at)
    return found


def percentiles(times: list[int]) -> dict[str, int | None]:
    if not times:
        return {"takeover_ms_p50": None, "takeover_ms_max": None}
    return {"takeover_ms_p50": round(median(times)), "takeover_ms_max": max(times)}
