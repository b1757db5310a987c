"""`make chaos KILLS=20 SEED=1`: all of Tallygate on this machine, under load, while everything around it breaks.

Ends with one JSON line, and with 1 if anything was lost, doubled, overdrawn, left unanswered or booked differently.
Progress and findings are shown on stderr. The same seed gives the same faults and the same flows; when each comes in
between is the machine's.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from chaos.audit import gather, until_applied
from chaos.fleet import Fleet
from chaos.load import CATALOG, SERVICE, Load, customers_of
from chaos.oracle import judge, percentiles, takeovers
from chaos.plan import OTHERS, Fault, plan
from chaos.story import Story
from tallygate.connectors.kafka_admin import declare_topics
from tallygate.connectors.kafka_local import LocalKafkaError
from tallygate.schemas.topics import topic_specs
from topic_waits import await_leaders

_SHOWN = 10
_PATIENCE_SECONDS = 180.0


def main() -> int:
    options = _options()
    out = Console(stderr=True)
    faults = plan(options.kills, options.seed, options.workers, options.faults)
    folder = Path(tempfile.mkdtemp(prefix="tallygate-chaos-"))
    try:
        result, clean = run(options, faults, folder, out)
    except LocalKafkaError as error:
        out.print(f"chaos: {error}")
        return 3
    if clean and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        out.print(f"logs and tables are kept in {folder}")
    line = json.dumps(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 0 if clean else 1


def run(options: argparse.Namespace, faults: list[Fault], folder: Path, out: Console) -> tuple[dict[str, Any], bool]:
    began, load_before = time.monotonic(), os.getloadavg()
    kinds = {fault.kind for fault in faults}

    def say(line: str) -> None:
        out.print(f"[dim]{time.monotonic() - began:7.1f} s[/dim]  {line}", highlight=False)

    fleet = Fleet(folder, options.workers, server="clickhouse_away" in kinds, small_disk="disk_full" in kinds, say=say)
    with fleet:
        brokers = fleet.broker.bootstrap
        declare_topics({"bootstrap.servers": brokers}, topic_specs(options.partitions))
        await_leaders(brokers)
        fleet.publish(CATALOG)
        fleet.start()
        fleet.wait_ready()
        load = Load(brokers, customers_of(options.partitions, 3), options.partitions, options.seed, options.pause)
        load.start()
        story = Story(fleet, load, options.seed, options.away, say)
        story.run(faults)
        say("the load ends; what was asked is waited for")
        load.finish(_PATIENCE_SECONDS)
        until_applied(brokers, options.partitions, _PATIENCE_SECONDS)
        say("reading the journal, the answers and ClickHouse")
        evidence = gather(fleet, options.partitions, SERVICE, load.record)
    findings = judge(evidence)
    for name, found in vars(findings).items():
        for line in found[:_SHOWN]:
            out.print(f"[red]{name}[/red]: {line}", highlight=False, markup=True)
    troubles = [*load.record.troubles, *story.not_recovered, *fleet.troubles]
    for line in troubles:
        out.print(f"trouble: {line}", highlight=False, markup=False)
    result = {
        "events": len(evidence.record.events),
        "requests": len(evidence.record.asked),
        "kills": len(evidence.killed),
        "pauses": story.done["pause"],
        **findings.counts(),
        **percentiles(takeovers(evidence)),
        "troubles": len(troubles),
        "seed": options.seed,
        "planned_kills": options.kills,
        "kill_points": dict(sorted(story.points.items())),
        "faults": dict(sorted(story.done.items())),
        "broker_restarts": fleet.broker_restarts,
        "sink_ends": sum(len(sink.lives) for sink in fleet.sinks),
        "worker_ends_by_code": fleet.exits(),
        "poison": len(evidence.record.poison),
        "answers": len(evidence.replies),
        "journal_transitions": len(evidence.journal.transitions),
        "journal_stale_records": evidence.journal.stale,
        "terms": sum(len(terms) for terms in evidence.journal.opened.values()),
        "workers": options.workers,
        "partitions": options.partitions,
        "disk": fleet.disk,
        "seconds": round(time.monotonic() - began),
        "cores": os.cpu_count(),
        "load_average_before": round(load_before[0], 1),
        "load_average_after": round(os.getloadavg()[0], 1),
    }
    return result, findings.clean and not troubles


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many kill -9 of workers are planned")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds that a caller rests between two flows")
    parser.add_argument("--away", type=float, default=60.0, help="seconds that ClickHouse is away")
    parser.add_argument("--keep", action="store_true", help="keep logs and tables in any case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    parser.add_argument(
        "--faults",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=tuple(OTHERS),
        help=f"what else goes wrong, with commas: {', '.join(OTHERS)}; all of it by default",
    )
    options = parser.parse_args()
    if unknown := set(options.faults) - set(OTHERS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
