"""Customers in OpenMeter's form: who is known, and nothing else, because nothing else is kept of them."""

from typing import Any, Final

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.administration import carry_out
from tallygate.connectors.gateway.asking import ask
from tallygate.connectors.gateway.customers import statement_of
from tallygate.connectors.gateway.history import ask_rows, quoted
from tallygate.connectors.gateway.openmeter.asked import PAGE_SIZE, PAGE_SIZE_MAX, impossible, number, operation, since
from tallygate.connectors.gateway.operations import Call, json_response
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.instants import parse_instant
from tallygate.schemas.names import Name
from tallygate.schemas.requests import Balance, SetCustomer

#: Whoever was decided about, or used something: for nobody else there is anything.
_KNOWN: Final = (
    "(SELECT customer, min(at) AS first FROM (SELECT customer, at FROM decisions WHERE allowed UNION ALL "
    "SELECT customer, at FROM usage) GROUP BY customer)"
)
_FIRST: Final = "formatDateTime(first, '%Y-%m-%dT%H:%i:%SZ', 'UTC')"


class Attribution(msgspec.Struct, frozen=True, rename="camel"):
    subject_keys: list[str] = []


class CustomerBody(msgspec.Struct, frozen=True, rename="camel"):
    """A customer to be. `name` and `description` are for people, and are not kept."""

    key: Name
    name: str = ""
    description: str | None = None
    usage_attribution: Attribution | None = None
    primary_email: str | None = None
    currency: str | None = None
    billing_address: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None


_decoder: Final = msgspec.json.Decoder(CustomerBody)


async def _list(call: Call) -> Response:
    """A moment behind the workers, from ClickHouse."""
    page, size = number(call, "page", 1, 10**6), number(call, "pageSize", PAGE_SIZE, PAGE_SIZE_MAX)
    parts = [call.query(name) for name in ("key", "name", "subject")]
    wanted = [f"position(customer, {quoted(part)}) > 0" for part in parts if part]
    where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
    order = "DESC" if (call.query("order") or "").upper() == "DESC" else "ASC"
    rows = await ask_rows(
        call,
        f"SELECT customer, {_FIRST} AS first_at, count() OVER () AS known FROM {_KNOWN}{where} "
        f"ORDER BY customer {order} LIMIT {size} OFFSET {(page - 1) * size}",
    )
    found = [msgspec.json.decode(row) for row in rows]
    items = [_told(each["customer"], parse_instant(each["first_at"])) for each in found]
    total = int(found[0]["known"]) if found else 0
    return json_response({"totalCount": total, "page": page, "pageSize": size, "items": items})


async def _get(call: Call) -> Response:
    customer = call.customer()
    await statement_of(call, customer)  # 404 for one that is not known
    rows = await ask_rows(call, f"SELECT {_FIRST} AS first_at FROM {_KNOWN} WHERE customer = {quoted(customer)}")
    known = [parse_instant(msgspec.json.decode(row)["first_at"]) for row in rows]
    return json_response(_told(customer, known[0] if known else None))


def _told(customer: str, first: int | None) -> dict[str, Any]:
    return {
        "id": customer,
        "key": customer,
        "name": customer,
        "usageAttribution": {"subjectKeys": [customer]},
        **since(first),
    }


async def _create(call: Call) -> Response:
    """Makes a customer known. What cannot be kept is refused."""
    body = await call.json(_decoder)
    customer = call.allowed(body.key)
    subjects = body.usage_attribution.subject_keys if body.usage_attribution else []
    if any(subject != customer for subject in subjects):
        raise impossible("usageAttribution: a customer's events have its key as their subject, and no other")
    kept_nowhere = {
        "primaryEmail": body.primary_email,
        "currency": body.currency,
        "billingAddress": body.billing_address,
        "metadata": body.metadata,
    }
    for name, value in kept_nowhere.items():
        if value:
            raise impossible(f"{name}: of a customer only its key is kept")
    asked = Balance(id=call.gateway.new_id(), customer=customer)
    if (await ask(call, asked)).allowed:  # to set it again would end its suspension
        raise Problem(409, "customer-exists", f"customer {customer!r} is known already")
    await carry_out(call, SetCustomer(id=call.gateway.new_id(), customer=customer))
    return json_response(_told(customer, None), 201)


OPERATIONS: Final = (
    operation("GET", "/api/v1/customers", _list, "read", tenant=True),
    operation("POST", "/api/v1/customers", _create, "admin", example={"key": "acme", "name": "acme"}),
    operation("GET", "/api/v1/customers/{customer}", _get, "read"),
)
