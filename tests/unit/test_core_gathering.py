"""Usage events counted together: the same rows, memories and undoing as one by one; and when they are not together."""

import pytest

from money import MORE, Money, catalog
from tallygate.schemas import topics
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.events import encode_event
from tallygate.schemas.journal import Entry, split_key

OF = catalog(
    plans={
        "pro": {
            "entitlements": {
                "work": {"meter": "work_units", "limit": 10, "period": "day", "beyond": "credits"},
                "owing": {"meter": "owing_units", "limit": 10, "period": "day", "beyond": "allow"},
            }
        }
    },
    features={**MORE, "tiered": {"rates": [{"meter": "tiered_units", "credits": "0.000000001", "per": 3}]}},
)

RUNS = [  # the sizes of the groups that the uses are counted in
    ("one", "grant a 9", "use 1", [1]),
    ("several", "grant a 9", "use 1; use 2; use 3", [3]),
    ("by dimensions", "grant a 9", "use 1 team=x; use 2; use 3 team=x", [2, 1]),
    ("by hour", "grant a 9", "use 1; use 2 ago 1h; use 1", [2, 1]),
    ("by feature", "grant a 9", "use 1; use 2 owing", [1, 1]),
    ("late ones apart", "grant a 9", "use 1 ago 25h; use 2 ago 24h", [1, 1]),
    ("one grant pays all there is", "grant a 6", "use 1; use 2; use 3", [3]),
    ("one grant pays, one is empty", "grant a 1; use 1; grant b 9", "use 1; use 2", [2]),
    ("two grants pay", "grant a 2 p0; grant b 9", "use 1; use 2; use 3", []),
    ("two features ask more than one grant has", "grant a 2 p0; grant b 9", "use 2; use 1 owing", []),
    ("all is owed", "grant a 0", "use 1 owing; use 2 owing", [2]),
    ("some is owed", "grant a 2", "use 1 owing; use 2 owing", []),
    ("within a cap", "grant a 0", "use 1 capped; use 20 capped", []),
    ("two pools, one empty", "grant a 9", "use 1 both; use 2 both", [2]),
    ("two pools, one nearly", "grant t 2 pool trial; grant a 9", "use 1 both; use 2 both", []),
    ("each rounded by itself", "grant a 9", "use 1 tiered; use 1 tiered; use 2 tiered", [3]),
    ("budgets", "grant a 9; budget b 3 team=*; budget c 9", "use 1 team=x; use 2 team=y; use 1 team=x", [2, 1]),
    ("a budget of units", "grant a 9; budget b 3 of work_units", "use 1; use 2", [2]),
    ("a threshold far away", "grant a 9; cap b 100 at 50", "use 1; use 2", [2]),
    ("a threshold passed", "grant a 9; cap b 4 at 50", "use 1; use 2", []),
    ("a soft limit passed", "grant a 9; budget b 2 soft", "use 1; use 2", []),
    ("a threshold passed before", "grant a 9; cap b 4 at 50; use 2", "use 1; use 1", [2]),
    ("a budget's period begins", "grant a 9; budget b 9 per hour; wait 59m", "use 1; wait 2m; use 2", []),
    ("an hour begins without one", "grant a 9; wait 59m", "use 1 ago 30m; wait 2m; use 2 ago 32m", [2]),
    ("a grant ends", "grant a 9 for 60s; grant b 9", "use 1; wait 61s; use 2", [1, 1]),
    ("a grant begins", "grant b 9 p0 in 60s; grant a 9", "use 1; wait 61s; use 2", [1, 1]),
    ("an allowance for all", "grant a 9; subscribe pro", "use 1; use 2; use 3 owing", [2, 1]),
    ("an allowance's end", "grant a 9; subscribe pro", "use 8; use 4", []),
    ("an allowance at its end", "grant a 9; subscribe pro; use 10", "use 1; use 2", [2]),
    ("one that allows more", "grant a 9; subscribe pro", "use 8 owing; use 9 owing", [2]),
    ("a quantity of nothing", "grant a 9; budget b 9", "use 0; use 1", [2]),
    ("duplicates", "grant a 9; use 1 as e", "use 1 as e; use 1 as f; use 2 as f", [1]),
    ("what is undone in between", "grant a 9", "use 1 as e; use 2 as f; undo e; use 3", [2, 1]),
    ("decimal quantities", "grant a 9", "use 0.5; use 1.25", [2]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "before", "uses", "groups"), RUNS)
def test_together_is_the_same_as_one_by_one(what: str, before: str, uses: str, groups: list[int]) -> None:
    steps = [named(step.strip(), number) for number, step in enumerate(uses.split(";"))]
    single = Money(f"{before}; {'; '.join(steps)}", OF)
    together = Money(before, OF)
    entries = in_one_step(together, steps)
    assert [len(group.ids) for entry in entries for group in entry.counted] == groups
    assert rows(together) == rows(single)
    ids = [step.split(" as ")[1].split()[0] for step in steps if step.startswith("use")]
    for id in reversed(ids):
        for told in (together, single):
            told.tell(f"restart; undo {id}; restart; undo {id}")
        assert rows(together) == rows(single), f"after {id} was undone"


def test_the_entry_names_every_event_and_the_postings_the_first() -> None:
    told = Money("grant a 9")
    [entry] = in_one_step(told, ["use 1 as e", "use 2 as f"])
    [group] = entry.counted
    assert (entry.causes[0].id, len(entry.causes), {leg.cause for leg in entry.postings}) == ("e", 1, {0})
    assert (group.ids, group.offsets) == (["e", "f"], [0, 1])
    assert [(delta.events, delta.quantity_nanos, delta.cause) for delta in entry.usage] == [(2, 3 * NANOS, 0)]


def test_groups_are_remembered_after_a_rebuild_from_the_journal() -> None:
    told = Money("grant a 9")
    in_one_step(told, ["use 1 as e", "use 2 as f"])
    assert told.partition.replayed().items() == told.partition.rows.items()


def named(step: str, number: int) -> str:
    return step if " as " in step or not step.startswith("use") else f"{step} as u{number}"


def in_one_step(told: Money, steps: list[str]) -> list[Entry]:
    """Usage events, at their instants, decided in one step."""
    partition, inputs, before = told.partition, [], len(told.partition.entries())
    for step in steps:
        verb, *words = step.split()
        if verb == "wait":
            told.tell(step)
        else:
            event = told.change(verb, words) if verb == "undo" else told.event(words)
            inputs.append(partition.record(topics.USAGE, encode_event(event)))
    partition.apply(*inputs)
    return partition.entries()[before:]


def rows(told: Money) -> dict[bytes, bytes]:
    """The customer's rows; when an account is next looked at depends on the way to it."""
    found = told.partition.rows.items()
    return {key: value for key, value in found if key[:1] != b"\0" and split_key(key)[1] != "account"}
