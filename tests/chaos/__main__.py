"""`make chaos KILLS=20 SEED=1`: all of Tallygate on this machine, under load, while everything around it breaks.

Ends with one JSON line, and with 1 if anything was lost, doubled, overdrawn, left unanswered or booked differently.
Progress and findings are shown on stderr. The same seed gives the same faults and the same flows; when each comes in
between is the machine's.
"""

import argparse
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from chaos.audit import gather, until_applied
from chaos.evidence import Evidence
from chaos.fleet import SESSION_MS, Fleet
from chaos.load import CATALOG, SERVICE, Load, customers_of
from chaos.oracle import judge, percentiles, takeovers
from chaos.plan import HASTY, OTHERS, plan
from chaos.story import Story
from tallygate.connectors.kafka_admin import declare_topics
from tallygate.connectors.kafka_local import LocalKafkaError
from tallygate.schemas.topics import topic_specs
from topic_waits import await_leaders

_SHOWN = 10
_PATIENCE_SECONDS = 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    out = Console(stderr=True)
    if options.judge:
        return conclude(*pickle.loads(options.judge.read_bytes()), options, out)
    folder = Path(tempfile.mkdtemp(prefix="tallygate-chaos-"))
    try:
        evidence, facts = run(options, folder, out)
    except LocalKafkaError as error:
        out.print(f"chaos: {error}")
        return 3
    if options.evidence:
        options.evidence.write_bytes(pickle.dumps((evidence, facts)))
    code = conclude(evidence, facts, options, out)
    if code or options.keep:
        out.print(f"logs and tables are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def run(options: argparse.Namespace, folder: Path, out: Console) -> tuple[Evidence, dict[str, Any]]:
    """Everything started, the plan carried out, everything ended: what was seen, and under which conditions."""
    began, load_before = time.monotonic(), os.getloadavg()
    faults = plan(options.kills, options.seed, options.workers, options.faults, options.hasty)
    kinds = {fault.kind for fault in faults}

    def say(line: str) -> None:
        out.print(f"[dim]{time.monotonic() - began:7.1f} s[/dim]  {line}", highlight=False)

    server, small_disk = "clickhouse_away" in kinds, "disk_full" in kinds
    with Fleet(folder, options.workers, nodes=options.nodes, server=server, small_disk=small_disk, say=say) as fleet:
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
        say("the journal, the answers and ClickHouse are read")
        evidence = gather(fleet, options.partitions, SERVICE, load.record)
    evidence.troubles = [*load.record.troubles, *fleet.troubles]
    facts = {
        "seed": options.seed,
        "commit": _commit(),
        "session_timeout_ms": SESSION_MS,
        "planned_kills": options.kills,
        "kill_points": dict(sorted(story.points.items())),
        "faults": dict(sorted(story.done.items())),
        "slow": story.slow,
        "broker_restarts": fleet.broker_restarts,
        "sink_ends": sum(len(sink.lives) for sink in fleet.sinks),
        "worker_ends_by_code": fleet.exits(),
        "hasty": options.hasty,
        "workers": options.workers,
        "partitions": options.partitions,
        "brokers": options.nodes,
        "disk": fleet.disk,
        "seconds": round(time.monotonic() - began),
        "cores": os.cpu_count(),
        "load_average_before": round(load_before[0], 1),
        "load_average_max": round(story.load_average_max, 1),
        "load_average_after": round(os.getloadavg()[0], 1),
    }
    return evidence, facts


def conclude(evidence: Evidence, facts: dict[str, Any], options: argparse.Namespace, out: Console) -> int:
    """Shows what is wrong, prints the line, and gives the exit code."""
    findings = judge(evidence)
    shown = {**vars(findings), "trouble": evidence.troubles}
    for name, found in shown.items():
        for line in found[:_SHOWN]:
            out.print(f"{name}: {line}", highlight=False, markup=False)
    result = {
        "events": len(evidence.record.events),
        "requests": len(evidence.record.asked),
        "kills": len(evidence.killed),
        "pauses": facts["faults"].get("pause", 0),
        **findings.counts(),
        **percentiles(takeovers(evidence)),
        "troubles": len(evidence.troubles),
        "answers": len(evidence.replies),
        "poison": len(evidence.record.poison),
        "journal_transitions": len(evidence.journal.transitions),
        "journal_stale_records": evidence.journal.stale,
        "terms": sum(len(terms) for terms in evidence.journal.opened.values()),
        **facts,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if findings.clean and not evidence.troubles else 1


def _commit() -> str:
    ran = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return ran.stdout.strip()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many kill -9 of workers are planned")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--nodes", type=int, choices=(1, 3), default=1, help="how many brokers; of three the leader is killed"
    )
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument(
        "--hasty", type=float, default=HASTY, help="the share of faults that the next one does not wait for"
    )
    parser.add_argument("--pause", type=float, default=1.0, help="seconds that a caller rests between two flows")
    parser.add_argument("--away", type=float, default=60.0, help="seconds that ClickHouse is away")
    parser.add_argument("--evidence", type=Path, metavar="FILE", help="keep there what the oracles were given")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="run nothing: judge what --evidence has kept")
    parser.add_argument("--keep", action="store_true", help="keep logs and tables in any case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    parser.add_argument(
        "--faults",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=tuple(OTHERS),
        help=f"what else goes wrong, with commas: {', '.join(OTHERS)}; all of it by default",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.faults) - set(OTHERS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever runs is ended on the way out
    sys.exit(main())
