"""HTTP/1.1 as uvicorn speaks it, with bounds that it leaves to a proxy: how large a head may be, and how slow.

Without them anybody could, without a key, fill the memory with one endless header, or hold connections for nothing.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tallygate.connectors.gateway.problems import PROBLEM_JSON

HEAD_BYTES_MAX: Final = 64 * 1024
HEAD_SECONDS_MAX: Final = 20.0
#: How long a connection may be open, or kept, without a call: longer than clients and proxies usually keep theirs.
IDLE_SECONDS_MAX: Final = 75

_HEAD: Final = "HTTP/1.1 {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}"


def _refusal(status: str, slug: str, detail: str) -> bytes:
    code, _, title = status.partition(" ")
    body = f'{{"type":"urn:tallygate:problem:{slug}","title":"{title}","status":{code},"detail":"{detail}"}}'
    return _HEAD.format(status, PROBLEM_JSON, len(body), body).encode()


_NO_HTTP: Final = _refusal("400 Bad Request", "malformed", "this is no HTTP/1.1")
_TOO_LARGE: Final = _refusal(
    "431 Request Header Fields Too Large", "head-too-large", f"a head may have {HEAD_BYTES_MAX} bytes"
)
_TOO_SLOW: Final = _refusal("408 Request Timeout", "too-slow", f"a head must come within {HEAD_SECONDS_MAX:g} s")


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # One that was opened beforehand and is not used is closed without a word: a 408 would answer its first call.
        self._head_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS_MAX, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._await_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._forget_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(_NO_HTTP)

    def _await_head(self) -> None:
        self._forget_timer()
        self._head_timer = asyncio.get_running_loop().call_later(HEAD_SECONDS_MAX, self._refuse, _TOO_SLOW)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, answer: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
