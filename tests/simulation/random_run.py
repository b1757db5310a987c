"""Long random lives of a partition, against its oracle: `python tests/simulation/random_run.py --seed 7 --steps 9000`.

The seed alone decides what happens; where something disagrees, the last steps are printed with it.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation.world import Pick, World

Action = Callable[[World, Pick], None]
#: How often each action is taken, in proportion.
ACTIONS: dict[Action, int] = {
    World.wait: 4,
    World.tick: 4,
    World.restart: 1,
    World.grant: 4,
    World.budget: 1,
    World.reserve: 10,
    World.settle: 6,
    World.release: 2,
    World.use: 4,
    World.use_again: 1,
    World.use_wrongly: 1,
    World.misuse: 1,
    World.repeat: 2,
}
#: A world is left after so many steps: the naive oracle sums its whole past up at every look.
STEPS_OF_A_WORLD = 250


def run(seed: int, steps: int) -> None:
    """Worlds one after the other until the steps are done; an `AssertionError` names the seed that shows the fault."""
    done = 0
    while done < steps:
        one_world(seed, min(STEPS_OF_A_WORLD, steps - done))
        done += STEPS_OF_A_WORLD
        seed += 1


def one_world(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    world = World(chunk=rng.choice((1, 1, 2, 3, 7)))
    try:
        for step in range(steps):
            [action] = rng.choices(list(ACTIONS), list(ACTIONS.values()))
            action(world, rng.choice)
            if step % 10 == 0:
                world.compare()
        world.close()
    except AssertionError as error:
        story = "\n".join(world.log[-40:])
        raise AssertionError(f"seed {seed}, {steps} steps, the last of them:\n{story}\n{error}") from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--steps", type=int, default=10_000)
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.steps} steps")
    run(given.seed, given.steps)
    print("agreed")
