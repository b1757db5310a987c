"""The bench says what is wrong with a result, and takes its limits from its own catalog."""

from importlib.resources import as_file, files
from typing import Any

import pytest

from tallygate.schemas.amounts import NANOS
from tallygate.topologies.bench import decisions, usage
from tallygate.topologies.bench.decision_load import PLAN, POOR_PLAN
from tallygate.topologies.bench.jobs import DecisionsDone, Spent
from tallygate.topologies.bench.oracle import Limit, limits_of, overdrawn
from tallygate.topologies.catalog_yaml import read_files

FINE: dict[str, Any] = {
    "sent": 5,
    "answered": 5,
    "allowed": 2,
    "settled": 2,
    "recorded": {"journal": {"reserve": 2, "settle": 2}, "clickhouse": {"reserve": 2, "settle": 2}},
    "overdrawn": [],
    "troubles": [],
    "usage_sent": 7,
    "usage_counted": 7,
}


def test_nothing_is_wrong() -> None:
    assert decisions.differences(FINE) == []
    assert usage.differences({"sent": 3, "counted": 3}) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"answered": 4}, "5 requests were sent and 4 answered"),
        ({"recorded": {**FINE["recorded"], "clickhouse": {"reserve": 3, "settle": 2}}}, "the clickhouse has"),
        ({"recorded": {**FINE["recorded"], "journal": {"reserve": 2, "settle": 1}}}, "the journal has"),
        ({"overdrawn": ["acme, capped {}: 75 by the journal"]}, "overdrawn: acme, capped"),
        ({"usage_counted": 8}, "7 usage events were sent and ClickHouse counts 8"),
        ({"troubles": ["no answer to reserve"]}, "no answer to reserve"),
    ],
)
def test_what_is_wrong_is_told(changed: dict[str, Any], told: str) -> None:
    [line] = decisions.differences(FINE | changed)
    assert told in line


@pytest.mark.parametrize("counted", [2, 4])
def test_events_lost_and_doubled(counted: int) -> None:
    assert usage.differences({"sent": 3, "counted": counted}) == [f"3 events were sent and ClickHouse counts {counted}"]


def plans() -> dict[str, list[Limit]]:
    with as_file(files("tallygate.topologies.bench").joinpath("data", "bench.yaml")) as path:
        compiled = read_files(path).compile(1)
    return {plan.name: limits_of(plan) for plan in compiled.plans}


def test_the_limits_are_those_of_the_catalog() -> None:
    poor = {limit.name: limit.limit_nanos // NANOS for limit in plans()[POOR_PLAN]}
    assert poor["credits"] == 100
    assert poor["capped"] == 500
    assert poor["allowance bench_calls"] == 10**9
    assert poor.keys() == {
        "credits",
        "allowance bench_calls",
        "customer",
        "teams",
        "users",
        "agents",
        "models",
        "capped",
    }


def test_answers_that_let_too_much_through() -> None:
    """Seven reservations of 75 by the agent that has 500, each answered with a yes."""
    done = DecisionsDone(
        sent=14,
        answered=14,
        allowed=7,
        denied=0,
        settled=6,
        seconds=1,
        cpu_seconds=0,
        reserve_ms=[],
        settle_ms=[],
        spent=[Spent("acme", {"agent": "capped"}, used_nanos=450 * NANOS, held_nanos=75 * NANOS, calls=7)],
        troubles=[],
    )
    [over] = overdrawn({"acme": plans()[PLAN]}, decisions.answered_moves(done))
    assert (over.limit, over.over_nanos) == ("capped", 25 * NANOS)
