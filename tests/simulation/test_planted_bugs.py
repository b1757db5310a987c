"""What the simulation is worth: each planted bug is found, and in the same stories without it nothing is."""

import logging

import pytest

from simulation.books import Violation
from simulation.planted import BUGS, Plant
from simulation.story import Story


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("tallygate").setLevel(logging.CRITICAL)
    search = BUGS[plant]
    with monkeypatch.context() as patch:
        plant(patch)
        found, why = _first_violation(search.first, search.seeds, search.long)
    print(f"{plant.__name__}: found by seed {found} ({found - search.first + 1} stories): {why}")
    Story(found, long=search.long).run()


def _first_violation(first: int, seeds: int, long: bool) -> tuple[int, str]:
    for seed in range(first, first + seeds):
        try:
            Story(seed, long=long).run()
        except Violation as violation:
            return seed, str(violation)[:200]
    raise AssertionError(f"seeds {first} to {first + seeds - 1} do not find it")
