"""What a gateway says before it is connected, and to what is no proper HTTP: bounded heads, problems, no hanging on."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tallygate.connectors.gateway import protocol
from tallygate.connectors.gateway.protocol import HEAD_BYTES_MAX
from tallygate.topologies.gateway import _server, build_gateway
from tallygate.topologies.settings import load_settings

Place = tuple[str, int]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """A gateway that nobody has connected."""
    gateway = build_gateway(load_settings(data_dir=tmp_path, kafka_brokers="127.0.0.1:9"), "")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = _server(gateway, None)
        serving = asyncio.create_task(server.serve([listening]))
        yield listening.getsockname()
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    await gateway.close()


async def say(place: Place, *parts: bytes) -> bytes:
    """What comes back until the other side closes."""
    reader, writer = await asyncio.open_connection(*place)
    for part in parts:
        writer.write(part)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65_536):
            found += part
    writer.close()
    return found


def split(answer: bytes) -> tuple[int, bytes, dict[str, object]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head[9:12]), head.lower(), msgspec.json.decode(body)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: a", "connection: close", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 503), ("/openapi.json", 200), ("/v1/catalog", 503), ("/x", 404)]
)
async def test_before_it_is_connected(place: Place, path: str, status: int) -> None:
    found, head, body = split(await say(place, get(path)))
    assert found == status
    if status >= 400:
        assert b"application/problem+json" in head
        assert body["status"] == status
    assert (b"retry-after" in head) == (status == 503)


@pytest.mark.parametrize(
    "sent",
    [
        b"HELLO\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET  HTTP/9\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_problem_and_the_end(place: Place, sent: bytes) -> None:
    status, head, body = split(await say(place, sent))
    assert (status, body["type"]) == (400, "urn:tallygate:problem:malformed")
    assert b"application/problem+json" in head


@pytest.mark.parametrize("where", ["one header", "many headers", "the path"])
async def test_a_head_without_end_is_cut_off(place: Place, where: str) -> None:
    piece = {"one header": b"x" * 8_192, "many headers": b"a: b\r\n" * 1_365, "the path": b"y" * 8_192}[where]
    begin = b"GET /" if where == "the path" else b"GET / HTTP/1.1\r\nhost: a\r\nx-long: "
    status, _, body = split(await say(place, begin, *[piece] * (2 * HEAD_BYTES_MAX // 8_192)))
    assert status in (400, 431)  # the parser may give up first
    assert body["status"] == status


async def test_who_sends_no_head_is_sent_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS_MAX", 0.05)
    status, _, body = split(await say(place, b"GET / HTTP/1.1\r\n"))
    assert (status, body["type"]) == (408, "urn:tallygate:problem:too-slow")


async def test_a_connection_without_a_call_is_closed_without_a_word(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS_MAX", 0.01)
    monkeypatch.setattr(protocol, "IDLE_SECONDS_MAX", 0.05)
    assert await say(place, b"") == b""


async def test_a_connection_serves_many_calls(place: Place) -> None:
    reader, writer = await asyncio.open_connection(*place)
    for _ in range(3):
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-long: " + b"x" * (HEAD_BYTES_MAX // 2) + b"\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(17) == b'{"status":"live"}'
    writer.close()
