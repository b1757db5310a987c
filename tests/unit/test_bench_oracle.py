"""The bench's oracle says no where a limit was passed, whoever says yes."""

import pytest
from msgspec.structs import replace

from tallygate.topologies.bench.oracle import Limit, Move, overdrawn

CREDITS = Limit("credits", 100)
AGENTS = Limit("agents", 60, scope={"agent": "*"})
CAPPED = Limit("capped", 50, scope={"agent": "capped"})
CALLS = Limit("calls", 3, unit="calls")


def held(hold: str, credits: int, agent: str = "a", calls: int = 1) -> Move:
    return Move("hold", "acme", hold, {"agent": agent}, {"credits": credits, "calls": calls})


def settled(hold: str, credits: int, calls: int = 1) -> Move:
    return Move("settle", "acme", hold, {}, {"credits": credits, "calls": calls})


STORY = [held("1", 50, "capped"), held("2", 50, "b"), settled("1", 20), held("3", 30, "capped"), settled("3", 30)]


def over(moves: list[Move], *limits: Limit) -> dict[str, int]:
    return {each.limit: each.over_nanos for each in overdrawn({"acme": limits}, moves)}


def test_a_story_within_its_limits() -> None:
    assert over(STORY, CREDITS, AGENTS, CAPPED, CALLS) == {}


@pytest.mark.parametrize(
    ("what", "tampered", "found"),
    [
        ("a hold more than there was room for", [*STORY, held("4", 1)], {"credits": 1, "calls": 1}),
        ("a hold too large", [replace(STORY[0], amounts={"credits": 51}), *STORY[1:]], {"credits": 1, "capped": 1}),
        (
            "too early, though it was paid back",
            [STORY[0], STORY[1], STORY[3], STORY[2]],
            {"credits": 30, "capped": 30, "agents": 20},
        ),
        ("settled above what was held", [*STORY[:-1], settled("3", 31)], {"credits": 1, "capped": 1}),
        ("settled twice", [*STORY, settled("3", 30)], {"credits": 30, "calls": 1}),
        (
            "one agent more than its share",
            [held("1", 60), held("2", 40, "b"), held("3", 1)],
            {"agents": 1, "credits": 1},
        ),
        ("a customer that is not known", [Move("hold", "eve", "1", {}, {"credits": 1})], {"unknown customer": 1}),
    ],
)
def test_it_finds(what: str, tampered: list[Move], found: dict[str, int]) -> None:
    assert over(tampered, CREDITS, AGENTS, CAPPED, CALLS) == found, what


def test_what_is_released_is_free_again() -> None:
    moves = [held("1", 100), Move("release", "acme", "1"), held("2", 100)]
    assert over(moves, CREDITS) == {}
    assert over([moves[0], moves[2]], CREDITS) == {"credits": 100}
