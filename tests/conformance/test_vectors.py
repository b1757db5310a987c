"""The public vectors: scenarios with the answers of an independent engine, run on the worker's own functions.

The comparison is tested, too: whatever an expectation names, altered, is a difference that says where.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallygate.pipeline.simulate import check_scenarios, run_scenarios

FOLDER = Path(__file__).parent / "vectors"
COUNTS = {"credits.json": 60, "reservations.json": 6}


def scenarios(file: str) -> list[dict[str, Any]]:
    document = json.loads((FOLDER / file).read_text(), parse_float=Decimal)
    return list(document["scenarios"])


ALL = [pytest.param(each, id=each["name"]) for file in COUNTS for each in scenarios(file)]


@pytest.mark.parametrize(("file", "count"), COUNTS.items())
def test_every_scenario_of_the_file_expects_something(file: str, count: int) -> None:
    found = scenarios(file)
    assert len(found) == count
    assert all(each["expect"] and any(set(answer) - {"at"} for answer in each["expect"]) for each in found)


@pytest.mark.parametrize("scenario", ALL)
def test_agrees_with_the_independent_engine(scenario: dict[str, Any]) -> None:
    assert check_scenarios({"scenarios": [scenario]}) == []


@pytest.mark.parametrize("file", COUNTS)
def test_a_file_gives_one_result_each_in_order(file: str) -> None:
    found = scenarios(file)
    results = run_scenarios({"scenarios": found})["results"]
    assert [[query["at"] for query in result["queries"]] for result in results] == [
        [query["at"] for query in scenario["queries"]] for scenario in found
    ]
    assert run_scenarios(found[0]) == results[0]


@pytest.mark.parametrize("scenario", ALL)
def test_every_altered_expectation_is_a_difference_that_says_where(scenario: dict[str, Any]) -> None:
    seen = 0
    for number, field, altered in alterations(scenario):
        [line] = check_scenarios(altered)
        assert line.startswith(f"{scenario['name']}: queries[{number}] at "), line
        assert f"{field}: expected " in line
        seen += 1
    assert seen


def alterations(scenario: dict[str, Any]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The scenario once for every value that it expects, with that value a nano higher."""
    nano = Decimal("0.000000001")
    for number, answer in enumerate(scenario["expect"]):
        for field, value in answer.items():
            if field == "at":
                continue
            for grant in value if field == "balances" else [""]:
                altered = deepcopy(scenario)
                place = altered["expect"][number]
                if grant:
                    place["balances"][grant] = Decimal(value[grant]) + nano
                else:
                    place[field] = Decimal(value) + nano
                yield number, f"balances.{grant}" if grant else field, altered


def test_an_expected_instant_is_compared() -> None:
    scenario = scenarios("credits.json")[0]
    scenario["expect"][0]["at"] = "2024-01-31T09:33:00Z"
    assert len(check_scenarios(scenario)) == 1


def test_more_answers_expected_than_queries_is_a_difference() -> None:
    scenario = scenarios("credits.json")[0]
    scenario["expect"].append(dict(scenario["expect"][-1]))
    assert check_scenarios(scenario) == ["credits-00: queries: 5 expected, 4 found"]


def test_a_refused_scenario_disagrees_with_expected_answers() -> None:
    scenario = scenarios("credits.json")[0]
    scenario["grants"][0]["amount"] = -1
    assert check_scenarios(scenario) == ["credits-00: refused: grants[0].amount: -1 is negative"]


def test_an_expected_refusal_agrees_and_a_missing_one_does_not() -> None:
    refused, accepted = scenarios("credits.json")[0], scenarios("credits.json")[0]
    refused["grants"][0]["amount"] = -1
    for each in refused, accepted:
        each["expect"] = {"error": ""}
    assert check_scenarios(refused) == []
    assert check_scenarios(accepted) == ["credits-00: expected a refusal, found none"]


def test_a_grant_nobody_names_is_not_compared_and_a_missing_one_counts_as_nothing() -> None:
    scenario = scenarios("credits.json")[0]
    scenario["expect"] = [{"balances": {"g1": 75}}]
    assert check_scenarios(scenario) == []
    scenario["expect"] = [{"balances": {"never": 0}}]
    assert check_scenarios(scenario) == []
    scenario["expect"] = [{"balances": {"never": 1}}]
    [line] = check_scenarios(scenario)
    assert "balances.never: expected 1, found 0" in line


def test_expected_ops_are_compared_by_outcome_and_by_grant() -> None:
    scenario = scenarios("reservations.json")[0]
    right = {"allowed": True, "reason": "allowed", "amounts": {"hour": 5, "month": 3}}
    scenario["expect"] = {"ops": [right]}
    assert check_scenarios(scenario) == []
    for field, wrong, says in (
        ("allowed", False, "allowed: expected False, found True"),
        ("reason", "credits_exhausted", "reason: expected credits_exhausted, found allowed"),
        ("amounts", {"hour": 4, "month": 3}, "amounts.hour: expected 4, found 5"),
        ("amounts", {"hour": 5}, "amounts.month: expected 0, found 3"),
    ):
        scenario["expect"] = {"ops": [{**right, field: wrong}]}
        [line] = check_scenarios(scenario)
        assert line == f"reservations-00: ops[0] at 2024-01-01T00:02:00Z: {says}"
