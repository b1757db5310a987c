"""Everything that can be asked of the core, in any order (hypothesis) and in long lives (a seed): the books stay right.

And two stories with many callers at once, at every level of a customer's hierarchy.
"""

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from money import Money
from simulation.money_world import MoneyWorld, Pick
from tallygate.schemas.amounts import NANOS

EXAMPLES = 60
STEPS = 40
RANDOM_STEPS = 2_500
#: A world is left after so many steps.
STEPS_OF_A_WORLD = 150

Action = Callable[[MoneyWorld, Pick], None]
#: How often each action is taken, in proportion.
ACTIONS: dict[Action, int] = {
    MoneyWorld.wait: 4,
    MoneyWorld.tick: 4,
    MoneyWorld.restart: 1,
    MoneyWorld.switch: 1,
    MoneyWorld.grant: 4,
    MoneyWorld.void: 1,
    MoneyWorld.reset: 1,
    MoneyWorld.budget: 1,
    MoneyWorld.rate_limit: 1,
    MoneyWorld.subscribe: 2,
    MoneyWorld.customer: 1,
    MoneyWorld.reserve: 10,
    MoneyWorld.settle: 6,
    MoneyWorld.release: 2,
    MoneyWorld.extend: 1,
    MoneyWorld.use: 6,
    MoneyWorld.use_many: 1,
    MoneyWorld.use_again: 1,
    MoneyWorld.change: 4,
    MoneyWorld.repeat: 2,
    MoneyWorld.estimate: 1,
}


class Machine(RuleBasedStateMachine):
    @initialize(chunk=st.sampled_from((1, 1, 3)), variant=st.sampled_from((0, 1, 2)))
    def begin(self, chunk: int, variant: int) -> None:
        self.world = MoneyWorld(chunk, variant)

    @rule(data=st.data(), action=st.sampled_from([each for each, often in ACTIONS.items() for _ in range(often)]))
    def act(self, data: st.DataObject, action: Action) -> None:
        action(self.world, _pick(data))

    def teardown(self) -> None:
        note("\n".join(self.world.log))
        self.world.close()


def _pick(data: st.DataObject) -> Any:
    return lambda choices: data.draw(st.sampled_from(choices))


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def life(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    world = MoneyWorld(chunk=rng.choice((1, 1, 2, 5)), variant=rng.randrange(3))
    try:
        for _ in range(steps):
            [action] = rng.choices(list(ACTIONS), list(ACTIONS.values()))
            action(world, rng.choice)
        world.close()
    except AssertionError as error:
        story = "\n".join(world.log[-40:])
        raise AssertionError(f"seed {seed}, {steps} steps, the last of them:\n{story}\n{error}") from error


@pytest.mark.parametrize("seed", range(0, RANDOM_STEPS, STEPS_OF_A_WORLD))
def test_long_lives(seed: int) -> None:
    life(seed, STEPS_OF_A_WORLD)


@pytest.mark.parametrize("seed", range(5))
def test_twenty_parallel_reservations_of_75_against_500_admit_exactly_6(seed: int) -> None:
    """Whether 500 are credits, a budget or an allowance, and however the requests are cut into chunks."""
    rng = random.Random(seed)
    for story in ("grant g 500", "grant g 9000; cap b 500", "grant g 9000; cap b 500 agent=* per day"):
        told = Money(story)
        requests = [told.request("reserve", f"h{n} 75 work agent=a".split()) for n in range(20)]
        rng.shuffle(requests)
        answers = []
        while requests:
            size = rng.randint(1, 7)
            answers += told.partition.ask_all(*requests[:size])
            del requests[:size]
        assert sum(answer.allowed for answer in answers) == 6
        assert [answer.allowed for answer in answers] == [True] * 6 + [False] * 14
        assert sum(Decimal(grant.held) for grant in told.statement().grants) == 450


LEVELS = "cap team 8 team=*; cap drafter 3 agent=drafter; cap reviewer 10 agent=reviewer; cap company 50"
LIMITS = {"team": 8, "drafter": 3, "reviewer": 10, "company": 50}


@pytest.mark.parametrize("seed", range(8))
def test_team_8_drafter_3_reviewer_10(seed: int) -> None:
    """Three levels, callers in between each other: never over at any of them, and full where it should be."""
    rng = random.Random(seed)
    told = Money(f"grant g 1000; {LEVELS}")
    open_holds: dict[str, int] = {}
    refused_with_room = 0
    for number in range(120):
        act = rng.random()
        if act < 0.6 or not open_holds:
            agent, amount = rng.choice(("drafter", "reviewer")), rng.choice((1, 1, 2, 3))
            who = {"team": rng.choice(("research", "sales")), "agent": agent}
            answer = told.hold(f"h{number}", "work", str(amount), dimensions=who)
            if answer.allowed:
                open_holds[f"h{number}"] = amount
            else:
                assert answer.reason == "budget_exhausted"
                assert all(Decimal(limit.remaining) < amount for limit in answer.limits)
                refused_with_room += not answer.limits
        else:
            hold = rng.choice(sorted(open_holds))
            amount = open_holds.pop(hold)
            if act < 0.9:
                told.tell(f"release {hold}")
            else:
                told.tell(f"settle {hold} {rng.randint(0, amount)}")
        _never_over(told)
    assert not refused_with_room


def _never_over(told: Money) -> None:
    held: dict[str, int] = {}
    account = told.partition.state.account("acme")
    for row in account.scopes.values():
        assert row.used_nanos + row.held_nanos <= LIMITS[row.budget] * NANOS, row
        held[row.budget] = held.get(row.budget, 0) + row.held_nanos
    every = sum(hold.credits_nanos for hold in account.holds.values())
    assert held.get("team", 0) == held.get("company", 0) == every
    assert held.get("drafter", 0) + held.get("reviewer", 0) == every


def test_levels_in_parallel_in_one_chunk() -> None:
    told = Money(f"grant g 1000; {LEVELS}")
    asks = [
        told.request("reserve", f"h{n} 1 work team=research agent={'drafter' if n % 2 else 'reviewer'}".split())
        for n in range(40)
    ]
    answers = told.partition.ask_all(*asks)
    admitted = [ask.dimensions["agent"] for ask, answer in zip(asks, answers, strict=True) if answer.allowed]  # type: ignore[union-attr]
    assert (admitted.count("drafter"), admitted.count("reviewer")) == (3, 5)  # the team's 8
    assert {answer.reason for answer in answers if not answer.allowed} == {"budget_exhausted"}
    told.tell("release h0")
    assert told.hold("again", "work", "1", dimensions={"team": "research", "agent": "reviewer"}).allowed
    assert not told.hold("more", "work", "1", dimensions={"team": "research", "agent": "reviewer"}).allowed
    assert told.hold("sales", "work", "5", dimensions={"team": "sales", "agent": "reviewer"}).allowed
    assert not told.hold("full", "work", "1", dimensions={"team": "sales", "agent": "reviewer"}).allowed  # 10 of 10
