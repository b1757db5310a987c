"""How inputs of one instant are cut into chunks is nobody's business: answers, dead letters and rows are the same."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.random_run import ACTIONS, Action
from simulation.world import World
from tallygate.pipeline.transition import DeadLetter
from tallygate.schemas.journal import split_key

TIMELESS = {
    action: weight for action, weight in ACTIONS.items() if action not in (World.wait, World.tick, World.restart)
}
#: When an account is next looked at is kept as early as is enough, so it depends on the way to it.
_WAKING = "account"


@settings(max_examples=40, deadline=None, print_blob=True)
@given(seed=st.integers(0, 1 << 32), sizes=st.lists(st.integers(2, 9), min_size=1, max_size=3))
def test_chunking_does_not_matter_within_an_instant(seed: int, sizes: list[int]) -> None:
    expected = told(seed, [1])
    assert told(seed, sizes) == expected
    assert told(seed, [1000]) == expected


Told = tuple[list[bytes], list[DeadLetter], list[tuple[bytes, bytes]]]


def told(seed: int, sizes: list[int]) -> Told:
    """A past in single steps, then an instant in chunks of these sizes, in turn."""
    rng = random.Random(seed)
    world = World()
    act(world, rng, ACTIONS, 40, [1])
    before = len(world.audit.partition.transitions)
    act(world, rng, TIMELESS, 40, sizes)
    transitions = world.audit.partition.transitions[before:]
    world.compare()
    return (
        [reply.answer for transition in transitions for reply in transition.replies],
        [letter for transition in transitions for letter in transition.dead_letters],
        [row for row in world.audit.partition.rows.items() if is_same(row[0])],
    )


def act(world: World, rng: random.Random, actions: dict[Action, int], steps: int, sizes: list[int]) -> None:
    for step in range(steps):
        [action] = rng.choices(list(actions), list(actions.values()))
        world.audit.chunk = sizes[step % len(sizes)]
        action(world, rng.choice)
    world.audit.flush()


def is_same(key: bytes) -> bool:
    return key.startswith(b"\0seen") or (key[:1] != b"\0" and split_key(key)[1] != _WAKING)
