"""Which rate holds: most conditions, then the latest, then the first; found the same however many there are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallygate.pipeline.rate_table import RateTable
from tallygate.schemas.catalog import Rate


def rate(price: int, since: int = 0, **when: str) -> Rate:
    return Rate("m", price, 1, when, since)


RATES = (
    rate(1),
    rate(2, since=50),
    rate(3, model="large"),
    rate(4, since=50, model="large"),
    rate(5, team="research"),
    rate(6, since=90, team="research"),
    rate(7, model="large", team="research"),
)


@pytest.mark.parametrize(
    ("case", "dimensions", "at", "price"),
    [
        ("no conditions", {}, 0, 1),
        ("from its instant on", {}, 50, 2),
        ("not before it", {}, 49, 1),
        ("a condition beats a later rate", {"model": "large"}, 49, 3),
        ("the later of equal conditions", {"model": "large"}, 50, 4),
        ("another value", {"model": "small"}, 60, 2),
        ("two conditions beat one", {"model": "large", "team": "research"}, 99, 7),
        ("of one condition each the later", {"team": "research"}, 95, 6),
        ("more dimensions than conditions", {"model": "large", "user": "ada"}, 0, 3),
    ],
)
def test_which_rate_holds(case: str, dimensions: dict[str, str], at: int, price: int) -> None:
    found = RateTable(RATES).find(dimensions, at)
    assert found is not None, case
    assert found.credits_nanos == price, case


def test_nothing_holds_before_the_first() -> None:
    assert RateTable([rate(1, since=10)]).find({}, 9) is None


def test_the_first_of_two_that_fit_equally_well() -> None:
    table = RateTable([rate(1, model="large"), rate(2, team="research")])
    found = table.find({"model": "large", "team": "research"}, 0)
    assert found is not None
    assert found.credits_nanos == 1


values = st.sampled_from(["a", "b"])
whens = st.dictionaries(st.sampled_from(["x", "y", "z"]), values)
conditioned = st.lists(st.tuples(whens, st.integers(0, 3)), max_size=12)


@given(conditioned, whens, st.integers(0, 3))
def test_the_same_as_looking_at_each(
    found: list[tuple[dict[str, str], int]], dimensions: dict[str, str], at: int
) -> None:
    all_rates = [Rate("m", number, 1, when, since) for number, (when, since) in enumerate(found)]
    ordered = sorted(all_rates, key=lambda each: (-len(each.when), -each.since))
    fits = (each for each in ordered if each.since <= at and each.when.items() <= dimensions.items())
    assert RateTable(all_rates).find(dimensions, at) is next(fits, None)
