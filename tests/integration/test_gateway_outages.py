"""The gateway without a worker, and without a broker: nothing is promised that is not so, and it goes on afterwards."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from asker import records
from gateway_process import GatewayProcess, declare_gateway
from gateway_stack import CATALOG, wait_until
from kafka_fixture import needs_java
from tallygate.connectors.gateway.otlp import _parsed
from tallygate.connectors.kafka_local import LocalKafka
from tallygate.schemas.keys import SCOPES
from tallygate.schemas.topics import USAGE
from tallygate.topologies.keys_topic import create_key
from worker_process import WorkerProcess

pytestmark = [pytest.mark.timeout(240), needs_java]


def event(customer: str, id: str, tokens: int) -> dict[str, Any]:
    data = {"tokens": tokens}
    return {"specversion": "1.0", "id": id, "source": "/t", "type": "llm.call", "subject": customer, "data": data}


def spans() -> dict[str, bytes]:
    """A span with usage, as OTLP writes it in each of its two ways."""
    span = {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "8"}}],
    }
    whose = {"attributes": [{"key": "tallygate.customer", "value": {"stringValue": "acme"}}]}
    text = json.dumps({"resourceSpans": [{"resource": whose, "scopeSpans": [{"spans": [span]}]}]}).encode()
    return {"application/json": text, "application/x-protobuf": _parsed(text, "application/json").SerializeToString()}


ERRORS = {"application/json": "application/problem+json", "application/x-protobuf": "application/x-protobuf"}


def test_without_a_worker_the_feature_decides(fresh_kafka: LocalKafka, tmp_path: Path) -> None:
    """Closed: 503. Open: allowed, and what the work took counts once, whatever comes of the reservation later."""
    with GatewayProcess(fresh_kafka.bootstrap, tmp_path, gateway_timeout_ms=1_500) as gateway:
        assert gateway.call("POST", "/v1/catalog", CATALOG).status == 200
        granted = gateway.call("POST", "/v1/customers/acme/grants", {"amount": "1000", "id": "order-1"})
        assert (granted.status, granted.json["type"]) == (503, "urn:tallygate:problem:no-answer")
        closed = gateway.call("POST", "/v1/reserve", {"customer": "acme", "feature": "llm", "credits": "5"})
        assert (closed.status, closed.headers["retry-after"]) == (503, "1")
        asked = {"customer": "acme", "feature": "open", "credits": "75", "ttl_seconds": 3600, "id": "call-1"}
        opened = gateway.call("POST", "/v1/reserve", asked)
        assert (opened.status, opened.json["allowed"], opened.json["fallback"]) == (200, True, True)
        assert "hold" not in opened.json
        checked = gateway.call("POST", "/v1/check", {"customer": "acme", "feature": "open"})
        assert checked.json["fallback"] is True
        assert gateway.call("POST", "/v1/usage", event("acme", "call-1", 40)).status == 202
        wait_until(lambda: released(fresh_kafka.bootstrap))

        with WorkerProcess(fresh_kafka.bootstrap, tmp_path / "worker"):

            def balance() -> Any:
                said = gateway.call("GET", "/v1/customers/acme/balance")
                return said.json["pools"][0] if said.status == 200 else None

            wait_until(lambda: balance() is not None)
            again = gateway.call("POST", "/v1/customers/acme/grants", {"amount": "1000", "id": "order-1"})
            assert again.status == 200
            # The reservation that nobody waited for is released behind itself; `llm` held 5 of its own.
            settled = {"pool": "credits", "balance": "955", "held": "5", "overage": "0", "used": "40"}
            wait_until(lambda: balance() == settled)
        assert gateway.stop() == 0


def released(brokers: str) -> bool:
    """Whether the fallback's release lies in Kafka, behind its reservation."""
    said = [record.value or b"" for record in records(brokers, "tallygate.requests.v1")]
    return any(b'"tallygate.release.v1"' in value for value in said)


def test_a_broker_that_is_away_is_waited_for(fresh_kafka: LocalKafka, tmp_path: Path) -> None:
    declare_gateway(fresh_kafka.bootstrap)
    gateway = GatewayProcess(fresh_kafka.bootstrap, tmp_path, wait=False, gateway_timeout_ms=2_000)
    gateway.admin = create_key(gateway.settings, SCOPES).text
    fresh_kafka.kill()
    with gateway:
        gateway.wait_for("is away")
        assert gateway.call("GET", "/healthz").status == 200
        assert gateway.call("GET", "/readyz").status == 503
        early = gateway.call("POST", "/v1/usage", event("acme", "1", 1))
        assert (early.status, early.json["type"]) == (503, "urn:tallygate:problem:not-connected")
        assert len(re.findall("is away", gateway.log())) == 1
        fresh_kafka.start()
        gateway.wait_for("gateway is ready", 60)
        assert gateway.call("POST", "/v1/usage", event("acme", "2", 1)).status == 202

        fresh_kafka.kill()
        lost = gateway.call("POST", "/v1/usage", event("acme", "3", 1))
        assert (lost.status, lost.json["type"]) == (503, "urn:tallygate:problem:not-recorded")
        for kind, body in spans().items():  # exporters and collectors keep them, and send them again
            lost = gateway.call("POST", "/v1/traces", body, headers={"content-type": kind})
            assert (lost.status, lost.headers["retry-after"], lost.headers["content-type"]) == (503, "1", ERRORS[kind])
            assert b"Kafka has not confirmed it" in lost.body
        denied = gateway.call("POST", "/v1/customers/acme/grants", {"amount": "1"})
        assert denied.status == 503  # it is not asked for, since nobody can say that it was
        fresh_kafka.start()
        wait_until(lambda: gateway.call("POST", "/v1/usage", event("acme", "3", 1)).status == 202)
        for kind, body in spans().items():
            assert gateway.call("POST", "/v1/traces", body, headers={"content-type": kind}).status == 200
        kept = [record.value or b"" for record in records(fresh_kafka.bootstrap, USAGE)]
        assert {b'"id": "2"' in value or b'"id": "3"' in value or b'"id":"5b8efff7' in value for value in kept} == {
            True
        }
        assert any(b'"id": "3"' in value for value in kept)
        assert gateway.stop() == 0
    assert "Traceback" not in gateway.log()


def test_what_cannot_be_is_one_line(fresh_kafka: LocalKafka, tmp_path: Path) -> None:
    declare_gateway(fresh_kafka.bootstrap)
    with GatewayProcess(fresh_kafka.bootstrap, tmp_path) as first:
        address = ":".join(map(str, first.place))
        second = GatewayProcess(fresh_kafka.bootstrap, tmp_path, wait=False, gateway_address=address)
        with pytest.raises(AssertionError, match="cannot be listened on"), second:
            pass
    assert second.process.returncode == 1
    assert len(second.log().splitlines()) == 1


def test_without_its_topics_it_says_what_to_do(broker_pool: Any, tmp_path: Path) -> None:
    with broker_pool.borrowed() as empty:
        gateway = GatewayProcess(empty.bootstrap, tmp_path, wait=False)
        with gateway:
            assert gateway.process.wait(60) == 1
            assert "run `tallygate topics`" in gateway.log().splitlines()[-1]
            assert "Traceback" not in gateway.log()
