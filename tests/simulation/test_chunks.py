"""How inputs of one instant are cut into chunks is nobody's business: answers, dead letters and rows are the same."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.random_run import ACTIONS, Action
from simulation.world import World
from tallygate.pipeline.replay import forgotten_range, seen_key
from tallygate.pipeline.transition import DeadLetter
from tallygate.schemas.instants import DAY_MS
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
        [row for row in world.audit.partition.rows.items() if is_same(row[0])] + remembered(world),
    )


def act(world: World, rng: random.Random, actions: dict[Action, int], steps: int, sizes: list[int]) -> None:
    for step in range(steps):
        [action] = rng.choices(list(actions), list(actions.values()))
        world.audit.chunk = sizes[step % len(sizes)]
        action(world, rng.choice)
    world.audit.flush()


def is_same(key: bytes) -> bool:
    return key[:1] != b"\0" and split_key(key)[1] != _WAKING


def remembered(world: World) -> list[tuple[bytes, bytes]]:
    """What is remembered of each id: of events that were counted together, the table holds it in another form."""
    partition = world.audit.partition
    begin, end = seen_key(0, b""), forgotten_range(1 << 50)[1]
    days = {int.from_bytes(key[6:10], "big") for key, _ in partition.rows.scan(begin, end)}
    found = []
    for day in sorted(days):
        keys = [key for key, _ in partition.rows.scan(seen_key(day, b""), seen_key(day + 1, b""))]
        ids = [key[10:] for key in keys if len(key) == len(seen_key(0, b"")) + 16]
        memories = partition.state.remembered(ids, day * DAY_MS, day * DAY_MS)
        found += [(seen_key(day, id), b"\n".join(memories[id])) for id in ids]
    return found
