"""What the tools work through: for whom a call may speak, and where its requests and events go."""

from typing import Final, Protocol

from mcp.server.mcpserver.exceptions import ToolError

from tallygate.connectors.client_async import Tallygate
from tallygate.connectors.gateway.confirmed import ConfirmedProducer, Outgoing
from tallygate.connectors.gateway.decisions import decide
from tallygate.connectors.gateway.limits import check_scope
from tallygate.connectors.gateway.operations import Call
from tallygate.schemas.answers import Answer
from tallygate.schemas.events import STRUCTURED
from tallygate.schemas.keys import Scope
from tallygate.schemas.requests import Check, Request, Reserve
from tallygate.schemas.topics import USAGE

_HEADERS: Final = [("content-type", STRUCTURED)]


class Desk(Protocol):
    """`source` is that of the events reported here: nobody else's event can be taken for one of them."""

    @property
    def source(self) -> str: ...

    def customer(self, scope: Scope, named: str) -> str:
        """The customer of a call that needs this scope. Raises Problem or ToolError where it may not be."""
        ...

    async def decide(self, request: Check | Reserve) -> Answer: ...

    async def ask(self, request: Request) -> Answer: ...

    async def send(self, customer: str, event: bytes) -> None:
        """Returns when Kafka has the event."""
        ...


class KeyDesk:
    """One call to the gateway: its key says what may be done, and for whom."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.source = f"/mcp/{call.key.id}"

    def customer(self, scope: Scope, named: str) -> str:
        key = self._call.key
        check_scope(key, scope)
        if not named and len(key.customers) != 1:
            raise ToolError("say which customer: this API key is not for a single one")
        return self._call.allowed(named or key.customers[0])

    async def decide(self, request: Check | Reserve) -> Answer:
        return await decide(self._call.gateway, request)

    async def ask(self, request: Request) -> Answer:
        return await self._call.gateway.client.ask(request)

    async def send(self, customer: str, event: bytes) -> None:
        gateway = self._call.gateway
        await gateway.producer.send(
            [Outgoing(USAGE, customer.encode(), event, _HEADERS)], gateway.config.timeout_seconds
        )
        gateway.figures.events.inc()


class CustomerDesk:
    """A process of its own for one customer, with its own connection to Kafka. It fails closed."""

    def __init__(self, client: Tallygate, producer: ConfirmedProducer, customer: str, timeout_seconds: float) -> None:
        self._client = client
        self._producer = producer
        self._customer = customer
        self._timeout_seconds = timeout_seconds
        self.source = "/mcp"

    def customer(self, scope: Scope, named: str) -> str:
        if named not in ("", self._customer):
            raise ToolError(f"this server is for customer {self._customer!r} alone")
        return self._customer

    async def decide(self, request: Check | Reserve) -> Answer:
        return await self._client.ask(request)

    async def ask(self, request: Request) -> Answer:
        return await self._client.ask(request)

    async def send(self, customer: str, event: bytes) -> None:
        await self._producer.send([Outgoing(USAGE, customer.encode(), event, _HEADERS)], self._timeout_seconds)
