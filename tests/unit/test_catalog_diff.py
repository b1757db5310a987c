"""What differs between two catalogs, in words."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from tallygate.schemas import samples_catalog
from tallygate.schemas.catalog import EMPTY, Catalog
from tallygate.schemas.catalog_diff import Change, changes, summary
from tallygate.schemas.catalog_file import read_catalog

FULL = samples_catalog.FULL


def changed(change: Callable[[Any], object]) -> Catalog:
    document = copy.deepcopy(samples_catalog.FILE)
    change(document)
    return read_catalog(document, "changed").compile(4)


def texts(old: Catalog, new: Catalog) -> list[str]:
    return [change.text for change in changes(old, new)]


def plan(document: Any) -> Any:
    return document["plans"]["pro"]


def rate(document: Any) -> Any:
    return document["features"]["llm"]["rates"][0]


RATE = "feature llm: rate of input_tokens where team=research since 2026-01-01T12:00:00Z"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: rate(d).update(credits="3"), [f"{RATE}: credits: 2.5 becomes 3"]),
        (lambda d: rate(d).update(credits="0.0000001"), [f"{RATE}: credits: 2.5 becomes 0.0000001"]),
        (lambda d: rate(d).pop("tiers"), [f"{RATE}: tiers: (above 200000, credits 5) becomes the default"]),
        (
            lambda d: rate(d).update(since="2026-02-01T00:00:00Z"),
            [
                f"{RATE}: gone; it was: credits 2.5, per 1000000, tiers ((above 200000, credits 5))",
                "feature llm: rate of input_tokens where team=research since 2026-02-01T00:00:00Z: new: credits 2.5, "
                "per 1000000, tiers ((above 200000, credits 5))",
            ],
        ),
        (lambda d: plan(d)["budgets"]["teams"].update(limit=800), ["plan pro: budget teams: limit: 500 becomes 800"]),
        (
            lambda d: plan(d)["budgets"].clear(),
            [
                "plan pro: budget teams: gone; it was: limit 500, scope (team *), unit "
                "calls, period day, thresholds (80, 100), observe true, hard false"
            ],
        ),
        (lambda d: plan(d)["entitlements"].update(sso=True), ["plan pro: entitlement sso: false becomes true"]),
        (lambda d: plan(d)["entitlements"].pop("sso"), ["plan pro: entitlement sso: gone; it was: false"]),
        (
            lambda d: plan(d)["entitlements"].update(support={"value": "platinum"}),
            ["plan pro: entitlement support: value: gold becomes platinum"],
        ),
        (
            lambda d: plan(d)["entitlements"]["search"].update(limit=2000),
            ["plan pro: entitlement search (searches): limit: 1000 becomes 2000"],
        ),
        (
            lambda d: plan(d)["grants"].update(extra={"amount": 5}),
            ["plan pro: grant extra: new: amount 5"],
        ),
        (
            lambda d: plan(d)["rate_limits"]["pace"].update(per="hour"),
            ["plan pro: rate limit pace: per: minute becomes hour"],
        ),
        (
            lambda d: plan(d)["resets"].update(credits="P1M"),
            ["plan pro: reset of credits: every P1M, preserve_overage true becomes P1M"],
        ),
        (lambda d: d["add_ons"].clear(), ["add-on more-searches: gone"]),
        (
            lambda d: d["plans"].update(free={"entitlements": {"llm": "credits"}}),
            ["plan free: new", "plan free: entitlement llm: new: credits"],
        ),
        (lambda d: d.pop("default_plan"), ["default plan: gone; it was: pro"]),
        (lambda d: d["meters"]["calls"].update(dimensions=["team"]), []),
    ],
)
def test_a_change_in_words(change: Callable[[Any], object], words: list[str]) -> None:
    if not words:
        words = ["meter calls: dimensions: team, agent becomes team"]
    assert texts(FULL, changed(change)) == words


def test_versions_are_not_compared() -> None:
    assert changes(FULL, replace(FULL, version=9)) == ()


def test_another_order_is_a_change_since_it_can_decide() -> None:
    """Of two rates that fit a call equally well, the first one holds."""
    other = replace(FULL, features=tuple(reversed(FULL.features)))
    assert texts(FULL, other) == ["the catalog: order of its parts: as it was becomes another"]


def test_everything_is_new_against_nothing_and_gone_the_other_way() -> None:
    there, back = changes(EMPTY, FULL), changes(FULL, EMPTY)
    assert {change.change for change in there} == {"new"}
    assert {change.change for change in back} == {"gone"}
    assert [change.text for change in back if change.subject[0] == "add-on"] == ["add-on more-searches: gone"]
    assert len(back) < len(there)


def test_a_summary_is_one_line() -> None:
    found = changes(EMPTY, FULL)
    assert summary(found[:1]) == found[0].text
    assert summary(found).endswith(f"; and {len(found) - 2} more")
    assert summary(()) == "no difference"


def test_a_change_names_what_it_is_about() -> None:
    [change] = changes(FULL, changed(lambda d: plan(d)["budgets"]["teams"].update(limit=800)))
    assert (change.subject, change.field) == (("plan", "pro", "budget", "teams"), "limit")
    assert isinstance(change, Change)
