"""The store and the views, against a real embedded engine."""

import json
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallygate.connectors.clickhouse import Position, Store, StoreAway, StoreError, open_client, place_of
from tallygate.connectors.clickhouse_questions import answer
from tallygate.connectors.clickhouse_tables import (
    AMOUNTS,
    BALANCES,
    DECISIONS,
    MAPPING,
    POSTINGS,
    SCHEMA,
    USAGE,
    VERSIONS,
    Table,
)
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX

DAY_S = 86_400


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    return f"chdb://{tmp_path}/clickhouse"


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    store = Store(dsn)
    store.prepare()
    yield store
    store.close()


def insert(store: Store, table: Table, *rows: dict[str, Any]) -> None:
    """Rows with what is not given empty."""
    empty = {"String": "", "LowCardinality(String)": "", MAPPING: {}, AMOUNTS: {}, "Bool": False}
    full = [{name: row.get(name, empty.get(type, 0)) for name, type in table.columns.items()} for row in rows]
    store.insert(table, [[row[name] for row in full] for name in table.columns])


def ask(store: Store, sql: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer(store.dsn, sql, "jsonl").splitlines()]


def test_preparing_twice_changes_nothing(store: Store) -> None:
    insert(store, POSTINGS, {"customer": "acme", "amount": 5})
    store.prepare()
    assert ask(store, "SELECT count() AS n FROM postings") == [{"n": 1}]
    assert ask(store, f"SELECT max(version) AS v FROM {SCHEMA.name}") == [{"v": len(VERSIONS)}]


def test_tables_of_the_first_version_get_what_came_later_and_keep_their_rows(dsn: str) -> None:
    """Before decisions said what was asked."""
    later = ("quantities", "asked", "at_least", "ttl_seconds", "request")
    columns = {name: type for name, type in DECISIONS.columns.items() if name not in later}
    old = Table(DECISIONS.name, columns, DECISIONS.engine)
    store = Store(dsn)
    try:
        with closing(open_client(dsn)) as client:
            for ddl in (SCHEMA.ddl, old.ddl, *VERSIONS[0]):
                client.command(ddl)
        insert(store, old, {"customer": "acme", "id": "a"})
        insert(store, SCHEMA, {"version": 1})
        store.prepare()
        insert(store, DECISIONS, {"customer": "acme", "id": "b", "number": 1, "quantities": {"m": 1, "n": 25 * 10**8}})
        rows = ask(store, "SELECT id, quantities, asked, request FROM decisions ORDER BY id")
        assert [(row["id"], {k: Decimal(v) for k, v in row["quantities"].items()}) for row in rows] == [
            ("a", {}),
            ("b", {"m": Decimal("0.000000001"), "n": Decimal("2.5")}),
        ]
    finally:
        store.close()


def test_tables_of_a_newer_version_are_left_alone(store: Store) -> None:
    insert(store, SCHEMA, {"version": len(VERSIONS) + 1})
    with pytest.raises(StoreError, match="newer Tallygate"):
        store.prepare()


def test_every_view_answers_when_empty(store: Store) -> None:
    money = ("revenue_earned", "deferred_revenue", "breakage", "overage")
    for view in ("postings", "decisions", "usage", "usage_hourly", "balances", "alerts", *money):
        assert ask(store, f"SELECT count() AS n FROM {view}") == [{"n": 0}]


@pytest.mark.parametrize(
    ("nanos", "shown"),
    [
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (0, "0"),
        (AMOUNT_NANOS_MAX, "1000000000000000"),
        (-AMOUNT_NANOS_MAX, "-1000000000000000"),
        (10**14 * AMOUNT_NANOS_MAX - 1, "99999999999999999999999999999.999999999"),
        (2**63, "9223372036.854775808"),
    ],
)
def test_amounts_are_exact(store: Store, nanos: int, shown: str) -> None:
    insert(store, POSTINGS, {"customer": "acme", "amount": nanos})
    assert ask(store, "SELECT amount FROM postings") == [{"amount": shown}]


def test_sums_are_exact(store: Store) -> None:
    insert(store, POSTINGS, *({"customer": "acme", "leg": leg, "amount": 100_000_000} for leg in range(3)))
    assert ask(store, "SELECT sum(amount) AS s FROM postings") == [{"s": "0.3"}]


def test_the_same_rows_again_count_once_merged_or_not(store: Store) -> None:
    rows = [
        {"customer": "acme", "offset": 7, "leg": leg, "amount": 10, "at": leg * 40 * DAY_S * 1000} for leg in (0, 1)
    ]
    sums = "SELECT count() AS n, sum(amount) AS s FROM postings"
    for _ in range(3):
        insert(store, POSTINGS, *rows)
        assert ask(store, sums) == [{"n": 2, "s": "0.00000002"}]
    store._run(f"OPTIMIZE TABLE {POSTINGS.name} FINAL")
    insert(store, POSTINGS, *rows)
    assert ask(store, sums) == [{"n": 2, "s": "0.00000002"}]


def test_a_state_is_the_newest_in_whatever_order_it_comes(store: Store) -> None:
    for version, quantity in ((5, 50), (9, 90), (7, 70)):
        insert(store, USAGE, {"customer": "acme", "meter": "calls", "version": version, "quantity": quantity * 10**9})
    insert(store, USAGE, {"customer": "acme", "meter": "calls", "scope": "team=a", "dimensions": {"team": "a"}})
    found = ask(store, "SELECT dimensions, quantity FROM usage_hourly ORDER BY quantity")
    assert found == [{"dimensions": {"team": "a"}, "quantity": "0"}, {"dimensions": {}, "quantity": "90"}]


@pytest.mark.parametrize(
    ("aggregation", "total"),
    [("sum", "10"), ("count", "10"), ("unique", "10"), ("min", "2"), ("max", "5"), ("latest", "3")],
)
def test_what_came_after_an_hour_was_closed_counts_with_it(store: Store, aggregation: str, total: str) -> None:
    """Every row of the hour replaces itself, and all of them together make its total."""
    hour = {"customer": "acme", "meter": "calls", "hour": 3600, "events": 2, "late_events": 0}
    late = hour | {"events": 1, "late_events": 1, "aggregation": aggregation}
    insert(store, USAGE, *(hour | {"version": v, "quantity": v * 10**9, "latest_at": 5} for v in (4, 5)))
    insert(store, USAGE, *(late | {"version": 7, "quantity": 2 * 10**9, "latest_at": 4, "since": 90} for _ in range(2)))
    insert(store, USAGE, late | {"version": 8, "quantity": 3 * 10**9, "latest_at": 6, "since": 91})
    found = ask(store, "SELECT quantity, events, late_events FROM usage_hourly")
    assert found == [{"quantity": total, "events": 4, "late_events": 2}]


def test_usage_of_an_older_version_is_kept_and_takes_later_rows(dsn: str) -> None:
    """Before hours were closed."""
    columns = {name: type for name, type in USAGE.columns.items() if name not in ("since", "aggregation", "latest_at")}
    old = Table(USAGE.name, columns, "ReplacingMergeTree(version) ORDER BY (customer, meter, hour, scope)")
    store = Store(dsn)
    try:
        with closing(open_client(dsn)) as client:
            for ddl in (SCHEMA.ddl, old.ddl, *VERSIONS[0], *VERSIONS[1], *VERSIONS[2]):
                client.command(ddl)
        row = {"customer": "acme", "meter": "calls", "events": 1, "quantity": 10**9}
        insert(store, old, row | {"version": 1}, row | {"version": 2})
        insert(store, SCHEMA, {"version": 3})
        store.prepare()
        insert(store, USAGE, row | {"version": 3, "since": 9, "aggregation": "sum"})
        assert ask(store, "SELECT quantity, events FROM usage_hourly") == [{"quantity": "2", "events": 2}]
    finally:
        store.close()


def test_a_removed_grant_is_not_shown_and_an_older_row_does_not_bring_it_back(store: Store) -> None:
    grant = {"customer": "acme", "kind": "grant", "id": "g", "pool": "credits", "balance": 5 * 10**9}
    insert(store, BALANCES, grant | {"version": 3}, {"customer": "acme", "kind": "pool", "id": "credits", "version": 3})
    assert [row["grant"] for row in ask(store, "SELECT grant FROM balances ORDER BY grant")] == ["", "g"]
    insert(store, BALANCES, {"customer": "acme", "kind": "grant", "id": "g", "version": 4, "removed": 1})
    insert(store, BALANCES, grant | {"version": 3})
    assert ask(store, "SELECT grant, balance FROM balances") == [{"grant": "", "balance": "0"}]


@pytest.mark.parametrize(
    "hour_s", [-63_000_000_000, -5_000_000_000 * 3 // 3600 * 3600, -3600, 0, 1_700_000_000 // 3600 * 3600]
)
def test_hours_of_any_year_stay_apart(store: Store, hour_s: int) -> None:
    insert(
        store,
        USAGE,
        {"customer": "acme", "meter": "calls", "hour": hour_s, "quantity": 10**9},
        {"customer": "acme", "meter": "calls", "hour": hour_s + 3600, "quantity": 2 * 10**9},
    )
    assert ask(store, "SELECT sum(quantity) AS q, uniqExact(hour) AS n FROM usage_hourly") == [{"q": "3", "n": 2}]


def test_positions_are_the_furthest(store: Store) -> None:
    assert store.positions("j") == {}
    store.save("j", {0: Position(10, 1, 5), 3: Position(7, 2, 0)}, 1)
    store.save("j", {0: Position(8, 1, 4)}, 2)
    assert store.positions("j") == {0: Position(10, 1, 5), 3: Position(7, 2, 0)}
    with pytest.raises(StoreError, match="holds the figures of another journal"):
        store.positions("k")


def test_names_of_all_kinds_come_back(store: Store) -> None:
    odd = 'it\'s "odd"\n\t\\ 中文 🧾 \u0001'
    insert(store, POSTINGS, {"customer": odd, "account": odd, "asset": odd})
    assert ask(store, "SELECT customer, account, asset FROM postings") == [
        {"customer": odd, "account": odd, "asset": odd}
    ]


def test_a_server_that_is_not_there_is_away_and_its_password_is_not_shown() -> None:
    with pytest.raises(StoreAway, match=r"ClickHouse at 127\.0\.0\.1:9/db") as caught:
        Store("http://someone:secret@127.0.0.1:9/db")
    assert "secret" not in str(caught.value)


def test_places_are_named_without_secrets() -> None:
    assert place_of("clickhouse://u:p@ch.example:8123/db?x=secret") == "ClickHouse at ch.example:8123/db"
    assert place_of("chdb:///var/lib/x") == "the embedded ClickHouse in /var/lib/x"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        StoreError, match=r"/file/clickhouse cannot be used for the embedded ClickHouse: Not a directory"
    ):
        Store(f"chdb://{tmp_path}/file/clickhouse")
