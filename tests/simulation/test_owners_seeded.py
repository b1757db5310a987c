"""Stories from seeds: owners that die, sleep and overlap over one journal. `SEED` picks the first seed of the run.

A failing seed is told again, line by line, by the command that the failure prints.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.books import Violation
from simulation.run import AGAIN
from simulation.story import Story, tell

FIRST = int(os.environ.get("SEED", "1"))
SEEDS = 20  # a test
TESTS = 8
LONG_TESTS = 2
HAPPENINGS = (
    *("requests", "events", "entries", "catalogs", "clock_jumps", "days", "compactions", "compacted_records"),
    *("overlaps", "kills", "pauses", "freezes", "late_appends", "doubled_appends", "stale_records"),
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("tallygate").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS * TESTS, SEEDS))
def test_nothing_is_lost_doubled_or_contradicted(first: int) -> None:
    _tell(first, long=False)


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS * LONG_TESTS, SEEDS))
def test_nor_when_days_pass_and_clocks_are_wrong(first: int) -> None:
    _tell(first, long=True)


def _tell(first: int, *, long: bool) -> None:
    for seed in range(first, first + SEEDS):
        try:
            Story(seed, long=long).run()
        except Violation as violation:
            again = AGAIN.format(seed=seed, long=" LONG=1" if long else "")
            lines = tell(seed, long=long).lines or []
            shown = "\n".join(lines[-30:])
            raise AssertionError(f"seed {seed}: {violation}\n{shown}\ntell it again: {again}") from violation


def test_stories_are_about_what_they_should_be_about() -> None:
    counts: dict[str, int] = {}
    for seed in range(FIRST, FIRST + 40):
        for name, count in Story(seed, long=seed % 2 == 0).run().counts.items():
            counts[name] = counts.get(name, 0) + count
    missing = set(HAPPENINGS) - {name for name, count in counts.items() if count}
    assert not missing


_DIGESTS = """
import logging
from simulation.story import Story
logging.getLogger("tallygate").setLevel(logging.CRITICAL)
print(*(Story(seed, long=long).run().digest for seed in (1, 7, 12) for long in (False, True)))
"""


def test_a_seed_tells_the_same_story_in_any_process() -> None:
    told = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(done.stdout)
    assert len(told) == 1
    assert len(set(told.pop().split())) == 6
