"""The owner of a partition, against a log in memory: order of effects, fencing, recovery, sizes."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from owner_world import CATALOG, START_MS, Crash, Life, MemoryTable, Task, World, run
from tallygate.pipeline.replay import due_range, forgotten_range
from tallygate.pipeline.rules import Rules
from tallygate.schemas import topics
from tallygate.schemas.journal import ENTRY_KIND, OPEN_KEY, PARTITION_KEY, entry_key, row_key
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record
from tallygate.schemas.requests import Balance, Check, GiveGrant, Release, Reserve, Settle
from tallygate.topologies.follower import Follower, term_of
from tallygate.topologies.inbox import StepLimits
from tallygate.topologies.owner import OwnerLimits
from tallygate.topologies.ports import AppendUnknown, CrashPoint, Fenced, OwnershipLost

GRANT = GiveGrant(id="g1", customer="acme", amount=Decimal(500))


def reserve(id: str, credits: int = 75) -> Reserve:
    return Reserve(id=id, customer="acme", feature="llm", credits=Decimal(credits))


def outcomes(world: World) -> list[tuple[str, bool, str]]:
    return [(a.id, a.allowed, a.reason.value) for a in world.answers()]


def figure(life: Life, name: str, **labels: str) -> float:
    return life.metrics.registry.get_sample_value(f"tallygate_{name}", labels) or 0.0


# Opening and working


def test_the_first_owner_opens_term_1_and_answers() -> None:
    world = World()
    life = Life(world, "a").opened()
    assert [(r.key, dict(r.headers)) for r in world.log] == [(OPEN_KEY, {"term": b"1", "seq": b"0"})]
    life.offer(world.ask(GRANT, *(reserve(f"r{n}") for n in range(20)))).work()
    assert sum(allowed for id, allowed, _ in outcomes(world) if id.startswith("r")) == 6
    assert world.log[-1].key == PARTITION_KEY
    assert {tuple(dict(r.headers).values()) for r in world.log[1:]} == {(b"1", b"1")}
    assert life.done == [topics.REQUESTS]


def test_nothing_is_seen_before_the_batch_is_read_back() -> None:
    world = World()
    passed: list[tuple[CrashPoint, bool, int, bool]] = []
    table, done = MemoryTable(), []

    def at(point: CrashPoint) -> None:
        passed.append((point, len(table.rows) > 0, len(world.replies), bool(done)))

    life = Life(world, "a", table, at=at).opened()
    life.done = done
    life.offer(world.ask(GRANT)).step()
    assert passed == [
        ("recovering", False, 0, False),
        ("opened", False, 0, False),
        ("appended", False, 0, False),
        ("read_back", False, 0, False),
        ("answered", False, 1, False),
        ("table_written", True, 1, False),
    ]
    assert life.done


def test_applied_inputs_are_skipped_and_their_chunk_is_finished() -> None:
    world = World()
    chunks = [world.ask(GRANT), world.use("e1", "e2")]
    life = Life(world, "a").opened().offer(*chunks).work()
    end = len(world.log)
    life.offer(*chunks).work()
    assert (len(world.log), len(world.replies), len(life.done)) == (end, 1, 4)
    again = Life(world, "b", life.table).opened().offer(*chunks).work()
    assert (len(world.log), len(world.replies), len(again.done)) == (end + 2, 1, 2)  # the open record and a tick
    assert again.table.rows == life.table.rows | {PARTITION_KEY: again.table.rows[PARTITION_KEY]}


def test_the_lane_goes_on_behind_the_last_applied_offset() -> None:
    world = World()
    Life(world, "a").opened().offer(world.ask(GRANT, reserve("r1")), world.use("e1", "e2", "e3")).work()
    assert run(Life(world, "b").owner.open()) == {topics.REQUESTS: 2, topics.USAGE: 3}


def test_a_tick_enters_the_journal_every_second_and_never_goes_back() -> None:
    world = World()
    life = Life(world, "a").opened()
    taken: list[int] = []
    decide = life.decide

    def watched(state: Any, inputs: Sequence[Any], *rest: Any) -> Any:
        taken.extend(each.at - START_MS for each in inputs)
        return decide(state, inputs, *rest)

    life.decide = watched  # type: ignore[method-assign]
    for moved_ms in (0, 300, 800, 1000, 300):
        world.now_ms += moved_ms
        life.step()
    assert taken == [0, 1100, 2100]
    life.wall_ms = lambda: START_MS - 5000  # type: ignore[method-assign]  # a clock that was put back
    world.now_ms += 1000
    life.step()
    assert taken[3:] == [2100]


def test_ids_past_remembering_are_dropped_once_a_day() -> None:
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    seen = seen_range()
    assert len(life.table.scan(*seen)) == 1
    world.now_ms += topics.DAY_MS
    life.step()
    assert len(life.table.scan(*seen)) == 1
    world.now_ms += topics.DAY_MS
    life.step()
    assert life.table.scan(*seen) == []


def seen_range() -> tuple[bytes, bytes]:
    return forgotten_range(START_MS * 2)


def test_holds_end_by_ticks_alone() -> None:
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT, reserve("r1"))).work()
    assert life.table.get(row_key("acme", "hold", "r1"))
    world.now_ms += 301_000
    life.step()
    assert life.table.get(row_key("acme", "hold", "r1")) is None


def test_requests_do_not_wait_for_a_backlog_of_usage() -> None:
    world = World()
    usage = world.use(*(f"e{n}" for n in range(1000)))
    world.now_ms += 5000
    life = Life(world, "a", steps=StepLimits(events_max=100)).opened()
    life.offer(usage, world.ask(GRANT, reserve("r1"))).step()
    assert [a.id for a in world.answers()] == ["g1", "r1"]
    assert figure(life, "events_total") == 100
    life.work()
    assert figure(life, "events_total") == 1000


def test_a_new_catalog_is_taken_between_two_steps() -> None:
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    world.newest = type(CATALOG)(version=2, meters=CATALOG.meters, features=CATALOG.features)
    life.offer(world.ask(Balance(id="b", customer="acme"))).work()
    assert [(a.id, a.catalog) for a in world.answers()] == [("g1", 1), ("b", 2)]
    assert life.owner._state.row.catalog == 2
    world.newest = CATALOG  # another worker, which has not heard of version 2 yet
    late = Task(Life(world, "b").owner.open())
    with pytest.raises(AssertionError, match="does not end"):
        late.run()
    world.newest = type(CATALOG)(version=3)
    late.run()


# Answers that change nothing


def test_questions_are_answered_without_an_append() -> None:
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    end = len(world.log)
    question = Check(id="c", customer="acme", feature="llm", credits=Decimal(501))
    life.offer(world.ask(question, Balance(id="b", customer="acme"))).work()
    assert (len(world.log), len(life.done)) == (end, 2)
    assert outcomes(world)[1:] == [("c", False, "credits_exhausted"), ("b", True, "allowed")]


def test_the_offset_of_a_question_is_journaled_with_the_next_batch() -> None:
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    life.offer(world.ask(Balance(id="b", customer="acme"))).work()
    world.now_ms += 1000
    life.step()
    assert run(Life(world, "b").owner.open()) == {topics.REQUESTS: 2}


def test_an_owner_that_was_paused_asks_its_journal_before_it_answers() -> None:
    world = World()
    first = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    first.offer(world.ask(Balance(id="b", customer="acme")))
    decide = first.decide

    def paused(*arguments: Any) -> Any:
        transition = decide(*arguments)
        if not transition.records:
            world.now_ms += 20_000  # stopped right here, while another takes over
            Life(world, "b").opened().offer(world.ask(reserve("r1"))).work()
        return transition

    first.decide = paused  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        first.step()
    assert [(name, answer.id) for (name, _), answer in zip(world.replies, world.answers(), strict=True)] == [
        ("a", "g1"),
        ("b", "r1"),
    ]


# Fencing


def test_a_late_append_is_refused_and_its_rows_are_written_again() -> None:
    world = World()
    first = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    late = Task(first.offer(world.ask(reserve("r1", 500))).owner.step())
    late.once()  # paused right before the append
    second = Life(world, "b").opened().offer(world.ask(reserve("r2", 500))).work()
    begin = len(world.log)
    with pytest.raises(Fenced, match="another owner opened term 2"):
        late.run()
    stale = world.log[begin:]
    assert {r.key for r in stale} >= {row_key("acme", "hold", "r1"), row_key("acme", "grant", "g1"), entry_key("acme")}
    assert [(a.id, a.allowed) for a in world.answers()] == [("g1", True), ("r2", True)]

    world.now_ms += 1000
    second.step()  # reads them before its own tick
    world.now_ms += 1000
    repaired = len(world.log)
    second.step()
    rewritten = {r.key: r.value for r in world.log[repaired:]}
    assert rewritten[row_key("acme", "hold", "r1")] is None
    assert rewritten[row_key("acme", "grant", "g1")] == second.table.get(row_key("acme", "grant", "g1"))
    assert rewritten[entry_key("acme")] is None
    assert world.log[-1].key == PARTITION_KEY
    assert second.table.position.offset == len(world.log)
    assert figure(second, "stale_records_total") == len(stale)
    assert Life(world, "c").opened().table.rows == second.table.rows

    # A reader that knows nothing of terms, as compaction knows nothing of them, finds the same rows.
    last = {r.key: r.value for r in world.log}
    assert {k: v for k, v in last.items() if v is not None and k and b"\0entry\0" not in k and k[:1] != b"\0"} == {
        k: v for k, v in second.table.rows.items() if k[:1] != b"\0"
    }


def test_a_stale_row_right_behind_an_owners_own_batch_is_written_again() -> None:
    """Both are read at once, and the batch has a row of the same key: it lies before the stale one."""
    world = World()
    first = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    late = Task(first.offer(world.ask(reserve("r1", 400))).owner.step())
    late.once()
    second = Life(world, "b").opened()
    step = Task(second.offer(world.ask(reserve("r2", 500))).owner.step())
    step.until(lambda: world.log[-1].key == PARTITION_KEY and term_of(world.log[-1]) == (2, 1))
    with pytest.raises(Fenced):
        late.run()
    step.run()
    world.now_ms += 1000
    second.step()
    last = {r.key: r.value for r in world.log}
    grant = row_key("acme", "grant", "g1")
    assert last[grant] == second.table.get(grant)
    assert second.table.position.offset == len(world.log)


def test_the_table_stays_before_a_stale_row_until_it_is_written_again() -> None:
    world = World()
    first = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    late = Task(first.offer(world.ask(reserve("r1", 500))).owner.step())
    late.once()
    second = (
        Life(world, "b", limits=OwnerLimits(batch_bytes_max=700)).opened().offer(world.ask(reserve("r2", 1))).work()
    )
    begin = len(world.log)
    with pytest.raises(Fenced):
        late.run()
    world.now_ms += 1000
    second.step()  # reads the stale rows back before its own tick
    assert second.table.position.offset == begin
    third = Life(world, "c", second.table).opened()  # the second ended before it could write them again
    assert third.table.position.offset == begin
    third.step()
    assert third.table.position.offset == len(world.log)
    assert Life(world, "d").opened().table.rows == third.table.rows


@pytest.mark.parametrize("first_awaits", range(8))
def test_two_owners_that_open_at_once_end_as_one(first_awaits: int) -> None:
    """The first is paused at every await of its opening while the second opens and works."""
    world = World()
    one, two = Life(world, "a"), Life(world, "b")
    opening = Task(one.owner.open())
    for _ in range(first_awaits):
        opening.ended or opening.once()
    two.opened().offer(world.ask(GRANT)).work()
    try:
        opening.ended or opening.run()
        loser, winner = two, one  # it opened after the second: the second has not noticed yet
    except Fenced:
        loser, winner = one, two
    if winner is one and one.owner.term < two.owner.term:
        loser, winner = one, two
    if loser.owner.term:
        world.now_ms += 1000
        with pytest.raises(Fenced):
            loser.step()
    winner.offer(world.ask(reserve("r1"))).work()
    assert outcomes(world) == [("g1", True, "allowed"), ("r1", True, "allowed")]
    terms = [term_of(record)[0] for record in world.log if record.key == PARTITION_KEY]
    assert terms[-1] == winner.owner.term == max(term_of(record)[0] for record in world.log)


def test_an_unanswered_append_ends_the_owner_and_its_successor_answers_the_retry_alike() -> None:
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT)).work()
    append = life.append

    async def unanswered(records: Sequence[Any], term: int, seq: int) -> None:
        await append(records, term, seq)
        raise AppendUnknown("no answer within 30 s")

    life.append = unanswered  # type: ignore[method-assign]
    with pytest.raises(AppendUnknown):
        life.offer(world.ask(reserve("r1", 500))).step()
    assert len(world.replies) == 1
    after = Life(world, "b", life.table).opened().offer(world.ask(reserve("r1", 500), reserve("r2", 1))).work()
    assert outcomes(world)[1:] == [("r1", True, "allowed"), ("r2", False, "credits_exhausted")]
    assert after.owner.term == 2


# Bad input


def test_dead_letters_are_put_aside_before_the_step_that_passes_over_them() -> None:
    world = World()
    life = Life(world, "a").opened()
    bad = world.arrive(topics.USAGE, b"{", None, b'{"specversion":"1.0","id":"1","source":"s","type":"x"}')
    step = Task(life.offer(bad, world.ask(GRANT)).owner.step())
    step.until(lambda: len(world.dead) == 3)
    assert len(world.log) == 1
    step.run()
    assert [(d[1].offset, d[2]) for d in world.dead] == [
        (0, Reason.MALFORMED),
        (1, Reason.MALFORMED),
        (2, Reason.CUSTOMER_MISSING),
    ]
    assert world.dead[0][1].value == b"{"
    assert run(Life(world, "b").owner.open()) == {topics.USAGE: 3, topics.REQUESTS: 1}
    assert figure(life, "dead_letters_total", reason="malformed") == 2


def test_what_does_not_fit_into_one_batch_is_decided_in_halves() -> None:
    world = World()
    limits = OwnerLimits(batch_bytes_max=6000)
    life = Life(world, "a", limits=limits).opened().offer(world.ask(GRANT))
    life.offer(world.use(*(f"e{n}" for n in range(1000)))).work()
    assert figure(life, "events_total") == 1000
    assert not world.dead
    batches: dict[bytes, int] = {}
    for r in world.log:
        seq = dict(r.headers)["seq"]
        batches[seq] = batches.get(seq, 0) + len(r.key or b"") + len(r.value or b"")
    assert len(batches) > 4
    assert max(batches.values()) <= 6000


def test_an_input_that_does_not_fit_at_all_becomes_a_dead_letter() -> None:
    world = World()
    life = Life(world, "a", limits=OwnerLimits(batch_bytes_max=2200)).opened()
    big = Reserve(id="r" * 250, customer="c" * 250, feature="f" * 250, dimensions={"d" * 250: "v" * 250})
    life.offer(world.ask(GRANT, big, reserve("r1"))).work()
    assert [(d[1].offset, d[2]) for d in world.dead] == [(1, Reason.TOO_LARGE)]
    assert sorted(outcomes(world)) == [
        ("g1", True, "allowed"),
        ("r1", True, "allowed"),
        ("r" * 250, False, "too_large"),
    ]


# Recovery


def busy(world: World, life: Life) -> None:
    life.offer(world.ask(GRANT, reserve("r1"), reserve("r2"), Settle(id="s1", customer="acme", hold="r1")))
    life.offer(world.use("e1", "e2", "e3", tokens=5), world.ask(Release(id="x1", customer="acme", hold="r2"))).work()


def test_table_and_tail_give_what_the_journal_alone_gives() -> None:
    world = World()
    table = MemoryTable()
    life = Life(world, "a", table).opened()
    busy(world, life)
    copy = MemoryTable()
    copy.rows, copy.position = dict(table.rows), table.position
    world.now_ms += 2 * topics.DAY_MS
    life.offer(world.ask(reserve("r3")), world.use("e4")).work().step()
    resumed, rebuilt = Life(world, "b", copy).opened(), Life(world, "c").opened()
    assert resumed.table.rows == rebuilt.table.rows
    assert not copy.wiped
    assert {k: v for k, v in table.rows.items() if k != PARTITION_KEY} == {
        k: v for k, v in rebuilt.table.rows.items() if k != PARTITION_KEY
    }


@pytest.mark.parametrize(
    ("why", "age_ms", "first_offset", "end"),
    [
        ("before the journal's first offset", 0, 100_000, None),
        ("after the journal's end", 0, 0, 1),
        ("h old", 8 * topics.DAY_MS, 0, None),
    ],
)
def test_a_table_that_cannot_be_resumed_is_built_anew(
    why: str, age_ms: int, first_offset: int, end: int | None
) -> None:
    world = World()
    life = Life(world, "a").opened()
    busy(world, life)
    world.now_ms += age_ms
    world.first_offset, world.log = first_offset, world.log[:end]
    again = Life(world, "b", life.table).opened()
    assert len(life.table.wiped) == 1
    assert why in life.table.wiped[0]
    assert figure(again, "table_rebuilds_total") == 1
    assert again.table.rows == Life(world, "c").opened().table.rows


def test_a_wake_up_whose_move_compaction_took_holds_no_tick_up() -> None:
    """The table knows an account's first instant, and not the row that moved it: that was compacted meanwhile."""
    world = World()
    life = Life(world, "a").opened().offer(world.ask(GRANT, reserve("r1"))).work()
    old = MemoryTable()
    old.rows, old.position = dict(life.table.rows), life.table.position
    sooner = Reserve(id="r2", customer="acme", feature="llm", credits=Decimal(1), ttl_seconds=30)
    life.offer(world.ask(sooner, Release(id="x1", customer="acme", hold="r1"))).work()
    world.now_ms += 31_000
    life.step()
    life.offer(world.ask(GiveGrant(id="g2", customer="b", amount=Decimal(9)))).work()
    life.offer(world.ask(Reserve(id="r3", customer="b", feature="llm", credits=Decimal(1)))).work()
    account = row_key("acme", "account")
    moves = [r.offset for r in world.log if r.key == account and r.offset >= old.position.offset]
    assert len(moves) == 2
    world.log[moves[0]] = gone(world.log[moves[0]])
    resumed = Life(world, "b", old, rules=Rules(due_per_tick_max=1)).opened()
    for _ in range(3):
        world.now_ms += 301_000
        resumed.step()
    assert old.get(row_key("b", "hold", "r3")) is None
    assert old.scan(*due_range(world.now_ms)) == []


def gone(record: Record) -> Record:
    """What a test puts in place of a record that compaction took: the world's log has no holes."""
    return Record(record.topic, 0, record.offset, record.timestamp_ms, b"\0filler", b"{}", record.headers)


@pytest.mark.parametrize("clock_ms", [0, -8 * topics.DAY_MS])
def test_a_table_is_not_resumed_past_tombstones_by_a_wrong_clock_either(clock_ms: int) -> None:
    world = World()
    life = Life(world, "a").opened()
    busy(world, life)
    world.now_ms += 8 * topics.DAY_MS
    Life(world, "b").opened().step()
    again = Life(world, "c", life.table)
    again.wall_ms = lambda: world.now_ms + clock_ms  # type: ignore[method-assign]
    if clock_ms:
        with pytest.raises(OwnershipLost, match="tombstones"):
            again.opened()
    else:
        again.opened()
    assert len(life.table.wiped) == 1


def test_an_opening_that_slept_for_days_begins_anew() -> None:
    world = World()
    busy(world, Life(world, "a").opened())
    for awaits in range(1, 30):
        life = Life(world, "b")
        opening = Task(life.owner.open())
        for _ in range(awaits):
            opening.ended or opening.once()
        if opening.ended:
            break
        world.now_ms += 8 * topics.DAY_MS
        with pytest.raises(OwnershipLost, match="tombstones"):
            opening.run()
        assert not life.table.rows
    assert opening.ended


def test_a_clock_ahead_does_not_make_a_table_look_younger() -> None:
    table = MemoryTable()
    follower = Follower(table, lambda: START_MS)
    headers = ((topics.HEADER_TERM, b"1"), (topics.HEADER_SEQ, b"1"))
    follower.take(Record(topics.JOURNAL, 0, 0, START_MS + 30 * topics.DAY_MS, b"k\0grant\0", b"{}", headers))
    follower.flush()
    assert table.position.at == START_MS


@pytest.mark.parametrize("point", ["recovering", "opened", "dead_lettered", "appended", "read_back", "table_written"])
def test_a_crash_at_every_named_point_loses_and_doubles_nothing(
    point: CrashPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallygate.topologies.owner.RECOVERY_WRITES_MAX", 1)
    world = World()
    table = MemoryTable()
    Life(world, "z", table).opened().offer(world.ask(GiveGrant(id="g0", customer="other", amount=Decimal(1)))).work()
    chunks = [
        world.ask(GRANT, *(reserve(f"r{n}") for n in range(9))),
        world.use("e1", "e2"),
        world.arrive(topics.USAGE, b"{"),
    ]

    def at(passed: CrashPoint) -> None:
        if passed == point:
            raise Crash

    for name in ("a", "b"):
        table.position = table.position if point != "recovering" else type(table.position)()
        with pytest.raises(Crash):
            Life(world, name, table, at=at).opened().offer(*chunks).work()
    last = Life(world, "c", table).opened().offer(*chunks, world.ask(*(reserve(f"r{n}") for n in range(9)))).work()
    final = {a.id: a.allowed for a in world.answers()}
    assert sum(final[f"r{n}"] for n in range(9)) == 6
    assert len({(a.id, a.allowed) for a in world.answers()}) == len(final)
    assert {d[1].offset for d in world.dead} == {2}
    assert Life(world, "d").opened().table.rows == last.table.rows
    usage = [v for k, v in last.table.rows.items() if k[:1] != b"\0" and b"\0usage\0" in k]
    assert len(usage) == 1
    assert b'"events":2' in usage[0]
    assert ENTRY_KIND.encode() not in b"".join(last.table.rows)


def test_an_opening_that_is_cancelled_leaves_the_partition_to_the_next() -> None:
    world = World()
    busy(world, Life(world, "a").opened())
    for awaits in range(40):
        life = Life(world, "b")
        opening = Task(life.owner.open())
        for _ in range(awaits):
            opening.ended or opening.once()
        opening.kill()
        life.owner.close()
        assert Life(world, "c", life.table).opened().table.rows == Life(world, "d").opened().table.rows
    assert opening.ended
