"""`tallygate ledger verify` against a real broker, a real engine and a running sink; and what is planted is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import clickhouse_connect
import msgspec
import pytest

from kafka_fixture import Broker
from sink_world import (
    PARTITIONS,
    ClickHouseServer,
    D,
    JournalWriter,
    SinkProcess,
    Story,
    compact,
    ledger_sums,
    make_journal,
)
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.journal import GrantRow, decode_record, encode_record, row_key
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.requests import Reserve
from tallygate.topologies import ledger
from tallygate.topologies.exits import Exit, Trouble


@pytest.fixture
def journal(module_kafka: Broker) -> str:
    """A broker with a new, empty journal."""
    make_journal(module_kafka.bootstrap)
    return module_kafka.bootstrap


@pytest.fixture
def stories(journal: str) -> list[Story]:
    """One customer in each partition, with an open hold each, told to the journal."""
    stories = [Story(named(number), rounds=2) for number in range(PARTITIONS)]
    writer = JournalWriter(journal)
    for number, story in enumerate(stories):
        open_hold = Reserve(id="open", customer=story.customer, feature="llm", credits=D(7), ttl_seconds=86_400)
        assert story.world.ask(open_hold).allowed
        writer.tell(number, story)
    return stories


def named(partition: int) -> str:
    """A customer of this partition, with a name that SQL does not like."""
    return next(name for n in range(100) if partition_of(name := f"o'brien \\{n}", PARTITIONS) == partition)


def compare(sink: SinkProcess, customer: str | None = None) -> ledger.Verification:
    return ledger.verify(sink.settings, customer, 30.0, lambda what, done, of: None)


def verify(sink: SinkProcess, *options: str) -> subprocess.CompletedProcess[str]:
    settings = sink.settings
    given = {
        "TALLYGATE_KAFKA_BROKERS": settings.kafka_brokers,
        "TALLYGATE_DATA_DIR": str(settings.data_dir),
        "TALLYGATE_CLICKHOUSE_DSN": settings.clickhouse_dsn,
    }
    command = [sys.executable, "-m", "tallygate.topologies.cli", "ledger", "verify", *options]
    return subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, timeout=120)


def test_the_books_agree(journal: str, stories: list[Story], tmp_path: Path) -> None:
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums(stories)
        done = verify(sink)
        assert (done.returncode, done.stderr.strip()) == (Exit.DONE, "")
        legs = sum(len(entry.postings) for story in stories for entry in story.entries)
        assert f"the ledger agrees: customers 2, pools 2, grants 2, open holds 2, postings {legs}\n" in done.stdout
        assert "from ClickHouse's postings and from the journal's entries" in done.stdout

        found = json.loads(verify(sink, "--json").stdout)
        assert (found["agrees"], found["difference"], found["pools_stated"]) == (True, None, 2)
        assert [(each["partition"], each["complete"]) for each in found["partitions"]] == [(0, True), (1, True)]
        sums: dict[str, int] = {}
        for (_, _, account), nanos in ledger_sums(stories).items():
            kind = account.partition(":")[0]
            sums[kind] = sums.get(kind, 0) + nanos
        assert {k: D(v) for k, v in found["sums"].items()} == {k: D(from_nanos(v)) for k, v in sums.items() if v}
        assert sum(map(D, found["sums"].values())) == 0

        one = json.loads(verify(sink, "--customer", stories[1].customer, "--json").stdout)
        assert (one["customers"], one["holds"], [each["partition"] for each in one["partitions"]]) == (1, 1, [1])
        assert one["postings"] == sum(len(entry.postings) for entry in stories[1].entries)
        none = verify(sink, "--customer", "nobody")
        assert none.returncode == Exit.WRONG
        assert none.stderr == "tallygate: the ledger has nothing of a customer 'nobody'\n"

        # What a fenced-off owner appends late changes nothing.
        forged = Story(stories[0].customer, rounds=1)
        JournalWriter(journal).open(0, 5)
        JournalWriter(journal).write(0, 1, 99, forged.transitions[3])
        assert compare(sink).difference is None


def test_a_posting_altered_in_clickhouse(journal: str, stories: list[Story], tmp_path: Path) -> None:
    customer = stories[0].customer
    with (
        ClickHouseServer(tmp_path / "engine") as engine,
        SinkProcess(journal, tmp_path, dsn=engine.dsn) as sink,
        clickhouse_connect.get_client(dsn=engine.dsn) as client,
    ):
        sink.wait_for_sums(stories)
        assert compare(sink).difference is None
        for account, sources in (("consumed:llm", 2), ("hold:open", 3), ("grant:paid", 3)):
            legs = f"partition = 0 AND account = '{account}'"
            newest = f"(SELECT max((offset, leg)) FROM sink_postings WHERE {legs})"
            [offset, leg] = client.query(f"SELECT {newest}").result_rows[0][0]
            change = f"WHERE {legs} AND offset = {offset} AND leg = {leg} SETTINGS mutations_sync = 1"
            client.command(f"ALTER TABLE sink_postings UPDATE amount = amount + 1 {change}")
            for only in (None, customer):
                difference = compare(sink, only).difference
                assert difference is not None
                shown = "held of grant:paid" if account == "hold:open" else account
                assert (difference.customer, difference.account) == (customer, shown)
                said = [D(each) for each in difference.said.values()]
                assert (len(said), len(set(said[:-1])), said[-1] - said[-2]) == (sources, 1, 1)
            client.command(f"ALTER TABLE sink_postings UPDATE amount = amount - 1 {change}")
            assert compare(sink).difference is None
        client.command("DELETE FROM sink_postings WHERE account LIKE '%:trial' SETTINGS mutations_sync = 1")
        difference = compare(sink).difference
        assert difference is not None
        assert difference.account == "all accounts together" or difference.account.endswith(":trial")
        client.command("TRUNCATE TABLE sink_postings")
        difference = compare(sink).difference
        assert difference is not None
        assert difference.customer == customer


def test_postings_that_cancel_each_other_out_are_missed(journal: str, stories: list[Story], tmp_path: Path) -> None:
    """A released hold leaves every balance as it was: only the number of postings tells that it is gone."""
    with (
        ClickHouseServer(tmp_path / "engine") as engine,
        SinkProcess(journal, tmp_path, dsn=engine.dsn) as sink,
        clickhouse_connect.get_client(dsn=engine.dsn) as client,
    ):
        sink.wait_for_sums(stories)
        client.command("DELETE FROM sink_postings WHERE partition = 1 AND cause_id IN ('r0', 'l0')")
        client.command("DELETE FROM sink_postings WHERE partition = 1 AND account = 'hold:r0'")
        difference = compare(sink).difference
        assert difference is not None
        legs = sum(len(entry.postings) for entry in stories[1].entries)
        assert difference.line == (
            f"number of postings in partition 1 from offset 0 on: the journal's entries: {legs}, "
            f"ClickHouse's postings: {legs - 4}"
        )


def test_a_row_altered_in_the_journal(journal: str, stories: list[Story], tmp_path: Path) -> None:
    customer = stories[1].customer
    key = row_key(customer, "grant", "paid")
    value = stories[1].world.rows.get(key)
    assert value is not None
    row = decode_record(value)
    assert isinstance(row, GrantRow)
    planted = msgspec.structs.replace(row, balance_nanos=row.balance_nanos + 10**9)
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums(stories)
        JournalWriter(journal).write(1, 1, 1000, [(key, encode_record(planted))])
        done = verify(sink)
        assert done.returncode == Exit.NO
        before, after = from_nanos(row.balance_nanos), from_nanos(planted.balance_nanos)
        assert done.stdout == (
            f"the first difference: customer {customer}, pool credits, grant:paid: the live state: {after}, "
            f"the journal's entries: {before}, ClickHouse's postings: {before}\n"
        )
        JournalWriter(journal).write(1, 1, 1001, [(key, value)])
        assert compare(sink).difference is None


def test_a_compacted_journal_is_compared_as_far_as_it_goes(journal: str, stories: list[Story], tmp_path: Path) -> None:
    writer = JournalWriter(journal)
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums(stories)
        compact(journal, writer)
        done = verify(sink)
        assert (done.returncode, done.stderr) == (Exit.DONE, "")
        assert "every balance was rebuilt from ClickHouse's postings\n" in done.stdout
        assert "compaction has taken entries of the journal (partition 0 before offset" in done.stdout
        found = compare(sink)
        assert [each.complete for each in found.partitions] == [False, True]
        assert (found.pools, found.pools_stated) == (2, 2)


def test_the_sink_is_waited_for_and_missed(journal: str, stories: list[Story], tmp_path: Path) -> None:
    with (
        ClickHouseServer(tmp_path / "engine") as engine,
        SinkProcess(journal, tmp_path, dsn=engine.dsn) as sink,
    ):
        sink.wait_for_sums(stories)
        assert sink.stop() == 0
        told = len(stories[0].transitions)
        stories[0].round("more")
        writer = JournalWriter(journal)
        for seq, records in enumerate(stories[0].transitions[told:], told + 1):
            writer.write(0, 1, seq, records)
        done = verify(sink, "--wait", "0.5")
        assert done.returncode == Exit.AWAY
        assert done.stderr.startswith("tallygate: the sink stands at offset ")
        assert done.stderr.count("\n") == 1
        with SinkProcess(journal, tmp_path, dsn=engine.dsn) as again:
            assert compare(again).difference is None
    with SinkProcess(journal, tmp_path / "other") as nobody:
        nobody.kill()
        with pytest.raises(Trouble, match="no sink is running") as trouble:
            compare(nobody)
        assert trouble.value.code == Exit.AWAY
