"""What do usage batches cost the worker, stage by stage? `python load-tests/batch_bench.py [--plan] [--profile]`

No broker and no disk: runs of Arrow batches of 1 000 events for one of 8 partitions of 10 000 customers with a heavy
tail, read and grouped as in the worker's thread, then decided in parts and committed. CPU seconds of this process.
Without `--plan` each customer has one grant and one meter with a price; with it, the plan of `tallygate bench`: two
meters, two budgets that apply, an allowance, credits. `tallygate bench usage --shape batch` is the whole way.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from usage_load import EVENT_TYPE, UsageLoad

from partition import Partition
from tallygate.pipeline.decide import decide
from tallygate.pipeline.rules import Rules
from tallygate.schemas import topics
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.records import Record
from tallygate.schemas.requests import GiveGrant, Subscribe
from tallygate.schemas.usage_batch import BatchId, batch_headers
from tallygate.topologies import bench
from tallygate.topologies.catalog_yaml import read_files
from tallygate.topologies.usage_runs import Run, RunReader

PARTITIONS, PARTITION = 8, 3
GROUPS_A_PART = 100


def simple(dimensions: list[str]) -> Catalog:
    meter = {"event_type": EVENT_TYPE, "value": "tokens", "dimensions": dimensions}
    rate = {"meter": "tokens", "credits": 250, "per": 1_000_000}
    feature = {"meters": ["tokens"], "rates": [rate], "overage": "unlimited"}
    return read_catalog({"meters": {"tokens": meter}, "features": {"llm": feature}}, "bench").compile(1)


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self._records = options.records
        self._load = UsageLoad(PARTITIONS)
        catalog = simple([d for d in options.dimensions.split(",") if d])
        if options.plan:
            catalog = read_files(Path(bench.__path__[0]) / "data" / "bench.yaml").compile(1)
        self.partition = Partition(catalog)
        for customer in self._load.customers:
            if partition_of(customer, PARTITIONS) != PARTITION:
                continue
            if options.plan:
                self.partition.ask(Subscribe(id="s", customer=customer, plan="bench"))
            else:
                self.partition.ask(GiveGrant(id="g", customer=customer, amount=Decimal(10**9)))
        self._reader = RunReader(PARTITIONS, Rules())
        self._sequence = 0

    def records(self) -> list[Record]:
        found = []
        for _ in range(self._records):
            headers = tuple(batch_headers(BatchId("bench", 1, self._sequence)))
            value = self._load.batch(PARTITION, self.partition.now)
            found.append(Record(topics.USAGE, PARTITION, self._sequence, self.partition.now, None, value, headers))
            self._sequence += 1
        return found

    def read(self, records: list[Record]) -> Run:
        return self._reader.read(records, self.partition.catalog)

    def apply(self, run: Run) -> dict[str, float]:
        partition = self.partition
        seconds = {"decide": 0.0, "commit": 0.0}
        records = size = 0
        while not run.ended:
            part = run.next(GROUPS_A_PART)
            began = time.process_time()
            transition = decide(partition.state, [part], partition.catalog, partition.rules)
            seconds["decide"] += time.process_time() - began
            partition.rows.apply(transition.writes)
            began = time.process_time()
            partition.state.commit(transition)
            seconds["commit"] += time.process_time() - began
            records += len(transition.records)
            size += sum(len(key) + len(value or b"") for key, value in transition.records)
        return {**seconds, "journal_records": records, "journal_bytes": size}


def one_round(bench: Bench) -> dict[str, Any]:
    records = bench.records()
    began = time.process_time()
    run = bench.read(records)
    read = time.process_time() - began
    groups = sum(len(each) for _, each in run.customers)
    done = bench.apply(run)
    events = 1_000 * len(records)
    core = done["decide"] + done["commit"]
    return {
        "events": events,
        "customers": len(run.customers),
        "groups": groups,
        "journal_records": done["journal_records"],
        "journal_bytes_per_event": round(done["journal_bytes"] / events, 1),
        "read_and_group_events_per_cpu_second": round(events / read),
        "rules_us_per_customer": round(core * 1e6 / len(run.customers), 1),
        "events_per_cpu_second": round(events / (read + core)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=60, help="batches a run")
    parser.add_argument("--dimensions", default="", help="of the meter: model")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options)
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the worker does
    if options.profile:
        one_round(bench)
        records = bench.records()
        for name, call in (
            ("read and group", lambda: bench.read(records)),
            ("rules", lambda: bench.apply(bench.read(records))),
        ):
            print(f"---- {name} ----")
            profile = cProfile.Profile(time.process_time)
            profile.runcall(call)
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    rounds = [one_round(bench) for _ in range(options.rounds)]
    best = max(rounds[1:], key=lambda each: each["events_per_cpu_second"])
    result = {"load_average": os.getloadavg()[0], "cores": os.cpu_count(), "plan": options.plan, **best}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
