"""The ready-made catalog for an AI product: what a customer lives through under it."""

from decimal import Decimal
from typing import Any

import pytest

from partition import Partition
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Balance, Check, Override, Reserve, Settle, Subscribe
from tallygate.topologies.catalog_example import example_files
from tallygate.topologies.catalog_yaml import read_files
from tallygate.topologies.demo_trace import data_path

DAY = 24 * 3600


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("ai-product")
    for name, text in example_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return read_files(folder).compile(1)


class Customer:
    """Acme, under the example's catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.partition = Partition(catalog)
        self._asked = 0

    def _id(self) -> str:
        self._asked += 1
        return f"id-{self._asked}"

    def subscribes(self, plan: str, *add_ons: str, **overrides: Override) -> Answer:
        return self.partition.ask(
            Subscribe(id=self._id(), customer="acme", plan=plan, add_ons=add_ons, overrides=overrides)
        )

    def chats(self, credits: object, **dimensions: str) -> Answer:
        """A call that takes so many credits: reserved and settled."""
        id = self._id()
        asked = self.partition.ask(
            Reserve(id=id, customer="acme", feature="chat", credits=Decimal(str(credits)), dimensions=dimensions)
        )
        return self.partition.ask(Settle(id=self._id(), customer="acme", hold=id)) if asked.allowed else asked

    def may(self, feature: str, **quantities: int) -> Answer:
        asked = {name: Decimal(value) for name, value in quantities.items()}
        return self.partition.ask(
            Check(id=self._id(), customer="acme", feature=feature, quantities=asked, explain=True)
        )

    def searches(self, number: int) -> None:
        """So many searches, by events."""
        for _ in range(number):
            data: dict[str, Any] = {"found": True, "team": "research"}
            self.partition.use(
                UsageEvent(specversion="1.0", id=self._id(), source="/s", type="search.done", subject="acme", data=data)
            )

    def wallet(self) -> dict[str, str]:
        """Active grant → what is left of it, by the name that the plan gives it."""
        statement = self.partition.ask(Balance(id=self._id(), customer="acme")).statement
        assert statement is not None
        return {
            f"{each.id.split(':')[0]} {each.id.split(':')[-1]}": each.balance
            for each in statement.grants
            if each.active
        }


@pytest.fixture
def acme(catalog: Catalog) -> Customer:
    return Customer(catalog)


def paid(answer: Answer) -> dict[str, str]:
    return {share.grant.split(":")[-1]: share.amount for share in answer.paid}


def test_trial_credits_burn_first_and_end_after_two_weeks(acme: Customer) -> None:
    acme.subscribes("pro")
    assert paid(acme.chats(150, agent="a1", team="t1")) == {"trial": "150"}
    acme.partition.tick(60)
    assert paid(acme.chats(100, agent="a2", team="t1")) == {"trial": "100"}
    assert acme.wallet() == {"pro trial": "250", "pro monthly": "2000"}
    acme.partition.tick(14 * DAY)
    assert paid(acme.chats(20, agent="a1", team="t1")) == {"monthly": "20"}
    acme.partition.tick(17 * DAY)
    assert acme.wallet()["pro monthly"] == "2000"


def test_a_call_straddles_trial_and_monthly_credits(acme: Customer) -> None:
    acme.subscribes("pro")
    for number in range(2):
        acme.chats(200, agent=f"a{number}", team="t1")
    assert paid(acme.chats(150, agent="a3", team="t2")) == {"trial": "100", "monthly": "50"}


def test_budgets_of_agents_and_teams_deny(acme: Customer) -> None:
    acme.subscribes("pro")
    assert acme.chats(200, agent="crawler", team="research").allowed
    denied = acme.chats(1, agent="crawler", team="research")
    assert (denied.reason, [(each.name, each.scope) for each in denied.limits]) == (
        Reason.BUDGET_EXHAUSTED,
        [("agents", {"agent": "crawler"})],
    )
    for number in range(4):
        assert acme.chats(200, agent=f"a{number}", team="research").allowed
    denied = acme.chats(1, agent="fresh", team="research")
    assert [(each.name, each.scope, each.remaining) for each in denied.limits] == [("teams", {"team": "research"}, "0")]
    assert acme.chats(1, agent="fresh", team="sales").allowed
    alerts = [alert.threshold for entry in acme.partition.entries() for alert in entry.alerts]
    assert alerts == [50, 80, 100]
    acme.partition.tick(DAY)
    assert acme.chats(1, agent="crawler", team="sales").allowed


def test_a_rate_limit_says_when_to_come_back(acme: Customer) -> None:
    acme.subscribes("free")
    assert [acme.chats(1).reason for _ in range(6)] == [Reason.ALLOWED] * 5 + [Reason.RATE_LIMITED]
    denied = acme.chats(1)
    assert denied.retry_after_ms == 6000
    acme.partition.now += 6000
    assert acme.chats(1).allowed


def test_searches_are_included_then_paid_and_an_add_on_raises_the_allowance(acme: Customer) -> None:
    acme.subscribes("pro")
    acme.searches(990)
    before = acme.wallet()
    assert acme.may("search", searches=10).credits == "0"
    assert acme.may("search", searches=14).credits == "2"
    acme.searches(12)
    assert (before["pro trial"], acme.wallet()["pro trial"]) == ("500", "499")
    acme.subscribes("pro", "more-searches")
    [allowance] = [each for each in acme.may("search", searches=500).limits if each.kind == "allowance"]
    assert (allowance.limit, allowance.ok) == ("1500", True)


def test_searches_beyond_the_free_allowance_are_denied(acme: Customer) -> None:
    acme.subscribes("free")
    acme.searches(10)
    denied = acme.may("search", searches=1)
    assert denied.reason is Reason.ALLOWANCE_EXHAUSTED
    acme.partition.tick(DAY)
    assert acme.may("search", searches=1).allowed


def test_another_plan_and_an_override(acme: Customer) -> None:
    acme.subscribes("free")
    assert (acme.may("support").value, acme.may("sso").reason) == ("community", Reason.FEATURE_NOT_ENTITLED)
    acme.subscribes("enterprise")
    assert (acme.may("support").value, acme.may("sso").reason) == ("named engineer", Reason.ALLOWED)
    assert acme.wallet() == {"enterprise yearly": "1000000"}
    acme.subscribes("pro", sso=Override("boolean"), support=Override("static", "gold"))
    assert (acme.may("support").value, acme.may("sso").reason) == ("gold", Reason.ALLOWED)
    assert acme.wallet() == {"pro trial": "500", "pro monthly": "2000"}


def test_a_credit_pack_outlives_the_monthly_reset(acme: Customer) -> None:
    acme.subscribes("pro", "credit-pack")
    acme.partition.tick(32 * DAY)
    assert acme.wallet() == {"pro monthly": "2000", "credit-pack pack": "5000"}
    assert paid(acme.chats(10, agent="a", team="t")) == {"monthly": "10"}


@pytest.mark.parametrize(
    ("model", "quantities", "credits"),
    [
        ("small", {"input_tokens": 1_000_000, "output_tokens": 1_000_000}, "75"),
        ("small", {"cached_input_tokens": 1000, "cache_write_tokens": 1000}, "0.02025"),
        ("other", {"input_tokens": 1000, "output_tokens": 100}, "0.45"),
        ("large", {"input_tokens": 200_000}, "60"),
        ("large", {"input_tokens": 200_001}, "120.0006"),
    ],
)
def test_prices_by_model(acme: Customer, model: str, quantities: dict[str, int], credits: str) -> None:
    acme.subscribes("enterprise")
    asked = {name: Decimal(value) for name, value in quantities.items()}
    request = Check(id="c", customer="acme", feature="chat", quantities=asked, dimensions={"model": model})
    assert acme.partition.ask(request).credits == credits


def test_the_catalog_of_the_demo_can_be_applied() -> None:
    with data_path("catalog.yaml") as path:
        catalog = read_files(path).compile(1)
    assert {meter.name for meter in catalog.meters} == {"input_tokens", "output_tokens", "calls"}
    assert [feature.name for feature in catalog.features] == ["llm"]
