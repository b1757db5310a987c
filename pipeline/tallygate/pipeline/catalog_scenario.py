"""Scenarios with a catalog: the whole waterfall over usage events and requests, in JSON, checked.

```json
{"catalog": {"meters":   {"tokens": {"event_type": "llm.call", "value": "tokens", "dimensions": ["team"]}},
             "features": {"llm": {"meters": ["tokens"], "rates": [{"meter": "tokens", "credits": 1, "per": 1000}]}}},
 "customer": "acme",
 "grants":  [{"id": "trial", "amount": 100, "expires_at": "2026-02-01T00:00:00Z"}],
 "events":  [{"at": "2026-01-01T00:00:00Z", "op": "budget", "name": "teams", "scope": {"team": "*"}, "limit": 8},
             {"at": "2026-01-01T10:00:00Z", "type": "llm.call", "data": {"tokens": 4000, "team": "red"}},
             {"at": "2026-01-01T11:00:00Z", "op": "reserve", "id": "h1", "feature": "llm",
              "quantities": {"tokens": 3000}, "dimensions": {"team": "red"}},
             {"at": "2026-01-01T11:01:00Z", "op": "settle", "hold": "h1", "quantities": {"tokens": 2500}}],
 "queries": [{"at": "2026-01-02T00:00:00Z"}],
 "postings": true,
 "expect":  {"ops": [{}, {"credits": 4}, {"allowed": true}, {"credits": "2.5"}],
             "queries": [{"customers": {"acme": {"pools": {"credits": {"balance": "93.5"}}}}}],
             "summary": {"charged": {"llm": "6.5"}}}}
```

* `catalog`: as in a catalog's YAML, `{"plans": ...}` and all; it may come from elsewhere (`--catalog`).
* `events`: usage events (`at`, `type`, `data`, and optionally `id`, `source`, `time`) and requests (`at`, `op` and the
  fields of that request; ops are those of the wire: reserve, settle, release, extend, check, estimate, balance, grant,
  void-grant, reset, budget, rate-limit, subscribe, customer). Each may name its `customer` (an event: its `subject`);
  the scenario's `customer` stands in. An `id` that is not given is the op and the number in the list.
* `grants`: given at the start, in the fields of the op `grant`, or those of a plain scenario.
* `start`: `at` (default: the first instant named) and `balances`, the grants' at the start: by grant, or by customer
  and grant.

Inputs are taken in order of time, at one instant in file order; a query sees what time has brought by then.

The result has the answer to each event under `ops`, in file order; under `queries` each customer's pools, grants, holds
and limits; the `summary`; and every leg of the ledger under `postings`, on request.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tallygate.pipeline.scenario_fields import (
    Fields,
    ScenarioError,
    amount,
    checked,
    flag,
    instant,
    mapping,
    recurrence,
    text,
)
from tallygate.pipeline.simulation import Step
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import CatalogError, read_catalog
from tallygate.schemas.events import decode_events
from tallygate.schemas.reasons import Refused
from tallygate.schemas.requests import OPS, parse_request

_KNOWN: Final = ("name", "catalog", "customer", "start", "grants", "events", "queries", "postings", "expect")
_EVENT: Final = ("at", "type", "data", "id", "source", "time", "subject", "customer")
_OPS: Final = tuple(OPS.values())
_ALIASES: Final = {"reset_min_rollover": "rollover_min", "reset_max_rollover": "rollover_max"}
_encode = msgspec.json.Encoder().encode


class Query(msgspec.Struct, frozen=True):
    """`customer` empty: everyone known by then."""

    at: int
    customer: str


class CatalogScenario(msgspec.Struct, frozen=True):
    """Instants in ms, amounts in nanos. `set_up` happens at the start, `voids` when grants end before their time.

    `balances` and `created_at` are by customer and grant.
    """

    catalog: Catalog
    start_at: int
    set_up: tuple[Step, ...]
    voids: tuple[Step, ...]
    balances: dict[str, dict[str, int]]
    created_at: dict[str, dict[str, int]]
    events: tuple[Step, ...]
    queries: tuple[Query, ...]
    postings: bool


def has_catalog(document: object) -> bool:
    """Whether a scenario is of this form."""
    return isinstance(document, Mapping) and ("catalog" in document or "events" in document)


def read_catalog_scenario(document: object, catalog: Catalog | None = None) -> CatalogScenario:
    """A checked scenario from parsed JSON; a catalog given stands in for its own. Raises ScenarioError."""
    whole = Fields(document, "")
    whole.only(_KNOWN)
    customer = whole.take("customer", text, "")
    own = catalog or _catalog(whole)
    events = tuple(_event(each, number, customer) for number, each in enumerate(whole.parts("events")))
    queries = tuple(_query(each, customer) for each in whole.parts("queries"))
    start = whole.part("start") if whole.take("start", mapping, None) is not None else Fields({}, "start")
    start.only(("at", "balances"))
    instants = [*(each.at for each in events), *(each.at for each in queries)]
    start_at = start.take("at", instant, min(instants, default=None))
    if start_at is None:
        raise ScenarioError("start.at: is missing, and no event says when")
    for field, found in (("events", [each.at for each in events]), ("queries", [each.at for each in queries])):
        for number, at in enumerate(found):
            if at < start_at:
                raise ScenarioError(f"{field}[{number}].at: before the start")
    grants = [_Grant(each, number, customer, start_at) for number, each in enumerate(whole.parts("grants"))]
    created: dict[str, dict[str, int]] = {}
    given = [(grant.customer, grant.id) for grant in grants]
    for number, grant in enumerate(grants):
        if given[number] in given[:number]:
            raise ScenarioError(f"grants[{number}].id: {grant.id!r} is there twice")
        if grant.created_at is not None:
            created.setdefault(grant.customer, {})[grant.id] = grant.created_at
    return CatalogScenario(
        catalog=own,
        start_at=start_at,
        set_up=tuple(grant.gift for grant in grants if grant.gift),
        voids=tuple(grant.void for grant in grants if grant.void),
        balances=_balances(start, customer),
        created_at=created,
        events=events,
        queries=queries,
        postings=whole.take("postings", flag, False),
    )


def _catalog(whole: Fields) -> Catalog:
    document = whole.take("catalog", mapping, None)
    if document is None:
        raise ScenarioError("catalog: is missing: write it into the scenario, or give one with --catalog")
    try:
        return read_catalog(document, "catalog").compile(1)
    except CatalogError as error:
        raise ScenarioError(str(error).splitlines()[0]) from None


def _query(fields: Fields, customer: str) -> Query:
    fields.only(("at", "customer"))
    return Query(fields.take("at", instant), fields.take("customer", text, customer))


def _event(fields: Fields, number: int, customer: str) -> Step:
    at = fields.take("at", instant)
    op = fields.take("op", _op, "usage")
    if op != "usage":
        return _request(fields, at, op, fields.rest("at", "op"), number, customer)
    fields.only((*_EVENT, "op"))
    given = {
        "specversion": "1.0",
        "id": fields.take("id", text, f"usage-{number}"),
        "source": fields.take("source", text, "scenario"),
        "type": fields.take("type", text),
        "subject": fields.take("subject", text, fields.take("customer", text, customer)),
        "data": fields.take("data", mapping, {}),
    }
    if time := fields.take("time", text, ""):
        given["time"] = time
    try:
        [event] = decode_events(_json(given, fields.place), {})
    except Refused as refused:
        raise ScenarioError(f"{fields.place}: {refused.message}") from None
    return Step(at, event, fields.place)


def _request(fields: Fields, at: int, op: str, given: dict[str, Any], number: int, customer: str) -> Step:
    request = {"type": f"tallygate.{op}.v1", "id": f"{op}-{number}", **({"customer": customer} if customer else {})}
    try:
        return Step(at, parse_request(_json(request | given, fields.place)), fields.place)
    except Refused as refused:
        raise ScenarioError(f"{fields.place}: {refused.message}") from None


def _json(given: dict[str, Any], place: str) -> bytes:
    """What is given, as it would be sent."""
    try:
        return _encode(given)
    except (RecursionError, UnicodeEncodeError) as error:
        raise ScenarioError(f"{place}: cannot be sent as JSON: {error}") from None


def _op(value: Any) -> str:
    if value not in (*_OPS, "usage"):
        raise ValueError(f"unknown op {value!r}; known: usage, {', '.join(_OPS)}")
    return str(value)


class _Grant:
    """A grant of the start: `gift` gives it, unless it is over by then; `void` ends it before its time."""

    def __init__(self, fields: Fields, number: int, customer: str, start_at: int) -> None:
        self.id = fields.take("id", text)
        self.customer = fields.take("customer", text, customer)
        self.created_at = fields.take("created_at", instant, None)
        self.gift: Step | None = None
        self.void: Step | None = None
        effective = fields.take("effective_at", instant, start_at)
        recurrence(fields, effective)
        given = {_ALIASES.get(k, k): v for k, v in fields.rest("created_at", "voided_at").items()}
        expires = fields.take("expires_at", instant, None)
        voided = fields.take("voided_at", instant, None)
        begins = max(start_at, effective)
        gift = _request(fields, start_at, "grant", given, number, customer)
        if (expires is not None and expires <= begins) or (voided is not None and voided <= begins):
            return
        self.gift = gift
        if voided is not None:
            end = {"grant": self.id, "customer": self.customer}
            self.void = _request(fields, voided, "void-grant", end, number, customer)


def _balances(start: Fields, customer: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, value in start.take("balances", mapping, {}).items():
        place = f"start.balances.{name}"
        if isinstance(value, Mapping):
            found.setdefault(str(name), {}).update(
                {str(grant): checked(amount, each, f"{place}.{grant}") for grant, each in value.items()}
            )
        elif customer:
            found.setdefault(customer, {})[str(name)] = checked(amount, value, place)
        else:
            raise ScenarioError(f"{place}: wants an object by grant, or the scenario a `customer`")
    return found
