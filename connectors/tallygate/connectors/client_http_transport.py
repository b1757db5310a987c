"""HTTP calls to a gateway, repeated under their id until they are answered or their time is over."""

import asyncio
import random
import socket
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tallygate.connectors.client_errors import ClientClosed, NotConnected

_BACKOFF_SECONDS: Final = 0.1
_BACKOFF_SECONDS_MAX: Final = 2.0
#: The gateway keeps an idle connection for longer.
_KEEP_SECONDS: Final = 30.0


class HttpReply(NamedTuple):
    status: int
    retry_after: float
    body: bytes

    @property
    def passing(self) -> bool:
        """Whether asking again may be answered otherwise. Every call has an id, so asking again is safe."""
        return self.status >= 500 or self.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT)


class Unanswered(Exception):
    """No answer came; `sent` times it was tried, and one line says what was wrong last."""

    def __init__(self, trouble: str, sent: int = 1) -> None:
        super().__init__(trouble)
        self.sent = sent


class OwnResolver(AbstractResolver):
    """Looks names up in the thread itself, which may wait: aiohttp's own way ends before the program does."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=str(place[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, place in socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        ]

    async def close(self) -> None:
        return


class HttpTransport:
    """A pool of connections to one gateway, on one event loop; with `own_thread`, nothing else runs in its thread."""

    def __init__(
        self,
        url: str,
        key: str,
        try_seconds: float,
        connections_max: int,
        tls: ssl.SSLContext | None,
        *,
        own_thread: bool = False,
    ) -> None:
        found = URL(url)
        if found.scheme not in ("http", "https") or not found.host:
            raise ValueError(f"{url!r} is no URL of a gateway: it looks like http://127.0.0.1:8086")
        self.url = url.rstrip("/")
        self._key = key
        self._try_seconds = try_seconds
        self._connections_max = connections_max
        self._tls = tls
        self._own_thread = own_thread
        self._session: aiohttp.ClientSession | None = None

    @property
    def running(self) -> bool:
        return self._session is not None

    async def start(self, timeout: float) -> None:
        """Raises NotConnected when no gateway answers in time. Twice is once."""
        if self._session is not None:
            return
        connector = aiohttp.TCPConnector(
            resolver=OwnResolver() if self._own_thread else None,
            limit=self._connections_max,
            keepalive_timeout=_KEEP_SECONDS,
            ssl=True if self._tls is None else self._tls,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=None),
        )
        try:
            reply = await self.call("GET", "/healthz", None, {}, timeout)
            if reply.status != HTTPStatus.OK:
                raise NotConnected(f"{self.url} is no Tallygate gateway: /healthz answered {reply.status}")
        except Unanswered as error:
            await self.close()
            raise NotConnected(f"no gateway answers at {self.url}: {error}") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], within: float
    ) -> HttpReply:
        """The answer to a call; passing trouble is tried again in time. Raises Unanswered, ClientClosed."""
        until = time.monotonic() + within
        sent = 0
        while True:
            sent += 1
            left = until - time.monotonic()
            wait = 0.0
            try:
                reply = await self.once(method, path, body, headers, min(self._try_seconds, left))
                if not reply.passing:
                    return reply
                trouble, wait = f"the gateway answered {reply.status}", reply.retry_after
            except Unanswered as error:
                trouble = str(error)
            wait = max(wait, backoff(sent))
            if time.monotonic() + wait >= until:
                raise Unanswered(trouble, sent)
            await asyncio.sleep(wait)

    async def once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> HttpReply:
        """One try. Raises Unanswered, ClientClosed."""
        session = self._session
        if session is None:
            raise ClientClosed("the client is not running: use it in a with block")
        try:
            async with (
                asyncio.timeout(max(seconds, 0.001)),
                session.request(
                    method, URL(self.url + path, encoded=True), data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return HttpReply(answer.status, _seconds(answer.headers.get("Retry-After")), await answer.read())
        except TimeoutError:
            raise Unanswered(f"nothing came within {seconds:.3g} s") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if self._session is not session:
                raise ClientClosed("the client was closed before the answer came: asking again is safe") from None
            if isinstance(error, RuntimeError):
                raise
            raise Unanswered(str(error) or type(error).__name__) from None


def backoff(sent: int) -> float:
    """How long to wait after so many tries: doubling, bounded, and not in step with others."""
    return min(_BACKOFF_SECONDS * 2.0 ** min(sent - 1, 10), _BACKOFF_SECONDS_MAX) * random.uniform(0.5, 1.0)


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0
