"""Questions: what is answered, what is refused, and by whom."""

import http.client
import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sink_world import ClickHouseServer
from tallygate.connectors.clickhouse import Store
from tallygate.connectors.clickhouse_questions import QuestionError, answer
from tallygate.connectors.clickhouse_tables import VERSIONS
from tallygate.topologies.exits import Exit, explain
from tallygate.topologies.settings import Settings, load_settings
from tallygate.topologies.sql_server import LISTENING_FILE, NobodyAnswers, SqlServer, SqlServerError, ask


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, clickhouse_dsn="", sql_address="127.0.0.1:0")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store(settings.clickhouse)
    store.prepare()
    yield store
    store.close()


@pytest.fixture
def server(settings: Settings, store: Store) -> Iterator[SqlServer]:
    server = SqlServer(settings.clickhouse, settings.sql_address, settings.data_dir, store)
    yield server
    server.close()


FIGURES = "SELECT number AS n, toDecimal128('1.5', 9) AS amount, 'a,b' AS text FROM numbers(2)"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("jsonl", '{"n":0,"amount":"1.5","text":"a,b"}\n{"n":1,"amount":"1.5","text":"a,b"}\n'),
        ("csv", '"n","amount","text"\n0,1.5,"a,b"\n1,1.5,"a,b"\n'),
        ("table", "┌─n─┬─amount─┬─text─┐\n│ 0 │    1.5 │ a,b  │\n│ 1 │    1.5 │ a,b  │\n└───┴────────┴──────┘\n"),
    ],
)
def test_forms(settings: Settings, form: str, expected: str) -> None:
    assert ask(settings, FIGURES, form) == expected


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 -- one",
        "/* one */ SELECT 1;",
        "(SELECT 1)",
        "WITH 1 AS x SELECT x",
        "SHOW TABLES",
        "DESCRIBE postings",
        "EXPLAIN SELECT 1",
        "EXISTS TABLE postings",
        "SELECT 'DROP TABLE x; INTO OUTFILE ' AS `into outfile`",
        "SELECT count() FROM postings WHERE customer = 'o\\'brien; --'",
    ],
)
def test_questions_are_answered(settings: Settings, sql: str) -> None:
    assert ask(settings, sql)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("INSERT INTO sink_schema VALUES (9)", "only questions are answered"),
        ("DROP TABLE sink_postings", "only questions are answered"),
        ("ALTER TABLE sink_postings DELETE WHERE 1", "only questions are answered"),
        ("CREATE TABLE x (a Int8) ENGINE = Memory", "only questions are answered"),
        ("SET readonly = 0", "only questions are answered"),
        ("USE system", "only questions are answered"),
        ("KILL QUERY WHERE 1", "only questions are answered"),
        ("SYSTEM SHUTDOWN", "only questions are answered"),
        ("SELECT 1; DROP TABLE sink_postings", "Multi-statements are not allowed"),
        ("SELECT $$'$$; DROP TABLE sink_postings --'", "Multi-statements are not allowed"),
        ("SELECT 1 SETTINGS readonly = 0", "readonly"),
        ("SELECT 1 SETTINGS max_result_rows = 0", "readonly"),
        ("SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')", "readonly"),
        ("SELECT * FROM file('/etc/hosts', 'LineAsString')", "readonly"),
        ("SELECT 1 INTO OUTFILE 'x'", "INTO OUTFILE is not allowed"),
        ("SELECT 1 FORMAT CSV", "leave FORMAT out"),
        ("", "Empty query"),
        ("SELEC 1", "Syntax error"),
        ("SELECT * FROM nowhere", "UNKNOWN_TABLE"),
    ],
)
def test_what_is_refused_changes_nothing_and_takes_one_line(
    settings: Settings, store: Store, sql: str, words: str
) -> None:
    with pytest.raises(QuestionError, match=words) as caught:
        ask(settings, sql)
    assert explain(caught.value) == (Exit.WRONG, str(caught.value))
    assert "\n" not in str(caught.value)
    store.prepare()
    assert ask(settings, "SELECT count() AS n FROM sink_schema", "jsonl") == f'{{"n":{len(VERSIONS)}}}\n'


def test_limits_of_rows_and_time(store: Store) -> None:
    assert answer(store.dsn, "SELECT * FROM numbers(10)", "csv", rows_max=10).count(b"\n") == 11
    with pytest.raises(QuestionError, match="more than 10 rows"):
        answer(store.dsn, "SELECT * FROM numbers(11)", "csv", rows_max=10)
    with pytest.raises(QuestionError, match=r"took more than 0\.5 s"):
        answer(store.dsn, "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)", "csv", seconds_max=0.5)


def test_one_question_leaves_nothing_behind_for_the_next(settings: Settings, server: SqlServer) -> None:
    with pytest.raises(QuestionError):
        ask(settings, "USE system")
    assert "postings" in ask(settings, "SHOW TABLES")


def test_only_who_may_read_the_data_folder_may_ask(settings: Settings, server: SqlServer) -> None:
    path = settings.data_dir / LISTENING_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    host, port = json.loads(path.read_text())["address"].split(":")
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", "/", b"SELECT 1", headers)
        response = connection.getresponse()
        assert response.status == 403
        assert b"1" not in response.read()
        connection.close()


def test_nobody_answers(settings: Settings, store: Store) -> None:
    with pytest.raises(NobodyAnswers, match="no sink is running on"):
        ask(settings, "SELECT 1")
    server = SqlServer(settings.clickhouse, settings.sql_address, settings.data_dir, store)
    listening = (settings.data_dir / LISTENING_FILE).read_text()
    server.close()
    assert not (settings.data_dir / LISTENING_FILE).exists()
    (settings.data_dir / LISTENING_FILE).write_text(listening)  # as after kill -9
    with pytest.raises(NobodyAnswers, match="no sink is running on") as away:
        ask(settings, "SELECT 1")
    assert explain(away.value) == (Exit.AWAY, str(away.value))


def test_a_long_question_does_not_hold_up_the_end(settings: Settings, store: Store) -> None:
    server = SqlServer(settings.clickhouse, settings.sql_address, settings.data_dir, store)
    outcome: list[str] = []

    def long_question() -> None:
        try:
            ask(settings, "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
        except QuestionError as refused:
            outcome.append(str(refused))

    thread = threading.Thread(target=long_question)
    thread.start()
    running = "SELECT count() FROM system.processes WHERE query LIKE '%1000000000000%' AND query NOT LIKE '%processes%'"
    while not int(store._query(running)[0][0]):
        assert thread.is_alive(), outcome
    server.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "took more than" not in outcome[0]


def test_an_address_that_is_taken_is_named(settings: Settings, store: Store, server: SqlServer) -> None:
    taken = json.loads((settings.data_dir / LISTENING_FILE).read_text())["address"]
    with pytest.raises(SqlServerError, match=f"cannot listen for questions on {taken} .*TALLYGATE_SQL_ADDRESS"):
        SqlServer(settings.clickhouse, taken, settings.data_dir, store)


def test_a_clickhouse_server_is_asked_directly(tmp_path: Path) -> None:
    with ClickHouseServer(tmp_path / "server") as front:
        settings = load_settings(data_dir=tmp_path, clickhouse_dsn=front.dsn)
        assert ask(settings, FIGURES, "csv").startswith('"n","amount","text"\n')
        with pytest.raises(QuestionError, match="only questions are answered"):
            ask(settings, "DROP TABLE x")
    with pytest.raises(NobodyAnswers, match=f"ClickHouse at 127.0.0.1:{front.port}"):
        ask(settings, FIGURES)
