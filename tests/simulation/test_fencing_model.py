"""Every interleaving of owners to a bounded depth; deeper: `python -m simulation.fencing_model DEPTH` from `tests/`."""

import logging

import pytest

from simulation import planted
from simulation.fencing_model import SCENARIOS, Broken, walk

DEPTHS = (12, 12, 7)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("tallygate").setLevel(logging.CRITICAL)


@pytest.mark.parametrize(("scenario", "depth"), list(zip(SCENARIOS, DEPTHS, strict=True)))
def test_no_interleaving_gives_a_credit_twice(
    scenario: tuple[tuple[str, ...], tuple[str, ...], int], depth: int
) -> None:
    opened, opening, asks = scenario
    runs = walk(opened, opening, asks, depth)
    print(
        f"{runs} interleavings of {[*opened, *opening]}, {asks} asks each, all that differ in the first {depth} moments"
    )
    assert runs > 2_000


@pytest.mark.parametrize(
    "plant",
    [
        planted.no_term_check_on_reading,
        planted.reply_before_read_back,
        planted.higher_term_ignored,
        planted.taken_over_without_reading_on,
        planted.stale_row_not_rewritten,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found(plant: planted.Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((Broken, AssertionError)) as found:
        _walk_all()
    print(f"{plant.__name__}: {str(found.value)[:300]}")


def _walk_all() -> None:
    for scenario, depth in zip(SCENARIOS, DEPTHS, strict=True):
        walk(*scenario, depth)
