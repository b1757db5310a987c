"""A short run of the chaos: nothing lost, nothing twice, nobody overdrawn; and oracles that see when it is not so."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chaos.__main__ import main
from chaos.evidence import Evidence, Raw, read_journal
from chaos.oracle import Findings
from chaos.plan import KILLS, OTHERS, plan
from kafka_fixture import needs_java
from tallygate.schemas.journal import Entry, OpenRow, PartitionRow, ScopeRow, encode_record
from tallygate.schemas.topics import USAGE

SEED = int(os.environ.get("SEED", "1"))
ZEROS = tuple(Findings().counts())
FAULTS = ("pause", "broker_killed", "sink_killed_in_insert", "tables_truncated")


class Ran:
    def __init__(self, folder: Path, code: int, said: str, out: str) -> None:
        self.evidence = folder / "evidence"
        self.code = code
        self.said = said
        self.lines = out.splitlines()


@pytest.fixture(scope="module")
def ran(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("chaos")
    what = ["--kills", "5", "--seed", str(SEED), "--partitions", "4", "--faults", ",".join(FAULTS)]
    here = Path(__file__).parent.parent
    process = subprocess.run(
        [sys.executable, "-m", "chaos", *what, "--evidence", str(folder / "evidence")],
        env={**os.environ, "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return Ran(folder, process.returncode, process.stderr, process.stdout)


@needs_java
@pytest.mark.timeout(540)
def test_whatever_dies_nothing_is_lost_doubled_overdrawn_or_left_unanswered(ran: Ran) -> None:
    assert ran.code == 0, f"{ran.said}\n{ran.lines}"
    [line] = ran.lines
    result = json.loads(line)
    assert {name: result[name] for name in ZEROS} == dict.fromkeys(ZEROS, 0)
    assert result["faults"] == {"kill": 5, **dict.fromkeys(FAULTS, 1)}
    assert result["kills"] >= 5
    assert result["pauses"] == result["broker_restarts"] == 1
    assert result["takeover_ms_max"] >= result["takeover_ms_p50"] > 0
    assert min(result["events"], result["requests"], result["poison"], result["sink_ends"]) > 0


# The oracles, fed with what they would be fed if something had gone wrong


def an_entry(evidence: Evidence, wanted: Callable[[Entry], bool]) -> tuple[list[Entry], int]:
    """Where in the journal there is an entry like that."""
    return next(
        (transition.entries, number)
        for transition in evidence.journal.transitions
        for number, entry in enumerate(transition.entries)
        if wanted(entry)
    )


def usage_entry(evidence: Evidence) -> tuple[list[Entry], int]:
    return an_entry(evidence, lambda entry: bool(entry.causes) and entry.causes[0].topic == USAGE)


def a_reply_otherwise(evidence: Evidence) -> None:
    reply = next(r for r in evidence.replies if r.answer.op == "reserve" and r.answer.allowed)
    evidence.replies.append(reply._replace(value=reply.value.replace(b'"credits":"', b'"credits":"1')))


def an_answer_otherwise(evidence: Evidence) -> None:
    asked = next(a for a in evidence.record.asked if a.op == "reserve")
    asked.answers.append(replace(asked.answers[0], allowed=not asked.answers[0].allowed))


def no_answer(evidence: Evidence) -> None:
    evidence.record.asked[-1].answers.clear()


def decision_entry_removed(evidence: Evidence) -> None:
    entries, number = an_entry(evidence, lambda entry: any(d.op == "settle" for d in entry.decisions))
    del entries[number]


def usage_entry_removed(evidence: Evidence) -> None:
    entries, number = usage_entry(evidence)
    del entries[number]


def usage_entry_doubled(evidence: Evidence) -> None:
    entries, number = usage_entry(evidence)
    evidence.journal.transitions[-1].entries.append(entries[number])


def decision_entry_doubled(evidence: Evidence) -> None:
    entries, number = an_entry(evidence, lambda entry: bool(entry.decisions))
    evidence.journal.transitions[-1].entries.append(entries[number])


def a_scope_beyond_its_limit(evidence: Evidence) -> None:
    for transition in evidence.journal.transitions:
        for number, (key, row) in enumerate(transition.rows):
            if isinstance(row, ScopeRow) and row.budget == "agents":
                transition.rows[number] = (key, replace(row, held_nanos=10**15))
                return
    raise AssertionError("no agent was ever limited")


def a_hold_without_room(evidence: Evidence) -> None:
    """More is held than was given: the legs of a hold, a thousand times as large."""
    entries, number = an_entry(evidence, lambda entry: any(leg.account.startswith("hold:") for leg in entry.postings))
    legs = [replace(leg, amount_nanos=leg.amount_nanos * 1000) for leg in entries[number].postings]
    entries[number] = replace(entries[number], postings=tuple(legs))


def an_event_nobody_booked(evidence: Evidence) -> None:
    del evidence.books[0].usage[next(iter(evidence.books[0].usage))]


def a_decision_booked_twice(evidence: Evidence) -> None:
    evidence.books[0].decisions.append(evidence.books[0].decisions[0])


def a_posting_booked_otherwise(evidence: Evidence) -> None:
    evidence.books[0].postings[next(iter(evidence.books[0].postings))] += 1


def a_decision_nobody_published(evidence: Evidence) -> None:
    gone = evidence.published[0].headers
    evidence.published = [record for record in evidence.published if record.headers != gone]


def a_decision_published_otherwise(evidence: Evidence) -> None:
    first = evidence.published[0]
    evidence.published.append(first._replace(value=(first.value or b"") + b" "))


def a_dead_letter_gone(evidence: Evidence) -> None:
    place = f"{'/'.join(map(str, next(iter(evidence.record.poison))))}".encode()
    evidence.dead_letters = [letter for letter in evidence.dead_letters if letter.key != place]


def a_dead_letter_with_other_bytes(evidence: Evidence) -> None:
    evidence.dead_letters[0] = evidence.dead_letters[0]._replace(value=b"others")


def verify_disagrees(evidence: Evidence) -> None:
    evidence.disagreements.append("the first difference: …")


@needs_java
@pytest.mark.timeout(540)
@pytest.mark.parametrize(
    ("tamper", "number"),
    [
        (no_answer, "unanswered"),
        (an_answer_otherwise, "overdraft"),
        (a_reply_otherwise, "overdraft"),
        (a_scope_beyond_its_limit, "overdraft"),
        (a_hold_without_room, "overdraft"),
        (decision_entry_removed, "lost"),
        (usage_entry_removed, "lost"),
        (an_event_nobody_booked, "lost"),
        (a_decision_nobody_published, "lost"),
        (a_dead_letter_gone, "lost"),
        (decision_entry_doubled, "doubled"),
        (usage_entry_doubled, "doubled"),
        (a_decision_booked_twice, "doubled"),
        (a_posting_booked_otherwise, "ledger_mismatches"),
        (a_decision_published_otherwise, "ledger_mismatches"),
        (a_dead_letter_with_other_bytes, "ledger_mismatches"),
        (verify_disagrees, "ledger_mismatches"),
    ],
)
def test_what_is_wrong_is_counted_and_ends_with_1(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str], tamper: Callable[[Evidence], None], number: str
) -> None:
    evidence, facts = pickle.loads(ran.evidence.read_bytes())
    tamper(evidence)
    tampered = tmp_path / "evidence"
    tampered.write_bytes(pickle.dumps((evidence, facts)))
    assert main(["--judge", str(tampered)]) == 1
    assert json.loads(capsys.readouterr().out)[number] > 0


# The reader of the journal that is the oracles' own


def journal_of(*records: tuple[int, int, bytes, Any]) -> Any:
    """From (term, seq, key, value)."""
    return read_journal(
        Raw(0, offset, 0, key, encode_record(value), {"term": b"%d" % term, "seq": b"%d" % seq})
        for offset, (term, seq, key, value) in enumerate(records)
    )


OPEN, END = (b"\0open", OpenRow("o", 0)), (b"\0partition", PartitionRow({}, 0, 0))
ROW = (b"c\0scope\0s", ScopeRow("s", "b", {}, 0))


def test_only_records_of_the_term_that_is_open_count() -> None:
    journal = journal_of((1, 0, *OPEN), (1, 1, *END), (2, 0, *OPEN), (1, 2, *ROW), (1, 2, *END), (2, 1, *END))
    assert [(t.term, t.seq) for t in journal.transitions] == [(1, 1), (2, 1)]
    assert journal.stale == 2
    assert not journal.broken


def test_the_second_open_record_of_a_term_opens_nothing() -> None:
    journal = journal_of((2, 0, *OPEN), (2, 0, *OPEN), (1, 0, *OPEN), (2, 1, *END))
    assert (len(journal.transitions), journal.stale, journal.broken) == (1, 2, [])


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ([(1, 0, *OPEN), (1, 1, *END), (1, 3, *END)], "transition 3 of term 1 follows 1"),
        ([(1, 0, *OPEN), (1, 1, *ROW), (1, 2, *END)], "has no partition row"),
        ([(1, 0, *OPEN), (1, 1, *END), (1, 1, *ROW)], "follows its transition's partition row"),
        ([(1, 0, *OPEN), (2, 1, *END)], "which nobody opened"),
    ],
)
def test_a_journal_that_no_owner_can_have_written_is_seen(records: list[Any], word: str) -> None:
    assert word in journal_of(*records).broken[0]


# The plan


def test_the_seed_is_the_plan_and_twenty_kills_meet_everything() -> None:
    one = plan(20, SEED, 3)
    assert one == plan(20, SEED, 3)
    assert one != plan(20, SEED + 1, 3)
    assert {fault.point for fault in one if fault.kind == "kill"} == set(KILLS)
    assert {fault.kind for fault in one} == {"kill", *OTHERS}
