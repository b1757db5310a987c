"""The demo's calls: two real traces, and an invented but fixed answer to who made each call.

The traces (see demo_data/ATTRIBUTION.md) hold when a call came and how many tokens it read and wrote. This module adds
the rest by one rule, so that every run of the demo meters the same: the four lists below are indexed by the digits of
the CRC-32 of the text `<trace>:<row>`, where rows count from 0.

    customer  hash mod 4 of CUSTOMERS
    user      hash / 4 mod 12 of the trace's USERS, which gives the team, too
    model     `code` in the code trace; in the other `chat-large` where hash / 48 mod 10 is below 3, else `chat-small`
    agent     `autocomplete` in the code trace; in the other `summarizer` where hash / 480 mod 4 is 0, else `assistant`
"""

import csv
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final, Literal, NamedTuple

from tallygate.schemas.instants import from_datetime

Trace = Literal["conv", "code"]
TRACES: Final[tuple[Trace, ...]] = ("conv", "code")

#: They live in four different partitions, of four as well as of eight.
CUSTOMERS: Final = ("acme", "globex", "initech", "hooli")
USERS: Final[dict[Trace, tuple[tuple[str, str], ...]]] = {
    "conv": (
        *(("support", user) for user in ("ada", "ben", "cleo", "dan", "eve", "finn")),
        *(("sales", user) for user in ("gus", "hana", "ivan", "june")),
        *(("research", user) for user in ("kira", "leo")),
    ),
    "code": (
        *(("platform", user) for user in ("mia", "noah", "olga", "pete", "quinn", "rosa", "sam")),
        *(("apps", user) for user in ("tess", "uma", "vic", "wren", "yuri")),
    ),
}
RULE: Final = (
    "Who called is invented: customer, team, user, agent and model follow from the CRC-32 of "
    "a call's trace and row number"
)

#: What a conversation call sets aside for its answer, whose length nobody knows beforehand. The trace's mean is 211.
ESTIMATED_OUTPUT_TOKENS: Final = 256


class Call(NamedTuple):
    """One call of a trace; `at` in ms."""

    trace: Trace
    row: int
    at: int
    input_tokens: int
    output_tokens: int
    customer: str
    dimensions: dict[str, str]

    @property
    def id(self) -> str:
        return f"{self.trace}-{self.row}"


class Totals(NamedTuple):
    """The three figures on which trace, ledger and ClickHouse must agree."""

    calls: int
    input_tokens: int
    output_tokens: int


def data_path(name: str) -> AbstractContextManager[Path]:
    """A file of the demo's data folder, which is part of the package."""
    return as_file(files("tallygate.topologies").joinpath("demo_data", name))


def read_rows(trace: Trace) -> Iterator[tuple[int, int, int]]:
    """(instant in ms, context tokens, generated tokens) of each row of a trace, as published."""
    with data_path(f"AzureLLMInferenceTrace_{trace}.csv.xz") as path:
        text = lzma.decompress(path.read_bytes()).decode()
    rows = csv.reader(text.splitlines())
    header = next(rows)
    assert header == ["TIMESTAMP", "ContextTokens", "GeneratedTokens"], f"another header: {header}"
    for stamp, context, generated in rows:
        # Seven decimal places of a second are published; an instant here has three.
        at = from_datetime(datetime.fromisoformat(stamp[:23]).replace(tzinfo=UTC))
        yield at, int(context), int(generated)


def read_calls(last_at: int) -> list[Call]:
    """All calls of both traces in order of time, shifted so that the last one is at `last_at` (ms)."""
    calls = [
        Call(trace, row, at, context, generated, *who_called(trace, row))
        for trace in TRACES
        for row, (at, context, generated) in enumerate(read_rows(trace))
    ]
    calls.sort(key=lambda call: call.at)
    shift = last_at - calls[-1].at
    return [call._replace(at=call.at + shift) for call in calls]


def who_called(trace: Trace, row: int) -> tuple[str, dict[str, str]]:
    """Customer and dimensions of a call, by the rule above."""
    digits = zlib.crc32(f"{trace}:{row}".encode())
    digits, customer = divmod(digits, len(CUSTOMERS))
    digits, person = divmod(digits, len(USERS[trace]))
    digits, tenth = divmod(digits, 10)
    if trace == "code":
        agent, model = "autocomplete", "code"
    else:
        agent = "summarizer" if digits % 4 == 0 else "assistant"
        model = "chat-large" if tenth < 3 else "chat-small"
    team, user = USERS[trace][person]
    return CUSTOMERS[customer], {"team": team, "user": user, "agent": agent, "model": model}


def trace_totals() -> Totals:
    """Summed from the trace files alone."""
    rows = [row for trace in TRACES for row in read_rows(trace)]
    return Totals(len(rows), sum(row[1] for row in rows), sum(row[2] for row in rows))


def of_trace(calls: Iterable[Call], trace: Trace) -> list[Call]:
    return [call for call in calls if call.trace == trace]
