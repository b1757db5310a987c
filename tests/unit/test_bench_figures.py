"""How the bench makes figures of what it saw."""

import pytest

from tallygate.topologies.bench.figures import percentiles, rank
from tallygate.topologies.bench.jobs import UsageSent
from tallygate.topologies.bench.usage_figures import Progress, usage_figures

SECOND = 1_000_000_000


@pytest.mark.parametrize(("percent", "value"), [(50.0, 500), (99.0, 990), (99.9, 999), (100.0, 1000)])
def test_nearest_rank(percent: float, value: int) -> None:
    assert rank(range(1, 1001), percent) == value


def test_nothing_measured_is_no_figure() -> None:
    assert set(percentiles("lag_ms", []).values()) == {None}


def seen(applied_per_second: int, visible_after: int = SECOND // 2) -> tuple[UsageSent, Progress]:
    """Ten seconds of 100 records a second in one partition, of which so many come into force each second."""
    samples = [(number * SECOND // 100, 0, 1000 + number) for number in range(1000)]
    applied = [((number + 1) * SECOND // applied_per_second, 0, 10 * number, 1000 + number) for number in range(1000)]
    visible = [(at + visible_after, 0, place + 1) for at, _, place, _ in applied[9::10]]
    sent = UsageSent(
        begin_ns=0,
        end_ns=10 * SECOND,
        events=990,
        duplicates=10,
        records=1000,
        events_per_record=1,
        value_bytes=0,
        late_ms_max=0,
        cpu_seconds=0,
        samples=samples,
    )
    return sent, Progress.of(applied, visible, {0: 1000})


def test_a_rate_that_is_held() -> None:
    found = usage_figures(*seen(100), rate=99)
    assert (found["held"], found["sustained_per_second"]) == (True, 99)
    assert found["lag_ms_p50"] == found["lag_ms_max"] == 10
    assert 510 <= found["visible_lag_ms_p50"] <= 610


def test_a_rate_that_is_not_held() -> None:
    """Half of it comes into force: that is what is sustained, and lags count from when events were due."""
    found = usage_figures(*seen(50), rate=99)
    assert (found["held"], found["sustained_per_second"]) == (False, 50)
    assert found["backlog_at_end"]["in_force"] == 495
    assert found["lag_ms_max"] == 20_000 - 9_990


def test_the_sink_is_part_of_what_is_sustained() -> None:
    found = usage_figures(*seen(100, visible_after=5 * SECOND), rate=99)
    assert not found["held"]
    assert found["backlog_at_end"]["visible"] == 495
