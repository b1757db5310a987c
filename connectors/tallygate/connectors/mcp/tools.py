"""The tools: what an agent may do, and what it is told.

A denial is an answer (`allowed: false`, with its reason and the limits that said no), so that an agent can read it,
wait or ask for less; then there is no hold. Whatever could not be decided (no right, no answer in time, an unknown
hold, an unknown argument) is an error of the tool, in one line. So an agent goes ahead only where a result says so.
"""

import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from importlib.metadata import version
from typing import Annotated, Any, Final

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import Field

from tallygate.connectors.client_content import amounts, exact, id_of, in_order
from tallygate.connectors.client_errors import TallygateError
from tallygate.connectors.gateway.problems import Problem
from tallygate.connectors.mcp.desks import Desk
from tallygate.connectors.mcp.results import (
    Balances,
    Decision,
    Ended,
    Estimated,
    Explanation,
    Extended,
    Limits,
    Pool,
    Reported,
    decision_of,
    ended_of,
    estimated_of,
    extended_of,
    hold_of,
    limits_of,
    looked_of,
)
from tallygate.connectors.mcp.words import in_words
from tallygate.schemas.answers import Answer, Statement
from tallygate.schemas.events import UsageEvent, decode_events, encode_event
from tallygate.schemas.reasons import Refused
from tallygate.schemas.requests import Balance, Check, Estimate, Extend, Release, Reserve, Settle

DeskOf = Callable[[Context], Desk]

INSTRUCTIONS: Final = (
    "Tallygate keeps the budget. Before work that costs something, call reserve with what you expect it to take, and "
    "go ahead only if the result says allowed: true. Afterwards call settle with what it really took, or release if "
    "it was not done. If a result says allowed: false, do not do the work: its message says why and what would help. "
    "An error means that nothing was decided: do not do the work then, either."
)
_OWN_TYPES: Final = "tallygate."

Amounts = Annotated[
    dict[str, Decimal],
    Field(description='Expected or actual amount of each meter, like {"input_tokens": 2000}; strings are exact.'),
]
Dimensions = Annotated[
    dict[str, str], Field(description='Who and what, like {"agent": "crawler", "model": "chat-large"}.')
]
Feature = Annotated[str, Field(description="The feature of the catalog that the work belongs to.")]
Customer = Annotated[str, Field(description="Only where the credential is not for a single customer.")]
Credits = Annotated[Decimal, Field(description="Credits directly, beside or instead of quantities.")]
HoldId = Annotated[str, Field(description="The hold that reserve returned.")]


class Tools:
    """Each method is a tool; its docstring is what agents read."""

    def __init__(self, desk_of: DeskOf) -> None:
        self._desk_of = desk_of

    async def check(
        self,
        ctx: Context,
        feature: Feature,
        quantities: Amounts = {},  # noqa: B006 - pydantic copies it
        credits: Credits = Decimal(0),
        dimensions: Dimensions = {},  # noqa: B006
        customer: Customer = "",
    ) -> Decision:
        """Would this be allowed now? Sets nothing aside: reserve does."""
        answer = await self._check(ctx, feature, quantities, credits, dimensions, customer, explain=False)
        return decision_of(answer, in_words(answer))

    async def estimate(
        self,
        ctx: Context,
        feature: Feature,
        of: Annotated[
            str, Field(description="A meter, like output_tokens, or `credits`: how much of it is affordable?")
        ],
        quantities: Amounts = {},  # noqa: B006
        credits: Credits = Decimal(0),
        dimensions: Dimensions = {},  # noqa: B006
        customer: Customer = "",
    ) -> Estimated:
        """What would this cost, and how much of `of` is affordable, the rest as it is? Sets nothing aside."""
        with _told():
            desk = self._desk_of(ctx)
            request = Estimate(
                id=uuid.uuid4().hex,
                customer=desk.customer("decide", customer),
                feature=feature,
                of=of,
                quantities=amounts(quantities),
                credits=exact("credits", credits),
                dimensions=in_order(dimensions),
            )
            answer = await desk.ask(request)
        return estimated_of(answer, in_words(answer))

    async def reserve(
        self,
        ctx: Context,
        feature: Feature,
        quantities: Amounts = {},  # noqa: B006
        credits: Credits = Decimal(0),
        dimensions: Dimensions = {},  # noqa: B006
        at_least: Annotated[Amounts, Field(description="One meter, and how little of it will do.")] = {},  # noqa: B006
        ttl_seconds: Annotated[int | None, Field(ge=1, description="How long the hold lives.")] = None,
        id: Annotated[str, Field(description="Names the hold: the same again is the same reservation.")] = "",
        customer: Customer = "",
    ) -> Decision:
        """Set credits aside before the work. Do the work only if `allowed` is true; then settle or release `hold`."""
        with _told():
            desk = self._desk_of(ctx)
            request = Reserve(
                id=id or uuid.uuid4().hex,
                customer=desk.customer("decide", customer),
                feature=feature,
                quantities=amounts(quantities),
                credits=exact("credits", credits),
                dimensions=in_order(dimensions),
                at_least=amounts(at_least),
                ttl_seconds=ttl_seconds,
            )
            answer = await desk.decide(request)
        return decision_of(answer, in_words(answer))

    async def settle(
        self,
        ctx: Context,
        hold: HoldId,
        quantities: Annotated[
            dict[str, Decimal] | None, Field(description="What it really took, by meter; nothing: what was held.")
        ] = None,
        credits: Annotated[Decimal | None, Field(description="Credits directly.")] = None,
        customer: Customer = "",
    ) -> Ended:
        """Record what the work really took; what is left of the hold comes back. Again with the same is safe."""
        with _told():
            desk = self._desk_of(ctx)
            name = desk.customer("decide", customer)
            request = Settle(
                id=id_of("settle", name, hold),
                customer=name,
                hold=hold,
                quantities=None if quantities is None else amounts(quantities),
                credits=None if credits is None else exact("credits", credits),
            )
            return ended_of(_allowed(await desk.ask(request)), hold)

    async def release(self, ctx: Context, hold: HoldId, customer: Customer = "") -> Ended:
        """Give a hold back: the work was not done. Again is safe."""
        with _told():
            desk = self._desk_of(ctx)
            name = desk.customer("decide", customer)
            answer = await desk.ask(Release(id=id_of("release", name, hold), customer=name, hold=hold))
            return ended_of(_allowed(answer), hold)

    async def extend(
        self,
        ctx: Context,
        hold: HoldId,
        ttl_seconds: Annotated[int, Field(ge=1, description="How long from now.")],
        customer: Customer = "",
    ) -> Extended:
        """Let a hold live longer, while the work takes longer. A hold that has ended is not revived: an error."""
        with _told():
            desk = self._desk_of(ctx)
            name = desk.customer("decide", customer)
            request = Extend(id=uuid.uuid4().hex, customer=name, hold=hold, ttl_seconds=ttl_seconds)
            found = _allowed(await desk.ask(request)).hold
        assert found is not None, "a hold that was extended is told"
        return extended_of(found)

    async def report_usage(
        self,
        ctx: Context,
        type: Annotated[str, Field(description="The event's type, as the catalog's meters name it, like llm.call.")],
        data: Annotated[
            dict[str, str | int | float | bool],
            Field(description='Quantities and dimensions, like {"input_tokens": 800, "model": "chat-large"}.'),
        ],
        id: Annotated[str, Field(description="Names the event: the same id counts once in 24 hours.")] = "",
        customer: Customer = "",
    ) -> Reported:
        """Report work that was done without a reservation. What was settled is recorded already: do not report it."""
        with _told():
            desk = self._desk_of(ctx)
            name = desk.customer("ingest", customer)
            if type.startswith(_OWN_TYPES):
                raise ToolError(f"events of types that begin with {_OWN_TYPES!r} undo others: no tool sends them")
            event = UsageEvent(
                specversion="1.0", id=id or uuid.uuid4().hex, source=desk.source, type=type, subject=name, data=data
            )
            value = encode_event(event)
            decode_events(value, {})
            await desk.send(name, value)
            return Reported(customer=name, source=event.source, id=event.id)

    async def balance(self, ctx: Context, customer: Customer = "") -> Balances:
        """Credits left, set aside and owed, and the holds that are open."""
        answer, found = await self._statement(ctx, customer)
        return Balances(
            customer=answer.customer,
            at=answer.at,
            pools=[
                Pool(pool=each.pool, balance=each.balance, held=each.held, overage=each.overage) for each in found.pools
            ],
            holds=[hold_of(each) for each in found.holds],
        )

    async def limits(
        self,
        ctx: Context,
        feature: Annotated[str, Field(description="With it: every limit that work of this feature meets.")] = "",
        dimensions: Dimensions = {},  # noqa: B006
        customer: Customer = "",
    ) -> Limits:
        """Budgets, rate limits, allowances and credits: how much of each is used, held and left."""
        if not feature:
            answer, found = await self._statement(ctx, customer)
            return Limits(customer=answer.customer, limits=limits_of(found.limits))
        answer = await self._check(ctx, feature, {}, Decimal(0), dimensions, customer, explain=True, scope="read")
        return Limits(customer=answer.customer, limits=limits_of(answer.limits))

    async def explain_denial(
        self,
        ctx: Context,
        feature: Feature,
        quantities: Amounts = {},  # noqa: B006
        credits: Credits = Decimal(0),
        dimensions: Dimensions = {},  # noqa: B006
        customer: Customer = "",
    ) -> Explanation:
        """Why is this denied? Asks again, changing nothing, and tells in words which limit says no and what helps."""
        answer = await self._check(ctx, feature, quantities, credits, dimensions, customer, explain=True)
        return Explanation(
            allowed=answer.allowed,
            reason=answer.reason.value,
            explanation=in_words(answer),
            customer=answer.customer,
            steps=[looked_of(step) for step in answer.trace],
            retry_after_ms=answer.retry_after_ms,
        )

    async def _check(
        self,
        ctx: Context,
        feature: str,
        quantities: Mapping[str, Decimal],
        credits: Decimal,
        dimensions: Mapping[str, str],
        customer: str,
        *,
        explain: bool,
        scope: Any = "decide",
    ) -> Answer:
        with _told():
            desk = self._desk_of(ctx)
            request = Check(
                id=uuid.uuid4().hex,
                customer=desk.customer(scope, customer),
                feature=feature,
                quantities=amounts(quantities),
                credits=exact("credits", credits),
                dimensions=in_order(dimensions),
                explain=explain,
            )
            return await desk.decide(request)

    async def _statement(self, ctx: Context, customer: str) -> tuple[Answer, Statement]:
        with _told():
            desk = self._desk_of(ctx)
            request = Balance(id=uuid.uuid4().hex, customer=desk.customer("read", customer))
            answer = _allowed(await desk.ask(request))
        return answer, answer.statement or Statement()


@contextmanager
def _told() -> Iterator[None]:
    """Whatever cannot be decided, as an error of the tool."""
    try:
        yield
    except (Problem, TallygateError) as error:
        raise ToolError(str(error)) from None
    except Refused as refused:
        raise ToolError(refused.message) from None


def _allowed(answer: Answer) -> Answer:
    if not answer.allowed:
        raise ToolError(in_words(answer))
    return answer


class _Server(MCPServer[Any]):
    """Refuses arguments that a tool does not have: a misspelt quantity must not be a reservation of nothing."""

    def __init__(self, desk_of: DeskOf) -> None:
        super().__init__(
            "tallygate",
            title="Tallygate",
            instructions=INSTRUCTIONS,
            version=version("tallygate"),
            log_level="WARNING",
            subscriptions=False,
        )
        tools = Tools(desk_of)
        self._arguments: dict[str, frozenset[str]] = {}
        reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        writes = ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
        )
        ends = ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        )
        for tool, annotations in (
            (tools.check, reads),
            (tools.estimate, reads),
            (tools.reserve, writes),
            (tools.settle, ends),
            (tools.release, ends),
            (tools.extend, ends),
            (tools.report_usage, writes),
            (tools.balance, reads),
            (tools.limits, reads),
            (tools.explain_denial, reads),
        ):
            self.add_tool(tool, annotations=annotations, structured_output=True)
            self._arguments[tool.__name__] = frozenset(inspect.signature(tool).parameters) - {"ctx"}

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context | None = None
    ) -> CallToolResult | InputRequiredResult:
        known = self._arguments.get(name)
        unknown = sorted(set(arguments) - known) if known is not None else []
        if known is not None and unknown:
            raise ToolError(f"{name} has no argument {unknown[0][:100]!r}; it has: {', '.join(sorted(known))}")
        return await super().call_tool(name, arguments, context)


def build_server(desk_of: DeskOf) -> MCPServer[Any]:
    return _Server(desk_of)
