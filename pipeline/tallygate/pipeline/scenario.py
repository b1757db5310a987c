"""Scenarios for people who price: the JSON form of `tallygate simulate`, checked.

Source: SEMANTICS, "Scenarios". Every error is one line that names the field.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from tallygate.pipeline.recurrence import parse_interval
from tallygate.schemas.amounts import AmountError, quantity_nanos
from tallygate.schemas.instants import LATEST, SECOND_MS, from_datetime, parse_instant
from tallygate.schemas.journal import Recurrence

T = TypeVar("T")
_MISSING: Final = object()
_LATEST: Final = from_datetime(LATEST)


class ScenarioError(ValueError):
    """What is wrong with a scenario, in one line that names the field."""


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
    grants: tuple[ScenarioGrant, ...]
    usage: tuple[ScenarioOp, ...]
    resets: tuple[int, ...]
    ops: tuple[ScenarioOp, ...]
    queries: tuple[int, ...]


OPS: Final = ("reserve", "settle", "release", "usage", "void_grant")
TTL_SECONDS_DEFAULT: Final = 300


def read_scenario(document: object) -> Scenario:
    """A checked scenario from parsed JSON (numbers as int or Decimal)."""
    whole = _Fields(document, "")
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
    if whole.take("aggregation", _text, "sum") != "sum":
        raise ScenarioError("aggregation: a scenario's usage is a sum of amounts")
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
        preserve_overage=whole.take("preserve_overage", _flag, False),
        grants=grants,
        usage=tuple(_usage(each) for each in whole.parts("usage")),
        resets=tuple(whole.each("resets", _instant)),
        ops=tuple(_op(each) for each in whole.parts("ops")),
        queries=tuple(query.take("at", _instant) for query in whole.parts("queries")),
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


def _start(fields: "_Fields") -> Start:
    fields.only(("at", "balances", "overage", "usage_in_period", "total_grant_usage"))
    balances = fields.take("balances", _mapping, None)
    return Start(
        at=fields.take("at", _instant),
        balances=None
        if balances is None
        else {str(id): _checked(_amount, value, f"start.balances.{id}") for id, value in balances.items()},
        overage_nanos=fields.take("overage", _amount, 0),
        usage_nanos=fields.take("usage_in_period", _amount, 0),
        grant_usage_nanos=fields.take("total_grant_usage", _amount, 0),
    )


def _grant(fields: "_Fields", start: int) -> ScenarioGrant:
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
    effective = fields.take("effective_at", _instant, start)
    recurrence = fields.take("recurrence", _mapping, None)
    return ScenarioGrant(
        id=fields.take("id", _text),
        amount_nanos=fields.take("amount", _amount),
        priority=fields.take("priority", _priority, 1),
        effective_at=effective,
        created_at=fields.take("created_at", _instant, effective),
        expires_at=fields.take("expires_at", _instant, None),
        voided_at=fields.take("voided_at", _instant, None),
        recurrence=None if recurrence is None else _recurrence(fields.part("recurrence"), effective),
        rollover_min_nanos=fields.take("reset_min_rollover", _amount, 0),
        rollover_max_nanos=fields.take("reset_max_rollover", _amount, 0),
    )


def _recurrence(fields: "_Fields", effective: int) -> Recurrence:
    fields.only(("interval", "anchor"))
    return Recurrence(fields.take("interval", _interval), fields.take("anchor", _instant, effective))


def _usage(fields: "_Fields") -> ScenarioOp:
    fields.only(("at", "amount"))
    return ScenarioOp(fields.take("at", _instant), "usage", "", fields.take("amount", _amount), 0)


def _op(fields: "_Fields") -> ScenarioOp:
    fields.only(("at", "op", "id", "amount", "ttl_seconds"))
    op = fields.take("op", _op_name)
    needs_amount = op in ("reserve", "usage")
    return ScenarioOp(
        at=fields.take("at", _instant),
        op=op,
        id=fields.take("id", _text) if op != "usage" else fields.take("id", _text, ""),
        amount_nanos=fields.take("amount", _amount) if needs_amount else fields.take("amount", _amount, None),
        ttl_seconds=fields.take("ttl_seconds", _seconds, TTL_SECONDS_DEFAULT),
    )


# ---- reading fields ----


class _Fields:
    """A JSON object whose place is known."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, Mapping):
            raise ScenarioError(f"{place or 'scenario'}: wants an object")
        self._values: Mapping[str, Any] = value
        self._place = place

    def only(self, known: Sequence[str]) -> None:
        for name in self._values:
            if name not in known:
                raise ScenarioError(f"{self._at(name)}: unknown field; known: {', '.join(known)}")

    def take(self, name: str, read: Callable[[Any], T], default: Any = _MISSING) -> T:
        value = self._values.get(name)
        if value is None:
            if default is _MISSING:
                raise ScenarioError(f"{self._at(name)}: is missing")
            return default  # type: ignore[no-any-return]
        return _checked(read, value, self._at(name))

    def part(self, name: str) -> "_Fields":
        if self._values.get(name) is None:
            raise ScenarioError(f"{self._at(name)}: is missing")
        return _Fields(self._values[name], self._at(name))

    def parts(self, name: str) -> list["_Fields"]:
        return [_Fields(value, f"{self._at(name)}[{i}]") for i, value in enumerate(self._list(name))]

    def each(self, name: str, read: Callable[[Any], T]) -> list[T]:
        return [_checked(read, value, f"{self._at(name)}[{i}]") for i, value in enumerate(self._list(name))]

    def _list(self, name: str) -> list[Any]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ScenarioError(f"{self._at(name)}: wants a list")
        return value

    def _at(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name


def _checked(read: Callable[[Any], T], value: Any, place: str) -> T:
    try:
        return read(value)
    except (ValueError, OverflowError) as error:
        raise ScenarioError(f"{place}: {error}") from None


def _amount(value: Any) -> int:
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise ValueError(str(error)) from None


def _instant(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no instant: write it like 2024-01-01T00:00:00Z")
    at = parse_instant(value)
    if not 0 <= at <= _LATEST:
        raise ValueError(f"{value!r} lies outside the years 1970 to 9999 in UTC")
    return at


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("wants a text that is not empty")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("wants true or false")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("wants an object")
    return value


def _priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError("wants a whole number from 0 to 255")
    return value


def _seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value * SECOND_MS < 1 << 50:
        raise ValueError("wants a whole number of seconds above 0")
    return value


def _interval(value: Any) -> str:
    parse_interval(_text(value))
    return str(value)


def _op_name(value: Any) -> str:
    if value not in OPS:
        raise ValueError(f"unknown op {value!r}; known: {', '.join(OPS)}")
    return str(value)
