"""What does a decision cost whose code and data are not in the processor's caches? `python load-tests/cold_bench.py`

No broker and no disk: one request a step, reserve and settle in turns, on the plan of `tallygate bench` (a rate limit,
six budgets, an allowance, credits), through `decide` alone. Once as fast as they go, and once with 24 MB of other
memory written between two steps, as other processes do where requests are few. `--json FILE`
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from decimal import Decimal
from importlib.resources import as_file, files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from partition import Partition
from tallygate.pipeline.decide import decide
from tallygate.pipeline.replay import table_writes
from tallygate.schemas import topics
from tallygate.schemas.requests import Request, Reserve, Settle, Subscribe, encode_request
from tallygate.topologies.bench.decision_load import FEATURE, PLAN
from tallygate.topologies.bench.usage_load import dimensions
from tallygate.topologies.catalog_yaml import read_files

CUSTOMERS = 12
OTHERS_BYTES = 24 << 20
CACHE_LINE = 64


def prepared() -> Partition:
    with as_file(files("tallygate.topologies.bench").joinpath("data", "bench.yaml")) as catalog:
        partition = Partition(read_files(catalog).compile(1))
    for number in range(CUSTOMERS):
        partition.ask(Subscribe(id=f"s{number}", customer=f"c{number}", plan=PLAN))
    return partition


def measured(pairs: int, others: bytearray | None) -> dict[str, float]:
    """Microseconds a request."""
    partition, chance = prepared(), random.Random(1)
    took: list[float] = []
    for number in range(pairs):
        customer, who = f"c{chance.randrange(CUSTOMERS)}", dimensions(chance)
        quantities = {"bench_calls": Decimal(1), "bench_tokens": Decimal(chance.randrange(1, 4_000))}
        asked: tuple[Request, ...] = (
            Reserve(id=f"r{number}", customer=customer, feature=FEATURE, quantities=quantities, dimensions=who),
            Settle(id=f"s{number}", customer=customer, hold=f"r{number}", quantities=quantities),
        )
        for request in asked:
            each = partition.record(topics.REQUESTS, encode_request(request))
            if others is not None:
                others[::CACHE_LINE] = bytes(len(others) // CACHE_LINE)
            started = time.perf_counter()
            transition = decide(partition.state, [each], partition.catalog, partition.rules)
            took.append(1e6 * (time.perf_counter() - started))
            for key, value in transition.records:
                partition.rows.apply(table_writes(key, value))
            partition.state.commit(transition)
    return {"median_us": round(statistics.median(took), 1), "mean_us": round(statistics.fmean(took), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--pairs", type=int, default=3_000)
    options = parser.parse_args()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the worker does
    result = {
        "load_average_before": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "warm": measured(options.pairs, None),
        "cold": measured(options.pairs, bytearray(OTHERS_BYTES)),
        "load_average_after": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
