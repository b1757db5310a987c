"""Questions to the sink's ClickHouse: one reading statement, within limits of rows, time and memory."""

import re
from contextlib import closing
from typing import Final, Literal

from clickhouse_connect.driver.exceptions import DatabaseError

from tallygate.connectors.clickhouse import StoreAway, one_line, open_client, trouble_of

Format = Literal["table", "jsonl", "csv"]
FORMATS: Final[dict[str, str]] = {"table": "PrettyCompactNoEscapes", "jsonl": "JSONEachRow", "csv": "CSVWithNames"}
ROWS_MAX: Final = 100_000
SECONDS_MAX: Final = 60
_BYTES_MAX: Final = 64 << 20
_MEMORY_BYTES_MAX: Final = 2 << 30

_READING: Final = ("SELECT ", "WITH ", "SHOW ", "DESCRIBE ", "EXPLAIN ", "EXISTS ")
_QUOTED: Final = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


class QuestionError(Exception):
    """A question that is not answered; one clear line for whoever asked."""


def answer(dsn: str, sql: str, form: str, rows_max: int = ROWS_MAX, seconds_max: float = SECONDS_MAX) -> bytes:
    """What a ClickHouse answers to one reading statement. Raises `QuestionError`, or `StoreAway` for a server.

    Read-only is the engine's own `readonly = 1`, on a client of its own for each question. That still lets through
    `INTO OUTFILE`, `KILL`, `USE` and, where several statements are taken, each of them; so the engine's parser first
    writes the question in canonical form, which is one statement without comments, and only reading ones pass.
    """
    limits = {
        "max_execution_time": seconds_max,
        "timeout_before_checking_execution_speed": 0,
        "max_result_rows": rows_max,
        "max_result_bytes": _BYTES_MAX,
        "result_overflow_mode": "throw",
        "max_memory_usage": _MEMORY_BYTES_MAX,
        "output_format_pretty_max_rows": rows_max,
        "output_format_pretty_row_numbers": 0,
        "output_format_json_quote_decimals": 1,
        "readonly": 1,  # last: it locks the others
    }
    with closing(open_client(dsn, limits)) as client:
        try:
            parsed = client.query("SELECT formatQuerySingleLine({sql:String})", parameters={"sql": sql})
            statement = str(parsed.result_rows[0][0])
            _check_reading(statement)
            return client.raw_query(statement, fmt=FORMATS[form])
        except (DatabaseError, OSError) as error:
            raise _refusal(dsn, error, rows_max, seconds_max) from error


def _check_reading(statement: str) -> None:
    bare = _QUOTED.sub("''", statement)
    if not f"{bare} ".startswith(_READING):
        raise QuestionError(f"only questions are answered (SELECT, SHOW, DESCRIBE, EXPLAIN), not {bare.split()[0]}")
    if " INTO OUTFILE " in bare:
        raise QuestionError("INTO OUTFILE is not allowed: redirect the output instead")
    if re.search(r" FORMAT \w+$", bare):
        raise QuestionError("leave FORMAT out: the command's options choose the form")


def _refusal(dsn: str, error: Exception, rows_max: int, seconds_max: float) -> Exception:
    match getattr(error, "code", None):
        case 396:
            return QuestionError(
                f"the answer has more than {rows_max} rows or {_BYTES_MAX >> 20} MiB: add LIMIT or sum up"
            )
        case 159:
            return QuestionError(f"the question took more than {seconds_max:g} s: narrow it down")
        case 241:
            return QuestionError(
                f"the question needs more than {_MEMORY_BYTES_MAX >> 30} GiB of memory: narrow it down"
            )
    trouble = trouble_of(dsn, error)
    if isinstance(trouble, StoreAway):
        return trouble
    text = re.sub(r": In scope SELECT formatQuerySingleLine\(.*\)\.", ".", one_line(error))
    return QuestionError(text)
