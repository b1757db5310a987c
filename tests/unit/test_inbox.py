"""The waiting records of a partition: what one step takes, in which order, and when a chunk is finished."""

import random

import msgspec
import pytest

from owner_world import World
from tallygate.pipeline.intake import Intake
from tallygate.schemas import topics
from tallygate.schemas.records import Chunk
from tallygate.schemas.requests import Balance
from tallygate.topologies.batch_lane import REST_TIMES, REST_US_MAX, Pace
from tallygate.topologies.inbox import Inbox, Step, StepLimits

ASK, USE = topics.REQUESTS, topics.USAGE


def nothing_applied(topic: str) -> int:
    return -1


def places(step: Step) -> list[str]:
    return [f"{'q' if each.record.topic == ASK else 'u'}{each.record.offset}" for each in step.taken]


def box(events_max: int = 256, requests_max: int = 256) -> Inbox:
    return Inbox(Intake(1).read, StepLimits(events_max, requests_max))


def asks(world: World, number: int) -> Chunk:
    return world.ask(*(Balance(id=f"b{n}", customer="acme") for n in range(number)))


def test_a_step_takes_both_lanes_in_the_order_of_their_arrival() -> None:
    world, inbox = World(), box()
    for _ in range(3):
        inbox.offer(world.use("e"), list)
        world.now_ms += 1
        inbox.offer(asks(world, 2), list)
        world.now_ms += 1
    assert places(inbox.take(nothing_applied)) == ["u0", "q0", "q1", "u1", "q2", "q3", "u2", "q4", "q5"]
    assert not inbox
    assert inbox.take(nothing_applied) == Step((), ())


def test_usage_is_cut_small_and_requests_pass_it() -> None:
    world, inbox = World(), box(events_max=4)
    inbox.offer(world.use(*(f"e{n}" for n in range(10))), list)
    world.now_ms += 1000
    inbox.offer(asks(world, 3), list)
    assert places(inbox.take(nothing_applied)) == ["u0", "u1", "u2", "u3", "q0", "q1", "q2"]
    assert not inbox.asks
    assert [len(inbox.take(nothing_applied).taken) for _ in range(2)] == [4, 2]


def test_a_large_record_comes_alone_in_its_lane() -> None:
    world, inbox = World(), box()
    event = {
        "specversion": "1.0",
        "id": "x",
        "source": "s",
        "type": "t",
        "subject": "acme",
        "data": {"pad": "p" * 60_000},
    }
    inbox.offer(world.use("a"), list)
    inbox.offer(world.arrive(USE, *[msgspec.json.encode(event)] * 6), list)
    assert [places(inbox.take(nothing_applied)) for _ in range(2)] == [["u0", "u1", "u2", "u3", "u4"], ["u5", "u6"]]


def test_a_batch_counts_its_events() -> None:
    world, inbox = World(), box(events_max=10)
    event = {"specversion": "1.0", "id": "x", "source": "s", "type": "t", "subject": "acme"}
    batch = msgspec.json.encode([event] * 8)
    inbox.offer(
        world.arrive(USE, *[batch] * 4, headers=(("content-type", b"application/cloudevents-batch+json"),)), list
    )
    assert [len(inbox.take(nothing_applied).taken) for _ in range(2)] == [2, 2]


def test_usage_gathers_and_requests_do_not_wait_for_it() -> None:
    now = [0]
    world = World()
    pace = Pace(lambda: now[0])
    inbox = Inbox(Intake(1).read, StepLimits(events_max=10), pace=pace)
    Inbox(Intake(1).read, StepLimits(), pace=pace)  # another partition of this worker
    inbox.offer(world.use("a"), list)
    inbox.took(inbox.take(nothing_applied), 100)
    inbox.offer(world.use("b"), list)
    inbox.offer(asks(world, 1), list)
    assert inbox.rests
    assert places(inbox.take(nothing_applied)) == ["q0"]
    assert not inbox
    now[0] = 2 * 100 * REST_TIMES
    assert inbox
    step = inbox.take(nothing_applied)
    assert places(step) == ["u1"]
    inbox.took(step, 10_000_000)
    inbox.offer(world.use(*"cdefghijk"), list)
    now[0] += REST_US_MAX - 1
    assert inbox.take(nothing_applied) == Step((), ())
    inbox.offer(world.use("l"), list)  # a step is full
    assert len(inbox.take(nothing_applied).taken) == 10


@pytest.mark.parametrize("seed", range(20))
def test_every_record_is_given_out_once_and_every_chunk_finished_in_order(seed: int) -> None:
    """Chunks are delivered twice, overlap, and lie partly before the applied offset."""
    chance, world = random.Random(seed), World()
    inbox = box(events_max=chance.randint(1, 20), requests_max=chance.randint(1, 20))
    world.use(*(f"e{n}" for n in range(100)))
    asks(world, 100)
    applied = {topic: chance.randint(-1, 50) for topic in (ASK, USE)}
    finished: list[tuple[str, int]] = []
    offered: list[tuple[str, int]] = []
    got: dict[str, list[int]] = {ASK: [], USE: []}
    begins = {ASK: 0, USE: 0}
    while min(begins.values()) < 100 or inbox:
        for topic in (ASK, USE):
            if begins[topic] < 100 and chance.random() < 0.7:
                begin = max(0, begins[topic] - chance.choice((0, 0, 5)))
                end = min(100, begins[topic] + chance.randint(1, 30))
                begins[topic] = end
                name = (topic, len(offered))
                offered.append(name)
                inbox.offer(
                    Chunk(topic, 0, world.inputs[topic][begin:end], 0, 1), lambda name=name: finished.append(name)
                )  # type: ignore[misc]
        step = inbox.take(lambda topic: applied[topic])
        for each in step.taken:
            got[each.record.topic].append(each.record.offset)
        for done in step.finished:
            done()
    assert got == {topic: list(range(applied[topic] + 1, 100)) for topic in (ASK, USE)}
    for topic in (ASK, USE):
        assert [name for name in finished if name[0] == topic] == [name for name in offered if name[0] == topic]
