"""An application of its own below a path: behind the same keys and limits, with the same errors."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tallygate.connectors.gateway import mounts
from tallygate.connectors.gateway.audit import now_ms
from tallygate.connectors.gateway.keys import NewKey, new_key
from tallygate.connectors.gateway.operations import Mounted
from tallygate.connectors.gateway.services import Gateway
from tallygate.schemas.keys import KeyRecord, KeyUse, encode_keyed, record_key
from tallygate.schemas.records import Record
from tallygate.topologies.gateway import _server, build_gateway
from tallygate.topologies.settings import load_settings

Place = tuple[str, int]


def build(gateway: Gateway) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        if scope["path"].removeprefix(scope["root_path"]) == "/broken":
            raise RuntimeError("broken")
        body = await request.body()
        call = request.state.call
        where = scope["path"].removeprefix(scope["root_path"])
        await PlainTextResponse(f"{call.key.name} {len(body)} {call.gateway is gateway} {where}")(scope, receive, send)

    return app


def know(gateway: Gateway, *keyed: KeyRecord | KeyUse) -> None:
    for offset, each in enumerate(keyed):
        gateway.keys.take(Record("keys", 0, offset, 0, record_key(each), encode_keyed(each)))


@pytest.fixture
def key() -> NewKey:
    return new_key(("decide",), now_ms(), name="agent", per_second=3)


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: NewKey) -> AsyncIterator[Place]:
    module = ModuleType("mounted")
    vars(module)["MOUNTED"] = (Mounted("/own", "decide", build),)
    monkeypatch.setattr(mounts, "MODULES", (*mounts.MODULES, module))
    gateway = build_gateway(load_settings(data_dir=tmp_path, kafka_brokers="127.0.0.1:9"), "")
    know(gateway, key.record, KeyUse(id=key.record.id, hour=now_ms() + 86_400_000))  # so that its use is not noted
    gateway.ready = True
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = _server(gateway, None)
        serving = asyncio.create_task(server.serve([listening]))
        yield listening.getsockname()
        server.should_exit = True
        await serving
    await gateway.close()


async def post(
    place: Place, path: str, key: str | None, body: bytes = b"", *, chunked: bool = False
) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(*place)
    head = [f"POST {path} HTTP/1.1", "host: a"]
    head += [f"authorization: Bearer {key}"] if key else []
    head += ["transfer-encoding: chunked"] if chunked else [f"content-length: {len(body)}"]
    content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    writer.write("\r\n".join([*head, "", ""]).encode() + content)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    found = await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r")[0]))
    writer.close()
    return int(answer[9:12]), found


async def test_it_gets_the_call(place: Place, key: NewKey) -> None:
    for path, seen in (("/own", b"/"), ("/own/", b"/"), ("/own/deeper", b"/deeper")):
        assert await post(place, path, key.text, b"12345") == (200, b"agent 5 True " + seen)


async def test_without_the_right_key_it_is_not_reached(place: Place, key: NewKey) -> None:
    for wrong in (None, "x", new_key(("decide",), 1).text):
        status, body = await post(place, "/own/", wrong)
        assert (status, msgspec.json.decode(body)["type"]) == (401, "urn:tallygate:problem:not-authenticated")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_not_be_larger_there_either(place: Place, key: NewKey, chunked: bool) -> None:
    status, body = await post(place, "/own/", key.text, b"x" * ((1 << 20) + 1), chunked=chunked)
    assert (status, msgspec.json.decode(body)["type"]) == (413, "urn:tallygate:problem:body-too-large")


async def test_its_faults_are_problems_too(place: Place, key: NewKey) -> None:
    status, body = await post(place, "/own/broken", key.text)
    assert (status, msgspec.json.decode(body)["type"]) == (500, "urn:tallygate:problem:fault")
    assert b"broken" not in body


async def test_its_calls_count_against_the_keys_rate(place: Place, key: NewKey) -> None:
    statuses = [(await post(place, "/own/", key.text))[0] for _ in range(10)]
    assert 429 in statuses
