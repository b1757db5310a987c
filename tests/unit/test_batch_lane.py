"""Runs of batches as an inbox takes them: read in the background, under the newest catalog, in small parts."""

from collections.abc import Callable
from concurrent.futures import Future

import msgspec
import pyarrow as pa
import pytest

from owner_world import CATALOG, World
from tallygate.connectors.usage_batches import encode_columns
from tallygate.pipeline.intake import Intake
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import UsageInput, UsageRunInput
from tallygate.schemas import topics
from tallygate.schemas.journal import UsageRun
from tallygate.schemas.records import Chunk
from tallygate.schemas.requests import Balance
from tallygate.schemas.usage_batch import BatchId, batch_headers
from tallygate.topologies.batch_lane import REST_TIMES, Pace, Standing, run_bytes_max
from tallygate.topologies.inbox import Inbox, Step, StepLimits
from tallygate.topologies.usage_runs import Run, RunReader

NOW = Standing(CATALOG, None, lambda batches: frozenset())


class Later:
    """A background that works when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Run], Future[Run]]] = []

    def __call__(self, call: Callable[[], Run]) -> "Future[Run]":
        future: Future[Run] = Future()
        self.waiting.append((call, future))
        return future

    def work(self) -> None:
        for call, future in self.waiting:
            future.set_result(call())
        self.waiting.clear()


def batch(world: World, number: int, customers: int = 100) -> Chunk:
    names = [f"c{n:03}" for n in range(customers)]
    columns = {
        "subject": pa.array(names),
        "type": pa.array(["llm.call"] * customers),
        "tokens": pa.array([1] * customers),
    }
    headers = tuple(batch_headers(BatchId("p", 1, number)))
    return world.arrive(topics.USAGE, encode_columns(columns), headers=headers)


def box(later: Later, pace: Pace | None = None) -> Inbox:
    return Inbox(Intake(1).read, StepLimits(), RunReader(1, Rules()), later, pace=pace)


def kinds(step: Step) -> list[str]:
    found = []
    for taken in step.taken:
        match taken.input:
            case UsageRunInput() as run:
                found.append(f"run to {run.source.offset}")
            case UsageInput():
                found.append(f"single {taken.record.offset}")
            case _:
                found.append("request")
    return found


def nothing(topic: str) -> int:
    return -1


def test_while_a_run_is_read_only_requests_are_taken_and_what_comes_behind_it_waits() -> None:
    world, later = World(), Later()
    inbox = box(later)
    inbox.offer(world.use("e0"), list)
    inbox.offer(batch(world, 1), list)
    inbox.offer(batch(world, 2), list)
    inbox.offer(world.use("e3"), list)
    assert kinds(inbox.take(nothing, NOW)) == ["single 0"]
    assert kinds(inbox.take(nothing, NOW)) == []
    assert not inbox, "an owner would turn round and round"
    inbox.offer(world.ask(Balance(id="b", customer="c000")), list)
    assert kinds(inbox.take(nothing, NOW)) == ["request"]
    later.work()
    assert inbox
    found = []
    while inbox:
        found += kinds(inbox.take(nothing, NOW))
    assert list(dict.fromkeys(found)) == ["run to 2", "single 3"]


def test_a_run_that_was_read_under_another_catalog_is_read_again() -> None:
    world, later = World(), Later()
    inbox = box(later)
    inbox.offer(batch(world, 1), list)
    inbox.take(nothing, NOW)
    later.work()
    newer = msgspec.structs.replace(CATALOG, version=2)
    standing = msgspec.structs.replace(NOW, catalog=newer)
    assert kinds(inbox.take(nothing, standing)) == []
    later.work()
    step = inbox.take(nothing, standing)
    assert step.part is not None
    assert step.part.catalog is newer


def test_a_run_under_way_waits_until_all_of_it_has_come() -> None:
    world, later = World(), Later()
    inbox = box(later)
    chunks = [batch(world, n) for n in (1, 2, 3)]
    standing = msgspec.structs.replace(NOW, under_way=UsageRun(1, "c050", (), 1))
    inbox.offer(chunks[0], list)
    assert kinds(inbox.take(nothing, standing)) == []
    assert not inbox
    inbox.offer(chunks[1], list)
    inbox.offer(chunks[2], list)
    assert kinds(inbox.take(nothing, standing)) == []
    later.work()
    step = inbox.take(nothing, standing)
    assert kinds(step) == ["run to 1"]
    assert step.part is not None
    assert step.part.input.customers[0][0] == "c051"


def test_parts_are_small_while_requests_come_and_the_smaller_the_more_runs_are_under_way() -> None:
    now = [0]
    pace = Pace(lambda: now[0])
    world, later = World(), Later()
    inbox = box(later, pace)
    inbox.offer(batch(world, 1, 1000), list)
    inbox.offer(world.ask(Balance(id="b", customer="c000")), list)
    inbox.take(nothing, NOW)
    later.work()

    def part() -> int:
        step = inbox.take(nothing, NOW)
        assert step.part is not None
        customers = len(step.part.input.customers)
        inbox.took(step, 100 * customers)
        return customers

    assert part() == 40  # 4 ms at 100 µs each
    pace.runs += 3  # in other partitions
    assert part() == 10
    now[0] += 1_000_000
    assert part() == 200
    pace.asked()
    assert part() == 10


def test_usage_gathers_after_a_run_for_as_long_as_all_of_it_was_worth() -> None:
    now = [0]
    world, later = World(), Later()
    inbox = box(later, Pace(lambda: now[0]))
    inbox.offer(batch(world, 1, 400), list)
    inbox.take(nothing, NOW)
    later.work()
    parts = 0
    while inbox:
        inbox.took(inbox.take(nothing, NOW), 20_000)
        parts += 1
    inbox.offer(batch(world, 2), list)
    assert parts == 2
    assert inbox.rests
    now[0] = REST_TIMES * 40_000 - 1
    assert kinds(inbox.take(nothing, NOW)) == []
    inbox.offer(batch(world, 3), list)
    now[0] += 1
    assert inbox
    inbox.take(nothing, NOW)
    later.work()
    assert kinds(inbox.take(nothing, NOW)) == ["run to 2"]  # both together


@pytest.mark.parametrize(("partitions", "megabytes"), [(1, 16), (8, 16), (16, 8), (64, 2), (1000, 2)])
def test_runs_share_their_memory(partitions: int, megabytes: int) -> None:
    assert run_bytes_max(partitions) == megabytes << 20
