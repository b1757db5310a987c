"""The client on a real broker, against a stand-in for the worker that answers as each test says."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from kafka_fixture import Broker
from responder import Responder, allow, answer_to, silent
from tallygate.connectors.client import (
    ClientClosed,
    Denied,
    NoAnswer,
    NotConnected,
    RefusedRequest,
    Tallygate,
    TallygateError,
    TallygateSync,
)
from tallygate.schemas.answers import Answer, Statement, encode_answer
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import GiveGrant, Release, Request, Reserve, SetBudget, Settle
from tallygate.schemas.topics import REQUESTS
from topic_waits import delete

TIMEOUT = 30.0  # of calls that are answered; never waited for


@pytest.fixture
def worker(module_kafka: Broker) -> Iterator[Responder]:
    with Responder(module_kafka.bootstrap) as responder:
        yield responder


@pytest.fixture
async def client(module_kafka: Broker) -> AsyncIterator[Tallygate]:
    async with Tallygate(module_kafka.bootstrap, service="cli", timeout=TIMEOUT) as started:
        yield started


@pytest.fixture
def sync_client(module_kafka: Broker) -> Iterator[TallygateSync]:
    with TallygateSync(module_kafka.bootstrap, service="cli", timeout=TIMEOUT) as started:
        yield started


def denial(request: Request, times: int) -> list[Answer]:
    return [answer_to(request, Reason.CREDITS_EXHAUSTED)]


def refusing(op: type, reason: Reason) -> Any:
    def rule(request: Request, times: int) -> list[Answer]:
        return [answer_to(request, reason, "because")] if isinstance(request, op) else allow(request, times)

    return rule


# Calls and their answers


async def test_every_call_is_sent_as_it_was_meant_and_answered(worker: Responder, client: Tallygate) -> None:
    answer = await client.check("acme", feature="llm", quantities={"out": 8}, credits="75", dimensions={"team": "r"})
    assert (answer.op, answer.allowed, answer.customer) == ("check", True, "acme")
    assert (await client.reserve("acme", feature="llm", credits=75, ttl_seconds=9, id="h1")).hold is not None
    assert (await client.settle("acme", "h1", {"out": "6.5"})).op == "settle"
    assert (await client.release("acme", "h2", id="r2")).id == "r2"
    assert await client.balance("acme") == Statement()
    assert (await client.grant("acme", "500", id="g1", pool="gpu", priority=0, category="trial")).id == "g1"
    assert (await client.set_budget("acme", "team", 500, scope={"team": "*"}, period="month", hard=False)).allowed
    _, reserve, settle, _, _, grant, budget = worker.requests
    assert worker.ops() == ["check", "reserve", "settle", "release", "balance", "grant", "budget"]
    assert isinstance(reserve, Reserve)
    assert (reserve.id, reserve.credits, reserve.ttl_seconds) == ("h1", Decimal(75), 9)
    assert isinstance(settle, Settle)
    assert (settle.hold, settle.quantities, settle.credits) == ("h1", {"out": Decimal("6.5")}, None)
    assert isinstance(grant, GiveGrant)
    assert (grant.amount, grant.pool, grant.priority, grant.category) == (Decimal(500), "gpu", 0, "trial")
    assert isinstance(budget, SetBudget)
    assert (budget.limit, budget.scope, budget.period, budget.hard) == (Decimal(500), {"team": "*"}, "month", False)


async def test_a_denial_is_a_value_and_a_refusal_an_exception(worker: Responder, client: Tallygate) -> None:
    worker.rule = denial
    assert (await client.check("acme", feature="llm")).reason is Reason.CREDITS_EXHAUSTED
    assert (await client.reserve("acme", feature="llm")).allowed is False
    worker.rule = refusing(Settle, Reason.HOLD_UNKNOWN)
    with pytest.raises(RefusedRequest, match="hold_unknown: because") as caught:
        await client.settle("acme", "nothing")
    assert caught.value.answer is not None


async def test_a_balance_of_nobody_is_denied(worker: Responder, client: Tallygate) -> None:
    worker.rule = lambda request, times: [answer_to(request, Reason.CUSTOMER_UNKNOWN)]
    with pytest.raises(Denied, match="customer_unknown"):
        await client.balance("nobody")


# Holds


async def test_a_block_that_settles_releases_nothing(worker: Responder, client: Tallygate) -> None:
    async with client.reserve("acme", feature="llm", credits=75) as hold:
        assert (hold.credits, hold.expires_at) == ("75", "2026-01-31T00:05:00Z")
        await hold.settle({"out": 6})
    assert worker.ops() == ["reserve", "settle"]


async def test_a_block_left_without_settle_releases(worker: Responder, client: Tallygate) -> None:
    async with client.reserve("acme", feature="llm", credits=75):
        pass
    assert worker.ops() == ["reserve", "release"]


async def test_a_block_left_by_an_exception_releases_and_the_exception_goes_on(
    worker: Responder, client: Tallygate
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.reserve("acme", feature="llm", credits=75):
            _ = 1 / 0
    assert worker.ops() == ["reserve", "release"]


async def test_a_cancelled_block_releases(worker: Responder, client: Tallygate) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with client.reserve("acme", feature="llm", credits=75):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.ops() == ["reserve", "release"]


async def test_a_denied_block_is_not_entered(worker: Responder, client: Tallygate) -> None:
    worker.rule = denial
    entered = False
    with pytest.raises(Denied) as caught:
        async with client.reserve("acme", feature="llm", credits=75):
            entered = True
    assert not entered
    assert caught.value.reason is Reason.CREDITS_EXHAUSTED
    assert worker.ops() == ["reserve"]


async def test_a_settle_that_may_have_been_recorded_is_not_released(worker: Responder, client: Tallygate) -> None:
    worker.rule = lambda request, times: [] if isinstance(request, Settle) else allow(request, times)
    with pytest.raises(NoAnswer) as caught:
        async with client.reserve("acme", feature="llm", credits=75) as hold:
            await hold.settle({"out": 6}, timeout=0.3)
    worker.rule = allow
    again = await hold.settle({"out": 6})
    assert again.id == caught.value.id
    assert worker.ops() == ["reserve", "settle", "settle"]
    assert worker.requests[1] == worker.requests[2]


async def test_leaving_a_block_whose_hold_has_ended_is_quiet(worker: Responder, client: Tallygate) -> None:
    worker.rule = refusing(Release, Reason.HOLD_ENDED)
    async with client.reserve("acme", feature="llm", credits=75):
        pass
    assert worker.ops() == ["reserve", "release"]


async def test_a_failed_release_is_a_note_on_what_ended_the_block(worker: Responder, client: Tallygate) -> None:
    worker.rule = refusing(Release, Reason.MALFORMED)
    with pytest.raises(ZeroDivisionError) as caught:
        async with client.reserve("acme", feature="llm", credits=75, id="h1"):
            _ = 1 / 0
    assert "hold 'h1' could not be released and ends at 2026-01-31T00:05:00Z" in caught.value.__notes__[0]
    with pytest.raises(RefusedRequest):
        async with client.reserve("acme", feature="llm", credits=75):
            pass


# Answers that come late, twice, in another order, or not at all


async def test_answers_out_of_order_reach_their_callers(worker: Responder, client: Tallygate) -> None:
    kept: list[Answer] = []

    def backwards(request: Request, times: int) -> list[Answer]:
        kept.append(answer_to(request))
        return kept[::-1] if len(kept) == 20 else []

    worker.rule = backwards
    answers = await asyncio.gather(*(client.reserve(f"c{i}", feature="llm", id=f"h{i}") for i in range(20)))
    assert [(a.customer, a.id) for a in answers] == [(f"c{i}", f"h{i}") for i in range(20)]


async def test_answers_that_come_twice_count_once(worker: Responder, client: Tallygate) -> None:
    worker.rule = lambda request, times: [answer_to(request), answer_to(request, Reason.RATE_LIMITED)]
    answers = [await client.reserve("acme", feature="llm", id=f"h{i}") for i in range(10)]
    assert [(a.id, a.allowed) for a in answers] == [(f"h{i}", True) for i in range(10)]


async def test_a_request_without_an_answer_is_sent_again_with_the_same_id(worker: Responder, client: Tallygate) -> None:
    worker.rule = lambda request, times: [answer_to(request)] if times == 2 else []
    assert (await client.reserve("acme", feature="llm", credits=75)).allowed
    first, second = worker.requests
    assert first == second


async def test_a_restarted_worker_answers_what_came_while_it_was_away(module_kafka: Broker, client: Tallygate) -> None:
    with Responder(module_kafka.bootstrap) as first:
        await client.check("acme", feature="llm")
    waiting = asyncio.gather(*(client.reserve(f"c{i}", feature="llm", id=f"h{i}") for i in range(20)))
    await asyncio.sleep(0)  # they are sent
    with Responder(module_kafka.bootstrap, offsets=first.offsets) as second:
        assert [answer.id for answer in await waiting] == [f"h{i}" for i in range(20)]
        assert {request.id for request in second.requests} == {f"h{i}" for i in range(20)}


async def test_no_answer_is_one_clear_line(worker: Responder, client: Tallygate) -> None:
    worker.rule = silent
    with pytest.raises(NoAnswer) as caught:
        await client.reserve("acme", feature="llm", id="h1", timeout=0.3)
    assert str(caught.value) == (
        "no answer to reserve 'h1' of customer 'acme' within 0.3 s (sent once): it may or may not have been recorded; "
        "asking again with the same id is safe; is a worker running?"
    )
    assert (caught.value.op, caught.value.id, caught.value.customer) == ("reserve", "h1", "acme")
    with pytest.raises(NoAnswer, match="it changes nothing"):
        await client.check("acme", feature="llm", timeout=0.3)


async def test_an_answer_after_the_time_out_disturbs_nobody(worker: Responder, client: Tallygate) -> None:
    worker.rule = silent
    with pytest.raises(NoAnswer):
        await client.reserve("acme", feature="llm", id="h1", timeout=0.3)
    worker.rule = lambda request, times: [answer_to(worker.requests[0]), answer_to(request)]
    assert (await client.reserve("acme", feature="llm", id="h2")).id == "h2"


async def test_what_others_get_on_the_same_partition_is_passed_over(worker: Responder, client: Tallygate) -> None:
    request = client.reserve("other", feature="llm", id="foreign")._request
    worker.noise = [
        (b"somebody-1", encode_answer(answer_to(request))),
        (b"", b"\xff"),
        (None, b"{}"),
        (b"somebody-2", b""),
    ]
    assert [(await client.reserve("acme", feature="llm", id=f"h{i}")).id for i in range(5)] == [
        f"h{i}" for i in range(5)
    ]


async def test_two_clients_of_one_service_get_their_own_answers(worker: Responder, module_kafka: Broker) -> None:
    clients = [await Tallygate(module_kafka.bootstrap, service="cli", timeout=TIMEOUT).start() for _ in range(6)]
    calls = [(n, i) for n in range(6) for i in range(20)]
    answers = await asyncio.gather(*(clients[n].reserve(f"c{n}", feature="llm", id=f"h{i}") for n, i in calls))
    for each in clients:
        await each.close()
    assert [(a.customer, a.id) for a in answers] == [(f"c{n}", f"h{i}") for n, i in calls]


async def test_an_answer_that_cannot_be_read_is_an_error_of_its_call(worker: Responder, client: Tallygate) -> None:
    worker.rule = silent
    call = asyncio.create_task(client.reserve("acme", feature="llm", id="h1"))
    await asyncio.to_thread(worker.wait_for, 1)
    route = worker.routes["h1"]
    worker._reply(route, route.correlation, b'{"type": "tallygate.answer.v1", "reason": "from_the_future"}')
    with pytest.raises(TallygateError, match=r"the answer cannot be read .* is this client older than the worker"):
        await call


# Many at once, and the end


async def test_thousands_of_tasks_each_get_their_answer(worker: Responder, client: Tallygate) -> None:
    calls = [(f"c{i % 97}", f"h{i}") for i in range(3_000)]
    answers = await asyncio.gather(*(client.reserve(customer, feature="llm", id=id) for customer, id in calls))
    assert [(answer.customer, answer.id) for answer in answers] == calls


async def test_no_more_than_the_limit_are_in_flight(worker: Responder, module_kafka: Broker) -> None:
    kept: dict[str, Answer] = {}
    answered: set[str] = set()
    most = 0

    def ten_at_a_time(request: Request, times: int) -> list[Answer]:
        nonlocal most
        kept[request.id] = answer_to(request)
        waiting = [answer for id, answer in kept.items() if id not in answered]
        most = max(most, len(waiting))
        if len(waiting) < 10:
            return []
        answered.update(answer.id for answer in waiting)
        return waiting

    worker.rule = ten_at_a_time
    async with Tallygate(module_kafka.bootstrap, service="cli", timeout=TIMEOUT, in_flight_max=10) as client:
        await asyncio.gather(*(client.check("acme", feature="llm") for _ in range(50)))
    assert most == 10


async def test_a_call_that_finds_no_room_in_time_says_so(worker: Responder, module_kafka: Broker) -> None:
    worker.rule = silent
    async with Tallygate(module_kafka.bootstrap, service="cli", timeout=TIMEOUT, in_flight_max=1) as client:
        first = asyncio.ensure_future(client.reserve("acme", feature="llm"))
        await asyncio.to_thread(worker.wait_for, 1)
        with pytest.raises(NoAnswer, match=r"\(not sent\): it was not recorded; 1 other calls were in flight"):
            await client.reserve("acme", feature="llm", timeout=0.2)
        first.cancel()  # gives its place free
        worker.rule = allow
        assert (await client.check("acme", feature="llm")).allowed


async def test_closing_fails_what_is_in_flight(worker: Responder, module_kafka: Broker) -> None:
    worker.rule = silent
    client = await Tallygate(module_kafka.bootstrap, service="cli", timeout=TIMEOUT, in_flight_max=2).start()
    calls = [asyncio.ensure_future(client.reserve("acme", feature="llm", id=f"h{i}")) for i in range(4)]
    await asyncio.to_thread(worker.wait_for, 2)
    await client.close()
    await client.close()
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in failed] == [ClientClosed] * 4
    assert str(failed[0]) == (
        "the client was closed before the answer to reserve 'h0' of customer 'acme' came: "
        "asking again with the same id is safe"
    )
    with pytest.raises(ClientClosed, match="the client was closed"):
        await client.check("acme", feature="llm")


async def test_a_closed_client_starts_again(worker: Responder, module_kafka: Broker) -> None:
    client = Tallygate(module_kafka.bootstrap, service="cli", timeout=TIMEOUT)
    for _ in range(2):
        async with client:
            assert (await client.check("acme", feature="llm")).allowed


# The cluster


async def test_a_missing_reply_topic_is_named_with_its_remedy(module_kafka: Broker) -> None:
    with pytest.raises(NotConnected) as caught:
        await Tallygate(module_kafka.bootstrap, service="unheard-of").start()
    assert str(caught.value) == (
        f"topic tallygate.replies.unheard-of.v1 is missing on {module_kafka.bootstrap}: "
        "declare it with `tallygate topics --service unheard-of`"
    )


async def test_calls_outlast_a_broker_that_restarts(fresh_kafka: Any) -> None:
    async with Tallygate(fresh_kafka.bootstrap, service="cli", timeout=60.0) as client:
        with Responder(fresh_kafka.bootstrap) as worker:
            assert (await client.check("acme", feature="llm")).allowed
            fresh_kafka.kill()
            with pytest.raises(NoAnswer, match="last trouble: "):
                await client.reserve("acme", feature="llm", id="h1", timeout=1.5)
            waiting = asyncio.gather(*(client.reserve("acme", feature="llm", id=f"h{i}") for i in range(10)))
            await asyncio.to_thread(fresh_kafka.start)
            assert [answer.id for answer in await waiting] == [f"h{i}" for i in range(10)]
            assert {request.id for request in worker.requests if isinstance(request, Reserve)} == {
                f"h{i}" for i in range(10)
            }


async def test_a_missing_request_topic_is_named_with_its_remedy(fresh_kafka: Broker) -> None:
    await asyncio.to_thread(delete, fresh_kafka.bootstrap, REQUESTS)
    with pytest.raises(NotConnected, match=rf"topic {REQUESTS} is missing .* declare it with `tallygate topics`"):
        await Tallygate(fresh_kafka.bootstrap, service="cli").start()


# Without asyncio


def test_the_synchronous_client_has_the_same_calls(worker: Responder, sync_client: TallygateSync) -> None:
    assert sync_client.check("acme", feature="llm", credits="75").allowed
    assert sync_client.reserve("acme", feature="llm", id="h1").settle({"out": 6}).allowed
    assert sync_client.settle("acme", "h1", {"out": 6}).allowed
    assert sync_client.release("acme", "h1").allowed
    assert sync_client.balance("acme") == Statement()
    assert sync_client.grant("acme", "500", id="g1").id == "g1"
    assert sync_client.set_budget("acme", "team", 500).allowed
    assert worker.ops() == ["check", "reserve", "settle", "settle", "release", "balance", "grant", "budget"]
    assert worker.requests[2] == worker.requests[3]


def test_a_synchronous_block_settles_or_releases(worker: Responder, sync_client: TallygateSync) -> None:
    with sync_client.reserve("acme", feature="llm", credits=75) as hold:
        assert (hold.allowed, hold.credits) == (True, "75")
        hold.settle({"out": 6})
    with sync_client.reserve("acme", feature="llm", credits=75):
        pass
    with pytest.raises(ZeroDivisionError), sync_client.reserve("acme", feature="llm", credits=75):
        _ = 1 / 0
    assert worker.ops() == ["reserve", "settle", "reserve", "release", "reserve", "release"]


def test_a_synchronous_denial_is_looked_at_or_raised(worker: Responder, sync_client: TallygateSync) -> None:
    worker.rule = denial
    hold = sync_client.reserve("acme", feature="llm", credits=75)
    assert (hold.allowed, hold.reason) == (False, Reason.CREDITS_EXHAUSTED)
    with pytest.raises(Denied), sync_client.reserve("acme", feature="llm", credits=75):
        pytest.fail("the block was entered")
    assert worker.ops() == ["reserve", "reserve"]


def test_the_synchronous_client_serves_many_threads(worker: Responder, sync_client: TallygateSync) -> None:
    calls = [(f"c{i % 7}", f"h{i}") for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda call: sync_client.reserve(call[0], feature="llm", id=call[1]).answer, calls))
    assert [(answer.customer, answer.id) for answer in answers] == calls


def test_closing_the_synchronous_client_fails_what_is_in_flight(worker: Responder, module_kafka: Broker) -> None:
    worker.rule = silent
    client = TallygateSync(module_kafka.bootstrap, service="cli", timeout=TIMEOUT).start()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.check, "acme", feature="llm") for _ in range(4)]
        worker.wait_for(4)
        client.close()
        client.close()
        assert [type(call.exception()) for call in calls] == [ClientClosed] * 4
    with pytest.raises(ClientClosed):
        client.check("acme", feature="llm")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tallygate-")]
