"""Leases without a broker: how large a slice is, and that no interleaving of clients passes a limit."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partition import Partition
from tallygate.connectors.client_slices import Asked, Granted, LeaseTerms, Slices, ending_of, next_size
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Balance, GiveGrant, Release, Reserve, SetBudget, Settle

TTL = 30


def terms(**first: int) -> LeaseTerms:
    return LeaseTerms("acme", "llm", {unit: n * NANOS for unit, n in first.items()}, {}, TTL)


# How large


@pytest.mark.parametrize(
    ("law", "asked", "held", "taken", "seconds", "cost", "balance", "size"),
    [
        ("two seconds' worth", 640, 640, 400, 1.0, 0, 0, 800),
        ("a steady rate stays", 640, 640, 320, 1.0, 0, 0, 640),
        ("at most doubled", 640, 640, 640, 0.1, 0, 0, 1280),
        ("at least halved", 640, 640, 1, 10.0, 0, 0, 320),
        ("idle: halved", 640, 640, 0, 27.0, 0, 0, 320),
        ("idle for long: the least", 10, 10, 0, 27.0, 0, 0, 10),
        ("in no time at all", 640, 640, 640, 0.0, 0, 0, 1280),
        ("less than asked: no growth", 640, 100, 640, 0.1, 0, 0, 100),
        ("less than the least: the least", 640, 3, 640, 0.1, 0, 0, 10),
        ("a small part of the pool", 640, 640, 640, 0.1, 10, 1000, 1280),
        ("half of the pool: an eighth", 640, 640, 640, 0.1, 50, 100, 320),
        ("most of the pool: not below an eighth", 640, 640, 640, 0.1, 999, 1, 80),
        ("nothing left, so owed without a limit", 640, 640, 640, 0.1, 50, 0, 1280),
        ("whole tokens", 641, 641, 1, 10.0, 0, 0, 321),
    ],
)
def test_the_next_slice(
    law: str, asked: int, held: int, taken: int, seconds: float, cost: int, balance: int, size: int
) -> None:
    last = Granted({"t": asked * NANOS}, {"t": held * NANOS}, cost * NANOS, balance * NANOS)
    assert next_size(terms(t=640), last, {"t": taken * NANOS}, seconds) == {"t": size * NANOS}


def test_credits_have_parts_and_units_follow_their_own_rates() -> None:
    last = Granted({"credits": 5, "t": 4 * NANOS}, {"credits": 5, "t": 4 * NANOS})
    lease = LeaseTerms("acme", "llm", {"credits": 5, "t": 4 * NANOS}, {}, TTL)
    assert next_size(lease, last, {"credits": 3, "t": 0}, 1.0) == {"credits": 6, "t": 2 * NANOS}


# Decisions


def begun(size: int = 100, held: int | None = None, **more: int) -> Slices:
    slices = Slices(terms(output_tokens=size, **more))
    asked, _ = slices.due(0.0, "h1")
    assert asked is not None
    slices.answered(granted(asked, held), 0.0, "-")
    return slices


def granted(asked: Asked, held: int | None = None) -> Answer:
    quantities = {
        unit: Decimal(held) if held is not None else value for unit, value in asked.request.quantities.items()
    }
    return answer(asked.request, Partition(), quantities)


def answer(request: Reserve, partition: Partition, quantities: dict[str, Decimal]) -> Answer:
    partition.ask(GiveGrant(id="g", customer="acme", amount=Decimal(10**9)))
    asked = Reserve(id=request.id, customer="acme", feature="llm", quantities=quantities, lease=True)
    return partition.ask(asked)


def tokens(n: int) -> dict[str, int]:
    return {"output_tokens": n * NANOS}


def test_a_take_is_whole_or_not_at_all() -> None:
    slices = begun(100, input_tokens=10)
    both = {"output_tokens": 50 * NANOS, "input_tokens": 11 * NANOS}
    assert not slices.take(both, 1.0)[0]
    assert slices.take(tokens(100), 1.0)[0]
    assert not slices.take(tokens(1), 1.0)[0]


def test_nothing_is_taken_of_a_slice_whose_time_is_over() -> None:
    slices = begun(100)
    assert slices.take(tokens(1), 26.9)[0]
    assert not slices.take(tokens(1), 27.0)[0]  # the hold ends at 30, counted from when it was sent, or later


def test_what_was_taken_is_settled_once_and_never_more_than_was_held() -> None:
    slices = begun(100, held=60)
    assert slices.take(tokens(60), 1.0)[0]
    assert not slices.take(tokens(1), 1.0)[0]
    _, [ended] = slices.due(1.0, "h2")
    settle = ending_of(slices.terms, ended)
    assert isinstance(settle, Settle)
    assert (settle.hold, settle.quantities, settle.credits) == ("h1", {"output_tokens": Decimal(60)}, None)
    assert slices.due(99.0, "h3")[1] == []


def test_an_unused_slice_is_released() -> None:
    slices = begun(100)
    slices.close()
    asked, [ended] = slices.due(1.0, "h2")
    assert asked is None
    assert isinstance(ending_of(slices.terms, ended), Release)
    assert slices.take(tokens(1), 1.0)[0].message == "the lease is closed"


def test_the_next_slice_is_asked_for_ahead_and_one_take_may_draw_on_both() -> None:
    slices = begun(100)
    assert slices.take(tokens(50), 1.0) == (slices.take({}, 1.0)[0], False)
    assert slices.due(1.0, "h2")[0] is None
    assert slices.take(tokens(1), 1.0)[1]
    asked, ended = slices.due(1.0, "h2")
    assert asked is not None
    assert ended == []
    slices.answered(granted(asked, 10), 1.0, "-")
    assert slices.take(tokens(59), 1.0)[0]
    assert [each.taken for each in slices.due(1.0, "h3")[1]] == [tokens(100), tokens(10)]


def test_a_slice_is_renewed_before_its_time_is_over() -> None:
    slices = begun(100)
    assert slices.next_at(0.0) == 24.0
    assert slices.due(23.9, "h2")[0] is None
    assert slices.due(24.0, "h2")[0] is not None


def test_a_no_has_its_reason_until_the_worker_is_asked_again() -> None:
    slices = begun(100)
    slices.take(tokens(100), 1.0)
    slices.due(1.0, "h2")
    slices.refused(Reason.BUDGET_EXHAUSTED, "", 1.0)
    assert slices.take(tokens(1), 1.1)[0].reason is Reason.BUDGET_EXHAUSTED
    assert slices.due(1.1, "h3")[0] is None
    assert slices.take(tokens(1), 1.3)[0].reason is None
    asked, _ = slices.due(1.3, "h3")
    assert asked is not None


def test_a_take_larger_than_a_slice_gets_one_of_its_size() -> None:
    slices = begun(100)
    assert not slices.take(tokens(700), 1.0)[0]
    asked, _ = slices.due(1.0, "h2")
    assert asked is not None
    assert asked.size["output_tokens"] >= 600 * NANOS
    assert asked.request.at_least == {"output_tokens": Decimal(1)}


def test_of_several_units_half_is_tried_until_it_is_affordable() -> None:
    partition = Partition()
    partition.ask(GiveGrant(id="g", customer="acme", amount=Decimal("0.050")))
    slices = Slices(terms(input_tokens=64, output_tokens=64))
    asked, _ = slices.due(0.0, "a")
    sizes = []
    while asked is not None:
        sizes.append(asked.size["input_tokens"] // NANOS)
        asked = slices.answered(partition.ask(asked.request), 0.0, f"{asked.request.id}a")
    assert sizes == [64, 32, 16]  # 16 tokens in at 0.001 and out at 0.002 are 0.048
    assert slices.take({"input_tokens": 16 * NANOS, "output_tokens": 16 * NANOS}, 0.0)[0]


# Many clients, one limit: every message may be late, every client may die


@dataclass
class Client:
    slices: Slices
    sent: list[Any] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)
    alive: bool = True


class World:
    """Clients with leases on the real core; messages wait until a step delivers one of them."""

    def __init__(self, limit: int, clients: int, unit: str) -> None:
        self.partition = Partition()
        self.t0 = self.partition.now
        self.partition.ask(GiveGrant(id="g", customer="acme", amount=Decimal(10**6 if unit == "meter" else limit)))
        if unit == "meter":
            self.partition.ask(SetBudget(id="b", customer="acme", name="b", limit=Decimal(limit), unit="output_tokens"))
        self.unit = {"meter": "output_tokens", "credits": "credits"}[unit]
        self.limit = limit
        first = {self.unit: 20 * NANOS}
        lease = LeaseTerms("acme", "llm", first, {}, TTL)
        self.clients = [Client(Slices(lease)) for _ in range(clients)]
        self.taken = 0
        self.lost: list[tuple[float, Decimal]] = []  # what died with a client, and when its hold ends at the earliest
        self.ids = 0

    @property
    def now(self) -> float:
        return (self.partition.now - self.t0) / 1000

    def step(self, who: int, what: int, amount: int) -> None:
        client = self.clients[who % len(self.clients)]
        match what:
            case 0 | 1 | 2 | 3:
                self.take(client, amount)
            case 4:
                self.look(client)
            case 5 if client.sent:
                self.deliver(client, client.sent.pop(amount % len(client.sent)))
            case 6 if client.answers:
                self.hear(client)
            case 7 | 8:
                self.exchange(client)
            case 9:
                self.wait(amount * 500)
            case 10 if amount > 25:
                self.die(client)
        self.check()

    def exchange(self, client: Client) -> None:
        """All there is to say is said, and all answers are heard."""
        self.look(client)
        while client.sent or client.answers:
            while client.sent:
                self.deliver(client, client.sent.pop(0))
            while client.answers:
                self.hear(client)

    def wait(self, ms: int) -> None:
        """Time passes; a settle is on its way for less than the margin, whatever else is late."""
        while ms > 0:
            self.partition.tick_ms(min(ms, 1000))
            ms -= 1000
            for client in self.clients:
                self.look(client)
                for request in [each for each in client.sent if not isinstance(each, Reserve)]:
                    client.sent.remove(request)
                    self.deliver(client, request)

    def die(self, client: Client) -> None:
        """Its slices end by themselves; what it has sent may still arrive."""
        if client.alive:
            client.alive = False
            for each in client.slices._slices:
                until = client.asked[each.id].at + TTL
                self.lost.append((until, Decimal(each.taken[self.unit]) / NANOS))

    def gone(self) -> Decimal:
        return sum((amount for until, amount in self.lost if self.now >= until), Decimal(0))

    def end(self) -> None:
        """Every message arrives, the living close, the dead's leases end: the worker's books say what was taken."""
        for client in self.clients:
            if client.alive:
                client.slices.close()
            self.exchange(client)
            self.exchange(client)
        self.partition.tick(TTL + 1)
        self.check()
        answer = self.partition.ask(Balance(id="end", customer="acme"))
        assert answer.statement is not None
        assert answer.statement.holds == ()
        used = (
            answer.statement.limits[0].used
            if self.unit == "output_tokens"
            else self.limit - Decimal(answer.statement.pools[0].balance)
        )
        assert Decimal(used) == self.taken - self.gone()

    def take(self, client: Client, amount: int) -> None:
        if client.alive and client.slices.take({self.unit: amount * NANOS}, self.now)[0]:
            self.taken += amount

    def look(self, client: Client) -> None:
        if not client.alive:
            return
        self.ids += 1
        asked, ended = client.slices.due(self.now, f"h{self.ids}")
        client.sent += [ending_of(client.slices.terms, each) for each in ended]
        if asked is not None:
            client.asked[asked.request.id] = asked
            client.sent.append(asked.request)

    def deliver(self, client: Client, request: Any) -> None:
        answer = self.partition.ask(request)
        assert not answer.late, "no slice is settled late, as long as messages are quick"
        if isinstance(request, Reserve):
            client.answers.append(answer)

    def hear(self, client: Client) -> None:
        answer = client.answers.pop()
        self.ids += 1
        if client.alive and (again := client.slices.answered(answer, self.now, f"h{self.ids}")) is not None:
            client.asked[again.request.id] = again
            client.sent.append(again.request)

    def check(self) -> None:
        assert self.taken - self.gone() <= self.limit, f"{self.taken} - {self.gone()} of {self.limit}"


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10), st.integers(1, 30)), min_size=60, max_size=120)


@pytest.mark.parametrize("unit", ["meter", "credits"])
@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 400), clients=st.integers(1, 4), steps=STEPS)
def test_no_interleaving_of_clients_passes_the_limit(
    unit: str, limit: int, clients: int, steps: list[tuple[int, int, int]]
) -> None:
    world = World(limit, clients, unit)
    for who, what, amount in steps:
        world.step(who, what, amount)
    world.end()


@pytest.mark.parametrize("unit", ["meter", "credits"])
def test_together_they_take_all_of_it(unit: str) -> None:
    world = World(437, 3, unit)
    for round in range(4_000):
        for who in range(3):
            world.step(who, 0, 1)
            world.exchange(world.clients[who])
        if round % 20 == 0:
            world.step(0, 9, 10)
        if world.taken == 437:
            break
    assert world.taken == 437
    world.end()
    assert Counter(client.alive for client in world.clients) == {True: 3}


def test_what_a_dead_client_had_in_hand_is_taken_by_another_once_its_lease_has_ended() -> None:
    world = World(20, 2, "meter")
    for what in (7, 0):
        world.step(0, what, 7)
    world.die(world.clients[0])
    for what in (7, 0, 7, 0):
        world.step(1, what, 20)
    assert world.taken == 7  # the first has 20 of 20 in hand, and has taken 7 of them
    world.wait((TTL + 1) * 1000)
    for what in (0, 7, 7, 0):
        world.step(1, what, 20)
    assert world.taken == 27
    world.end()
