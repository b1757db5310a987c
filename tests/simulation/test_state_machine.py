"""The core against its oracle, in any order of events (hypothesis), and in long lives (a seed).

Both do what `world.py` knows to do; `random_run.py` takes a seed and a number of steps for longer runs.
"""

from typing import Any

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from simulation.random_run import run
from simulation.world import World

EXAMPLES = 150
STEPS = 50
RANDOM_STEPS = 10_000


class Ledger(RuleBasedStateMachine):
    """Each rule does something to the partition and its oracle; after it, both agree."""

    @initialize(chunk=st.sampled_from((1, 2, 5)))
    def begin(self, chunk: int) -> None:
        self.world = World(chunk)

    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        self.world.wait(_pick(data))

    @rule(data=st.data())
    def tick(self, data: st.DataObject) -> None:
        self.world.tick(_pick(data))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        self.world.restart(_pick(data))

    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        self.world.grant(_pick(data))

    @rule(data=st.data())
    def budget(self, data: st.DataObject) -> None:
        self.world.budget(_pick(data))

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        self.world.reserve(_pick(data))

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.world.settle(_pick(data))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.world.release(_pick(data))

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        self.world.use(_pick(data))

    @rule(data=st.data())
    def use_again(self, data: st.DataObject) -> None:
        self.world.use_again(_pick(data))

    @rule(data=st.data())
    def use_wrongly(self, data: st.DataObject) -> None:
        self.world.use_wrongly(_pick(data))

    @rule(data=st.data())
    def misuse(self, data: st.DataObject) -> None:
        self.world.misuse(_pick(data))

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self.world.repeat(_pick(data))

    @rule()
    def compare(self) -> None:
        self.world.compare()

    def teardown(self) -> None:
        note("\n".join(self.world.log))
        self.world.close()


def _pick(data: st.DataObject) -> Any:
    return lambda choices: data.draw(st.sampled_from(choices))


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_long_lives() -> None:
    run(seed=2026, steps=RANDOM_STEPS)
