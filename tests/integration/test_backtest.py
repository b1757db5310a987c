"""Backtest and simulate from ClickHouse: a recorded day, decided again under other catalogs, by hand.

The day, at 1 credit per 1000 input tokens and 2 per 1000 output tokens, from T0; the window begins an hour later:

    acme   before   grant g 20; an event of 3000 input                                     3, 17 left
           window   h1 of 5000 input, settled at 4000                                      4, 13 left
                    e1 of 2000 output                                                      4, 9 left
                    h2 of 10000 input: denied, 9 are left
                    h3 of 5000 input, released
    bolt   before   grant g 100; an observed budget of 3; p of 2000 input is reserved      held 2
           window   p settled at 1000 input                                                1
                    b1 of 5000 input, allowed beyond the budget, settled as held           5
                    v1 of 1000 input, voided; c1 of 1000 input, corrected to 3000          3
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest

from kafka_fixture import Broker
from partition import T0, Partition, event
from sink_world import JournalWriter, SinkProcess
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import HOUR_MS, format_instant
from tallygate.schemas.requests import GiveGrant, Release, Reserve, SetBudget, Settle

SINCE = format_instant(T0 + HOUR_MS)

CHEAP_INPUT = """
meters:
  input_tokens:  {event_type: llm.call, value: input_tokens, dimensions: [team, model]}
  output_tokens: {event_type: llm.call, value: output_tokens, dimensions: [team, model]}
features:
  llm:
    meters: [input_tokens, output_tokens]
    rates:
      - {meter: input_tokens, credits: 0.5, per: 1000}
      - {meter: output_tokens, credits: 3, per: 1000}
"""
SMALL_PLAN = """
meters:
  input_tokens:  {event_type: llm.call, value: input_tokens, dimensions: [team, model]}
  output_tokens: {event_type: llm.call, value: output_tokens, dimensions: [team, model]}
  calls:         {event_type: llm.call, aggregation: count}
features:
  llm:
    meters: [input_tokens, output_tokens, calls]
    rates:
      - {meter: input_tokens, credits: 1, per: 1000}
      - {meter: output_tokens, credits: 2, per: 1000}
plans:
  small:
    entitlements: {llm: credits}
    budgets: {all: {limit: 3, observe: OBSERVE}}
"""


def told_day() -> Partition:
    """Both customers' day in one partition."""
    world = Partition()

    def reserve(customer: str, id: str, tokens: int) -> None:
        world.ask(Reserve(id=id, customer=customer, feature="llm", quantities={"input_tokens": D(tokens)}))

    world.ask(GiveGrant(id="g", customer="acme", amount=D(20)))
    world.use(event("e0", "acme", input_tokens=3000))
    world.ask(GiveGrant(id="g", customer="bolt", amount=D(100)))
    world.ask(SetBudget(id="w", customer="bolt", name="watch", limit=D(3), observe=True))
    world.tick(3500)
    reserve("bolt", "p", 2000)
    world.tick(100)
    reserve("acme", "h1", 5000)
    world.ask(Settle(id="s1", customer="acme", hold="h1", quantities={"input_tokens": D(4000)}))
    world.use(event("e1", "acme", output_tokens=2000))
    reserve("acme", "h2", 10_000)
    reserve("acme", "h3", 5000)
    world.ask(Release(id="r3", customer="acme", hold="h3"))
    world.ask(Settle(id="sp", customer="bolt", hold="p", quantities={"input_tokens": D(1000)}))
    reserve("bolt", "b1", 5000)
    world.ask(Settle(id="sb", customer="bolt", hold="b1"))
    world.use(event("v1", "bolt", input_tokens=1000), event("c1", "bolt", input_tokens=1000, team="red"))
    world.tick(60)
    world.use(amends("voided", "v1"), amends("corrected", "c1", input_tokens=3000, team="red"))
    return world


def amends(how: str, id: str, **data: Any) -> UsageEvent:
    named = {"source": "test", "id": id, **({"data": data} if data else {})}
    return UsageEvent(
        specversion="1.0", id=f"{how}-{id}", source="test", type=f"tallygate.usage.{how}", subject="bolt", data=named
    )


@pytest.fixture(scope="module")
def sink(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    """A running sink that has read the day."""
    world, writer = told_day(), JournalWriter(module_kafka.bootstrap)
    writer.open(0, 1)
    for seq, transition in enumerate(world.transitions, 1):
        writer.write(0, 1, seq, transition.records)
    decisions = sum(len(entry.decisions) for entry in world.entries())
    deltas = sum(len(entry.usage) for entry in world.entries())
    with SinkProcess(module_kafka.bootstrap, tmp_path_factory.mktemp("data")) as running:
        running.wait_for(
            lambda: (
                int(running.figure("SELECT count() FROM decisions")) == decisions
                and int(running.figure("SELECT count() FROM usage")) == deltas
            )
        )
        yield running


def run(sink: SinkProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tallygate.topologies.cli", *arguments, "--data-dir", str(sink.settings.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})


def backtest(sink: SinkProcess, catalog: str, folder: Path, *more: str) -> dict[str, Any]:
    path = folder / "catalog.yaml"
    path.write_text(catalog)
    done = run(sink, "backtest", "--catalog", str(path), "--since", SINCE, "--json", *more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def line(report: dict[str, Any], customer: str) -> tuple[dict[str, Any], dict[str, Any]]:
    [found] = [line for line in report["lines"] if line["customer"] == customer]
    assert found["feature"] == "llm"
    return found["recorded"], found["replayed"]


def figures(allowed: int, charged: str, denied: dict[str, int], would_deny: dict[str, int]) -> dict[str, Any]:
    return {
        "allowed": allowed,
        "denied": denied,
        "would_deny": would_deny,
        "charged": charged,
        "overage": "0",
        "written_off": "0",
    }


def test_other_prices(sink: SinkProcess, tmp_path: Path) -> None:
    """acme: h1 2, e1 6, h2 5 (9 are left), h3 given back. bolt: p 0.5, b1 2.5 within the budget, c1 1.5."""
    report = backtest(sink, CHEAP_INPUT, tmp_path)
    assert line(report, "acme") == (
        figures(2, "8", {"credits_exhausted": 1}, {}),
        figures(3, "13", {}, {}),
    )
    assert line(report, "bolt") == (
        figures(1, "9", {}, {"budget_exhausted": 1}),
        figures(1, "4.5", {}, {}),
    )
    assert report["since"] == SINCE
    assert report["until"] is None
    said = "\n".join(report["assumptions"])
    assert "their own time to the hour" in said
    assert "calls denied then and allowed now are settled at once, at what they asked (1)" in said
    assert "feature 'llm' does not have meter 'calls': its quantities are left out" in said


def test_another_plan_for_everyone(sink: SinkProcess, tmp_path: Path) -> None:
    """A budget of 3 denies 5, 10 and 5; the event of 4 has happened anyway."""
    report = backtest(sink, SMALL_PLAN.replace("OBSERVE", "false"), tmp_path, "--plan", "small", "--customer", "acme")
    [only] = report["lines"]
    assert only["replayed"] == figures(0, "4", {"budget_exhausted": 3}, {})
    assert "calls denied now have done no work" in "\n".join(report["assumptions"])


def test_a_limit_that_only_observes(sink: SinkProcess, tmp_path: Path) -> None:
    """The same budget lets all through and says so; h2 of 10 has only 9 credits left, as it was."""
    report = backtest(sink, SMALL_PLAN.replace("OBSERVE", "true"), tmp_path, "--plan", "small", "--customer", "acme")
    [only] = report["lines"]
    assert only["replayed"] == figures(2, "8", {"credits_exhausted": 1}, {"budget_exhausted": 2})


def test_the_same_catalog_changes_nothing(sink: SinkProcess, tmp_path: Path) -> None:
    same = SMALL_PLAN.partition("plans:")[0]
    for found in backtest(sink, same, tmp_path)["lines"]:
        assert found["recorded"] == found["replayed"]


def test_a_window_that_ends(sink: SinkProcess, tmp_path: Path) -> None:
    """Up to the minute in which bolt's events are amended."""
    report = backtest(sink, CHEAP_INPUT, tmp_path, "--until", format_instant(T0 + HOUR_MS + 60_000))
    recorded, replayed = line(report, "bolt")
    assert (recorded["charged"], replayed["charged"]) == ("8", "4")
    assert report["until"] == "2026-01-01T01:01:00Z"


def test_the_table_and_its_sums(sink: SinkProcess, tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(CHEAP_INPUT)
    done = run(sink, "backtest", "--catalog", str(path), "--since", SINCE)
    assert done.returncode == 0, done.stderr
    rows = [" ".join(text.replace("│", " ").split()) for text in done.stdout.splitlines()]
    assert "acme llm 2 → 3 credits_exhausted 1 → 0 0 8 → 13 0" in rows
    assert "bolt llm 1 0 budget_exhausted 1 → 0 9 → 4.5 0" in rows
    [first] = [number for number, row in enumerate(rows) if row.startswith("all customers")]
    assert rows[first] == "all customers llm 3 → 4 credits_exhausted 1 → 0 budget_exhausted 1 → 0 17 → 17.5 0"


def test_a_plan_that_is_not_there(sink: SinkProcess, tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(SMALL_PLAN.replace("OBSERVE", "true"))
    done = run(sink, "backtest", "--catalog", str(path), "--since", "2026-01-01", "--plan", "large")
    assert done.returncode == 2
    assert "no plan 'large'; it has: small" in " ".join(done.stderr.replace("│", " ").split())


def test_recorded_usage_in_place_of_invented(sink: SinkProcess, tmp_path: Path) -> None:
    """17 credits at the start, as acme had; what the recorded calls then come to."""
    path, catalog = tmp_path / "scenario.json", tmp_path / "catalog.yaml"
    catalog.write_text(CHEAP_INPUT)
    scenario = {
        "customer": "acme",
        "start": {"at": SINCE},
        "grants": [{"id": "mine", "amount": 17}],
        "queries": [{"at": "2026-01-01T02:00:00Z"}],
        "expect": {
            "queries": [{"customers": {"acme": {"pools": {"credits": {"balance": 4}}}}}],
            "summary": {"charged": {"llm": 13}},
        },
    }
    path.write_text(json.dumps(scenario))
    options = ("simulate", str(path), "--catalog", str(catalog), "--from-clickhouse", "acme")
    done = run(sink, *options)
    assert done.returncode == 0, done.stderr
    past = json.loads(done.stdout)["past"]
    assert [(each["op"], each["id"], each["allowed"]) for each in past["ops"]] == [
        ("reserve", "h1", True),
        ("settle", "s1", True),
        ("usage", past["ops"][2]["id"], True),
        ("reserve", "h2", True),
        ("settle", "h2/assumed", True),
        ("reserve", "h3", True),
        ("release", "r3", True),
    ]
    checked = run(sink, *options, "--check")
    assert (checked.returncode, checked.stdout) == (0, "no differences\n"), checked.stderr


def test_a_decision_in_observe_mode_is_in_clickhouse(sink: SinkProcess) -> None:
    [row] = sink.ask("SELECT allowed, reason, limits, quantities, asked, request FROM decisions WHERE id = 'b1'")
    assert (row["allowed"], row["reason"]) == (True, "allowed")
    [limit] = json.loads(row["limits"])
    assert limit == {
        "kind": "budget",
        "name": "watch",
        "ok": False,
        "unit": "credits",
        "asked": "5",
        "limit": "3",
        "used": "1",
        "held": "0",
        "remaining": "2",
        "observe": True,
    }
    assert {meter: D(text) for meter, text in row["quantities"].items()} == {"input_tokens": 5000, "calls": 1}
    assert row["request"] == ""
    [granted] = sink.ask("SELECT request FROM decisions WHERE op = 'grant' AND customer = 'bolt'")
    assert json.loads(granted["request"])["amount"] == "100"


def test_what_each_input_used_is_in_clickhouse(sink: SinkProcess) -> None:
    rows = sink.ask(
        "SELECT cause_id, quantity, events FROM usage WHERE customer = 'bolt' AND meter = 'input_tokens' "
        "ORDER BY offset, number"
    )
    assert [(row["cause_id"], D(row["quantity"]), int(row["events"])) for row in rows] == [
        ("sp", 1000, 1),
        ("sb", 5000, 1),
        ("v1", 1000, 1),
        ("c1", 1000, 1),
        ("voided-v1", -1000, -1),
        ("corrected-c1", -1000, -1),
        ("corrected-c1", 3000, 1),
    ]
