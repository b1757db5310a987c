"""Tells many stories on all cores: `make simulate SEEDS=5000 SEED=1`, or `python -m simulation.run` from `tests/`.

A seed that fails is printed with the command that tells its story again, line by line: `--show`. Exit code 1 then.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simulation.books import Violation
from simulation.story import STEPS, Story, tell

CHUNK = 20
LINES_SHOWN = 200
#: How a seed is told again from the project's folder.
AGAIN = "make simulate SEED={seed} SHOW=1{long}"


def tell_some(begin: int, end: int, long: bool) -> tuple[Counter[str], dict[int, str], float]:
    """The seeds of [begin, end): what happened in them, what must not have, and CPU seconds."""
    logging.getLogger("tallygate").setLevel(logging.CRITICAL)
    started = time.process_time()
    counts: Counter[str] = Counter()
    failed: dict[int, str] = {}
    for seed in range(begin, end):
        try:
            counts.update(Story(seed, long=long).run().counts)
        except Violation as violation:
            failed[seed] = str(violation)
    return counts, failed, time.process_time() - started


def tell_all(
    seed: int, seeds: int, processes: int, long: bool, progress: Progress
) -> Iterator[tuple[Counter[str], dict[int, str], float]]:
    task = progress.add_task("seeds", total=seeds)
    ranges = [(begin, min(begin + CHUNK, seed + seeds)) for begin in range(seed, seed + seeds, CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        work = [(end - begin, pool.submit(tell_some, begin, end, long)) for begin, end in ranges]
        for told, future in work:
            yield future.result()
            progress.advance(task, told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--long", action="store_true", help="days pass and clocks are wrong in every story")
    parser.add_argument("--show", action="store_true", help="tell the one story of --seed, line by line")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    given = parser.parse_args()
    logging.getLogger("tallygate").setLevel(logging.CRITICAL)
    if given.show:
        lines = tell(given.seed, long=given.long).lines or []
        print("\n".join(lines[-LINES_SHOWN:]))
        return int("VIOLATION" in lines[-1])
    return run(given.seed, given.seeds, given.processes, given.long, given.out)


def run(seed: int, seeds: int, processes: int, long: bool, out: Path | None) -> int:
    console = Console(stderr=True)
    counts: Counter[str] = Counter()
    failed: dict[int, str] = {}
    load_before, started, cpu_seconds = os.getloadavg()[0], time.monotonic(), 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for found, bad, seconds in tell_all(seed, seeds, processes, long, progress):
            counts.update(found)
            cpu_seconds += seconds
            failed |= bad
            for each, why in bad.items():
                again = AGAIN.format(seed=each, long=" LONG=1" if long else "")
                progress.console.print(f"seed {each}: {why[:300]}\n  tell it again: {again}", markup=False)
    seconds = time.monotonic() - started
    figures = {
        "seeds": seeds,
        "first_seed": seed,
        "long": long,
        "violations": len(failed),
        "failed_seeds": sorted(failed)[:20],
        "steps_of_a_story": STEPS,
        **dict(sorted(counts.items())),
        "seeds_per_minute": round(seeds / seconds * 60),
        "seeds_per_cpu_minute": round(seeds / cpu_seconds * 60),
        "seconds": round(seconds, 1),
        "processes": processes,
        "cores": os.cpu_count(),
        "load_average_before": round(load_before, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
    }
    print(json.dumps(figures))
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
