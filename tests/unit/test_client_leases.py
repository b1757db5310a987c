"""Leases of the client on the real core, without a broker: what its task does beside the takes."""

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal

import pytest

from partition import Partition
from tallygate.connectors import client_async
from tallygate.connectors.client import Denied, LeaseUnsettled, NoAnswer, RefusedRequest, Tallygate
from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import OPS, Balance, GiveGrant, Release, Request, Reserve, Settle

METER = "output_tokens"


class CoreTransport:
    """Stands where the client's transport does and asks the core; `lost` requests are not answered, though decided."""

    def __init__(self) -> None:
        self.partition = Partition()
        self.partition.ask(GiveGrant(id="g", customer="acme", amount=Decimal(1)))
        self.sent: list[Request] = []
        self.lost: Callable[[Request], bool] = lambda request: False
        self.hear = True

    def __call__(self, brokers: str, service: str, in_flight_max: int, kafka: Mapping[str, str]) -> "CoreTransport":
        return self

    async def start(self, timeout: float) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, request: Request, value: bytes, timeout: float) -> Answer:
        await asyncio.sleep(0)
        self.sent.append(request)
        lost = self.lost(request)
        answer: Answer | None = self.partition.ask(request) if self.hear or not lost else None
        if lost or answer is None:
            raise NoAnswer("no answer", op=OPS[type(request)], id=request.id, customer=request.customer)
        return answer

    def used(self) -> Decimal:
        statement = self.partition.ask(Balance(id="b", customer="acme")).statement
        assert statement is not None
        assert statement.holds == ()
        return 1 - Decimal(statement.pools[0].balance)  # two for a thousand tokens


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> CoreTransport:
    made = CoreTransport()
    monkeypatch.setattr(client_async, "Transport", made)
    return made


@pytest.fixture
def client(transport: CoreTransport) -> Tallygate:
    return Tallygate("127.0.0.1:1", service="test")


async def test_all_of_the_credits_can_be_taken_and_all_of_it_is_settled(
    client: Tallygate, transport: CoreTransport
) -> None:
    taken = 0
    async with client.lease("acme", feature="llm", quantities={METER: 64}) as lease:
        while decision := await lease.acquire({METER: 1}):
            taken += 1
        assert decision.reason is Reason.CREDITS_EXHAUSTED
    assert taken == 500
    assert transport.used() == 1
    settled = [each for each in transport.sent if isinstance(each, Settle)]
    assert sum((each.quantities or {})[METER] for each in settled) == 500
    assert len(transport.sent) < 50
    assert lease.late == 0


async def test_a_settle_that_is_not_answered_is_asked_again(client: Tallygate, transport: CoreTransport) -> None:
    def first_settle(request: Request) -> bool:
        return isinstance(request, Settle) and sum(isinstance(each, Settle) for each in transport.sent) == 1

    transport.lost = first_settle
    async with client.lease("acme", feature="llm", quantities={METER: 64}) as lease:
        assert lease.take({METER: 64})
        assert not lease.take({METER: 900})  # which is not affordable
        await lease.acquire({METER: 900})
    assert lease.settled == 1
    assert transport.used() == Decimal("0.128")


async def test_what_nobody_confirms_is_named_and_settled_later(client: Tallygate, transport: CoreTransport) -> None:
    transport.lost, transport.hear = lambda request: isinstance(request, Settle), False
    with pytest.raises(LeaseUnsettled, match="may not be recorded yet") as caught:
        async with client.lease("acme", feature="llm", quantities={METER: 64}) as lease:
            assert lease.take({METER: 10})
    transport.partition.tick(60)  # the hold has ended meanwhile
    assert transport.used() == 0
    transport.lost = lambda request: False
    [settle] = caught.value.settles
    assert (await client.ask(settle)).late
    assert (await client.ask(settle)).allowed
    assert transport.used() == Decimal("0.02")


async def test_work_settled_after_its_hold_has_ended_is_recorded_late(
    client: Tallygate, transport: CoreTransport
) -> None:
    async with client.lease("acme", feature="llm", quantities={METER: 64}) as lease:
        assert lease.take({METER: 10})
        transport.partition.tick(60)
    assert lease.late == 1
    assert transport.used() == Decimal("0.02")


async def test_an_error_in_the_block_stays_the_error(client: Tallygate, transport: CoreTransport) -> None:
    transport.lost, transport.hear = lambda request: isinstance(request, Settle), False
    with pytest.raises(ZeroDivisionError) as caught:
        async with client.lease("acme", feature="llm", quantities={METER: 64}) as lease:
            raise ZeroDivisionError(lease.take({METER: 10}))
    assert "may not be recorded yet" in caught.value.__notes__[0]


async def test_the_client_closes_its_leases(client: Tallygate, transport: CoreTransport) -> None:
    lease = await client.lease("acme", feature="llm", quantities={METER: 64})
    assert lease.take({METER: 10})
    await client.close()
    assert transport.used() == Decimal("0.02")
    assert not lease.take({METER: 1})
    assert not await lease.acquire({METER: 1})


async def test_without_a_worker_takes_say_so(client: Tallygate, transport: CoreTransport) -> None:
    async with client.lease("acme", feature="llm", quantities={METER: 64}) as lease:
        transport.lost, transport.hear = lambda request: isinstance(request, Reserve), False
        assert lease.take({METER: 64})
        decision = await lease.acquire({METER: 1}, timeout=0.05)
        assert (decision.allowed, decision.reason) == (False, None)
    assert transport.used() == Decimal("0.128")


async def test_a_lease_that_nobody_took_from_is_released(client: Tallygate, transport: CoreTransport) -> None:
    async with client.lease("acme", feature="llm", credits="0.5"):
        pass
    assert [type(each) for each in transport.sent] == [Reserve, Release]
    assert transport.used() == 0


async def test_what_cannot_be_leased(client: Tallygate) -> None:
    with pytest.raises(Denied, match="customer_unknown"):
        await client.lease("nobody", feature="llm", quantities={METER: 1})
    with pytest.raises(RefusedRequest, match="needs a first slice"):
        client.lease("acme", feature="llm")
    with pytest.raises(RefusedRequest, match="lives 3 seconds or longer"):
        client.lease("acme", feature="llm", credits=1, ttl_seconds=2)
    async with client.lease("acme", feature="llm", quantities={METER: 1}) as lease:
        with pytest.raises(RefusedRequest, match="does not hold calls"):
            lease.take({"calls": 1})
        with pytest.raises(TypeError, match=r"is 0\.5"):
            lease.take({METER: 0.5})  # type: ignore[dict-item]
