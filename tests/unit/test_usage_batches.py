"""Usage batches come to the same as the same events one by one; and what is wrong with a batch puts it aside whole."""

import random
from collections import Counter
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from owner_world import Crash, Life, World
from partition import T0, Partition
from tallygate.connectors.usage_batches import encode_batch, encode_columns
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Transition
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import DAY_MS, HOUR_MS, format_instant, to_datetime
from tallygate.schemas.journal import PARTITION_KEY, ProducerRow, decode_record, producer_key, split_key
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.records import Chunk, Record
from tallygate.schemas.requests import Balance, GiveGrant, SetBudget
from tallygate.schemas.usage_batch import ARROW, BatchId, batch_headers, read_batch_id
from tallygate.topologies.usage_runs import RunReader

DIMENSIONS = ["team", "model"]
FILE: dict[str, Any] = {
    "meters": {
        "tokens": {"event_type": "call", "value": "tokens", "dimensions": DIMENSIONS},
        "calls": {"event_type": "call", "aggregation": "count", "dimensions": ["team"]},
        "paid_calls": {
            "event_type": "call",
            "aggregation": "count",
            "where": {"tier": ["paid", "gold"], "model": ["a", "b"]},
        },
        "users": {"event_type": "call", "aggregation": "unique", "value": "user", "dimensions": ["team"]},
        "slowest": {"event_type": "call", "aggregation": "max", "value": "ms", "dimensions": ["model"]},
        "fastest": {"event_type": "call", "aggregation": "min", "value": "ms"},
        "seats": {"event_type": "call", "aggregation": "latest", "value": "seats"},
        "stored": {"event_type": "store", "value": "gb", "dimensions": ["region"]},
    },
    "features": {
        "llm": {
            "meters": ["tokens", "calls", "paid_calls", "users"],
            "overage": "100",
            "rates": [
                {
                    "meter": "tokens",
                    "credits": 2,
                    "tiers": [{"above": 200, "credits": 3}, {"above": 600, "credits": 7}],
                },
                {"meter": "tokens", "credits": 1, "when": {"model": "a"}},
                {"meter": "tokens", "credits": 5, "since": format_instant(T0 - HOUR_MS // 2)},
                {"meter": "calls", "credits": "0.25"},
                {"meter": "users", "credits": 10, "when": {"team": "x"}},
                {"meter": "users", "credits": 20},
            ],
        },
        "disk": {
            "pools": ["storage"],
            "meters": ["stored"],
            "rates": [{"meter": "stored", "credits": 4}],
            "overage": "unlimited",
        },
    },
}
CATALOG = read_catalog(FILE, "batches").compile(1)
PLANS = {
    "default_plan": "p",
    "plans": {
        "p": {
            "entitlements": {
                "llm": {"meter": "calls", "limit": 20, "period": "month", "beyond": "allow"},
                "disk": {"meter": "stored", "limit": 1_000_000_000, "period": "day", "beyond": "credits"},
            },
            "budgets": {
                "teams": {"scope": {"team": "*"}, "limit": 5000, "period": "month", "thresholds": [50, 100]},
                "calls": {"limit": 10, "unit": "calls", "period": "day", "hard": False},
                "models": {"scope": {"model": "*", "team": "x"}, "limit": 10_000, "unit": "tokens"},
            },
        }
    },
}
CUSTOMERS = ("acme", "globex", "größe", "z")


def events(chance: random.Random, count: int) -> list[UsageEvent]:
    found = []
    for number in range(count):
        ago = chance.choice((0, 0, 0, HOUR_MS // 4, HOUR_MS, 3 * HOUR_MS, DAY_MS + 1, 2 * DAY_MS))
        data: dict[str, Any] = {"note": "never looked at"}
        if chance.random() < 0.3:
            type = "store"
            data |= {"gb": Decimal(chance.randint(0, 10**6)) / 1000, "region": chance.choice(("eu", "us"))}
        else:
            type = "call"
            data["tokens"] = chance.randint(0, 1000)
            for name, values in (
                ("team", ("x", "y", "x,y=1")),
                ("model", ("a", "b", "c")),
                ("tier", ("free", "paid", "gold")),
                ("user", ("ann", "bob", "cy", "dee")),
                ("ms", (3, 77, 12)),
                ("seats", (1, 5, 9)),
            ):
                if chance.random() < 0.8:
                    data[name] = chance.choice(values)
        # Which of two values of one instant is the latest, only the order could say, and groups have none.
        time = None if not ago and "seats" not in data else to_datetime(T0 - ago - number)
        subject = chance.choice(CUSTOMERS)
        found.append(
            UsageEvent(specversion="1.0", id=f"e{number}", source="t", type=type, subject=subject, time=time, data=data)
        )
    return found


def prepared(catalog: Catalog = CATALOG) -> Partition:
    partition = Partition(catalog)
    for customer in CUSTOMERS[:3]:
        for grant, priority, amount in (("g1", 0, "500"), ("g2", 1, "90000")):
            partition.ask(GiveGrant(id=grant, customer=customer, amount=Decimal(amount), priority=priority))
        for name, scope, unit in (
            ("teams", {"team": "*"}, "credits"),
            ("all", {}, "tokens"),
            ("a", {"model": "a"}, "calls"),
        ):
            limit = Decimal(50)
            partition.ask(
                SetBudget(id=name, customer=customer, name=name, scope=scope, unit=unit, limit=limit, hard=False)
            )
    return partition


def rows(partition: Partition) -> dict[bytes, bytes]:
    """Every row but those that say how it came here."""
    found = {key: value for key, value in partition.rows.items() if key[:1] != b"\0"}
    return {k: (b"" if split_key(k)[1] == "value" else v) for k, v in found.items()}


def books(partition: Partition) -> dict[tuple[str, ...], int]:
    """What every account of the ledger comes to."""
    total: Counter[tuple[str, ...]] = Counter()
    for entry in partition.entries():
        for leg in entry.postings:
            total[entry.customer, leg.asset, leg.account, leg.category, leg.feature] += leg.amount_nanos
    return {account: nanos for account, nanos in total.items() if nanos}


def deltas(partition: Partition) -> Counter[tuple[Any, ...]]:
    total: Counter[tuple[Any, ...]] = Counter()
    for entry in partition.entries():
        for delta in entry.usage:
            place = (entry.customer, delta.meter, delta.hour, tuple(sorted(delta.dimensions.items())))
            total[(*place, "events")] += delta.events
            total[(*place, "late")] += delta.late_events
    return +total


@pytest.mark.parametrize("plans", [{}, PLANS], ids=["free", "on a plan"])
@pytest.mark.parametrize("seed", range(4))
def test_batches_come_to_the_same_as_single_events(seed: int, plans: dict[str, Any]) -> None:
    chance = random.Random(seed)
    catalog = read_catalog(FILE | plans, "batches").compile(1)
    found = events(chance, 250)
    singles = prepared(catalog)
    singles.use(*found)
    for cut, groups_max in ((1, 1 << 30), (7, 1 << 30), (3, 1), (2, 9)):
        batched = prepared(catalog)
        size = -(-len(found) // cut)
        batched.use_batches(*(found[at : at + size] for at in range(0, len(found), size)), groups_max=groups_max)
        assert rows(batched) == rows(singles)
        assert books(batched) == books(singles)
        assert deltas(batched) == deltas(singles)
        assert batched.state.row.applied[topics.USAGE] == cut - 1
        assert batched.state.row.run is None
    assert batched.replayed().items() == batched.rows.items()


def test_a_group_is_charged_once_and_its_cost_is_rounded_once() -> None:
    rates = [{"meter": "n", "credits": "0.000000001", "per": 3}]
    third = read_catalog(
        {"meters": {"n": {"event_type": "call", "value": "n"}}, "features": {"f": {"meters": ["n"], "rates": rates}}},
        "third",
    ).compile(1)
    one = [
        UsageEvent(specversion="1.0", id=str(n), source="t", type="call", subject="z", data={"n": 1}) for n in range(6)
    ]
    singles, batched = Partition(third), Partition(third)
    singles.use(*one)
    batched.use_batches(one)
    assert books(singles) == {}  # a third of a nano each, rounded down
    assert {k[2]: v for k, v in books(batched).items()} == {"overage": -2, "consumed:f": 2}
    assert len(batched.entries()[-1].postings) == 2


# ---- once ----


def test_a_batch_counts_once_in_constant_space() -> None:
    partition = Partition(CATALOG)
    one = events(random.Random(1), 20)
    records = [record(partition, one, BatchId("p", 7, n)) for n in (1, 2, 2, 1, 5)]
    partition.take_run(records)
    assert sum(t.events for t in partition.transitions) == 60  # 1, 2 and 5: gaps are allowed
    assert sum(t.duplicates for t in partition.transitions) == 40
    for id, counts in (
        (BatchId("p", 7, 5), False),
        (BatchId("p", 6, 9), False),
        (BatchId("p", 8, 0), True),
        (BatchId("q", 1, 1), True),
    ):
        transition = take(partition, record(partition, one, id))
        assert (transition.events, transition.duplicates) == ((20, 0) if counts else (0, 20)), id
    held = [key for key, _ in partition.rows.items() if key.startswith(b"\0producer\0")]
    assert held == [producer_key("p"), producer_key("q")]


def test_a_producer_is_forgotten_when_nothing_came_from_it_for_a_day() -> None:
    partition = Partition(CATALOG)
    one = events(random.Random(1), 5)
    take(partition, record(partition, one, BatchId("old", 1, 1)))
    partition.tick_ms(DAY_MS // 2)
    take(partition, record(partition, one, BatchId("new", 1, 1)))
    partition.tick_ms(DAY_MS // 2 - HOUR_MS)
    assert partition.state.producer("old") == ProducerRow(1, 1, T0)
    partition.tick_ms(HOUR_MS)
    assert partition.state.producer("old") is None
    assert partition.state.producer("new") is not None
    assert partition.replayed().items() == partition.rows.items()


def test_a_run_in_force_in_part_is_finished_by_whoever_comes_next() -> None:
    chance = random.Random(5)
    whole, broken = prepared(), prepared()
    batches = [events(chance, 100) for _ in range(4)]
    for partition in (whole, broken):
        take(partition, record(partition, batches[0], BatchId("p", 1, 1)))
    first = [
        record(whole, batch, BatchId("p", 1, n)) for n, batch in ((2, batches[1]), (1, batches[0]), (3, batches[2]))
    ]
    whole.take_run(first)
    again = [
        record(broken, batch, BatchId("p", 1, n)) for n, batch in ((2, batches[1]), (1, batches[0]), (3, batches[2]))
    ]
    again.insert(2, record(broken, None, BatchId("p", 1, 9)))
    again = [msgspec.structs.replace(each, offset=1 + at) for at, each in enumerate(again)]
    run = broken._runs.read(again, CATALOG, None, frozenset({2}))
    broken.apply(run.next(1))
    broken.apply(run.next(1))
    under_way = broken.state.row.run
    assert under_way is not None
    assert (under_way.upto, under_way.after, under_way.skipped) == (4, "globex", (2, 3))
    assert broken.state.row.applied[topics.USAGE] == 0
    broken.restart()
    rest = broken._runs.read(again, CATALOG, broken.state.row.run)
    assert [name for name, _ in rest.customers] == ["größe", "z"]
    while not rest.ended:
        broken.apply(rest.next(1))
    assert broken.state.row.applied[topics.USAGE] == 4
    assert broken.state.row.run is None
    assert rows(broken) == rows(whole)
    assert books(broken) == books(whole)


# ---- bad input ----


def record(partition: Partition, found: list[UsageEvent] | None, id: BatchId, value: bytes | None = None) -> Record:
    partition._offsets[topics.USAGE] += 1
    if found is not None:
        value = encode_batch([(e.subject, e.type, e.at, e.data) for e in found])
    headers = tuple(batch_headers(id))
    return Record(topics.USAGE, 0, partition._offsets[topics.USAGE], partition.now, None, value, headers)


def take(partition: Partition, *records: Record) -> Transition:
    partition.take_run(records)
    return partition.transitions[-1]


def arrow(**columns: Any) -> bytes:
    return encode_columns(
        {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in columns.items()}
    )


S, T = ["acme", "acme"], ["call", "call"]
CASES: list[tuple[str, bytes | None, str, str]] = [
    ("no value", None, "malformed", "no value"),
    ("no Arrow", b"[1]", "malformed", "Arrow IPC stream"),
    ("cut short", arrow(subject=S, type=T, tokens=[1, 2])[:300], "malformed", "Arrow IPC stream"),
    ("no events", arrow(subject=pa.array([], pa.string()), type=pa.array([], pa.string())), "malformed", "no events"),
    ("no subject", arrow(type=T), "customer_missing", "subject"),
    ("no type", arrow(subject=S), "malformed", "type"),
    ("a null subject", arrow(subject=["acme", None], type=T, tokens=[1, 2]), "customer_missing", "null or empty"),
    ("an empty type", arrow(subject=S, type=["call", ""], tokens=[1, 2]), "malformed", "null or empty"),
    ("a control character", arrow(subject=["acme", "a\0b"], type=T, tokens=[1, 2]), "malformed", "control"),
    ("a number as subject", arrow(subject=[1, 2], type=T), "malformed", "string"),
    ("a double", arrow(subject=S, type=T, tokens=[1.5, 2]), "malformed", "binary fractions"),
    ("an unused double", arrow(subject=S, type=T, tokens=[1, 2], x=[1.5, 2]), "malformed", "binary fractions"),
    ("a list", arrow(subject=S, type=T, tokens=[[1], [2]]), "malformed", "column 'tokens'"),
    ("a time without a zone", arrow(subject=S, type=T, time=pa.array([1, 2], pa.timestamp("ms"))), "malformed", "UTC"),
    (
        "a time before 1970",
        arrow(subject=S, type=T, tokens=[1, 2], time=pa.array([-1, 2], pa.timestamp("ms", "UTC"))),
        "malformed",
        "years",
    ),
    (
        "a time in the future",
        arrow(subject=S, type=T, tokens=[1, 2], time=pa.array([T0, T0 + 300_001], pa.timestamp("ms", "UTC"))),
        "time_in_future",
        "300.001 s ahead",
    ),
    ("an unknown type", arrow(subject=S, type=["call", "cal"], tokens=[1, 2]), "type_unknown", "'cal'"),
    (
        "a correction",
        arrow(subject=S, type=["call", "tallygate.usage.voided"], tokens=[1, 2]),
        "type_unknown",
        "tallygate.usage.voided",
    ),
    (
        "a negative quantity",
        arrow(subject=S, type=T, tokens=[1, -2]),
        "quantity_invalid",
        "data.tokens: -2 is negative",
    ),
    ("an absurd quantity", arrow(subject=S, type=T, tokens=[1, 10**15 + 1]), "quantity_invalid", "absurdly large"),
    ("an absurd cost", arrow(subject=S, type=T, tokens=[1, 10**15]), "quantity_invalid", "absurd sum"),
    (
        "too many places",
        arrow(subject=S, type=T, tokens=pa.array([Decimal("1E-10"), Decimal(2)], pa.decimal128(38, 10))),
        "quantity_invalid",
        "decimal places",
    ),
    ("a text that is no number", arrow(subject=S, type=T, tokens=["1", "two"]), "quantity_invalid", "data.tokens"),
    ("none of the values", arrow(subject=["acme"], type=["store"], region=["eu"]), "quantity_invalid", "none of: gb"),
    ("a dimension too long", arrow(subject=S, type=T, tokens=[1, 2], team=["x", "y" * 257]), "malformed", "data.team"),
]


@pytest.mark.parametrize(("law", "value", "reason", "words"), CASES, ids=[case[0] for case in CASES])
def test_one_wrong_row_puts_the_whole_batch_aside(law: str, value: bytes | None, reason: str, words: str) -> None:
    partition = Partition(CATALOG)
    good = events(random.Random(3), 30)
    before, wrong, after = (record(partition, None if n == 2 else good, BatchId("p", 1, n), value) for n in (1, 2, 3))
    transition = take(partition, before, wrong, after)
    [letter] = transition.dead_letters
    assert (letter.source.offset, letter.reason.value) == (wrong.offset, reason)
    assert words in letter.message
    assert transition.events == 60
    alone = Partition(CATALOG)
    take(alone, *(record(alone, good, BatchId("p", 1, n)) for n in (1, 3)))
    assert rows(partition) == rows(alone)


def test_a_row_of_another_partition_puts_the_whole_batch_aside() -> None:
    home = partition_of("acme", 4)
    other = next(f"c{n}" for n in range(99) if partition_of(f"c{n}", 4) != home)
    headers = tuple(batch_headers(BatchId("p", 1, 1)))
    for subjects, refused in ((["acme", other], True), (["acme", "acme"], False)):
        # A dictionary may hold what no row has.
        subject = pa.DictionaryArray.from_arrays(pa.array([0, 1] if refused else [0, 0]), pa.array(["acme", other]))
        value = arrow(subject=subject, type=T, tokens=[1, 2])
        run = RunReader(4, Rules()).read([Record(topics.USAGE, home, 0, T0, None, value, headers)], CATALOG)
        why = run.batches[0].refused
        assert (why is not None) is refused, subjects
        if why is not None:
            assert why.reason.value == "wrong_partition"
            assert f"customer {other!r} belongs to partition" in why.message


@pytest.mark.parametrize("missing", ["tallygate-producer", "tallygate-epoch", "tallygate-sequence"])
def test_without_its_identity_a_batch_is_put_aside(missing: str) -> None:
    partition = Partition(CATALOG)
    one = record(partition, events(random.Random(3), 3), BatchId("p", 1, 1))
    headers = tuple(each for each in one.headers if each[0] != missing)
    [letter] = take(partition, msgspec.structs.replace(one, headers=headers)).dead_letters
    assert letter.reason.value == "malformed"
    assert missing in letter.message


def test_headers_read_back() -> None:
    id = BatchId("meter-7f3a", 1_795_000_000_000, 12)
    assert read_batch_id(dict(batch_headers(id))) == id
    assert dict(batch_headers(id))["content-type"] == ARROW


def test_an_unpriced_row_is_wrong_only_where_it_has_the_quantity() -> None:
    rates = [{"meter": "n", "credits": 1, "when": {"model": "a"}}]
    catalog = read_catalog(
        {
            "meters": {
                "n": {"event_type": "call", "value": "n", "dimensions": ["model"]},
                "calls": {"event_type": "call", "aggregation": "count"},
            },
            "features": {"f": {"meters": ["n"], "rates": rates}},
        },
        "unpriced",
    ).compile(1)
    for n, refused in (([1, None], False), ([1, 2], True)):
        partition = Partition(catalog)
        transition = take(
            partition, record(partition, None, BatchId("p", 1, 1), arrow(subject=S, type=T, n=n, model=["a", "b"]))
        )
        assert [letter.reason.value for letter in transition.dead_letters] == ["unpriced"] * refused
        assert transition.events == 2 * (not refused)


BEYOND = "1000000000000000.000000001"
EXACT: list[tuple[str, pa.Array, str]] = [
    ("sums beyond 64 bits", pa.array([10**15, 10**15]), "2000000000000000"),
    ("decimals", pa.array([Decimal("0.1"), Decimal("0.2")], pa.decimal128(20, 9)), "0.3"),
    ("decimals beyond 64 bits", pa.array([Decimal(10**15), Decimal("1e-9")], pa.decimal128(38, 9)), BEYOND),
    ("more places that are zeros", pa.array([Decimal("1.5"), Decimal("2.25")], pa.decimal128(38, 12)), "3.75"),
    ("unsigned", pa.array([250, 3], pa.uint8()), "253"),
    ("unsigned of 64 bits", pa.array([2**40, 3], pa.uint64()), str(2**40 + 3)),
    ("decimal strings", pa.array(["0.1", "1e3"]), "1000.1"),
    ("with nulls", pa.array([None, 7]), "7"),
    ("a dictionary of large strings", pa.array(["5", "6"], pa.large_string()).dictionary_encode(), "11"),
    ("above 2**53", pa.array([2**49 + 1, 2**49 + 2]), str(2**50 + 3)),
]  # fmt: skip


@pytest.mark.parametrize(("law", "column", "total"), EXACT, ids=[case[0] for case in EXACT])
def test_quantities_are_exact(law: str, column: pa.Array, total: str) -> None:
    meters = {"n": {"event_type": "call", "value": "n"}, "calls": {"event_type": "call", "aggregation": "count"}}
    catalog = read_catalog({"meters": meters}, "exact").compile(1)
    partition = Partition(catalog)
    take(partition, record(partition, None, BatchId("p", 1, 1), arrow(subject=S, type=T, n=column)))
    [row] = [decode_record(v) for k, v in partition.rows.items() if k[:1] != b"\0" and b"\0usage\0n\0" in k]
    assert row.quantity_nanos == int(Decimal(total) * 10**9)  # type: ignore[union-attr]


def test_a_stream_of_several_record_batches_is_one_batch() -> None:
    parts = [
        pa.record_batch({"subject": pa.array([c]).dictionary_encode(), "type": ["call"], "tokens": [n]})
        for c, n in (("acme", 1), ("globex", 2), ("acme", 3))
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, parts[0].schema) as stream:
        for part in parts:
            stream.write_batch(part)
    partition = Partition(CATALOG)
    transition = take(partition, record(partition, None, BatchId("p", 1, 1), sink.getvalue().to_pybytes()))
    assert transition.events == 3
    assert transition.records[-1][0] == PARTITION_KEY


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_were_damaged_are_put_aside_and_break_nothing(seed: int) -> None:
    """What the format's readers are given is not to be trusted: a worker that ended here would end again and again."""
    chance = random.Random(seed)
    reader = RunReader(1, Rules())
    whole = encode_batch([(e.subject, e.type, e.at, e.data) for e in events(chance, 20)])
    reasons = Counter[str]()
    for number in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(damaged))
            match chance.randrange(3):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    damaged[at : at + 4] = chance.randrange(1 << 32).to_bytes(4, "little")
                case _:
                    del damaged[at : at + chance.randint(1, 40)]
        headers = tuple(batch_headers(BatchId("p", 1, number)))
        run = reader.read([Record(topics.USAGE, 0, number, T0, None, bytes(damaged), headers)], CATALOG)
        refused = run.batches[0].refused
        reasons[refused.reason.value if refused else "taken"] += 1
    assert reasons["malformed"] > 30, reasons


# ---- through an owner ----


def batch(world: World, sequence: int, customers: dict[str, int]) -> Chunk:
    columns = {"subject": list(customers), "type": ["llm.call"] * len(customers), "tokens": list(customers.values())}
    return world.arrive(topics.USAGE, arrow(**columns), headers=tuple(batch_headers(BatchId("p", 1, sequence))))


def used(life: Life) -> dict[str, int]:
    found = {}
    for key, value in life.table.rows.items():
        if key[:1] != b"\0" and split_key(key)[1] == "usage":
            found[split_key(key)[0]] = decode_record(value).quantity_nanos // 10**9  # type: ignore[union-attr]
    return found


def test_an_owner_takes_batches_in_parts_with_requests_between_them() -> None:
    world = World()
    life = Life(world, "a").opened()
    names = [f"c{n:03}" for n in range(200)]
    chunks = [batch(world, n, dict.fromkeys(names, n)) for n in (1, 2)]
    single = world.use("e1", customer="c000", tokens=1000)
    chunks.append(batch(world, 3, dict.fromkeys(names, 3)))
    life.offer(chunks[0], chunks[1], single, chunks[2])
    answered = 0
    while life.inbox:
        life.offer(world.ask(Balance(id=f"b{answered}", customer="c199")))
        life.step()
        answered += 1
        assert len(world.replies) == answered, "every request is answered in the next step"
    assert answered > 6
    assert used(life) == {**dict.fromkeys(names, 6), "c000": 1006}
    assert life.done.count(topics.USAGE) == 4
    assert not world.dead


@pytest.mark.parametrize("point", ["dead_lettered", "appended", "read_back", "table_written", "answered"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_batches_count_once_however_an_owner_ends(point: str, number: int) -> None:
    world = World()
    left = number

    def at(passed: str) -> None:
        nonlocal left
        left -= passed == point
        if passed == point and left == 0:
            raise Crash

    names = [f"c{n:03}" for n in range(150)]
    chunks = [batch(world, n, dict.fromkeys(names, n)) for n in (1, 2, 2)]  # the third repeats the second
    wrong = world.arrive(topics.USAGE, b"x", headers=tuple(batch_headers(BatchId("p", 1, 3))))
    chunks += [wrong, batch(world, 4, dict.fromkeys(names, 4))]
    first = Life(world, "a", at=at).opened().offer(*chunks)
    try:
        first.work()
    except Crash:
        pass
    else:
        assert point == "dead_lettered"
        assert number > 1, "there is one dead letter only"
    for number, table in enumerate((first.table, None)):  # from its table, and from the journal alone
        next = Life(world, f"b{number}", table).opened()
        begin = next.owner._state.row.applied.get(topics.USAGE, -1) + 1
        waiting = world.inputs[topics.USAGE][begin:]
        for each in waiting:  # they come one by one
            next.offer(Chunk(topics.USAGE, 0, [each], 0, 1))
            next.work()
        assert used(next) == dict.fromkeys(names, 7)
        assert next.owner._state.row.run is None
    assert {record.offset for _, record, _, _ in world.dead} == {3}


def test_a_run_whose_records_are_gone_ends() -> None:
    world = World()
    names = [f"c{n:03}" for n in range(150)]
    first = Life(world, "a").opened().offer(batch(world, 1, dict.fromkeys(names, 1)))
    first.step()
    run = first.owner._state.row.run
    assert run is not None
    later = batch(world, 2, dict.fromkeys(names, 10))
    second = Life(world, "b", first.table).opened().offer(later).work()
    assert {name: n for name, n in used(second).items() if name <= run.after} == dict.fromkeys(
        [name for name in names if name <= run.after], 11
    )
    assert used(second)["c149"] == 10
