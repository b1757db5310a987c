"""`tallygate demo`: real calls through everything, and three counts of them that must agree.

    trace        summed from the two CSV files
    ledger       summed from the usage in the journal's entries, by a reader of its own (`demo_ledger`)
    clickhouse   summed by a SELECT from the view usage_hourly, asked of the running sink

Everything runs in a temporary folder and ends with the demo. A Kafka named by TALLYGATE_KAFKA_BROKERS is used instead
of one of its own if it has none of Tallygate's topics; those that the demo makes there are removed again.
"""

import asyncio
import gc
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tallygate.connectors.client import Tallygate
from tallygate.connectors.usage_producer import publish_events
from tallygate.schemas.answers import Statement
from tallygate.schemas.topics import USAGE
from tallygate.topologies.demo_cluster import SERVICE, start_stack
from tallygate.topologies.demo_ledger import LedgerReader
from tallygate.topologies.demo_load import (
    PROBES,
    CallDenied,
    give_credits,
    probe,
    replay,
    run_away,
    usage_events,
)
from tallygate.topologies.demo_trace import CUSTOMERS, Call, Totals, of_trace, read_calls, trace_totals
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.local_stack import LocalStack
from tallygate.topologies.settings import Settings
from tallygate.topologies.sql_server import ask
from tallygate.topologies.topic_reading import bounds

_CATCH_UP_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 0.2


class TeamUsage(msgspec.Struct, frozen=True):
    """One line of the table: what a team used of a model, as ClickHouse has it."""

    team: str
    model: str
    calls: int
    input_tokens: int
    output_tokens: int


class Figures(msgspec.Struct):
    """What a run of the demo found; latencies in ms, `phases` and `seconds` in seconds."""

    trace: Totals
    ledger: Totals = Totals(0, 0, 0)
    clickhouse: Totals = Totals(0, 0, 0)
    runaway_asked: int = 0
    runaway_allowed: int = 0
    runaway_recorded: int = 0
    probe_ms: list[float] = []
    replay_ms: list[float] = []
    teams: list[TeamUsage] = []
    statements: dict[str, Statement] = {}
    phases: dict[str, float] = {}
    seconds: float = 0.0

    def disagreements(self) -> list[str]:
        """Each figure that is not what it must be, a line each."""
        lines = []
        for field in Totals._fields:
            found = {name: getattr(getattr(self, name), field) for name in ("trace", "ledger", "clickhouse")}
            if len(set(found.values())) > 1:
                lines.append(f"{field}: " + ", ".join(f"{name} has {number}" for name, number in found.items()))
        if self.runaway_allowed != self.runaway_recorded:
            lines.append(
                f"runaway: {self.runaway_allowed} reservations were answered as allowed, "
                f"{self.runaway_recorded} are recorded as allowed"
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """The shape that `--json` writes."""
        return {
            "trace": self.trace._asdict(),
            "ledger": self.ledger._asdict(),
            "clickhouse": self.clickhouse._asdict(),
            "runaway": {"asked": self.runaway_asked, "allowed": self.runaway_allowed},
            "latency_ms": {
                "p50": round(percentile(self.probe_ms, 50), 2),
                "p99": round(percentile(self.probe_ms, 99), 2),
            },
            "seconds": round(self.seconds, 1),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of all do not pass (nearest rank); 0 where there are none."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0.0


def run_demo(json_path: Path | None, out: Console) -> bool:
    """Runs it, shows what it found, and writes it to `json_path`; whether all figures agree."""
    from tallygate.topologies.demo_report import show_figures, show_start

    show_start(out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress:
        figures = _run(progress)
    disagreements = figures.disagreements()
    show_figures(figures, disagreements, out)
    if json_path is not None:
        json_path.write_text(json.dumps(figures.as_json()) + "\n")
    return not disagreements


def _run(progress: Progress) -> Figures:
    began = time.monotonic()
    figures = Figures(trace_totals(), phases={})
    with ExitStack() as ends:
        with _phase(figures, "start"):
            stack = start_stack(ends, progress.console.print)
        with _phase(figures, "calls"):
            calls = read_calls(last_at=time.time_ns() // 1_000_000)
            _together(_replay_all(stack, calls, figures, progress))
        with _phase(figures, "ledger"):
            ledger = LedgerReader(stack.settings)
            ends.callback(ledger.close)
            _read_ledger(ledger, stack)
        with _phase(figures, "runaway"):
            _together(_run_away(stack, figures))
            ledger.read_to_end()
            figures.ledger = ledger.totals
        with _phase(figures, "clickhouse"):
            _wait_for_sink(ledger, stack)
            _ask_clickhouse(stack.settings, figures)
        with _phase(figures, "paced calls"):
            del calls
            gc.collect()  # a pause of this process would be measured as the worker's
            _together(_measure_latency(stack, figures, progress))
        stopping = time.monotonic()
    figures.phases["stop"] = time.monotonic() - stopping
    figures.seconds = time.monotonic() - began
    return figures


@contextmanager
def _phase(figures: Figures, name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    figures.phases[name] = time.monotonic() - began


def _together(work: Any) -> None:
    """Runs a coroutine; of errors that came together, the first is told."""
    try:
        asyncio.run(work)
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, CallDenied):
            raise Trouble(Exit.NO, str(first)) from None
        raise first from None


async def _replay_all(stack: LocalStack, calls: list[Call], figures: Figures, progress: Progress) -> None:
    """Both traces at once: conversation calls through the client, code calls as usage events."""
    talk, code = of_trace(calls, "conv"), of_trace(calls, "code")
    talk_bar = progress.add_task("conversation calls: reserve, then settle", total=len(talk))
    code_bar = progress.add_task("code calls: usage events", total=len(code))
    settings = stack.settings
    async with asyncio.TaskGroup() as group, _client(settings) as client:
        watch = group.create_task(_watch(stack))
        await give_credits(client)
        events = asyncio.to_thread(
            publish_events,
            settings.librdkafka,
            usage_events(code),
            lambda confirmed: progress.update(code_bar, completed=confirmed),
            progress.console.print,
        )
        sending = group.create_task(events)
        figures.replay_ms = await replay(client, talk, lambda: progress.advance(talk_bar))
        await sending
        watch.cancel()


async def _run_away(stack: LocalStack, figures: Figures) -> None:
    async with _client(stack.settings) as client:
        answers = await run_away(client)
        figures.runaway_asked = len(answers)
        figures.runaway_allowed = sum(answer.allowed for answer in answers)
        figures.statements = {customer: await client.balance(customer) for customer in CUSTOMERS}


async def _measure_latency(stack: LocalStack, figures: Figures, progress: Progress) -> None:
    bar = progress.add_task("paced reservations, for the latency", total=PROBES)
    async with _client(stack.settings) as client:
        figures.probe_ms = await probe(client, lambda: progress.advance(bar))


def _client(settings: Settings) -> Tallygate:
    return Tallygate(settings.kafka_brokers, service=SERVICE, timeout=_CATCH_UP_SECONDS, kafka=settings.kafka_config)


async def _watch(stack: LocalStack) -> None:
    while True:
        stack.check()
        await asyncio.sleep(_CHECK_SECONDS)


def _read_ledger(ledger: LedgerReader, stack: LocalStack) -> None:
    """Reads until every usage event that was sent has been decided."""
    sent = {number: end for number, (begin, end) in bounds(stack.settings, USAGE).items() if end > begin}
    until = time.monotonic() + _CATCH_UP_SECONDS
    while True:
        ledger.read_to_end()
        if all(ledger.usage_applied.get(number, -1) >= end - 1 for number, end in sent.items()):
            return
        if time.monotonic() > until:
            raise Trouble(Exit.NO, f"not every usage event was decided within {_CATCH_UP_SECONDS:g} s")
        stack.check()
        time.sleep(_CHECK_SECONDS)


def _wait_for_sink(ledger: LedgerReader, stack: LocalStack) -> None:
    """Until the sink has taken everything that the ledger has, or is too late: then the totals will tell."""
    until = time.monotonic() + _CATCH_UP_SECONDS
    question = "SELECT partition, max(next_offset) AS next_offset FROM sink_offsets GROUP BY partition"
    while time.monotonic() < until:
        taken = {int(row["partition"]): int(row["next_offset"]) for row in _rows(stack.settings, question)}
        if all(taken.get(number, 0) > offset for number, offset in ledger.last_change.items()):
            return
        stack.check()
        time.sleep(_CHECK_SECONDS)


def _ask_clickhouse(settings: Settings, figures: Figures) -> None:
    sums = ", ".join(f"sumIf(quantity, meter = '{meter}') AS {meter}" for meter in Totals._fields)
    [totals] = _rows(settings, f"SELECT {sums} FROM usage_hourly")
    figures.clickhouse = Totals(**{meter: _whole(totals[meter]) for meter in Totals._fields})
    by_team = f"SELECT dimensions['team'] AS team, dimensions['model'] AS model, {sums} FROM usage_hourly"
    figures.teams = [
        TeamUsage(row["team"], row["model"], *(_whole(row[meter]) for meter in Totals._fields))
        for row in _rows(settings, f"{by_team} GROUP BY team, model ORDER BY team, model")
    ]
    [runaway] = _rows(
        settings,
        "SELECT countIf(allowed) AS allowed FROM decisions WHERE op = 'reserve' AND dimensions['agent'] = 'runaway'",
    )
    figures.runaway_recorded = int(runaway["allowed"])


def _rows(settings: Settings, question: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(settings, question, "jsonl").splitlines()]


def _whole(amount: object) -> int:
    """A Decimal(38, 9) as JSON has it; tokens and calls are whole, and what is not fails here."""
    whole, _, places = str(amount).partition(".")
    if places.strip("0"):
        raise Trouble(Exit.NO, f"ClickHouse has {amount}, which is no whole number")
    return int(whole)
