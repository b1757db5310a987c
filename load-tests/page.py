"""The page of results, made from their JSON files: README.md and its plots. `python page.py FOLDER [--png FOLDER]`

It needs matplotlib, which is among the peers' packages; `compare.py` runs it with those.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

NAMES = {
    "tallygate": "Tallygate",
    "tallygate-batch": "Tallygate, batches",
    "tallygate-busy": "Tallygate, usage beside",
    "faust": "Faust agent, table",
    "quix": "Quix Streams, stateless",
    "bytewax": "Bytewax, stateless",
    "streams": "Kafka Streams, store, exactly once",
    "redis": "Redis, Lua, one counter",
    "postgres": "Postgres, row locks, ledger",
}
LATENCIES = {
    "decisions-200": "200 calls a second",
    "decisions-1000": "1 000 calls a second",
    "decisions-closed": "200 clients, closed",
    "decisions-hot": "one hot customer, 64 agents, closed",
}
OURS, OTHERS = "#1f6f8b", "#b8b8b8"
LEVELS = (("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p99.9"))

PROCESSES = ("worker", "broker", "sink", "generator")

#: Words, subject, contender, figure, and what is asked of it.
GOALS = (
    ("single events: end to end, events/s", "usage", "tallygate", "sustained_per_second", 60_000),
    ("single events: for each worker CPU-second", "usage", "tallygate", "worker_events_per_cpu_second", 100_000),
    ("batches: end to end, events/s", "usage", "tallygate-batch", "sustained_per_second", 1_000_000),
    ("batches: for each worker CPU-second", "usage", "tallygate-batch", "worker_events_per_cpu_second", 3_000_000),
    ("batches: lag p99, ms", "usage", "tallygate-batch", "lag_ms_p99", 1_000),
    ("200 calls/s beside usage: p50, ms", "decisions-200", "tallygate-busy", "p50_ms", 3),
    ("200 calls/s beside usage: p99, ms", "decisions-200", "tallygate-busy", "p99_ms", 5),
    ("1 000 calls/s beside usage: p99, ms", "decisions-1000", "tallygate-busy", "p99_ms", 10),
    ("200 clients: answers/s", "decisions-closed", "tallygate", "answers_per_second", 5_000),
    ("200 clients: p99, ms", "decisions-closed", "tallygate", "p99_ms", 100),
    ("one hot customer: reserve and settle/s", "decisions-hot", "tallygate", "pairs_per_second", 2_000),
    ("one hot customer: p99, ms", "decisions-hot", "tallygate", "p99_ms", 50),
    ("leases: local decision p99, µs", "leases", "tallygate", "p99_us", 50),
    ("sink: rows for each CPU-second", "sink", "tallygate", "rows_per_cpu_second", 1_000_000),
)

Subject = dict[str, Any]
Value = Callable[[dict[str, Any]], float | None]

plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tallygate", "font.size": 9, "font.family": "sans-serif"})


def spread(subject: Subject, name: str, value: Value) -> tuple[float, float, float] | None:
    """(median, least, most) over the rounds; None where no round has it."""
    found = [value(each[name]) for each in subject["rounds"] if name in each]
    known = [each for each in found if each is not None]
    return (statistics.median(known), min(known), max(known)) if known else None


def contenders(subject: Subject) -> list[str]:
    """Those that any round has, in the order of `NAMES`."""
    return [name for name in NAMES if any(name in each for each in subject["rounds"])]


def key(name: str) -> Value:
    return lambda result: result.get(name)


def per_cpu_second(result: dict[str, Any]) -> float | None:
    return result.get("worker_events_per_cpu_second") or result.get("events_per_cpu_second")


def per_second(result: dict[str, Any]) -> float | None:
    return result.get("sustained_per_second") or result.get("events_per_second")


def cpu_ms(process: str) -> Value:
    """Of a process, for each answer; with usage beside, what that costs is in it."""
    return lambda result: (cpu := result.get(f"{process}_cpu_seconds")) and 1000 * cpu / result["answered"]


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"


def shown(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return "–"
    median, least, most = found
    return number(median) if least == most else f"{number(median)} ({number(least)}–{number(most)})"


def shown_median(found: tuple[float, float, float] | None) -> str:
    return "–" if found is None else number(found[0])


# ---- plots ----


def bars(axis: Any, subject: Subject, value: Value, title: str) -> None:
    """A bar for each contender: the median of the rounds, with their range. They lie far apart: a log scale."""
    found = {name: got for name in contenders(subject) if (got := spread(subject, name, value))}
    names = list(found)[::-1]
    medians = [found[name][0] for name in names]
    errors = [[found[n][0] - found[n][1] for n in names], [found[n][2] - found[n][0] for n in names]]
    colours = [OURS if name.startswith("tallygate") else OTHERS for name in names]
    axis.barh([NAMES[name] for name in names], medians, xerr=errors, color=colours, error_kw={"lw": 0.8, "capsize": 2})
    axis.set_xscale("log")
    axis.set_xlim(min(medians) / 3, max(medians) * 8)
    for place, (median, name) in enumerate(zip(medians, names, strict=True)):
        axis.text(max(median, found[name][2]) * 1.15, place, number(median), va="center", fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    plain(axis)


def latencies(axis: Any, subject: Subject, title: str) -> None:
    """Percentiles by contender, one point each, the range of the rounds behind it; the bare echo as dotted lines."""
    names = contenders(subject)
    for place, name in enumerate(names[::-1]):
        colour = OURS if name.startswith("tallygate") else "#777777"
        for (level, _), marker in zip(LEVELS, "o^s", strict=True):
            if found := spread(subject, name, key(level)):
                axis.plot(found[1:], [place, place], color=colour, lw=1, alpha=0.5)
                axis.plot(found[0], place, marker, color=colour, ms=5)
    axis.set_yticks(range(len(names)), [NAMES[name] for name in names[::-1]])
    axis.set_ylim(-0.6, len(names) - 0.4)
    echo = spread(subject, "tallygate", lambda result: result["limits"]["echo_ms_p50"])
    if echo:
        axis.axvline(echo[0], color="#c46a2b", lw=0.8, ls=":")
    axis.set_xscale("log")
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("ms", fontsize=8)
    plain(axis)


def plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", lw=0.3, alpha=0.6)
    axis.set_axisbelow(True)


def save(figure: Any, name: str, folder: Path, png: Path | None) -> None:
    figure.tight_layout()
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    if png is not None:
        figure.savefig(png / f"{name}.png", dpi=110)
    plt.close(figure)


# ---- the page ----


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def usage_part(subject: Subject) -> str:
    rows = []
    for name in contenders(subject):
        lag = [shown(spread(subject, name, key(f"lag_ms_{level}"))) for level in ("p50", "p99", "p999")]
        visible = shown(spread(subject, name, key("visible_lag_ms_p99")))
        rates = [shown(spread(subject, name, each)) for each in (per_second, per_cpu_second)]
        runs = [each[name] for each in subject["rounds"] if name in each]
        if lost := sum(not run.get("held", True) for run in runs):
            rates[0] += f"; in {lost} of {len(runs)} rounds a backlog grew"
        rows.append([NAMES[name], *rates, *lag, visible])
    head = ["", "events/s", "per CPU-second", "lag p50, ms", "p99", "p99.9", "in ClickHouse, p99"]
    return f"""## Usage

![Events a second, and for each CPU-second](usage.svg)

Tallygate's rate is what it sustained from the generator into ClickHouse, each event counted once, paid with credits
and in the ledger; its CPU-seconds are the worker's. The peers work off a topic that is full already, and do less:
Quix Streams and Bytewax decode and look at each event; the Faust agent adds to a table, at least once; Kafka Streams
sums in a store, exactly once. None has a ledger, limits or a database behind it. Their CPU-seconds are their
process's. Median of the rounds, least and most in brackets.

{table(head, rows)}
{physical(subject)}"""


def physical(subject: Subject) -> str:
    lines = []
    for name in ("tallygate", "tallygate-batch"):
        results = [each[name]["limits"] for each in subject["rounds"] if name in each]
        if not results:
            continue
        produced = statistics.median(each["produced_per_second"] for each in results)
        consumed = statistics.median(each["consumed_per_second"] for each in results)
        size, events = results[0]["record_bytes"], results[0]["events_per_record"]
        text = (
            f"* {NAMES[name]}: the same broker, with nothing of Tallygate, takes {number(produced)} records of {size} "
            f"bytes a second from librdkafka and gives {number(consumed)} (events in each: {number(events)})"
        )
        if results[0]["decoded_per_cpu_second"]:
            decoded = statistics.median(each["decoded_per_cpu_second"] for each in results)
            text += f"; msgspec decodes {number(decoded)} a CPU-second"
        reached = statistics.median(r["reached_of_produce"] for r in results)
        lines.append(f"{text}. Reached: {reached:.1%} of producing.")
    return "\n".join(lines) + "\n"


def decisions_part(found: dict[str, Subject]) -> str:
    parts = [
        "## Decisions\n\n![Latencies of reservations](decisions.svg)\n",
        "A call is a reservation, then its settlement. Circles are p50, triangles p99, squares p99.9 of the",
        "reservation, from when it was due until its answer; the dotted line is the p50 of a bare request and",
        "reply over the same broker. Tallygate looks at a rate limit, six budgets, an allowance and credits,",
        "journals the decision. Redis runs one script on one counter and writes nothing to disk;",
        "Postgres locks a row and writes a ledger row, on disk at each commit.\n",
    ]
    for name, subject in found.items():
        rows = []
        for each in contenders(subject):
            figures = [shown(spread(subject, each, key(level))) for level, _ in LEVELS]
            answers = shown(spread(subject, each, key("answers_per_second")))
            sums = {k: sum(r[each].get(k, 0) for r in subject["rounds"] if each in r) for k in ("sent", "answered")}
            over = "–"
            if each.startswith("tallygate"):
                over = number(max(r[each]["overdraft"] for r in subject["rounds"] if each in r))
            asked = f"{number(sums['sent'])} / {number(sums['answered'])}"
            costs = " / ".join(shown_median(spread(subject, each, cpu_ms(process))) for process in PROCESSES)
            rows.append([NAMES[each], *figures, answers, asked, over, costs if each.startswith("tallygate") else "–"])
        head = [LATENCIES[name], "p50, ms", "p99", "p99.9", "answers/s", "sent / answered", "overdraft"]
        head.append("CPU ms an answer: worker / broker / sink / client")
        parts.append(table(head, rows))
    return "\n".join(parts)


def goals_part(found: dict[str, Subject]) -> str:
    """What Tallygate wants to reach on two shared cores and one broker, and what the rounds' median is."""
    rows = []
    for text, subject, contender, name, asked in GOALS:
        got = spread(found[subject], contender, key(name)) if subject in found else None
        if got is not None:
            least = name.endswith(("per_second", "per_cpu_second"))
            reached = got[0] >= asked if least else got[0] <= asked
            wanted = f"{'≥' if least else '≤'} {number(asked)}"
            rows.append([text, wanted, number(got[0]), "yes" if reached else "no"])
    if "growth" in found:
        worst = max(run["times_the_first"] for each in found["growth"]["rounds"] for run in each["tallygate"]["runs"])
        rows.append(["growth: cost of an event, × the first", "≤ 1.3", number(worst), "yes" if worst <= 1.3 else "no"])
    head = table(["goal, on two cores", "asked", "measured, median", "reached"], rows)
    return f"## Goals\n\n{head}\nWhat stands in the way of the rest, and what was tried: [limits.md](limits.md).\n"


def leases_part(subject: Subject) -> str:
    levels = ("p50", "p99", "p999")
    rows = [
        ["Tallygate, lease", *(shown(spread(subject, "tallygate", key(f"{level}_us"))) for level in levels)],
        [
            "a counter in the process",
            *(shown(spread(subject, "tallygate", key(f"peer_{level}_us"))) for level in levels),
        ],
    ]
    return "## Leases\n\n" + table(["a take, µs", "p50", "p99", "p99.9"], rows)


def sink_part(subject: Subject) -> str:
    names = ("rows_per_second", "rows_per_cpu_second", "records_per_second")
    rates = [shown(spread(subject, "tallygate", key(name))) for name in names]
    head = ["", "rows/s", "rows a sink CPU-second", "journal records/s"]
    return "## Sink\n\n" + table(head, [["from a full journal", *rates]])


def growth_part(subject: Subject) -> str:
    runs: list[list[dict[str, Any]]] = [each["tallygate"]["runs"] for each in subject["rounds"]]
    rows = []
    for same in zip(*runs, strict=True):
        first = same[0]
        figures = [
            number(statistics.median(r[k] for r in same)) for k in ("worker_cpu_us_per_event", "times_the_first")
        ]
        rows.append(
            [f"{number(first['customers'])} customers", str(first["partitions"]), str(first["workers"]), *figures]
        )
    return "## Growth\n\n" + table(["", "partitions", "workers", "µs of worker CPU an event", "× the first"], rows)


def conditions(found: dict[str, Subject]) -> str:
    rows = []
    first: dict[str, Any] = {}
    for name, subject in found.items():
        loads = [
            r["load_average"][when] for each in subject["rounds"] for r in each.values() for when in ("before", "after")
        ]
        first = first or next((r["tallygate"] for r in subject["rounds"] if "tallygate" in r), {})
        out = "; ".join(f"{NAMES[peer]}: {why}" for peer, why in subject["left_out"].items()) or "–"
        rows.append(
            [f"`{name}.json`", subject["at"], str(len(subject["rounds"])), f"{min(loads):g}–{max(loads):g}", out]
        )
    head = ["result", "at", "rounds", "load average", "left out"]
    versions = ", ".join(f"{name} {version}" for name, version in first.get("versions", {}).items() if version)
    broker = ", ".join(f"`{name}={value}`" for name, value in first.get("broker", {}).items())
    return f"""## Conditions

{first.get("cores")} cores ({first.get("machine")}), shared by broker, worker, sink, generator and observer. {versions}.
Broker: {broker}.

{table(head, rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="the plots as pictures there, too")
    options = parser.parse_args()
    folder: Path = options.folder
    names = ("usage", *LATENCIES, "leases", "sink", "growth")
    found = {n: json.loads((folder / f"{n}.json").read_text()) for n in names if (folder / f"{n}.json").exists()}
    found = {name: subject for name, subject in found.items() if "rounds" in subject}
    parts = [
        "# What was measured\n",
        "Made by `make bench` from the JSON files beside it. Contenders took turns, round by round, each on a",
        "broker or server of its own; all are on loopback. Compare within a result, not across them: other",
        "programs ran meanwhile, as the load averages say.\n",
    ]
    if found:
        parts.append(goals_part(found))
    if "usage" in found:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
        bars(left, found["usage"], per_second, "events a second")
        bars(right, found["usage"], per_cpu_second, "events a CPU-second of worker or peer")
        right.set_yticklabels([])
        save(figure, "usage", folder, options.png)
        parts.append(usage_part(found["usage"]))
    decisions = {name: found[name] for name in LATENCIES if name in found}
    if decisions:
        figure, axes = plt.subplots(len(decisions), 1, figsize=(8, 1.6 * len(decisions) + 0.4), squeeze=False)
        for axis, (name, subject) in zip(axes[:, 0], decisions.items(), strict=True):
            latencies(axis, subject, LATENCIES[name])
        save(figure, "decisions", folder, options.png)
        parts.append(decisions_part(decisions))
    if "leases" in found:
        parts.append(leases_part(found["leases"]))
    if "sink" in found:
        parts.append(sink_part(found["sink"]))
    if "growth" in found:
        parts.append(growth_part(found["growth"]))
    if found:
        parts.append(conditions(found))
    (folder / "README.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
