"""Who may do what: every route against every wrong credential, keys that come and go, limits before Kafka, no secrets.

There is no worker here: what a right key asks is answered 503 after a moment, and that is right enough.
"""

import asyncio
import gzip
import http.client
import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from gateway_process import GatewayProcess
from gateway_stack import CATALOG, wait_until
from kafka_fixture import Broker
from tallygate.connectors.client import NotConnected, TallygateHTTP, TallygateHTTPSync
from tallygate.connectors.gateway import mounts
from tallygate.connectors.gateway.keys import new_key
from tallygate.schemas.keys import SCOPES, Scope
from tallygate.schemas.topics import AUDIT, REQUESTS, USAGE
from tallygate.topologies.audit_log import audit_log
from tallygate.topologies.keys_topic import create_key, known_keys, revoke_key, rotate_key

pytestmark = pytest.mark.timeout(240)

EVENT = {"specversion": "1.0", "id": "1", "source": "/t", "type": "llm.call", "subject": "acme", "data": {"tokens": 1}}
#: Routes whose question names the customer.
ASKING = {
    ("GET", "/v1/stream"): "?customer=acme",
    ("GET", "/api/v1/events"): "?customerId=acme",
    ("GET", "/api/v1/meters/{slug}/query"): "?subject=acme",
}
MISSING: dict[Scope, tuple[Scope, ...]] = {scope: tuple(each for each in SCOPES if each != scope) for scope in SCOPES}


@pytest.fixture(scope="module")
def gateway(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("access")
    with GatewayProcess(module_kafka.bootstrap, folder, gateway_timeout_ms=50, gateway_calls_per_second=0) as running:
        assert running.call("POST", "/v1/catalog", CATALOG).status in (200, 503)  # 50 ms may be too little
        yield running


class Route(NamedTuple):
    method: str
    path: str
    scope: Scope
    body: bytes | None
    media: str
    own: bool = False  # an application of its own says itself, and in its own form, whose customers are meant


def routes() -> list[Route]:
    """Every route that needs a key, asking about Acme."""
    found = []
    for operation in mounts.operations():
        if operation.scope is None:
            continue
        path = operation.path.replace("{customer}", "acme").replace("{grant}", "order-1")
        path += ASKING.get((operation.method, operation.path), "")
        media, (_, example) = next(iter(operation.body.items()), ("", (None, None)))
        body = None if example is None else msgspec.json.encode(example)
        found.append(Route(operation.method, path, operation.scope, body, media))
    tools = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
    return found + [
        Route("POST", f"{each.path}/", each.scope, tools, "application/json", own=True) for each in mounts.mounted()
    ]


ROUTES = [pytest.param(route, id=f"{route.method} {route.path}") for route in routes()]


@pytest.fixture(scope="module")
def keys(gateway: GatewayProcess) -> dict[str, str]:
    """Keys that hold, and keys that do not, by what they are."""
    now = time.time_ns() // 1_000_000
    found = {f"all but {scope}": gateway.key(*MISSING[scope]) for scope in SCOPES}
    found |= {f"globex {scope}": gateway.key(scope, customers=("globex",)) for scope in SCOPES}
    found |= {f"acme {scope}": gateway.key(scope, customers=("acme",)) for scope in SCOPES}
    found["revoked"] = gateway.key(*SCOPES)
    revoke_key(gateway.settings, found["revoked"][3:15])
    gateway.await_key(found["revoked"], status=400)
    found["expired"] = create_key(gateway.settings, SCOPES, expires_at=now + 1).text
    found["unknown"] = new_key(SCOPES, now).text
    found["wrong secret"] = gateway.admin[:-43] + found["unknown"][-43:]
    return found


def send(gateway: GatewayProcess, route: Route, authorization: str | None) -> int:
    headers = {"content-type": route.media, "accept": "application/json"} if route.media else {}
    if authorization is not None:
        headers["authorization"] = authorization
    connection = http.client.HTTPConnection(*gateway.place, timeout=30)
    try:
        connection.request(route.method, route.path, route.body, headers)
        answer = connection.getresponse()
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
        return answer.status
    finally:
        connection.close()


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_against_every_wrong_credential(
    gateway: GatewayProcess, keys: dict[str, str], route: Route
) -> None:
    def status(authorization: str | None) -> int:
        return send(gateway, route, authorization)

    assert [status(None), status(""), status("Bearer"), status("Bearer tg_x"), status("Basic YTpi")] == [401] * 5
    assert status(f"Bearer {gateway.admin}x") == 401
    assert status(f"Token {gateway.admin}") == 401
    for name in ("revoked", "expired", "unknown", "wrong secret"):
        assert (name, status(f"Bearer {keys[name]}")) == (name, 401)
    assert status(f"Bearer {keys[f'all but {route.scope}']}") == 403
    if not route.own:
        assert status(f"Bearer {keys[f'globex {route.scope}']}") == 403
    assert status(f"Bearer {gateway.admin}") not in (401, 403)
    if "acme" in f"{route.path} {route.body!r}" and route.path != "/v1/catalog":
        assert status(f"Bearer {keys[f'acme {route.scope}']}") not in (401, 403)


def test_a_batch_for_somebody_else_is_refused_whole(gateway: GatewayProcess, keys: dict[str, str]) -> None:
    before = ends(gateway, USAGE)
    events = [EVENT, {**EVENT, "subject": "globex"}]
    assert gateway.call("POST", "/v1/usage", events, key=keys["acme ingest"]).status == 403
    assert ends(gateway, USAGE) == before


def test_no_header_names_a_tenant_or_a_customer(gateway: GatewayProcess, keys: dict[str, str]) -> None:
    said = {"X-Tenant": "acme", "X-Customer": "acme", "X-Forwarded-User": "acme"}
    asked = {"customer": "acme", "feature": "llm"}
    assert gateway.call("POST", "/v1/check", asked, key=keys["globex decide"], headers=said).status == 403


def ends(gateway: GatewayProcess, topic: str) -> list[int]:
    consumer = Consumer({"bootstrap.servers": gateway.settings.kafka_brokers, "group.id": "ends"})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        return [consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in sorted(partitions)]
    finally:
        consumer.close()


def test_rotation_lets_both_hold_and_then_ends_the_old_one(gateway: GatewayProcess) -> None:
    old = gateway.key("read", customers=("acme",), name="dashboard")
    new = rotate_key(gateway.settings, old[3:15], overlap_seconds=3600)
    gateway.await_key(new.text)
    assert (new.record.scopes, new.record.customers, new.record.replaces) == (("read",), ("acme",), old[3:15])
    for key in (old, new.text):
        assert gateway.call("GET", "/v1/customers/acme/usage?from=x", key=key).status == 400
    revoke_key(gateway.settings, old[3:15])
    gateway.await_key(old, status=400)
    assert gateway.call("GET", "/v1/customers/acme/usage?from=x", key=old).status == 401
    assert gateway.call("GET", "/v1/customers/acme/usage?from=x", key=new.text).status == 400


def test_a_keys_last_use_is_known_to_the_hour(gateway: GatewayProcess) -> None:
    used, unused = gateway.key("read"), new_key(("read",), 1)

    def last_use() -> int:
        return {known.record.id: known.used for known in known_keys(gateway.settings)}[used[3:15]]

    wait_until(lambda: last_use() > 0)
    assert last_use() % 3_600_000 == 0
    assert unused.record.id not in {known.record.id for known in known_keys(gateway.settings)}


def test_a_key_may_not_call_too_often(gateway: GatewayProcess) -> None:
    key = gateway.key("read", per_second=1)
    said = [gateway.call("GET", "/v1/customers/acme/usage?from=x", key=key) for _ in range(6)]
    limited = [reply for reply in said if reply.status == 429]
    assert limited
    assert int(limited[0].headers["retry-after"]) >= 1
    assert limited[0].json["type"] == "urn:tallygate:problem:rate-limited"


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("body", 413),
        ("chunked body", 413),
        ("bomb", 413),
        ("batch", 413),
        ("event", 413),
        ("packed twice", 415),
        ("xml", 415),
        ("form", 415),
        ("broken", 400),
        ("empty", 400),
        ("deep", 400),
    ],
)
def test_what_is_too_large_or_wrong_never_reaches_kafka(gateway: GatewayProcess, what: str, status: int) -> None:
    batch = "application/cloudevents-batch+json"
    headers = {"content-type": batch}
    events = json.dumps([EVENT]).encode()
    match what:
        case "body" | "chunked body":
            body = b"[" + b" " * (1 << 20) + b"]"
        case "bomb":
            body, headers["content-encoding"] = gzip.compress(b" " * (30 << 20)), "gzip"
        case "batch":
            body = json.dumps([{"specversion": "1.0", "id": str(n)} for n in range(1001)]).encode()
        case "event":
            body = json.dumps([{**EVENT, "data": {"text": "x" * 65_536}}]).encode()
        case "packed twice":
            body, headers["content-encoding"] = events, "gzip, gzip"
        case "xml":
            body, headers["content-type"] = b"<a/>", "application/xml"
        case "form":
            body, headers["content-type"] = b"a=b", "application/x-www-form-urlencoded"
        case "broken":
            body = events[:-3]
        case "empty":
            body = b"[]"
        case _:
            body = b"[" * 100_000
    before = [ends(gateway, topic) for topic in (USAGE, REQUESTS, AUDIT)]
    if what == "chunked body":
        connection = http.client.HTTPConnection(*gateway.place, timeout=30)
        connection.request(
            "POST",
            "/v1/usage",
            iter([body[: 1 << 19], body[1 << 19 :]]),
            {**headers, "authorization": f"Bearer {gateway.admin}"},
            encode_chunked=True,
        )
        found = connection.getresponse().status
        connection.close()
    else:
        found = gateway.call("POST", "/v1/usage", body, headers=headers).status
    assert found == status
    assert [ends(gateway, topic) for topic in (USAGE, REQUESTS, AUDIT)] == before


def test_an_administrative_change_without_an_answer_is_audited_as_failed(gateway: GatewayProcess) -> None:
    said = gateway.call("POST", "/v1/customers/audited/grants", {"amount": "5", "id": "g-1"})
    assert said.status == 503
    found = [record for record in audit_log(gateway.settings) if record.customer == "audited"]
    assert [(record.action, record.outcome, record.target) for record in found] == [
        ("grant", "asked", "g-1"),
        ("grant", "failed", "g-1"),
    ]
    assert {(record.who, record.origin) for record in found} == {(gateway.admin[3:15], "127.0.0.1")}
    assert found[0].details["amount"] == "5"
    made = [record for record in audit_log(gateway.settings) if record.action == "key.create"]
    assert {record.outcome for record in made} == {"asked", "done"}
    assert all(record.who.startswith("cli:") for record in made)


def test_nothing_secret_in_logs_and_errors(gateway: GatewayProcess, keys: dict[str, str]) -> None:
    secret = gateway.admin
    said = [
        gateway.call("GET", f"/v1/customers/acme/usage?api_key={secret}", key=""),
        gateway.call("GET", f"/v1/{secret}", key=secret),
        gateway.call("GET", "/v1/catalog", key=f"{secret} {secret}"),
        gateway.call("GET", f"/v1/customers/{secret}/usage?window={secret}"),
        gateway.call("POST", "/v1/usage", f"[{secret}]".encode(), headers={"content-type": "application/json"}),
        gateway.call("POST", "/v1/check", {"customer": 5, secret: secret}),
        gateway.call("POST", "/v1/check", b"x", headers={"content-type": secret}),
        gateway.call("POST", "/v1/usage", b"x", headers={"content-encoding": secret}),
    ]
    assert all(reply.status >= 400 for reply in said)
    log = gateway.log()
    for text in (secret, *keys.values()):
        assert text[-43:] not in log
    assert "authorization" not in log.lower()
    assert "bearer" not in log.lower()
    for reply in said[:4]:
        assert secret[-43:] not in reply.body.decode()


def test_errors_are_problems_everywhere(gateway: GatewayProcess) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/reserve", 405),
        ("HEAD", "/v1/stream", 405),
        ("OPTIONS", "/v1/reserve", 405),
    ):
        said = gateway.call(method, path, headers={"origin": "https://elsewhere.example"})
        assert (said.status, said.headers["content-type"]) == (status, "application/problem+json")
        assert ("allow" in said.headers) == (status == 405)
        assert not [name for name in said.headers if name.startswith("access-control")]
        if method != "HEAD":
            assert said.json["status"] == status


def test_metrics_are_elsewhere_and_name_no_customer(gateway: GatewayProcess) -> None:
    assert gateway.call("GET", "/metrics").status == 404
    assert gateway.call("GET", "/v1/customers/named-by-nobody-else/usage?from=x").status == 400
    with urllib.request.urlopen(gateway.wait_for(r"metrics on (\S+)")[1], timeout=10) as answer:
        text = answer.read().decode()
    sample = 'tallygate_gateway_calls_total{method="GET",route="/v1/customers/{customer}/usage",status="400"}'
    assert sample in text
    assert "tallygate_gateway_ready 1.0" in text
    assert "named-by-nobody-else" not in text
    assert gateway.admin[3:15] not in text


def certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    alternative = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *alternative, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


async def report(gateway: GatewayProcess, tls: ssl.SSLContext) -> None:
    """Its block is left without an error when Kafka has the event."""
    async with TallygateHTTP(gateway.url, key=gateway.admin, tls=tls) as client:
        await client.usage("acme", "llm.call", {"tokens": 1})


def test_tls(module_kafka: Broker, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    paths: dict[str, Any] = {"gateway_tls_cert": str(cert), "gateway_tls_key": str(key)}
    with GatewayProcess(module_kafka.bootstrap, tmp_path, **paths) as gateway:
        assert gateway.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection(*gateway.place, timeout=30, context=trusting)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises((http.client.HTTPException, OSError)):
            gateway.call("GET", "/readyz")
        asyncio.run(report(gateway, trusting))
        with TallygateHTTPSync(gateway.url, key=gateway.admin, tls=trusting) as waited:
            waited.usage("acme", "llm.call", {"tokens": 1})
        with pytest.raises(NotConnected, match="certificate verify failed"):
            TallygateHTTPSync(gateway.url, key=gateway.admin, timeout=1).start()
        assert gateway.stop() == 0
    cert.write_text("no certificate")
    broken = GatewayProcess(module_kafka.bootstrap, tmp_path, wait=False, **paths)
    with pytest.raises(AssertionError, match="are no certificate and key"), broken:
        pass
    assert broken.process.returncode == 1
    assert "Traceback" not in broken.log()
