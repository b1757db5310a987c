"""What a client would send, without a broker: stands where its transport does and allows everything."""

from collections.abc import Mapping
from typing import Any

from tallygate.schemas.answers import Answer, HoldView, Statement
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import OPS, Balance, Extend, Request, Reserve, parse_request


class SentRequests:
    """Made instead of `Transport`; `sent` are the requests that the bytes decode to, `more` goes into each answer."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.reason = Reason.ALLOWED
        self.more: dict[str, Any] = {}

    def __call__(self, brokers: str, service: str, in_flight_max: int, kafka: Mapping[str, str]) -> "SentRequests":
        return self

    async def start(self, timeout: float) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, request: Request, value: bytes, timeout: float) -> Answer:
        read = parse_request(value)
        self.sent.append(read)
        more = dict(self.more)
        if isinstance(read, Reserve | Extend) and self.reason is Reason.ALLOWED:
            hold = read.hold if isinstance(read, Extend) else read.id
            until = "2026-01-31T00:10:00Z" if isinstance(read, Extend) else "2026-01-31T00:05:00Z"
            more.setdefault("hold", HoldView(hold, "llm", "5", until, (), {"output_tokens": "500"}))
        if isinstance(read, Balance):
            more.setdefault("statement", Statement())
        return Answer(
            id=read.id,
            op=OPS[type(read)],
            customer=read.customer,
            allowed=self.reason is Reason.ALLOWED,
            reason=self.reason,
            at="2026-01-31T00:00:00Z",
            credits="5",
            balance="95",
            **more,
        )
