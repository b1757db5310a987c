"""The accountants' views, against a real engine: figures worked out by hand, and what adds up always."""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from partition import T0, Partition, event
from sink_world import Story
from tallygate.connectors import clickhouse_revenue
from tallygate.connectors.clickhouse import Store
from tallygate.connectors.clickhouse_questions import answer
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import DAY_MS, to_datetime
from tallygate.schemas.requests import GiveGrant, Reserve, ResetPool, Settle, VoidGrant
from tallygate.topologies.sink_rows import Batch

D = Decimal
DAY_SECONDS = DAY_MS // 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"chdb://{tmp_path}/clickhouse")
    store.prepare()
    yield store
    store.close()


def keep(store: Store, partition: int, world: Partition) -> None:
    batch = Batch()
    for offset, (key, value) in enumerate(world.journal):
        batch.add(partition, offset, 1, offset, key, value)
    for table, columns in batch.filled():
        store.insert(table, columns)


def ask(store: Store, sql: str) -> list[tuple[Any, ...]]:
    """Rows; amounts are Decimals."""
    rows = [json.loads(line) for line in answer(store.dsn, sql, "jsonl").splitlines()]
    return [tuple(_plain(name, field) for name, field in row.items()) for row in rows]


def _plain(name: str, field: Any) -> Any:
    return field if name in ("day", "customer", "feature", "grant", "category", "why") else D(field).normalize() + 0


def undone(id: str, of: str, customer: str) -> UsageEvent:
    data = {"source": "test", "id": of}
    return UsageEvent(
        specversion="1.0", id=id, source="test", type="tallygate.usage.voided", subject=customer, data=data
    )


def lived() -> Partition:
    """Three days of acme and one of bolt; a number lets so many hours pass."""
    world = Partition()
    third = to_datetime(T0 + 2 * DAY_MS)
    for day in (
        (
            GiveGrant(id="trial", customer="acme", amount=D(100), category="trial", priority=1, expires_at=third),
            GiveGrant(id="paid", customer="acme", amount=D(1000), price=D("0.02"), priority=2),
            Reserve(id="h1", customer="acme", feature="llm", credits=D(130)),
            Settle(id="s1", customer="acme", hold="h1", credits=D(120)),  # trial 100, paid 20
            12,
            event("e1", "acme", input_tokens=10_000),  # paid 10
            12,
        ),
        (
            undone("u1", "e1", "acme"),  # paid gets its 10 back
            GiveGrant(id="promo", customer="acme", amount=D(50), category="promotional", priority=1, expires_at=third),
            GiveGrant(id="short", customer="acme", amount=D(10), price=D("0.1"), priority=9, expires_at=third),
            GiveGrant(id="big", customer="acme", amount=D(200), price=D("0.05"), priority=3),
            Reserve(id="h2", customer="acme", feature="llm", credits=D(5), ttl_seconds=30 * DAY_SECONDS),  # promo 5
            VoidGrant(id="v", customer="acme", grant="big"),
            event("e2", "acme", input_tokens=4_000),  # promo 4
            24,
        ),
        (  # promo's 41 and short's 10 have expired
            GiveGrant(id="early", customer="acme", amount=D(8), price=D("0.25"), priority=0),
            event("e3", "acme", input_tokens=6_000),  # early 6
            VoidGrant(id="w", customer="acme", grant="early"),  # 2 are left
            undone("u3", "e3", "acme"),  # its 6 come back as an adjustment, at the same price
            24,
        ),
        (
            GiveGrant(id="p", customer="bolt", amount=D(10), price=D(1)),
            Reserve(id="h3", customer="bolt", feature="capped", credits=D(10)),
            Settle(id="s3", customer="bolt", hold="h3", credits=D(25)),  # p 10, owed 10, written off 5
            GiveGrant(id="q", customer="bolt", amount=D(30), price=D("0.5")),  # repays 10
            Reserve(id="h4", customer="bolt", feature="owing", credits=D(1)),
            Settle(id="s4", customer="bolt", hold="h4", credits=D(40)),  # q 20, owed 20
            event("f1", "bolt", input_tokens=3_000),  # owed 3
            undone("u4", "f1", "bolt"),  # and forgiven
            ResetPool(id="r", customer="bolt", pool="credits"),  # drops the 20
        ),
    ):
        for step in day:
            if isinstance(step, int):
                world.tick(step * 3600)
            elif isinstance(step, UsageEvent):
                assert world.use(step).events == 1
            else:
                assert world.ask(step).allowed, step
    return world


@pytest.fixture
def books(store: Store) -> Store:
    keep(store, 0, lived())
    return store


def test_revenue_earned(books: Store) -> None:
    rows = ask(
        books,
        "SELECT day, customer, feature, if(grant LIKE 'adjustment:%:early', 'adjustment', grant) AS grant, category, "
        "credits, money FROM revenue_earned ORDER BY day, customer, feature, credits",
    )
    assert rows == [
        ("2026-01-01", "acme", "llm", "paid", "paid", 30, D("0.6")),
        ("2026-01-01", "acme", "llm", "trial", "trial", 100, 0),
        ("2026-01-02", "acme", "llm", "paid", "paid", -10, D("-0.2")),
        ("2026-01-02", "acme", "llm", "promo", "promotional", 4, 0),
        ("2026-01-03", "acme", "llm", "adjustment", "paid", -6, D("-1.5")),
        ("2026-01-03", "acme", "llm", "early", "paid", 6, D("1.5")),
        ("2026-01-04", "bolt", "", "q", "paid", 10, 5),
        ("2026-01-04", "bolt", "capped", "p", "paid", 10, 10),
        ("2026-01-04", "bolt", "owing", "q", "paid", 20, 10),
    ]


@pytest.mark.parametrize(
    ("until", "liability"),
    [
        ("2026-01-01", [("paid", 970, D("19.4"))]),
        ("2026-01-02", [("paid", 980, D("19.6")), ("promo", 46, 0), ("short", 10, 1)]),
        ("2026-01-04", [("adjustment", 6, D("1.5")), ("paid", 980, D("19.6")), ("promo", 5, 0)]),
    ],
)
def test_deferred_revenue(books: Store, until: str, liability: list[tuple[str, Decimal, Decimal]]) -> None:
    """Of `promo` 5 are held: they outlive it, and are still to be earned or broken."""
    assert (
        ask(
            books,
            "SELECT if(grant LIKE 'adjustment:%', 'adjustment', grant) AS grant, sum(credits) AS c, sum(money) AS m "
            f"FROM deferred_revenue WHERE day <= '{until}' GROUP BY ALL HAVING c != 0 ORDER BY grant",
        )
        == liability
    )


def test_deferred_revenue_by_feature(books: Store) -> None:
    """What features drew, held credits included in neither."""
    assert ask(
        books,
        "SELECT day, feature, sum(credits), sum(money) FROM deferred_revenue WHERE customer = 'acme' "
        "GROUP BY ALL ORDER BY ALL",
    ) == [
        ("2026-01-01", "", 1100, 20),
        ("2026-01-01", "llm", -130, D("-0.6")),
        ("2026-01-02", "", 60, 1),
        ("2026-01-02", "llm", 6, D("0.2")),
        ("2026-01-03", "", 8 - 41 - 10 - 2, D("0.5")),
        ("2026-01-03", "llm", 0, 0),
    ]


def test_breakage(books: Store) -> None:
    assert ask(books, "SELECT day, why, grant, category, credits, money FROM breakage ORDER BY day, grant") == [
        ("2026-01-02", "voided", "big", "paid", 200, 10),
        ("2026-01-03", "voided", "early", "paid", 2, D("0.5")),
        ("2026-01-03", "expired", "promo", "promotional", 41, 0),
        ("2026-01-03", "expired", "short", "paid", 10, 1),
    ]


def test_overage(books: Store) -> None:
    columns = "credits, used, repaid, forgiven, dropped, written_off, money"
    assert ask(books, f"SELECT day, customer, feature, grant, {columns} FROM overage ORDER BY feature, grant") == [
        ("2026-01-04", "bolt", "", "", -20, 0, 0, 0, 20, 0, 0),
        ("2026-01-04", "bolt", "", "q", -10, 0, 10, 0, 0, 0, 5),
        ("2026-01-04", "bolt", "capped", "", 10, 10, 0, 0, 0, 5, 0),
        ("2026-01-04", "bolt", "llm", "", 0, 3, 0, 3, 0, 0, 0),
        ("2026-01-04", "bolt", "owing", "", 20, 20, 0, 0, 0, 0, 0),
    ]


def test_what_is_issued_is_earned_broken_or_deferred(books: Store) -> None:
    """Of every grant, in credits and in money; and of a longer story, too."""
    keep(books, 1, Story("zeta", rounds=4).world)
    parts = " UNION ALL ".join(
        f"SELECT customer, grant, credits, money FROM {view}"
        for view in ("revenue_earned", "deferred_revenue", "breakage")
    )
    issued = (
        "SELECT customer, grant, amount AS credits, toDecimal256(amount, 9) * price AS money FROM postings "
        "WHERE startsWith(account, 'issued:')"
    )
    rows = ask(
        books,
        f"SELECT customer, grant, sum(credits), sum(money) FROM ({parts} UNION ALL {issued}) GROUP BY ALL ORDER BY ALL",
    )
    assert len(rows) == 11
    assert [row for row in rows if row[2:] != (0, 0)] == []
    assert ask(books, "SELECT -sum(amount) AS issued FROM postings WHERE startsWith(account, 'issued:')")[0][0] > 1400


def test_the_amounts_may_be_as_large_as_they_get(store: Store) -> None:
    world = Partition()
    world.ask(GiveGrant(id="g", customer="acme", amount=D(10**15), price=D(10**15)))
    world.ask(GiveGrant(id="h", customer="acme", amount=D("0.000000001"), price=D("0.000000001")))
    keep(store, 0, world)
    assert ask(store, "SELECT grant, money FROM deferred_revenue ORDER BY grant") == [
        ("g", D(10**30)),
        ("h", D("0.000000000000000001")),
    ]


def test_the_documented_questions_are_answered(books: Store) -> None:
    found = list(_examples((clickhouse_revenue.__doc__ or "").splitlines()))
    assert len(found) == 4
    assert [bool(answer(books.dsn, sql, "table")) for sql in found] == [True, True, True, False]  # nobody owes
    assert ask(books, found[1].replace("sum(credits)", "sum(credits) AS c")) == [("acme", 991, D("21.1"))]


def _examples(lines: Iterable[str]) -> Iterator[str]:
    sql = ""
    for line in [*lines, ""]:
        if line.startswith("    "):
            sql += line
        elif sql:
            yield sql
            sql = ""
