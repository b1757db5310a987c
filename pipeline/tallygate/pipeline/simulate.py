"""`tallygate simulate`: what would happen? The worker's own functions over a scenario instead of a partition.

A scenario is plain (one customer, one pool: `scenario.py`) or has a catalog and events (`catalog_scenario.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from tallygate.pipeline.catalog_run import PastCalls, run_catalog_scenario
from tallygate.pipeline.catalog_scenario import CatalogScenario, has_catalog, read_catalog_scenario
from tallygate.pipeline.expectations import differences, read_expected
from tallygate.pipeline.plain_run import run_scenario
from tallygate.pipeline.scenario import read_scenario
from tallygate.pipeline.scenario_fields import ScenarioError
from tallygate.schemas.catalog import Catalog

#: What is recorded from a scenario's start on, read for its catalog.
ReadPast = Callable[[CatalogScenario], PastCalls]


def run_scenarios(document: object, catalog: Catalog | None = None, past: ReadPast | None = None) -> dict[str, Any]:
    """The results of one scenario, or of each in `{"scenarios": [...]}`; refused ones as `{"error": ...}` there.

    A `catalog` given stands in for the scenarios' own; `past` adds recorded calls to their events.
    """
    if isinstance(document, Mapping) and "scenarios" in document:
        return {"results": [_run_or_refuse(each, catalog, past) for each in _list(document["scenarios"])]}
    return _run(document, catalog, past)


def check_scenarios(document: object, catalog: Catalog | None = None, past: ReadPast | None = None) -> list[str]:
    """Each difference between what the scenarios expect and what happens, a line each."""
    many = document["scenarios"] if isinstance(document, Mapping) and "scenarios" in document else [document]
    lines: list[str] = []
    for number, each in enumerate(_list(many)):
        if not isinstance(each, Mapping):
            raise ScenarioError(f"scenarios[{number}]: wants an object")
        name = str(each.get("name", f"scenarios[{number}]"))
        if "expect" not in each:
            continue
        expected = read_expected(each["expect"], f"{name}: expect")
        lines += [f"{name}: {line}" for line in differences(expected, _run_or_refuse(each, catalog, past))]
    return lines


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ScenarioError("scenarios: wants a list")
    return value


def _run(document: object, catalog: Catalog | None, past: ReadPast | None) -> dict[str, Any]:
    if not (has_catalog(document) or catalog or past):
        return run_scenario(read_scenario(document))
    scenario = read_catalog_scenario(document, catalog)
    return run_catalog_scenario(scenario, past(scenario) if past else None)


def _run_or_refuse(document: object, catalog: Catalog | None, past: ReadPast | None) -> dict[str, Any]:
    try:
        return _run(document, catalog, past)
    except ScenarioError as error:
        return {"error": str(error)}
