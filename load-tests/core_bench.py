"""How many decisions does the core take a second of CPU? `python load-tests/core_bench.py [--json FILE] [--profile]`

No broker and no disk: inputs as the worker hands them over, in chunks of 64 requests or 256 events, through `decide`
and `commit`, against three budgets (agent, team, customer), two grants and a feature of three meters. A pair is one
reserve and its settle. Reading the records and writing the table are not in it.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from partition import CATALOG, Partition, event
from tallygate.pipeline.decide import decide
from tallygate.pipeline.replay import table_writes
from tallygate.pipeline.transition import Input
from tallygate.schemas import topics
from tallygate.schemas.events import encode_event
from tallygate.schemas.requests import GiveGrant, Reserve, SetBudget, Settle, encode_request

WHO = {"agent": "drafter", "team": "research"}
Make = Callable[[Partition, int, int, int], list[Input]]


def prepared(customers: int) -> Partition:
    partition = Partition(CATALOG)
    for n in range(customers):
        name = f"c{n}"
        for grant in ("g1", "g2"):
            partition.ask(GiveGrant(id=grant, customer=name, amount=Decimal(10**9)))
        for number, scope in enumerate(({"agent": "*"}, {"team": "*"}, {})):
            limit = Decimal(10**9)
            partition.ask(SetBudget(id=f"b{number}", customer=name, name=f"b{number}", scope=scope, limit=limit))
    return partition


def pairs(partition: Partition, count: int, customers: int, start: int) -> list[Input]:
    inputs: list[Input] = []
    for n in range(start, start + count):
        customer = f"c{n % customers}"
        asked = {"input_tokens": Decimal(500), "output_tokens": Decimal(100)}
        reserve = Reserve(id=f"r{n}", customer=customer, feature="llm", quantities=asked, dimensions=WHO)
        used = {"input_tokens": Decimal(500), "output_tokens": Decimal(80 + n % 20)}
        settle = Settle(id=f"r{n}", customer=customer, hold=f"r{n}", quantities=used)
        inputs += [partition.record(topics.REQUESTS, encode_request(each)) for each in (reserve, settle)]
    return inputs


def events(partition: Partition, count: int, customers: int, start: int) -> list[Input]:
    found = []
    for n in range(start, start + count):
        used = event(f"e{n}", f"c{n % customers}", input_tokens=500, output_tokens=100, **WHO)
        found.append(partition.record(topics.USAGE, encode_event(used)))
    return found


def run(partition: Partition, inputs: list[Input], chunk: int) -> float:
    """CPU seconds in `decide` and `commit`."""
    seconds = 0.0
    for at in range(0, len(inputs), chunk):
        started = time.process_time()
        transition = decide(partition.state, inputs[at : at + chunk], partition.catalog, partition.rules)
        seconds += time.process_time() - started
        for key, value in transition.records:
            partition.rows.apply(table_writes(key, value))
        started = time.process_time()
        partition.state.commit(transition)
        seconds += time.process_time() - started
    return seconds


def rates(make: Make, count: int, customers: int, chunk: int, rounds: int) -> list[float]:
    """Units a CPU second, a figure a round; the first round warms up and does not count."""
    partition = prepared(customers)
    found = []
    for number in range(rounds + 1):
        inputs = make(partition, count, customers, number * count)
        found.append(count / run(partition, inputs, chunk))
    return found[1:]


def profiled(count: int) -> None:
    partition = prepared(1)
    inputs = pairs(partition, count, 1, 0)
    profile = cProfile.Profile()
    profile.runcall(run, partition, inputs, 64)
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.profile:
        profiled(options.count)
        return
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the worker does
    result: dict[str, object] = {
        "load_average_before": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    shapes: tuple[tuple[str, Make, int, int], ...] = (
        ("pairs_one_customer", pairs, 1, 64),
        ("pairs_100_customers", pairs, 100, 64),
        ("events_100_customers", events, 100, 256),
    )
    for name, make, customers, chunk in shapes:
        found = rates(make, options.count, customers, chunk, options.rounds)
        result[f"{name}_per_cpu_second"] = {"median": round(statistics.median(found)), "best": round(max(found))}
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    for name, value in result.items():
        print(f"{name:38} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
