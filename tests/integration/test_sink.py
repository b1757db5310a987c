"""The sink against a real broker and a real engine: whatever happens to it, the figures are the ledger's."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ResourceType

from kafka_fixture import Broker
from sink_world import (
    ClickHouseServer,
    D,
    JournalWriter,
    SinkProcess,
    Story,
    alter,
    compact,
    free_port,
    make_journal,
    metric,
    nanos,
)
from tallygate.connectors.clickhouse import Position, Store
from tallygate.schemas.requests import Reserve, Settle
from tallygate.schemas.topics import JOURNAL


@pytest.fixture
def journal(module_kafka: Broker) -> str:
    """A broker with a new, empty journal."""
    make_journal(module_kafka.bootstrap)
    return module_kafka.bootstrap


@pytest.fixture
def writer(journal: str) -> JournalWriter:
    return JournalWriter(journal)


def test_the_figures_are_the_ledgers(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    stories = [Story("acme"), Story("bolt", rounds=2)]
    acme, bolt = stories
    acme.world.ask(Reserve(id="big", customer="acme", feature="owing", credits=D(1)))
    acme.world.ask(Settle(id="bigger", customer="acme", hold="big", credits=D(400)))
    for partition, story in enumerate(stories):
        writer.tell(partition, story)
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums(stories)

        denied = sink.ask("SELECT * FROM decisions WHERE id = 'x0' AND customer = 'acme'")
        assert len(denied) == 1
        assert denied[0]["allowed"] is False
        assert denied[0]["reason"] == "budget_exhausted"
        assert denied[0]["dimensions"] == {"team": "research", "agent": "agent 0"}
        assert '"name":"agents"' in denied[0]["limits"]
        assert denied[0]["cause_topic"] == "tallygate.requests.v1"

        said = {
            (u.meter, e.customer): 0 for story in stories for e in story.entries for u in e.usage
        }  # what the deltas add up to, against the absolute rows
        for story in stories:
            for entry in story.entries:
                for delta in entry.usage:
                    said[delta.meter, entry.customer] += delta.quantity_nanos
        rows = sink.ask("SELECT meter, customer, sum(quantity) AS q FROM usage_hourly GROUP BY ALL")
        assert {(r["meter"], r["customer"]): nanos(r["q"]) for r in rows} == said

        for story in stories:
            [pool] = story.entries[-1].balances
            [row] = sink.ask(
                "SELECT sum(balance) AS b, sum(held) AS h, sum(overage) AS o FROM balances "
                f"WHERE customer = '{story.customer}' AND pool = 'credits'"
            )
            assert [nanos(row[key]) for key in "bho"] == [pool.balance_nanos, pool.held_nanos, pool.overage_nanos]
        assert acme.entries[-1].balances[0].overage_nanos > 0
        assert bolt.entries[-1].balances[0].balance_nanos > 0
        grants = sink.ask(
            "SELECT grant, category, amount, priority, active FROM balances WHERE grant != '' AND balance > 0"
        )
        assert grants == [{"grant": "paid", "category": "paid", "amount": "400", "priority": 2, "active": True}]


def test_killed_before_every_insert_of_a_batch(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    """A batch is postings, decisions, usage (two tables), balances, offsets: dies before each, counts nothing twice."""
    story = Story("acme", rounds=1)
    writer.tell(0, story)
    for insert in range(1, 7):
        with SinkProcess(journal, tmp_path, die_before=insert) as sink:
            assert sink.end() == -signal.SIGKILL
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        doubled = int(sink.figure("SELECT sum(rows) FROM system.parts WHERE table = 'sink_postings' AND active"))
        assert doubled >= int(sink.figure("SELECT count() FROM postings"))
        story.round("more")
        writer.write(0, 2, 0, [record for records in story.transitions[-10:] for record in records])
        assert sink.stop() == 0


def test_reads_on_after_kill_and_stop(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    story = Story("acme", rounds=1)
    writer.tell(1, story)
    told = len(story.transitions)
    for number, end in enumerate(("kill", "stop", "kill")):
        with SinkProcess(journal, tmp_path) as sink:
            sink.wait_for_sums([story])
            story.round(f"then {number}")
            for seq, records in enumerate(story.transitions[told:], told + 1):
                writer.write(1, 1, seq, records)
            told = len(story.transitions)
            if end == "kill":
                sink.kill()
            else:
                assert sink.stop() == 0
                assert "Traceback" not in sink.said
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])


def test_stop_stores_where_it_stood_even_in_a_quiet_journal(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    story = Story("acme", rounds=1)
    writer.tell(0, story)
    at_once = {"kafka_config": {"fetch.min.bytes": "1"}}  # the lag is 0, too, while the sink has not fetched
    with SinkProcess(journal, tmp_path, metrics_address=f"127.0.0.1:{(port := free_port())}", settings=at_once) as sink:
        sink.wait_for_sums([story])
        before = story.world.tick(1)
        writer.write(0, 1, 99, before.records)
        count = 1 + sum(map(len, story.transitions))
        sink.wait_for(lambda: metric(port, 'tallygate_sink_lag{partition="0"}') == 0)
        sink.wait_for(lambda: metric(port, 'tallygate_sink_rows_total{table="postings"}') > 0)
        assert sink.stop() == 0
        dsn = sink.settings.clickhouse
    store = Store(dsn)
    try:
        [row] = store._query("SELECT journal FROM sink_offsets LIMIT 1")
        assert store.positions(row[0]) == {0: Position(count, 1, 100)}
    finally:
        store.close()


def test_what_a_former_owner_appended_is_not_counted_also_after_a_restart(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    story, forged = Story("acme", rounds=1), Story("acme", rounds=2)
    writer.tell(0, story, term=3)
    writer.write(0, 2, 9, forged.transitions[3])
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        assert sink.stop() == 0
    writer.open(0, 2)
    writer.write(0, 2, 10, forged.transitions[4])
    writer.write(0, 3, 1, forged.transitions[5])
    fresh = Story("bolt", rounds=1)
    writer.tell(1, fresh)
    with SinkProcess(journal, tmp_path, metrics_address=f"127.0.0.1:{(port := free_port())}") as sink:
        sink.wait_for_sums([story, fresh])
        sink.wait_for(lambda: metric(port, 'tallygate_sink_lag{partition="0"}') == 0)
        stale = 1 + len(forged.transitions[4]) + len(forged.transitions[5])
        sink.wait_for(lambda: metric(port, "tallygate_sink_stale_records") == stale)
        sink.wait_for_sums([story, fresh])


def test_a_range_that_was_compacted_after_it_was_inserted_counts_as_it_was(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    """Postings are in, the offsets are not; then compaction removes most of those entries."""
    story = Story("acme", rounds=1)
    writer.tell(0, story)
    with SinkProcess(journal, tmp_path, die_before=6) as sink:
        assert sink.end() == -signal.SIGKILL
    compact(journal, writer)
    with SinkProcess(journal, tmp_path) as sink:
        assert sink.end() == 1
        assert re.fullmatch(
            rf"sink: {JOURNAL} partition 0: the records from \d+ to \d+ are gone.*--accept-gap\n", sink.said
        )
    told = len(story.transitions)
    story.round("after")
    for seq, records in enumerate(story.transitions[told:], 10_001):
        writer.write(0, 1, seq, records)
    with SinkProcess(journal, tmp_path, accept_gap=True) as sink:
        sink.wait_for_sums([story])
        [pool] = story.entries[-1].balances
        assert nanos(sink.figure("SELECT sum(balance) FROM balances")) == pool.balance_nanos
        assert sink.said.count("going on without them") == 1


def test_a_hole_in_the_journal_stops_it(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    """A transaction's end marker takes an offset of its own: to a reader, a record that is gone."""
    story = Story("acme", rounds=1)
    writer.tell(0, story)
    producer = Producer({"bootstrap.servers": journal, "transactional.id": "hole"})
    producer.init_transactions(20)
    producer.begin_transaction()
    records = story.world.tick(5).records
    for key, value in records:
        producer.produce(JOURNAL, value, key, 0, headers=[("term", b"1"), ("seq", b"98")])
    producer.commit_transaction(20)
    count = 1 + sum(map(len, story.transitions))
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        writer.write(0, 1, 99, story.world.tick(5).records)
        assert sink.end() == 1
        assert f"partition 0: the records from {count} to {count} are gone" in sink.said
        assert "Traceback" not in sink.said


def test_a_journal_that_begins_later_stops_it(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    story = Story("acme", rounds=1)
    writer.tell(0, story)
    admin = AdminClient({"bootstrap.servers": journal})
    alter(admin, ResourceType.TOPIC, JOURNAL, {"cleanup.policy": "delete"})
    [gone] = admin.delete_records([TopicPartition(JOURNAL, 0, 4)]).values()
    gone.result()
    alter(admin, ResourceType.TOPIC, JOURNAL, {"cleanup.policy": "compact"})
    with SinkProcess(journal, tmp_path) as sink:
        assert sink.end() == 1
        assert "partition 0: the records from 0 to 3 are gone" in sink.said
    with SinkProcess(journal, tmp_path, accept_gap=True) as sink:
        [pool] = story.entries[-1].balances
        balance = "SELECT sum(balance) FROM balances"
        sink.wait_for(lambda: nanos(sink.figure(balance)) == pool.balance_nanos)


def test_figures_of_another_journal_are_not_mixed_with_this_ones(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    story = Story("acme", rounds=1)
    writer.tell(0, story)
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])
        assert sink.stop() == 0
    make_journal(journal)
    with SinkProcess(journal, tmp_path) as sink:
        assert sink.end() == 1
        assert re.fullmatch(r"sink: .* holds the figures of another journal .*\n", sink.said)


def test_only_the_given_partitions(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    stories = [Story("acme", rounds=1), Story("bolt", rounds=1)]
    for partition, story in enumerate(stories):
        writer.tell(partition, story)
    with SinkProcess(journal, tmp_path, partitions=[1]) as sink:
        sink.wait_for_sums(stories[1:])
        assert sink.stop() == 0
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums(stories)
    with SinkProcess(journal, tmp_path, partitions=[7]) as sink:
        assert sink.end() == 1
        assert "has the partitions 0 to 1, and no 7" in sink.said


@pytest.mark.parametrize(
    ("key", "value", "headers", "words"),
    [
        (b"acme\0entry\0", b"{not json", [("term", b"1"), ("seq", b"500")], "cannot be read"),
        (b"acme\0entry\0", b'{"row":"entry.v9"}', [("term", b"1"), ("seq", b"500")], "upgrade the sink"),
        (
            b"acme\0grant\0g",
            b'{"row":"open.v1","owner":"x","at":1}',
            [("term", b"1"), ("seq", b"500")],
            "cannot be read",
        ),
        (b"no separators", b"{}", [("term", b"1"), ("seq", b"500")], "cannot be read"),
        (b"acme\0entry\0", b"{}", [], "is no journal record"),
        (b"acme\0entry\0", b"{}", [("term", b"one"), ("seq", b"500")], "is no journal record"),
    ],
)
def test_a_record_it_cannot_read_stops_it_in_one_line(
    journal: str,
    writer: JournalWriter,
    tmp_path: Path,
    key: bytes,
    value: bytes,
    headers: list[tuple[str, bytes]],
    words: str,
) -> None:
    writer.append(1, key, value, headers)
    with SinkProcess(journal, tmp_path) as sink:
        assert sink.end() == 1
        [line] = sink.said.splitlines()
        assert f"{JOURNAL} partition 1 offset 0" in line
        assert words in line


def test_a_full_disk_stops_it_in_one_line_and_nothing_is_half_counted(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    story = Story("acme", rounds=2)
    writer.tell(0, story)
    with SinkProcess(journal, tmp_path, file_bytes_max=4_000) as sink:
        assert sink.end() == 1
        lines = [line for line in sink.said.splitlines() if line.startswith("sink: ")]
        assert len(lines) == 1, sink.said
        assert "Traceback" not in sink.said
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])


def test_an_engine_that_fails_within_a_batch_stops_it_and_nothing_is_half_counted(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    story, dsn = Story("acme", rounds=1), f"chdb://{tmp_path}/clickhouse"
    writer.tell(0, story)
    command(dsn, "ALTER TABLE sink_balances ADD CONSTRAINT never CHECK version > 1000000")
    with SinkProcess(journal, tmp_path) as sink:
        assert sink.end() == 1
        assert re.fullmatch(r"sink: the embedded ClickHouse in .*VIOLATED_CONSTRAINT.*\n", sink.said)
    command(dsn, "ALTER TABLE sink_balances DROP CONSTRAINT never")
    with SinkProcess(journal, tmp_path) as sink:
        sink.wait_for_sums([story])


def command(dsn: str, statement: str) -> None:
    store = Store(dsn)
    try:
        store.prepare()
        store._run(statement)
    finally:
        store.close()


def test_a_clickhouse_server_away_at_the_start_and_in_the_middle(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    acme, bolt = Story("acme", rounds=1), Story("bolt", rounds=1)
    writer.tell(0, acme)
    server = ClickHouseServer(tmp_path / "server")
    with SinkProcess(journal, tmp_path, dsn=server.dsn) as sink:
        sink.wait_for_line("waiting")
        with server:
            sink.wait_for_line("ClickHouse is back")
            sink.wait_for_sums([acme])
            server.kill()
            writer.tell(1, bolt)
            deadline = time.monotonic() + 30
            while sink.said.count("; waiting") < 2:
                assert time.monotonic() < deadline, sink.said
                time.sleep(0.05)
            server.start()
            sink.wait_for_sums([acme, bolt])
            assert sink.said.count("; waiting") == 2
            assert sink.stop() == 0


def test_a_stop_while_the_clickhouse_server_is_away_loses_nothing(
    journal: str, writer: JournalWriter, tmp_path: Path
) -> None:
    acme, bolt = Story("acme", rounds=1), Story("bolt", rounds=1)
    writer.tell(0, acme)
    with ClickHouseServer(tmp_path / "server") as server:
        with SinkProcess(journal, tmp_path, dsn=server.dsn) as sink:
            sink.wait_for_sums([acme])
            server.kill()
            writer.tell(1, bolt)
            sink.wait_for_line("; waiting")
            assert sink.stop() == 0
        server.start()
        with SinkProcess(journal, tmp_path, dsn=server.dsn) as sink:
            sink.wait_for_sums([acme, bolt])


def test_one_sink_a_folder(journal: str, writer: JournalWriter, tmp_path: Path) -> None:
    writer.tell(0, story := Story("acme", rounds=1))
    with SinkProcess(journal, tmp_path) as first:
        first.wait_for_sums([story])
        with SinkProcess(journal, tmp_path) as second:
            assert second.end() == 1
            assert re.fullmatch(r"sink: .*clickhouse is in use by another process: .*\n", second.said)
        first.wait_for_sums([story])


def test_the_broker_away_at_the_start_and_in_the_middle(fresh_kafka: Any, tmp_path: Path) -> None:
    story = Story("acme", rounds=1)
    fresh_kafka.kill()
    with SinkProcess(fresh_kafka.bootstrap, tmp_path) as sink:
        sink.wait_for_line("does not answer")
        fresh_kafka.start()
        JournalWriter(fresh_kafka.bootstrap).tell(0, story)
        sink.wait_for_sums([story])
        fresh_kafka.kill()
        sink.wait_for_line("is away")
        fresh_kafka.start()
        more = Story("bolt", rounds=1)
        JournalWriter(fresh_kafka.bootstrap).tell(1, more)
        sink.wait_for_sums([story, more])
        sink.wait_for_line("is back")
        assert sink.said.count("is away") == 1
        assert sink.stop() == 0
