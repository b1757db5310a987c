"""Tallygate and its peers, one after the other in each round: `python load-tests/compare.py SUBJECT...`

Subjects are usage, decisions-200, decisions-1000, decisions-closed, decisions-hot, and leases (whose peer runs in the
same process), sink and growth, which have none; `all` is all of them. What a round found is written to
FOLDER/SUBJECT.json when its rounds are done, and the page with its plots, FOLDER/README.md, at the end. A peer that
cannot run here is told, and is left out.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
from confluent_kafka.admin import AdminClient, NewTopic
from peers.servers import Missing, Server, postgres_server, redis_server

from tallygate.connectors.kafka_fetch import find_java
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.topics import PARTITIONS_DEFAULT, USAGE
from tallygate.topologies.bench.figures import cpu_seconds
from tallygate.topologies.bench.jobs import UsageJob, UsageSent
from tallygate.topologies.bench.processes import BenchProcess

HERE = Path(__file__).parent
PEERS = HERE / "peers"
CACHE = platformdirs.user_cache_path("tallygate") / "peers"
PEER_SECONDS_MAX = 240
CUSTOMERS = 1_000
#: Usage events a second that flow while decisions are measured a second time.
USAGE_BESIDE = 50_000
#: Enough that what a sink costs at its start does not count.
SINK_EVENTS = 200_000
#: Events of each usage peer: some seconds' worth.
EVENTS = {"faust": 20_000, "streams": 200_000, "quix": 200_000, "bytewax": 400_000}

Result = dict[str, Any]


# ---- what is needed ----


def peers_python() -> Path:
    """The interpreter of the peers' own environment, made on first use from their locked packages."""
    lock = PEERS / "requirements.txt"
    folder = CACHE / f"venv-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print("installing the peers' packages (a minute or two, once) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", lock]
        subprocess.run([python, *install], check=True)
        (folder / "ready").touch()
    return python


def streams_classes() -> str:
    """A class path with Kafka Streams and the compiled peer."""
    pom, source = PEERS / "streams" / "pom.xml", PEERS / "streams" / "UsageStreams.java"
    folder = CACHE / f"streams-{hashlib.sha256(pom.read_bytes() + source.read_bytes()).hexdigest()[:12]}"
    classes = f"{folder}/classes:{folder}/jars/*"
    if not (folder / "ready").exists():
        print("fetching Kafka Streams from Maven Central and compiling (once) ...", flush=True)
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={folder / 'jars'}", "-DincludeScope=runtime"]
        try:
            subprocess.run(["mvn", "--batch-mode", "--quiet", "--file", pom, *copy], check=True)
            subprocess.run(["javac", "-cp", classes, "-d", folder / "classes", source], check=True)
        except FileNotFoundError as error:
            raise Missing(f"{error.filename} is not installed: a JDK 17 and Maven are needed") from None
        (folder / "ready").touch()
    return classes


# ---- one measurement each ----


def tallygate(*words: str) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tallygate.topologies.cli", "bench", *words, "--json", str(file)]
        ran = subprocess.run(command, check=False)
        if ran.returncode != 0:
            raise SystemExit(f"`tallygate bench {' '.join(words)}` ended with {ran.returncode}")
        found: Result = json.loads(file.read_text())
        return found


def usage_peer(name: str, command: Callable[[str, int, str], list[Any]]) -> Result:
    """A peer reads a topic of the bench's own events, on a broker of its own."""
    count = EVENTS[name]
    with tempfile.TemporaryDirectory(prefix="tallygate-peer-") as folder, LocalKafka(Path(folder) / "kafka") as kafka:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        admin.create_topics([NewTopic(USAGE, PARTITIONS_DEFAULT, 1)])[USAGE].result(30)
        job = UsageJob(
            kafka={"bootstrap.servers": kafka.bootstrap}, prefix="c", run="peer", customers=CUSTOMERS, count=count
        )
        with BenchProcess(Path(folder), "usage", job, UsageSent) as load:
            load.result()
        broker = cpu_seconds([kafka.pid])
        found = _line_of(command(kafka.bootstrap, count, folder), folder)
        found["broker_cpu_seconds"] = round(cpu_seconds([kafka.pid]) - broker, 2)
    return {
        **found,
        "events_per_second": round(found["events"] / found["seconds"]),
        "events_per_cpu_second": round(found["events"] / found["cpu_seconds"]),
    }


def faust(brokers: str, count: int, folder: str) -> list[Any]:
    return [peers_python(), PEERS / "usage_faust.py", brokers, USAGE, count, PARTITIONS_DEFAULT]


def quix(brokers: str, count: int, folder: str) -> list[Any]:
    return [peers_python(), PEERS / "usage_quix.py", brokers, USAGE, count]


def bytewax(brokers: str, count: int, folder: str) -> list[Any]:
    return [peers_python(), PEERS / "usage_bytewax.py", brokers, USAGE, count]


def streams(brokers: str, count: int, folder: str) -> list[Any]:
    return [find_java(), "-Xmx512m", "-cp", streams_classes(), "UsageStreams", brokers, USAGE, count, f"{folder}/state"]


def decision_peer(name: str, start: Any, rate: int, clients: int, customers: int, seconds: float) -> Result:
    with start() as server, tempfile.TemporaryDirectory(prefix="tallygate-peer-") as folder:
        assert isinstance(server, Server)
        before = server.cpu_seconds()
        words = [server.address, rate, clients, customers, seconds]
        found = _line_of([peers_python(), PEERS / f"decisions_{name}.py", *words], folder)
        found["server_cpu_seconds"] = round(server.cpu_seconds() - before, 2)
    return found


def _line_of(command: list[Any], folder: str) -> Result:
    """The one line of JSON that a peer prints."""
    environment = {**os.environ, "TMPDIR": folder}
    try:
        ran = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=PEER_SECONDS_MAX,
            cwd=folder,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"it did not end within {PEER_SECONDS_MAX} s") from None
    for line in ran.stdout.splitlines():
        with contextlib.suppress(ValueError):
            found: Result = json.loads(line)
            return found
    raise Missing(f"it ended with {ran.returncode}: {(ran.stderr.strip() or ran.stdout.strip())[-300:]}")


# ---- subjects ----


Contenders = dict[str, Callable[[], Result]]


def subjects(seconds: float) -> dict[str, Contenders]:
    usage: Contenders = {name: partial(usage_peer, name, command) for name, command in USAGE_PEERS.items()}
    s = f"{seconds:g}"

    def decisions(words: list[str], rate: int, clients: int, customers: int) -> Contenders:
        return {
            "tallygate": partial(tallygate, "decisions", *words, "--seconds", s),
            "redis": partial(decision_peer, "redis", redis_server, rate, clients, customers, seconds),
            "postgres": partial(decision_peer, "postgres", postgres_server, rate, clients, customers, seconds),
        }

    def busy(rate: int) -> Contenders:
        words = ["--rate", str(rate), "--usage-rate", str(USAGE_BESIDE)]
        return {"tallygate-busy": partial(tallygate, "decisions", *words, "--seconds", s)}

    return {
        "usage": {
            "tallygate": partial(tallygate, "usage", "--shape", "single", "--seconds", s),
            "tallygate-batch": partial(tallygate, "usage", "--shape", "batch", "--seconds", s),
            **usage,
        },
        "decisions-200": {**decisions(["--rate", "200"], 200, 0, 100), **busy(200)},
        "decisions-1000": {**decisions(["--rate", "1000"], 1000, 0, 100), **busy(1000)},
        "decisions-closed": decisions(["--closed", "200"], 0, 200, 100),
        "decisions-hot": decisions(["--hot", "64"], 0, 64, 1),
        "leases": {"tallygate": partial(tallygate, "leases", "--seconds", s)},
        "sink": {"tallygate": partial(tallygate, "sink", "--events", str(SINK_EVENTS))},
        "growth": {"tallygate": partial(tallygate, "growth")},
    }


USAGE_PEERS = {"faust": faust, "quix": quix, "bytewax": bytewax, "streams": streams}


def run(subject: str, contenders: Contenders, rounds: int, folder: Path, append: bool) -> None:
    file = folder / f"{subject}.json"
    missing: dict[str, str] = {}
    found: list[dict[str, Result]] = json.loads(file.read_text())["rounds"] if append and file.exists() else []
    for number in range(1, rounds + 1):
        found.append({})
        for name, measure in contenders.items():
            if name in missing:
                continue
            print(f"\n== {subject}, round {number} of {rounds}: {name}", flush=True)
            before = os.getloadavg()[0]
            try:
                result = measure()
            except Missing as trouble:
                missing[name] = str(trouble)
                print(f"{name} is left out: {trouble}", flush=True)
                continue
            result.setdefault("load_average", {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)})
            found[-1][name] = result
            if not name.startswith("tallygate"):
                print(json.dumps(result), flush=True)
        _write(file, subject, found, missing)


def _write(file: Path, subject: str, rounds: list[dict[str, Result]], missing: dict[str, str]) -> None:
    """After each round, so that one that is broken off does not take the others with it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "subject": subject,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "left_out": missing,
    }
    file.write_text(json.dumps(whole, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="none: only the page is made anew")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each load of Tallygate and the decision peers")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--append", action="store_true", help="keep the rounds that the results have already")
    options = parser.parse_args()
    known = subjects(options.seconds)
    wanted = list(known) if options.subjects == ["all"] else options.subjects
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"there is no subject {unknown[0]!r}; there are {', '.join(known)}")
    for name in wanted:
        run(name, known[name], options.rounds, options.results, options.append)
    subprocess.run([peers_python(), HERE / "page.py", options.results], check=True)


if __name__ == "__main__":
    main()
