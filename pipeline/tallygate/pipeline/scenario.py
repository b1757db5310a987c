"""Scenarios for people who price: the JSON form of `tallygate simulate`, checked.

Source: SEMANTICS, "Scenarios". Every error is one line that names the field.
"""

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
    priority,
    recurrence,
    seconds,
    text,
)
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.journal import Recurrence


class ScenarioGrant(msgspec.Struct, frozen=True):
    id: str
    amount_nanos: int
    priority: int
    effective_at: int
    created_at: int
    expires_at: int | None
    voided_at: int | None
    recurrence: Recurrence | None
    rollover_min_nanos: int
    rollover_max_nanos: int


class ScenarioOp(msgspec.Struct, frozen=True):
    at: int
    op: str
    id: str
    amount_nanos: int | None
    ttl_seconds: int


class Start(msgspec.Struct, frozen=True):
    at: int
    balances: dict[str, int] | None
    overage_nanos: int
    usage_nanos: int
    grant_usage_nanos: int


class Scenario(msgspec.Struct, frozen=True):
    """Inputs in the order of the file; instants in ms, amounts in nanos."""

    start: Start
    preserve_overage: bool
    aggregation: str
    grants: tuple[ScenarioGrant, ...]
    usage: tuple[ScenarioOp, ...]
    resets: tuple[int, ...]
    ops: tuple[ScenarioOp, ...]
    queries: tuple[int, ...]


#: How usage becomes what is burnt: each amount, one for each usage, or by how much it raises the hour's greatest.
AGGREGATIONS: Final = ("sum", "count", "max")
OPS: Final = ("reserve", "settle", "release", "usage", "void_grant")
TTL_SECONDS_DEFAULT: Final = 300


def read_scenario(document: object) -> Scenario:
    """A checked scenario from parsed JSON (numbers as int or Decimal)."""
    whole = Fields(document, "")
    known = (
        "name",
        "start",
        "preserve_overage",
        "aggregation",
        "grants",
        "usage",
        "resets",
        "ops",
        "queries",
        "expect",
    )
    whole.only(known)
    start = _start(whole.part("start"))
    aggregation = whole.take("aggregation", _aggregation, "sum")
    grants = tuple(_grant(each, start.at) for each in whole.parts("grants"))
    ids = [grant.id for grant in grants]
    for number, id in enumerate(ids):
        if id in ids[:number]:
            raise ScenarioError(f"grants[{number}].id: {id!r} is there twice")
    for id in start.balances or {}:
        if id not in ids:
            raise ScenarioError(f"start.balances.{id}: there is no such grant")
    scenario = Scenario(
        start=start,
        preserve_overage=whole.take("preserve_overage", flag, False),
        aggregation=aggregation,
        grants=grants,
        usage=tuple(_usage(each, aggregation) for each in whole.parts("usage")),
        resets=tuple(whole.each("resets", instant)),
        ops=tuple(_op(each, aggregation) for each in whole.parts("ops")),
        queries=tuple(query.take("at", instant) for query in whole.parts("queries")),
    )
    _check_times(scenario)
    return scenario


def _check_times(scenario: Scenario) -> None:
    start = scenario.start.at
    last = None
    for number, at in enumerate(scenario.resets):
        if at <= start:
            raise ScenarioError(f"resets[{number}]: a reset must come after the start of the current period")
        if last is not None and at <= last:
            why = "at the same instant as" if at == last else "before"
            raise ScenarioError(f"resets[{number}]: a reset {why} the one before it")
        last = at
    for field, instants in (
        ("usage", [use.at for use in scenario.usage]),
        ("ops", [op.at for op in scenario.ops]),
        ("queries", list(scenario.queries)),
    ):
        for number, at in enumerate(instants):
            if at < start:
                raise ScenarioError(f"{field}[{number}].at: before the start")


def _start(fields: Fields) -> Start:
    fields.only(("at", "balances", "overage", "usage_in_period", "total_grant_usage"))
    balances = fields.take("balances", mapping, None)
    return Start(
        at=fields.take("at", instant),
        balances=None
        if balances is None
        else {str(id): checked(amount, value, f"start.balances.{id}") for id, value in balances.items()},
        overage_nanos=fields.take("overage", amount, 0),
        usage_nanos=fields.take("usage_in_period", amount, 0),
        grant_usage_nanos=fields.take("total_grant_usage", amount, 0),
    )


def _grant(fields: Fields, start: int) -> ScenarioGrant:
    fields.only(
        (
            "id",
            "amount",
            "priority",
            "effective_at",
            "created_at",
            "expires_at",
            "voided_at",
            "recurrence",
            "reset_min_rollover",
            "reset_max_rollover",
        )
    )
    effective = fields.take("effective_at", instant, start)
    return ScenarioGrant(
        id=fields.take("id", text),
        amount_nanos=fields.take("amount", amount),
        priority=fields.take("priority", priority, 1),
        effective_at=effective,
        created_at=fields.take("created_at", instant, effective),
        expires_at=fields.take("expires_at", instant, None),
        voided_at=fields.take("voided_at", instant, None),
        recurrence=recurrence(fields, effective),
        rollover_min_nanos=fields.take("reset_min_rollover", amount, 0),
        rollover_max_nanos=fields.take("reset_max_rollover", amount, 0),
    )


def _usage(fields: Fields, aggregation: str) -> ScenarioOp:
    fields.only(("at", "amount"))
    return ScenarioOp(fields.take("at", instant), "usage", "", _used(fields, aggregation), 0)


def _used(fields: Fields, aggregation: str) -> int:
    """The amount of a usage, which a count does without."""
    return fields.take("amount", amount, NANOS) if aggregation == "count" else fields.take("amount", amount)


def _op(fields: Fields, aggregation: str) -> ScenarioOp:
    fields.only(("at", "op", "id", "amount", "ttl_seconds"))
    op = fields.take("op", _op_name)
    if op == "usage":
        asked: int | None = _used(fields, aggregation)
    else:
        asked = fields.take("amount", amount) if op == "reserve" else fields.take("amount", amount, None)
    return ScenarioOp(
        at=fields.take("at", instant),
        op=op,
        id=fields.take("id", text) if op != "usage" else fields.take("id", text, ""),
        amount_nanos=asked,
        ttl_seconds=fields.take("ttl_seconds", seconds, TTL_SECONDS_DEFAULT),
    )


def _op_name(value: Any) -> str:
    if value not in OPS:
        raise ValueError(f"unknown op {value!r}; known: {', '.join(OPS)}")
    return str(value)


def _aggregation(value: Any) -> str:
    if value not in AGGREGATIONS:
        raise ValueError(f"{value!r} burns no clear number of credits; known: {', '.join(AGGREGATIONS)}")
    return str(value)
