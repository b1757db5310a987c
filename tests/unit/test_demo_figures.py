"""What the demo makes of its figures: agreement or not, JSON, and what a person reads."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tallygate.schemas.answers import PoolView, Statement
from tallygate.topologies import demo
from tallygate.topologies.demo import Figures, TeamUsage, percentile, run_demo
from tallygate.topologies.demo_trace import Totals

AGREED = Totals(28_185, 40_421_844, 4_334_561)


def figures(ledger: Totals = AGREED, clickhouse: Totals = AGREED, recorded: int = 6) -> Figures:
    return Figures(
        trace=AGREED,
        ledger=ledger,
        clickhouse=clickhouse,
        runaway_asked=20,
        runaway_allowed=6,
        runaway_recorded=recorded,
        probe_ms=[float(n) for n in range(1, 301)],
        replay_ms=[10.0, 20.0],
        teams=[TeamUsage("research", "chat-large", 969, 1_171_880, 210_600)],
        statements={"acme": Statement(pools=(PoolView("credits", "832.19", "450", "0"),))},
        phases={"start": 5.0, "calls": 20.0},
        seconds=36.04,
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (figures(), []),
        (
            figures(ledger=AGREED._replace(calls=28_184)),
            ["calls: trace has 28185, ledger has 28184, clickhouse has 28185"],
        ),
        (
            figures(clickhouse=AGREED._replace(output_tokens=1)),
            ["output_tokens: trace has 4334561, ledger has 4334561, clickhouse has 1"],
        ),
        (
            figures(recorded=7),
            ["runaway: 6 reservations were answered as allowed, 7 are recorded as allowed"],
        ),
    ],
)
def test_disagreements(found: Figures, said: list[str]) -> None:
    assert found.disagreements() == said


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0, 1.0, 2.0], 50, 2.0), ([1.0], 99, 1.0), ([], 50, 0.0), ([float(n) for n in range(1, 101)], 99, 99.0)],
)
def test_percentile(values: list[float], percent: int, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_json_has_exactly_this_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_run", lambda progress: figures())
    assert run_demo(tmp_path / "demo.json", Console(file=io.StringIO()))
    totals = {"calls": 28_185, "input_tokens": 40_421_844, "output_tokens": 4_334_561}
    assert msgspec.json.decode((tmp_path / "demo.json").read_bytes()) == {
        "trace": totals,
        "ledger": totals,
        "clickhouse": totals,
        "runaway": {"asked": 20, "allowed": 6},
        "latency_ms": {"p50": 150.0, "p99": 297.0},
        "seconds": 36.0,
    }


@pytest.mark.parametrize("agree", [True, False])
def test_what_a_person_reads(monkeypatch: pytest.MonkeyPatch, agree: bool) -> None:
    found = figures() if agree else figures(ledger=AGREED._replace(calls=7))
    monkeypatch.setattr(demo, "_run", lambda progress: found)
    text = io.StringIO()
    assert run_demo(None, Console(file=text, width=120)) is agree
    said = text.getvalue()
    for part in ("40 421 844", "4 334 561", "research", "832.19", "6 allowed", "p50 150.0 ms, p99 297.0 ms"):
        assert part in said
    assert ("Trace, ledger and ClickHouse agree." in said) is agree
    assert ("calls: trace has 28185, ledger has 7" in said) is not agree
