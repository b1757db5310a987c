"""Which faults come, in which order: a function of the seed and nothing else."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Ways to kill a worker, those that need no rebalance to be met first.
WORK_POINTS: Final = ("appended", "read_back", "table_written", "answered", "dead_lettered")
OPEN_POINTS: Final = ("recovering", "opened")
#: What a worker passes so seldom that the first time must do.
SELDOM: Final = (*OPEN_POINTS, "dead_lettered")
RANDOM: Final = "random"
REBALANCE: Final = "rebalance"
KILLS: Final = (*WORK_POINTS, RANDOM, *OPEN_POINTS, RANDOM, REBALANCE)

#: Everything else that can go wrong, and how many of it come with a hundred kills (one at least).
OTHERS: Final = {
    "pause": 10,
    "broker_killed": 4,
    "sink_killed_in_insert": 5,
    "sink_killed": 3,
    "clickhouse_away": 1,
    "disk_full": 2,
    "tables_deleted": 3,
    "tables_truncated": 3,
    "rebalance_storm": 3,
    "restarted_in_order": 4,
}
#: The share of faults after which the next one does not wait until this one is over, unless told otherwise.
HASTY: Final = 0.5


@dataclass(frozen=True)
class Fault:
    """`kind`: `kill` at the crash point `point` (the `passes`th time), or one of `OTHERS`.

    `worker` is the one that it hits; `wait_seconds` pass before it; `hasty`: the next fault does not wait for recovery.
    """

    kind: str
    worker: int
    wait_seconds: float
    point: str = ""
    passes: int = 1
    hasty: bool = False


def plan(
    kills: int, seed: int, workers: int, others: Sequence[str] = tuple(OTHERS), hasty: float = HASTY
) -> list[Fault]:
    """So many kills, the named other faults among them; `hasty` is the share that the next does not wait for."""
    chance = random.Random(seed)
    ways = [point for _ in range(0, kills, len(KILLS)) for point in chance.sample(KILLS, len(KILLS))]
    wanted = [("kill", point) for point in ways[:kills]]
    for kind in others:
        wanted += [(kind, "")] * max(1, OTHERS[kind] * kills // 100)
    chance.shuffle(wanted)
    return [
        Fault(
            kind,
            chance.randrange(workers),
            chance.uniform(0.2, 1.5),
            point,
            1 if point in SELDOM else chance.randint(1, 6),
            chance.random() < hasty,
        )
        for kind, point in wanted
    ]
