"""The gateway as its callers see it, with a real broker, worker and sink behind it."""

import contextlib
import gzip
import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import zstandard

from gateway_stack import CATALOG, Stack, gateway_stack, wait_until
from kafka_fixture import Broker
from tallygate.topologies.audit_log import audit_log
from tallygate.topologies.keys_topic import revoke_key

#: Days whose hours still take distinct values: they close after eight.
DAY, NEXT_DAY = (f"{datetime.now(UTC) - timedelta(days=back):%Y-%m-%d}" for back in (3, 2))

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_stack(module_kafka.bootstrap, tmp_path_factory.mktemp("gateway"), sink=True) as running:
        yield running


def grant(stack: Stack, customer: str, amount: str = "1000") -> None:
    assert stack.gateway.call("POST", f"/v1/customers/{customer}/grants", {"amount": amount}).status == 200


def event(customer: str, id: str, tokens: int = 5, **more: Any) -> dict[str, Any]:
    data = {"tokens": tokens, "team": "research", "user": id, **more}
    return {
        "specversion": "1.0",
        "id": id,
        "source": "/test",
        "type": "llm.call",
        "subject": customer,
        "time": f"{DAY}T12:30:00Z",
        "data": data,
    }


def balance(stack: Stack, customer: str) -> Any:
    return stack.gateway.call("GET", f"/v1/customers/{customer}/balance").json["pools"][0]


def test_reserve_settle_and_release(stack: Stack) -> None:
    call = stack.gateway.call
    grant(stack, "acme")
    asked = {"customer": "acme", "feature": "llm", "quantities": {"tokens": 75}}
    held = call("POST", "/v1/reserve", asked, headers={"Idempotency-Key": "h1"})
    assert (held.status, held.json["allowed"], held.json["hold"]["id"]) == (200, True, "h1")
    assert call("POST", "/v1/reserve", {**asked, "id": "h1", "quantities": {"tokens": "75.0"}}).json == held.json
    other = call("POST", "/v1/reserve", {**asked, "credits": 1}, headers={"Idempotency-Key": "h1"})
    assert (other.status, other.json["reason"]) == (409, "id_conflict")
    assert balance(stack, "acme") == {"pool": "credits", "balance": "925", "held": "75", "overage": "0"}
    longer = call("POST", "/v1/extend", {"customer": "acme", "hold": "h1", "ttl_seconds": 900})
    assert longer.json["hold"]["expires_at"] > held.json["hold"]["expires_at"]
    settled = call("POST", "/v1/settle", {"customer": "acme", "hold": "h1", "quantities": {"tokens": 60}})
    assert (settled.status, settled.json["credits"]) == (200, "60")
    again = call("POST", "/v1/settle", {"customer": "acme", "hold": "h1", "quantities": {"tokens": 60}})
    assert again.json == settled.json
    held = call("POST", "/v1/reserve", asked)
    released = call("POST", "/v1/release", {"customer": "acme", "hold": held.json["id"]})
    assert released.json["balance"] == "940"
    unknown = call("POST", "/v1/release", {"customer": "acme", "hold": "none"})
    assert (unknown.status, unknown.json["reason"]) == (404, "hold_unknown")


def test_a_denial_is_an_answer(stack: Stack) -> None:
    grant(stack, "wayne", "10")
    for path in ("/v1/check", "/v1/reserve"):
        said = stack.gateway.call("POST", path, {"customer": "wayne", "feature": "llm", "credits": "11"})
        assert (said.status, said.json["allowed"], said.json["reason"]) == (200, False, "credits_exhausted")
        assert said.json["limits"][0]["remaining"] == "10"
    unknown = stack.gateway.call("POST", "/v1/check", {"customer": "never-seen", "feature": "llm"})
    assert (unknown.status, unknown.json["reason"]) == (200, "customer_unknown")
    far = stack.gateway.call("POST", "/v1/estimate", {"customer": "wayne", "feature": "llm", "of": "tokens"})
    assert far.json["affordable"] == {"tokens": "10"}


def test_what_is_there_of_a_customer(stack: Stack) -> None:
    call = stack.gateway.call
    grant(stack, "hooli", "100")
    budget = {"name": "teams", "limit": "50", "scope": {"team": "*"}, "period": "day", "thresholds": [80]}
    assert call("POST", "/v1/customers/hooli/budgets", budget).status == 200
    rate = {"name": "calls", "limit": 10, "per_seconds": 60}
    assert call("POST", "/v1/customers/hooli/rate-limits", rate).status == 200
    given = call("GET", "/v1/customers/hooli/grants").json["grants"]
    assert [each["balance"] for each in given] == ["100"]
    rights = {each["feature"]: each for each in call("GET", "/v1/customers/hooli/entitlements").json["entitlements"]}
    assert {name: each["allowed"] for name, each in rights.items()} == {"llm": True, "open": True}
    assert "calls" in {limit["name"] for limit in rights["llm"]["limits"]}
    assert call("GET", "/v1/customers/hooli/entitlements?feature=video").status == 404
    ended = call("DELETE", f"/v1/customers/hooli/grants/{given[0]['id']}")
    assert (ended.status, balance(stack, "hooli")["balance"]) == (200, "0")
    assert call("POST", "/v1/customers/hooli/subscriptions", {"plan": "none"}).json["reason"] == "plan_unknown"
    assert call("POST", "/v1/customers/hooli/subscriptions", {"plan": "pro"}).status == 200
    assert call("POST", "/v1/customers/hooli/status", {"suspended": True}).status == 200
    said = call("POST", "/v1/check", {"customer": "hooli", "feature": "llm"}).json
    assert said["reason"] == "customer_suspended"
    assert call("GET", "/v1/customers/nobody-at-all/balance").status == 404


def test_a_customer_with_any_name(stack: Stack) -> None:
    name = "org/team ü?&#%'\\"
    path = "org%2Fteam%20%C3%BC%3F%26%23%25%27%5C"
    assert stack.gateway.call("POST", f"/v1/customers/{path}/grants", {"amount": 7}).status == 200
    assert stack.gateway.call("GET", f"/v1/customers/{path}/balance").json["customer"] == name
    wait_until(lambda: bool(stack.gateway.call("GET", f"/v1/customers/{path}/ledger").json["postings"]))
    assert stack.gateway.call("GET", f"/v1/customers/{path}/usage").json["usage"] == []
    refused = stack.gateway.call("GET", "/v1/customers/a%0Ab/ledger")
    assert (refused.status, "no control characters" in refused.json["detail"]) == (400, True)


@pytest.mark.parametrize("form", ["one", "batch", "lines", "binary", "gzip", "zstd"])
def test_usage_in_every_form(stack: Stack, form: str) -> None:
    customer = f"usage-{form}"
    grant(stack, customer)
    events = [event(customer, "1"), event(customer, "2")]
    kinds = {"one": "application/cloudevents+json", "batch": "application/cloudevents-batch+json"}
    headers = {"content-type": kinds.get(form, "application/x-ndjson")}
    body = "\n".join(map(json.dumps, events)).encode()
    count = 2
    match form:
        case "one":
            body, count = json.dumps(events[0]).encode(), 1
        case "batch":
            body = json.dumps(events).encode()
        case "gzip":
            body, headers["content-encoding"] = gzip.compress(body), form
        case "zstd":
            body, headers["content-encoding"] = zstandard.ZstdCompressor().compress(body), form
        case "binary":
            attributes = {f"ce-{name}": str(value) for name, value in events[0].items() if name != "data"}
            headers = {**attributes, "content-type": "application/json"}
            body, count = json.dumps(events[0]["data"]).encode(), 1
    for _ in range(2):  # again: it counts once
        said = stack.gateway.call("POST", "/v1/usage", body, headers=headers)
        assert (said.status, said.json) == (202, {"accepted": count})
    # What a worker answers now, it decides behind the events, which Kafka had before.
    wait_until(lambda: balance(stack, customer)["balance"] == str(1000 - 5 * count))


def test_a_batch_with_a_wrong_event_is_refused_whole(stack: Stack) -> None:
    events = [event("whole", "1"), {**event("whole", "2"), "specversion": "0.3"}]
    said = stack.gateway.call("POST", "/v1/usage", events)
    assert (said.status, len(said.json["errors"])) == (400, 1)
    assert "event 2" in said.json["detail"]
    assert stack.gateway.call("GET", "/v1/customers/whole/balance").status == 404  # nothing of it came


def test_usage_and_ledger_from_clickhouse(stack: Stack) -> None:
    call = stack.gateway.call
    grant(stack, "initech", "100")
    events = [
        event("initech", "a", 5),
        {**event("initech", "b", 7, team="sales"), "time": f"{DAY}T13:00:00Z"},
        {**event("initech", "c", 9), "time": f"{NEXT_DAY}T00:00:00Z"},
    ]
    assert call("POST", "/v1/usage", events).status == 202
    span = f"from={DAY}T00:00:00Z&to={NEXT_DAY}T01:00:00Z"

    def asked(query: str) -> Any:
        found = call("GET", f"/v1/customers/initech/usage?{span}&{query}")
        assert found.status == 200, found
        return found.json

    wait_until(lambda: sum(int(row["quantity"]) for row in asked("meter=tokens")["usage"]) == 21)
    total = asked("")
    assert {row["meter"]: row["quantity"] for row in total["usage"]} == {"tokens": "21", "longest": "9"}
    assert total["left_out"] == ["users"]
    daily = asked("meter=tokens&window=day")["usage"]
    assert [(row["window_at"], row["quantity"], row["events"]) for row in daily] == [
        (f"{DAY}T00:00:00Z", "12", 2),
        (f"{NEXT_DAY}T00:00:00Z", "9", 1),
    ]
    teams = asked("meter=tokens&by=team&window=day&filter=team=research")["usage"]
    assert [(row["dimensions"], row["quantity"]) for row in teams] == [
        ({"team": "research"}, "5"),
        ({"team": "research"}, "9"),
    ]
    assert asked("meter=users&window=hour")["usage"][0]["quantity"] == "1"
    for wrong in ("window=year", "filter=team", "from=yesterday", "meter=tokens&meter=users"):
        assert call("GET", f"/v1/customers/initech/usage?{wrong}").status == 400
    assert call("GET", "/v1/customers/initech/usage?meter=users").status == 422
    assert call("GET", "/v1/customers/initech/usage?meter=pages").status == 404

    wait_until(lambda: len(call("GET", "/v1/customers/initech/ledger").json["postings"]) == 8)
    first = call("GET", "/v1/customers/initech/ledger?limit=3").json
    rest = call("GET", f"/v1/customers/initech/ledger?cursor={first['next']}").json
    lines = [*first["postings"], *rest["postings"]]
    assert (len(first["postings"]), len(rest["postings"]), "next" in rest) == (3, 5, False)
    assert sum(int(line["amount"]) for line in lines) == 0
    assert {line["account"] for line in lines} >= {"consumed:llm"}


def test_an_sql_fragment_is_only_a_name(stack: Stack) -> None:
    for text in ("x%27%20OR%201=1--", "x%5C%27", "%27%29%3B%20DROP%20TABLE%20sink_usage--"):
        found = stack.gateway.call("GET", f"/v1/customers/{text}/usage?meter=tokens&by={text}&filter={text}={text}")
        assert (found.status, found.json["usage"]) == (200, [])


def test_the_catalog(stack: Stack) -> None:
    call = stack.gateway.call
    shown = call("GET", "/v1/catalog").json
    assert shown["catalog"]["features"]["open"]["fail"] == "open"
    same = call("POST", "/v1/catalog", shown["catalog"])
    assert (same.status, same.json["version"], "changed" in same.json) == (200, shown["version"], False)
    broken = call("POST", "/v1/catalog", {"meters": {}, "features": {"a": {"meters": ["none"]}}})
    assert broken.status == 422
    assert "features.a.meters.0: there is no meter 'none'" in broken.json["errors"][0]
    assert call("GET", "/v1/catalog").json == shown


def test_every_administrative_change_is_in_the_audit_log(stack: Stack) -> None:
    call = stack.gateway.call
    grant(stack, "audited", "5")
    conflict = {"amount": 1, "id": "order-1"}
    assert call("POST", "/v1/customers/audited/grants", conflict).status == 200
    assert call("POST", "/v1/customers/audited/grants", {**conflict, "amount": 2}).status == 409
    assert call("POST", "/v1/catalog", CATALOG).status == 200
    found = list(audit_log(stack.gateway.settings))
    here = [record for record in found if record.customer == "audited"]
    assert [record.outcome for record in here] == ["asked", "done", "asked", "done", "asked", "refused"]
    assert here[-1].reason.startswith("id_conflict")
    assert {(record.who, record.origin) for record in here} == {(stack.gateway.admin[3:15], "127.0.0.1")}
    by_id = {record.id: record for record in found if record.outcome == "asked"}
    assert all(record.id in by_id and record.at >= by_id[record.id].at for record in found)
    applied = [record for record in found if record.action == "catalog.apply"]
    assert (applied[-1].outcome, applied[-1].target) == ("done", "version 1")
    # A question is no change.
    assert not [record for record in found if record.action in ("check", "reserve", "balance")]


def test_decisions_and_balances_are_streamed(stack: Stack) -> None:
    grant(stack, "globex")
    key = stack.gateway.key("read", customers=("globex",))
    with stream(stack, key) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert next_event(answer)[0] == "balance"
        for customer in ("acme", "globex"):
            stack.gateway.call("POST", "/v1/reserve", {"customer": customer, "feature": "llm", "credits": "1"})
        kind, data = next_event(answer)
        assert (kind, data["customer"], data["op"]) == ("decision", "globex", "reserve")
        kind, data = next_event(answer)
        assert (kind, data["customer"]) == ("balance", "globex")
        assert data["statement"]["pools"][0]["held"] == "1"
    assert stack.gateway.call("GET", "/v1/stream?customer=acme", key=key).status == 403


def test_who_connects_again_is_told_that_something_may_be_missing(stack: Stack) -> None:
    grant(stack, "again")
    with stream(stack, stack.gateway.key("read", customers=("again",)), **{"last-event-id": "0/17/0"}) as answer:
        assert next_event(answer) == ("missed", {"last_event_id": "0/17/0"})
        assert next_event(answer)[0] == "balance"


def test_a_stream_ends_with_its_key(stack: Stack) -> None:
    """Also where nothing happens, and without another word."""
    grant(stack, "ended")
    key = stack.gateway.key("read", customers=("ended",))
    with stream(stack, key) as answer:
        assert next_event(answer)[0] == "balance"
        revoke_key(stack.gateway.settings, key[3:15])
        assert answer.read() == b"\n"


@contextlib.contextmanager
def stream(stack: Stack, key: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(*stack.gateway.place, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/stream", headers={"authorization": f"Bearer {key}", **headers})
        answer = connection.getresponse()
        assert answer.status == 200
        yield answer


def next_event(answer: http.client.HTTPResponse) -> tuple[str, Any]:
    kind = ""
    while True:
        line = answer.readline().decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return kind, json.loads(line.removeprefix("data: "))
