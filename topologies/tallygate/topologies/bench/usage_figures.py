"""What a usage run shows: how fast events came into force and into ClickHouse, and how late each was."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec

from tallygate.topologies.bench.figures import percentiles
from tallygate.topologies.bench.jobs import Spot, Step, UsageSent

#: The window in which the rate is read begins after this part of the run, and ends with the sending.
_WARM_PART: Final = 0.2
#: Held means: when the last event went out, so many seconds' worth of them were not in force, or not in ClickHouse.
_APPLIED_BACKLOG_SECONDS_MAX: Final = 1.0
_VISIBLE_BACKLOG_SECONDS_MAX: Final = 3.0

Curve = list[tuple[int, int]]


class Progress(msgspec.Struct, frozen=True):
    """By partition, in order of time: what the observer saw. `begins`: the usage topic's ends before the run."""

    applied: dict[int, list[Step]]
    visible: dict[int, list[Spot]]
    begins: dict[int, int]

    @classmethod
    def of(cls, applied: Sequence[Step], visible: Sequence[Spot], begins: dict[int, int]) -> "Progress":
        return cls(
            {number: [step for step in applied if step[1] == number] for number in begins},
            {number: [spot for spot in visible if spot[1] == number] for number in begins},
            begins,
        )

    def applied_curve(self) -> Curve:
        """(instant, records in force in all partitions since the run began)."""
        return _curve(
            [(at, partition, offset) for each in self.applied.values() for at, partition, _, offset in each],
            self.begins,
        )

    def visible_curve(self) -> Curve:
        """The same for ClickHouse."""
        found = []
        for partition, spots in self.visible.items():
            steps = self.applied[partition]
            places = [place for _, _, place, _ in steps]
            for at, _, next_offset in spots:
                number = bisect_left(places, next_offset)
                if number:
                    found.append((at, partition, steps[number - 1][3]))
        return _curve(found, self.begins)

    def lags_ms(self, samples: Sequence[tuple[int, int, int]]) -> tuple[list[float], list[float]]:
        """How long after it was due each sample was in force, and in ClickHouse; what never came is left out."""
        in_force: list[float] = []
        in_clickhouse: list[float] = []
        offsets = {number: [step[3] for step in steps] for number, steps in self.applied.items()}
        nexts = {number: [spot[2] for spot in spots] for number, spots in self.visible.items()}
        for due, partition, offset in samples:
            at = bisect_left(offsets[partition], offset)
            if at == len(offsets[partition]):
                continue
            step = self.applied[partition][at]
            in_force.append((step[0] - due) / 1e6)
            seen = bisect_right(nexts[partition], step[2])
            if seen < len(nexts[partition]):
                in_clickhouse.append((self.visible[partition][seen][0] - due) / 1e6)
        return in_force, in_clickhouse


def _curve(changes: list[tuple[int, int, int]], begins: dict[int, int]) -> Curve:
    known = {number: begin - 1 for number, begin in begins.items()}
    total = 0
    curve: Curve = []
    for at, partition, offset in sorted(changes):
        if offset > known[partition]:
            total += offset - known[partition]
            known[partition] = offset
            curve.append((at, total))
    return curve


def rate_in(curve: Curve, begin_ns: int, end_ns: int) -> float | None:
    """Records a second between the first and the last change within a window; None where they lie close together."""
    within = [point for point in curve if begin_ns <= point[0] <= end_ns]
    if not within or (within[-1][0] - within[0][0]) * 2 <= end_ns - begin_ns:
        return None
    return (within[-1][1] - within[0][1]) * 1e9 / (within[-1][0] - within[0][0])


def at_instant(curve: Curve, at_ns: int) -> int:
    number = bisect_right(curve, (at_ns, 1 << 62))
    return curve[number - 1][1] if number else 0


def capacity(sent: UsageSent, progress: Progress) -> float:
    """Events a second at which a backlog came into force, counted from when it began to be sent."""
    return _overall(progress.applied_curve(), sent) * sent.events / sent.records


def usage_figures(sent: UsageSent, progress: Progress, rate: int) -> dict[str, Any]:
    """Rates and lags of a run at a rate."""
    applied, visible = progress.applied_curve(), progress.visible_curve()
    window = (sent.begin_ns + int((sent.end_ns - sent.begin_ns) * _WARM_PART), sent.end_ns)
    part = sent.events / sent.records
    rates = {name: _rate(curve, window, sent) * part for name, curve in (("in_force", applied), ("visible", visible))}
    backlog = {
        name: round((sent.records - at_instant(curve, sent.end_ns)) * part)
        for name, curve in (("a", applied), ("v", visible))
    }
    in_force, in_clickhouse = progress.lags_ms(sent.samples)
    return {
        "offered_per_second": rate,
        "sustained_per_second": round(min(rate, rates["in_force"], rates["visible"])),
        "held": backlog["a"] <= rate * _APPLIED_BACKLOG_SECONDS_MAX
        and backlog["v"] <= rate * _VISIBLE_BACKLOG_SECONDS_MAX,
        "in_force_per_second": round(rates["in_force"]),
        "visible_per_second": round(rates["visible"]),
        "backlog_at_end": {"in_force": backlog["a"], "visible": backlog["v"]},
        **percentiles("lag_ms", in_force),
        **percentiles("visible_lag_ms", in_clickhouse),
        "lag_samples": len(in_force),
        "generator_late_ms_max": round(sent.late_ms_max, 2),
        "longest_stall_ms": round(max((b[0] - a[0] for a, b in pairwise(applied)), default=0) / 1e6, 1),
    }


def _rate(curve: Curve, window: tuple[int, int], sent: UsageSent) -> float:
    """Records a second while they were being sent. Where they arrive in steps of seconds, a short run shows few of them
    by then, and what is worked off at the end tells more.
    """
    return max(rate_in(curve, *window) or 0.0, _overall(curve, sent))


def _overall(curve: Curve, sent: UsageSent) -> float:
    """Records a second from when the first was due to when the last arrived."""
    return curve[-1][1] * 1e9 / (curve[-1][0] - sent.begin_ns) if curve else 0.0
