"""OpenMeter's own Python client, unchanged, against a gateway with a real broker, worker and sink behind it."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway_stack import Stack, gateway_stack, wait_until
from kafka_fixture import Broker

openmeter = pytest.importorskip(
    "openmeter", reason="needs pip install --no-deps -r tests/openmeter-requirements.txt (make install does it)"
)
from corehttp.exceptions import HttpResponseError, ResourceNotFoundError  # noqa: E402
from openmeter.aio import Client as AsyncClient  # noqa: E402
from openmeter.models import (  # noqa: E402
    EntitlementBooleanV2,
    EntitlementGrantCreateInputV2,
    EntitlementMeteredV2,
    EntitlementStaticV2,
    Event,
    MeterQueryRequest,
    ResetEntitlementUsageInput,
)

pytestmark = pytest.mark.timeout(240)

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=3)

CATALOG: dict[str, Any] = {
    "meters": {
        "tokens": {"event_type": "llm.call", "value": "tokens", "dimensions": ["team", "model"]},
        "calls": {"event_type": "llm.call", "aggregation": "count"},
        "users": {"event_type": "llm.call", "value": "user", "aggregation": "unique"},
    },
    "features": {
        "llm": {"meters": ["tokens"], "rates": [{"meter": "tokens", "credits": 1}]},
        "api": {"meters": ["calls"]},
        "sso": {},
        "tier": {},
    },
    "plans": {"pro": {"entitlements": {"llm": "credits"}}},
    "default_plan": "pro",
}


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("openmeter")
    with gateway_stack(module_kafka.bootstrap, folder, sink=True, catalog=CATALOG) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Any]:
    with openmeter.Client(endpoint=stack.gateway.url, token=stack.gateway.admin) as made:
        yield made


@pytest.fixture
async def aio(stack: Stack) -> AsyncIterator[Any]:
    async with AsyncClient(endpoint=stack.gateway.url, token=stack.gateway.admin) as made:
        yield made


def event(customer: str, id: str, tokens: float = 5, at: datetime = NOON, **more: Any) -> Event:
    data = {"tokens": tokens, "team": "research", "model": "large", **more}
    return Event(id=id, source="/test", specversion="1.0", type="llm.call", subject=customer, time=at, data=data)


def total(client: Any, customer: str, meter: str = "tokens") -> float:
    rows = client.meters.query_json(meter, subject=[customer]).data
    return rows[0].value if rows else 0


def test_events_in_all_three_content_types(client: Any) -> None:
    for _ in range(2):  # again: they count once
        client.events.ingest_event(event("forms", "1"))
        client.events.ingest_events([event("forms", "2"), event("forms", "3")])
        client.events.ingest_events_json(event("forms", "4"))
        client.events.ingest_events_json([event("forms", "5")])
    wait_until(lambda: total(client, "forms") == 25)
    assert total(client, "forms", "calls") == 5
    with pytest.raises(HttpResponseError) as caught:
        client.events.ingest_events([event("forms", "6"), Event(id="7", source="/test", specversion="1.0", type="x")])
    assert caught.value.response.status_code == 400
    assert "event 2" in caught.value.response.json()["detail"]


def test_the_newest_events_are_listed(client: Any, stack: Stack) -> None:
    client.events.ingest_events([event("listed", "a", 1.5), event("listed", "b", at=NOON + timedelta(hours=2))])
    found = client.events.list(customer_id=["listed"])
    assert [(each.event.id, each.event.subject, each.customer_id) for each in found] == [
        ("b", "listed", "listed"),
        ("a", "listed", "listed"),
    ]
    assert found[1].event.data["tokens"] == 1.5
    assert found[1].event.time == NOON
    assert found[1].ingested_at > NOON + timedelta(days=1)
    assert [each.event.id for each in client.events.list(subject="liste", from_parameter=NOON, to=NOON)] == ["a"]
    assert [each.event.id for each in client.events.list(subject="listed", id="b")] == ["b"]
    assert client.events.list(subject="listed", ingested_at_to=NOON) == []
    assert len(client.events.list(subject="listed", limit=1)) == 1
    own = openmeter.Client(endpoint=stack.gateway.url, token=stack.gateway.key("read", customers=("other",)))
    assert own.events.list() == []
    with pytest.raises(HttpResponseError) as caught:
        own.events.list(customer_id=["listed"])
    assert caught.value.response.status_code == 403


def test_a_meter_is_queried(client: Any) -> None:
    events = [
        event("queried", "a", 5, model="small"),
        event("queried", "b", 7.25, NOON + timedelta(hours=1), team="sales"),
        event("queried", "c", 9, NOON + timedelta(days=1)),
        event("beside", "d", 100, NOON + timedelta(hours=1)),
    ]
    client.events.ingest_events(events)
    wait_until(lambda: total(client, "queried") == 21.25 and total(client, "beside") == 100)
    query = client.meters.query_json

    days = query("tokens", subject=["queried"], window_size="DAY", from_parameter=NOON, to=NOON + timedelta(days=2))
    assert (days.from_property, days.to, days.window_size) == (NOON, NOON + timedelta(days=2), "DAY")
    midnight = NOON.replace(hour=0)
    assert [(row.value, row.window_start, row.window_end) for row in days.data] == [
        (12.25, midnight, midnight + timedelta(days=1)),
        (9, midnight + timedelta(days=1), midnight + timedelta(days=2)),
    ]
    by = query("tokens", subject=["queried", "beside"], group_by=["subject", "team"]).data
    assert {(row.subject, row.group_by["team"]): row.value for row in by} == {
        ("queried", "research"): 14,
        ("queried", "sales"): 7.25,
        ("beside", "research"): 100,
    }
    small = query("tokens", subject=["queried"], filter_group_by={"model": "small"}).data
    assert [(row.value, row.window_start, row.window_end) for row in small] == [(5, NOON, NOON + timedelta(hours=1))]
    inside = query(
        "tokens", subject=["queried"], from_parameter=NOON + timedelta(minutes=90), to=NOON + timedelta(hours=2)
    )
    assert [row.value for row in inside.data] == [7.25]
    assert inside.from_property == NOON + timedelta(hours=1)  # widened, and says so

    body = MeterQueryRequest(
        subject=["queried"], filter_group_by={"team": ["research", "sales"], "model": ["large"]}, window_size="HOUR"
    )
    assert [row.value for row in client.meters.query("tokens", body).data] == [7.25, 9]
    text = client.meters.query_csv("tokens", subject=["queried"], group_by=["team"])
    assert "".join(text).splitlines()[0] == "window_start,window_end,team,value"
    hours = query("users", subject=["queried"], window_size="HOUR", group_by=["subject"])
    assert hours.data == []  # nobody named a user


@pytest.mark.parametrize(
    ("meter", "asked", "status", "why"),
    [
        ("tokens", {"window_size": "MINUTE"}, 501, "usage is kept by hours"),
        ("tokens", {"window_time_zone": "Europe/Vienna"}, 501, "in UTC"),
        ("tokens", {"group_by": ["planet"]}, 400, "has no 'planet'; it has subject, team, model"),
        ("tokens", {"from_parameter": NOON, "to": NOON - timedelta(days=1)}, 400, "must be before"),
        ("users", {"window_size": "DAY", "group_by": ["subject"]}, 501, "do not add up"),
        ("pages", {}, 404, "no such meter"),
    ],
)
def test_what_a_meter_cannot_be_asked(client: Any, meter: str, asked: dict[str, Any], status: int, why: str) -> None:
    with pytest.raises(HttpResponseError) as caught:
        client.meters.query_json(meter, **asked)
    response = caught.value.response
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert why in response.json()["detail"]


def test_meters_and_features(client: Any) -> None:
    meters = {each.slug: each for each in client.meters.list()}
    assert set(meters) == set(CATALOG["meters"])
    assert (meters["tokens"].aggregation, meters["users"].aggregation) == ("SUM", "UNIQUE_COUNT")
    assert (meters["tokens"].event_type, meters["tokens"].value_property) == ("llm.call", "$.tokens")
    assert meters["tokens"].group_by == {"team": "$.team", "model": "$.model"}
    one = client.meters.get("calls")
    assert (one.id, one.aggregation, one.value_property) == ("calls", "COUNT", None)
    assert NOON < one.created_at <= datetime.now(UTC) + timedelta(minutes=5)
    assert [each["key"] for each in client.features.list()] == ["api", "llm", "sso", "tier"]
    page = client.features.list(page=2, page_size=3)
    assert (page["totalCount"], [each["key"] for each in page["items"]]) == (4, ["tier"])
    assert client.features.get("llm").meter_slug == "tokens"
    with pytest.raises(ResourceNotFoundError):
        client.features.get("video")
    with pytest.raises(HttpResponseError) as caught:
        client.meters.delete("calls")
    assert caught.value.response.status_code == 501


def test_customers(client: Any, stack: Stack) -> None:
    made = client.customers.create({"key": "made", "name": "Made Inc.", "usageAttribution": {"subjectKeys": ["made"]}})
    assert (made.key, made.id, made.usage_attribution.subject_keys) == ("made", "made", ["made"])
    with pytest.raises(HttpResponseError) as caught:
        client.customers.create({"key": "made", "name": "Made Inc."})
    assert caught.value.response.status_code == 409
    for unkept in ({"primaryEmail": "a@made.example"}, {"usageAttribution": {"subjectKeys": ["made-eu"]}}):
        with pytest.raises(HttpResponseError) as caught:
            client.customers.create({"key": "kept", "name": "Kept", **unkept})
        assert caught.value.response.status_code == 501
    client.events.ingest_event(event("made-by-usage", "1"))
    wait_until(lambda: len(client.customers.list(key="made").items_property) == 2)
    page = client.customers.list(key="made", page_size=1, page=2)
    assert (page.total_count, [each.key for each in page.items_property]) == (2, ["made-by-usage"])
    assert client.customers.get("made").created_at > NOON
    with pytest.raises(ResourceNotFoundError):
        client.customers.get("nobody-at-all")


def refused(caught: pytest.ExceptionInfo[HttpResponseError]) -> tuple[int, str]:
    assert caught.value.response.headers["content-type"] == "application/problem+json"
    return caught.value.response.status_code, caught.value.response.json()["detail"]


def test_credits_are_granted_used_up_reset_and_told(client: Any) -> None:
    """An entitlement of the plan that is paid by grants: access until they are used up."""
    client.customers.create({"key": "burns", "name": "Burns"})
    value = client.customer_entitlement_v2.get_customer_entitlement_value
    assert value("burns", "llm").has_access is False

    give = client.customer_entitlement_v2.create_customer_entitlement_grant
    now = datetime.now(UTC).replace(microsecond=0)
    early = {"amount": 10, "priority": 1, "effectiveAt": now, "expiration": {"duration": "MONTH", "count": 1}}
    first = give("burns", "llm", EntitlementGrantCreateInputV2(early))
    second = give("burns", "llm", EntitlementGrantCreateInputV2({"amount": 5.5, "priority": 2, "effectiveAt": now}))
    assert (first.amount, first.priority, first.entitlement_id) == (10, 1, "llm")
    assert timedelta(days=28) <= first.expires_at - now <= timedelta(days=31)
    assert value("burns", "llm").has_access is True

    client.events.ingest_event(event("burns", "1", 12, at=now))
    wait_until(lambda: value("burns", "llm").usage == 12)
    left = value("burns", "llm")
    assert (left.has_access, left.balance, left.overage, left.total_available_grant_amount) == (True, 3.5, 0, 15.5)
    page = client.customer_entitlement_v2.get_grants("burns", "llm")
    assert [each.id for each in page.items_property] == [first.id, second.id]

    client.events.ingest_event(event("burns", "2", 4, at=now))
    wait_until(lambda: value("burns", "llm").usage == 16)
    spent = value("burns", "llm")
    assert (spent.has_access, spent.balance, spent.overage) == (False, 0, 0.5)

    history = client.customer_entitlement_v2.get_customer_entitlement_history

    def told() -> Any:
        return history("burns", "llm", window_size="HOUR", from_parameter=now - timedelta(hours=1))

    wait_until(lambda: sum(each.usage for each in told().windowed_history) == 16)
    found = told()
    assert found.windowed_history[0].balance_at_start == 0
    assert sum(each.overage for each in found.burndown_history) == 0.5
    paid: dict[str, float] = {}
    for segment in found.burndown_history:
        for each in segment.grant_usages:
            paid[each.grant_id] = paid.get(each.grant_id, 0) + each.usage
    assert paid == {first.id: 10, second.id: 5.5}
    assert found.burndown_history[-1].balance_at_end == 0

    reset = client.customer_entitlement_v2.reset_customer_entitlement
    with pytest.raises(HttpResponseError) as caught:
        reset("burns", "llm", ResetEntitlementUsageInput({"retainAnchor": False}))
    assert refused(caught)[0] == 501
    assert "retainAnchor" in refused(caught)[1]
    assert value("burns", "llm").usage == 16
    reset("burns", "llm", ResetEntitlementUsageInput({"retainAnchor": True}))
    anew = value("burns", "llm")
    assert (anew.usage, anew.overage, anew.has_access) == (0, 0, False)
    assert EntitlementMeteredV2(client.customer_entitlements_v2.get("burns", "llm")).last_reset >= now
    give("burns", "llm", EntitlementGrantCreateInputV2({"amount": 1, "effectiveAt": datetime.now(UTC)}))
    assert value("burns", "llm").has_access is True


def test_an_allowance_of_a_customers_own(client: Any) -> None:
    client.customers.create({"key": "allowed", "name": "Allowed"})
    asked = {"type": "metered", "featureKey": "api", "usagePeriod": {"interval": "MONTH"}, "issueAfterReset": 3}
    made = EntitlementMeteredV2(client.customer_entitlements_v2.post("allowed", asked))
    assert (made.type, made.id, made.feature_key, made.customer_id) == ("metered", "api", "api", "allowed")
    assert (made.issue_after_reset, made.is_soft_limit, made.usage_period.interval) == (3, False, "MONTH")
    period = made.current_usage_period
    assert period.from_property <= datetime.now(UTC) + timedelta(minutes=5) < period.to
    value = client.customer_entitlement_v2.get_customer_entitlement_value
    before = value("allowed", "api")
    assert (before.has_access, before.balance, before.usage) == (True, 3, 0)
    now = datetime.now(UTC)
    client.events.ingest_events([event("allowed", str(number), at=now) for number in range(3)])
    wait_until(lambda: value("allowed", "api").usage == 3)
    after = value("allowed", "api")
    assert (after.has_access, after.balance, after.overage) == (False, 0, 0)

    entitlements = client.customer_entitlements_v2
    asked = {"type": "static", "featureKey": "tier", "config": '{"seats": 5}'}
    assert EntitlementStaticV2(entitlements.post("allowed", asked)).config == '{"seats": 5}'
    assert value("allowed", "tier").config == '{"seats": 5}'
    entitlements.post("allowed", {"type": "boolean", "featureKey": "sso"})
    assert value("allowed", "sso").has_access is True
    listed = {each["featureKey"]: each["type"] for each in entitlements.list("allowed").items_property}
    assert listed == {"api": "metered", "llm": "metered", "sso": "boolean", "tier": "static"}

    with pytest.raises(HttpResponseError) as caught:
        entitlements.post("allowed", {"type": "boolean", "featureKey": "sso"})
    assert refused(caught)[0] == 409
    wider = {"type": "metered", "featureKey": "api", "usagePeriod": {"interval": "MONTH"}, "issueAfterReset": 4}
    assert entitlements.override("allowed", "api", wider)["issueAfterReset"] == 4
    assert value("allowed", "api").has_access is True  # what was used is still counted: one is left
    assert value("allowed", "api").balance == 1
    entitlements.delete("allowed", "sso")
    with pytest.raises(ResourceNotFoundError):
        value("allowed", "sso")
    assert value("allowed", "tier").config == '{"seats": 5}'  # the others stay


def test_what_an_entitlement_cannot_be(client: Any) -> None:
    client.customers.create({"key": "cannot", "name": "Cannot"})
    post = client.customer_entitlements_v2.post
    metered = {"type": "metered", "featureKey": "api", "issueAfterReset": 3}
    for body, status, why in [
        ({**metered, "usagePeriod": {"interval": "YEAR"}}, 501, "PT1H, DAY, WEEK and MONTH"),
        ({"type": "boolean", "featureKey": "sso", "metadata": {"a": "b"}}, 501, "metadata"),
        ({"type": "boolean", "featureKey": "video"}, 404, "no such feature"),
    ]:
        with pytest.raises(HttpResponseError) as caught:
            post("cannot", body)
        assert refused(caught)[0] == status
        assert why in refused(caught)[1]
    with pytest.raises(HttpResponseError) as caught:
        client.customer_entitlement_v2.get_customer_entitlement_value("cannot", "llm", time=NOON)
    assert refused(caught)[0] == 501
    post("cannot", {**metered, "usagePeriod": {"interval": "DAY"}})
    with pytest.raises(HttpResponseError) as caught:
        client.customer_entitlement_v2.create_customer_entitlement_grant(
            "cannot", "api", EntitlementGrantCreateInputV2({"amount": 1, "effectiveAt": datetime.now(UTC)})
        )
    assert refused(caught) == (422, "the entitlement to 'api' is metered: grants pay for credits alone")


def test_the_value_by_subject(client: Any, stack: Stack) -> None:
    client.customers.create({"key": "by-subject", "name": "By subject"})
    path = "/api/v1/subjects/by-subject/entitlements"
    assert stack.gateway.call("GET", f"{path}/sso/value").json == {"hasAccess": False}
    value = client.customer_entitlement.get_customer_entitlement_value("by-subject", "llm")
    assert (value.has_access, value.balance) == (False, 0)
    stack.gateway.call("POST", "/v1/customers/by-subject/grants", {"amount": "0.000000001"})
    assert stack.gateway.call("GET", f"{path}/llm/value").json["hasAccess"] is True
    assert stack.gateway.call("GET", "/api/v1/subjects/nobody-at-all/entitlements/llm/value").status == 404


async def test_the_asynchronous_client(aio: Any) -> None:
    await aio.events.ingest_event(event("aio", "1", 3))
    await aio.events.ingest_events([event("aio", "2", 4)])
    rows: list[Any] = []
    until = datetime.now(UTC) + timedelta(seconds=60)
    while not rows or rows[0].value != 7:
        assert datetime.now(UTC) < until
        rows = (await aio.meters.query_json("tokens", subject=["aio"])).data
    assert [each.event.id for each in await aio.events.list(subject="aio")] == ["2", "1"]
    assert {each.slug for each in await aio.meters.list()} == set(CATALOG["meters"])
    assert (await aio.features.get("llm")).key == "llm"
    assert (await aio.customers.get("aio")).key == "aio"
    made = await aio.customer_entitlements_v2.post("aio", {"type": "boolean", "featureKey": "sso"})
    assert EntitlementBooleanV2(made).feature_key == "sso"
    assert (await aio.customer_entitlement_v2.get_customer_entitlement_value("aio", "sso")).has_access is True
