"""The client: ask Tallygate before the work, record after it what it took.

    async with Tallygate("127.0.0.1:9092", service="checkout") as client:
        async with client.reserve("acme", feature="llm", quantities={"output_tokens": 4096}) as hold:
            reply = await call_the_model()
            await hold.settle({"output_tokens": reply.tokens})

A block that is left without `settle` releases its hold, and a block that the gate denies is not entered: `Denied` is
raised. Where a denial is to be looked at, ask for the answer: `answer = await client.reserve(...)`.

Amounts are ints, decimal strings or Decimals; a float raises TypeError. A call repeats itself with the same id until
it is answered or its `timeout` (seconds; the client's unless given) is over, and then raises `NoAnswer`. A request that
is wrong in itself raises `RefusedRequest`.

Work that needs no permission is reported afterwards, by the thousand: `await client.usage("acme", "llm.call",
{"output_tokens": 812})` returns at once, and the events go out in batches.

Where a decision may cost microseconds only, `client.lease` holds slices ahead and decides within them locally.

`@client.metered("llm", customer=..., quantities=...)` does that around a function, and `wrap(AsyncOpenAI(), client,
customer=...)` around every call of a model.

`TallygateHTTP` has the same calls by way of a gateway: `TallygateHTTP("http://127.0.0.1:8086", key="tg_...")`.
`TallygateSync` and `TallygateHTTPSync` have them for programs without asyncio. Code that takes either is typed with
`TallygateClient`, or `TallygateClientSync`.
"""

from tallygate.connectors.client_async import Tallygate
from tallygate.connectors.client_calls import TallygateClient
from tallygate.connectors.client_content import Amount
from tallygate.connectors.client_errors import (
    ClientClosed,
    Denied,
    LeaseUnsettled,
    NoAnswer,
    NotAllowed,
    NotConnected,
    NotHeld,
    RefusedRequest,
    TallygateError,
    Unsettled,
    UsageLost,
)
from tallygate.connectors.client_holds import Hold, Reservation
from tallygate.connectors.client_http import TallygateHTTP
from tallygate.connectors.client_leases import Lease, Leasing
from tallygate.connectors.client_slices import LeaseDecision
from tallygate.connectors.client_sync import HoldSync, LeaseSync, TallygateClientSync, TallygateHTTPSync, TallygateSync
from tallygate.connectors.llm_clients import wrap
from tallygate.schemas.requests import Override

__all__ = [
    "Amount",
    "ClientClosed",
    "Denied",
    "Hold",
    "HoldSync",
    "Lease",
    "LeaseDecision",
    "LeaseSync",
    "LeaseUnsettled",
    "Leasing",
    "NoAnswer",
    "NotAllowed",
    "NotConnected",
    "NotHeld",
    "Override",
    "RefusedRequest",
    "Reservation",
    "Tallygate",
    "TallygateClient",
    "TallygateClientSync",
    "TallygateError",
    "TallygateHTTP",
    "TallygateHTTPSync",
    "TallygateSync",
    "Unsettled",
    "UsageLost",
    "wrap",
]
