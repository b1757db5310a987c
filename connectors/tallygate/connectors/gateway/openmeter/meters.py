"""Meters in OpenMeter's form: those of the catalog, and what they have counted, from ClickHouse.

Usage is kept by hours in UTC. So a question's `from` and `to` are widened to whole hours, and the answer says to which;
windows are an hour, a day or a month.
"""

import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.history import INSTANT_TEXT, WINDOWS, ask_rows, instant_sql, quoted
from tallygate.connectors.gateway.openmeter.asked import (
    impossible,
    inside,
    instant,
    numbers_response,
    operation,
    refuse,
    several,
    since,
    without_none,
    wrong,
)
from tallygate.connectors.gateway.operations import Call
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.catalog import Meter
from tallygate.schemas.instants import HOUR_MS, format_instant, from_datetime, parse_instant, to_datetime

ROWS_MAX: Final = 100_000
_SIZES: Final = {"HOUR": "hour", "DAY": "day", "MONTH": "month"}
_AGGREGATIONS: Final = {"unique": "UNIQUE_COUNT"}
#: What a row is counted for, beside the meter's own dimensions.
_SUBJECT: Final = "subject"
_CUSTOMER: Final = "customer_id"

_REFUSED: Final = {
    "advancedMeterGroupByFilters": "only equality is known: use filterGroupBy",
    "advancedMeterGroupByFiltersParam": "only equality is known: use filterGroupBy",
}
_PAIRS: Final = re.compile(r"""\{(?:'([^'\\]*)': '([^'\\]*)'(?:, )?)*\}""")
_PAIR: Final = re.compile(r"""'([^'\\]*)': '([^'\\]*)'""")


class QueryBody(msgspec.Struct, frozen=True, rename="camel"):
    """The question as a body."""

    from_: datetime | None = msgspec.field(default=None, name="from")
    to: datetime | None = None
    window_size: str | None = None
    window_time_zone: str | None = None
    subject: list[str] = []
    filter_customer_id: list[str] = []
    filter_group_by: dict[str, list[str]] = {}
    advanced_meter_group_by_filters: dict[str, Any] | None = None
    group_by: list[str] = []


_decoder: Final = msgspec.json.Decoder(QueryBody)


class Query(NamedTuple):
    """What usage is asked for. `customers` empty: everybody's; `window` None: one figure for all of the time."""

    meter: Meter
    begin: int | None
    end: int | None
    window: str | None
    customers: Sequence[str]
    by: Sequence[str]
    where: dict[str, list[str]]

    @property
    def dimensions(self) -> list[str]:
        return [name for name in self.by if name not in (_SUBJECT, _CUSTOMER)]

    @property
    def by_customer(self) -> bool:
        return _SUBJECT in self.by or _CUSTOMER in self.by

    def sql(self) -> str:
        columns = [f"toString(toDecimal128({self._quantity()}, 9)) AS quantity"]
        columns.append(f"{INSTANT_TEXT.format('min(u.hour)')} AS first, {INSTANT_TEXT.format('max(u.hour)')} AS last")
        groups = []
        if self.window is not None:
            columns.append(f"{INSTANT_TEXT.format(WINDOWS[self.window])} AS window_at")
            groups.append("window_at")
        if self.by_customer:
            columns.append("u.customer AS whose")
            groups.append("whose")
        if self.dimensions:
            pairs = ", ".join(f"{quoted(name)}, u.dimensions[{quoted(name)}]" for name in self.dimensions)
            columns.append(f"map({pairs}) AS kept")
            groups.append("kept")
        conditions = [f"meter = {quoted(self.meter.name)}", *self._conditions()]
        grouped = f" GROUP BY {', '.join(groups)} ORDER BY {', '.join(groups)}" if groups else " HAVING count() > 0"
        return (
            f"SELECT {', '.join(columns)} FROM usage_hourly AS u WHERE {' AND '.join(conditions)}{grouped} "
            f"LIMIT {ROWS_MAX + 1}"
        )

    def _conditions(self) -> list[str]:
        found = []
        if self.begin is not None:
            found.append(f"hour >= {instant_sql(self.begin)}")
        if self.end is not None:
            found.append(f"hour < {instant_sql(self.end)}")
        if self.customers:
            found.append(f"customer IN ({', '.join(map(quoted, self.customers))})")
        for name, values in self.where.items():
            found.append(f"u.dimensions[{quoted(name)}] IN ({', '.join(map(quoted, values))})")
        return found

    def _quantity(self) -> str:
        match self.meter.aggregation:
            case "min" | "max":
                return f"{self.meter.aggregation}(u.quantity)"
            case "latest":
                return "argMax(u.quantity, u.hour)"
            case "sum" | "count" | "unique":
                return "sum(u.quantity)"

    def check(self) -> None:
        """Distinct and latest values of hours, or of parts of them, do not make those of a whole."""
        kind = self.meter.aggregation
        whole = self.by_customer and set(self.by) >= set(self.meter.dimensions)
        if (kind == "latest" and not whole) or (kind == "unique" and not (whole and self.window == "hour")):
            needed = ", ".join((_SUBJECT, *self.meter.dimensions))
            by_hour = "windowSize=HOUR and " if kind == "unique" else ""
            raise impossible(f"{kind} values do not add up: ask with {by_hour}groupBy of {needed}")


async def _query(call: Call) -> Response:
    return await _answer(call, _asked(call))


async def _query_body(call: Call) -> Response:
    body = await call.json(_decoder, optional=True)
    if body.advanced_meter_group_by_filters:
        raise impossible(f"advancedMeterGroupByFilters: {_REFUSED['advancedMeterGroupByFilters']}")
    return await _answer(call, body)


def _asked(call: Call) -> QueryBody:
    refuse(call, _REFUSED)
    begin, end = instant(call, "from"), instant(call, "to")
    return QueryBody(
        from_=None if begin is None else to_datetime(begin),
        to=None if end is None else to_datetime(end),
        window_size=call.query("windowSize"),
        window_time_zone=call.query("windowTimeZone"),
        subject=several(call, "subject"),
        filter_customer_id=several(call, "filterCustomerId"),
        filter_group_by=_filters(call),
        group_by=[name for text in several(call, "groupBy") for name in text.split(",") if name],
    )


def _filters(call: Call) -> dict[str, list[str]]:
    """`filterGroupBy[team]=research`; as JSON; or as OpenMeter's Python client writes it, a mapping's Python text."""
    found: dict[str, list[str]] = {}
    for name, value in call.request.query_params.multi_items():
        if name.startswith("filterGroupBy[") and name.endswith("]"):
            found.setdefault(name[len("filterGroupBy[") : -1], []).append(value)
    text = call.query("filterGroupBy")
    if text is None:
        return found
    if _PAIRS.fullmatch(text):
        return {**found, **{name: [value] for name, value in _PAIR.findall(text)}}
    try:
        given = msgspec.json.decode(text, type=dict[str, str | list[str]])
    except msgspec.MsgspecError:
        raise wrong("filterGroupBy: write it like filterGroupBy[team]=research, or as a JSON object") from None
    return {**found, **{name: [value] if isinstance(value, str) else value for name, value in given.items()}}


async def _answer(call: Call, asked: QueryBody) -> Response:
    customers = [*asked.subject, *asked.filter_customer_id]
    for customer in customers:
        call.allowed(customer)
    query = _checked(meter_of(call), asked, customers or list(call.key.customers))
    query.check()
    lines = await ask_rows(call, query.sql())
    if len(lines) > ROWS_MAX:
        raise Problem(
            422, "too-many-rows", f"the answer has more than {ROWS_MAX} rows: ask for less time or fewer groups"
        )
    rows = [_row(query, msgspec.json.decode(line)) for line in lines]
    if "text/csv" in call.request.headers.get("accept", ""):
        return _csv(query, rows)
    span = {"from": query.begin, "to": query.end}
    told = {name: None if at is None else format_instant(at) for name, at in span.items()}
    return numbers_response(
        without_none({**told, "windowSize": query.window and query.window.upper(), "data": rows}.items())
    )


def _checked(meter: Meter, asked: QueryBody, customers: Sequence[str]) -> Query:
    size = asked.window_size
    if size is not None and size not in _SIZES:
        why = "usage is kept by hours" if size == "MINUTE" else f"{size[:20]!r} is no window here"
        raise (
            impossible(f"windowSize: {why}; there are {', '.join(_SIZES)}")
            if size == "MINUTE"
            else wrong(f"windowSize: {why}; there are {', '.join(_SIZES)}")
        )
    if asked.window_time_zone not in (None, "", "UTC", "Etc/UTC"):
        raise impossible("windowTimeZone: usage is kept by hours in UTC, and windows are in UTC")
    for name in asked.group_by:
        if name not in (_SUBJECT, _CUSTOMER, *meter.dimensions):
            raise wrong(f"groupBy: meter {meter.name!r} has no {name[:100]!r}; it has {_named(meter)}")
    for name, values in asked.filter_group_by.items():
        if name not in meter.dimensions or not values:
            raise wrong(f"filterGroupBy: meter {meter.name!r} has no {name[:100]!r}; it has {_named(meter)}")
    begin, end = _hour(asked.from_, "from"), _hour(asked.to, "to", up=True)
    if begin is not None and end is not None and begin >= end:
        raise wrong("`from` must be before `to`")
    by = list(dict.fromkeys(asked.group_by))
    return Query(meter, begin, end, _SIZES.get(size or ""), customers, by, asked.filter_group_by)


def _named(meter: Meter) -> str:
    return ", ".join((_SUBJECT, *meter.dimensions))


def _hour(given: datetime | None, name: str, *, up: bool = False) -> int | None:
    if given is None:
        return None
    if given.tzinfo is None:
        raise wrong(f"{name}: write an instant like 2026-01-31T00:00:00Z")
    at = inside(name, from_datetime(given))
    return -(-at // HOUR_MS) * HOUR_MS if up else at // HOUR_MS * HOUR_MS


def _row(query: Query, found: dict[str, Any]) -> dict[str, Any]:
    begin, end = _window(query, found)
    whose = found.get("whose")
    return {
        "value": Decimal(found["quantity"]),
        "windowStart": begin,
        "windowEnd": end,
        "subject": whose if _SUBJECT in query.by else None,
        **({"customerId": whose} if _CUSTOMER in query.by else {}),
        "groupBy": {name: found["kept"][name] or None for name in query.dimensions},
    }


def _window(query: Query, found: dict[str, Any]) -> tuple[str, str]:
    """A row's window; without windows the time that was asked for, or that there is usage of."""
    if query.window is None:
        begin = parse_instant(found["first"]) if query.begin is None else query.begin
        end = parse_instant(found["last"]) + HOUR_MS if query.end is None else query.end
        return format_instant(begin), format_instant(end)
    begin = parse_instant(found["window_at"])
    match query.window:
        case "month":
            day = to_datetime(begin)
            following = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1)
            end = from_datetime(following)
        case "day":
            end = begin + 24 * HOUR_MS
        case _:
            end = begin + HOUR_MS
    return found["window_at"], format_instant(end)


def _csv(query: Query, rows: Sequence[dict[str, Any]]) -> Response:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["window_start", "window_end", *query.by, "value"])
    for row in rows:
        told = {_SUBJECT: row["subject"], _CUSTOMER: row.get("customerId"), **row["groupBy"]}
        writer.writerow([row["windowStart"], row["windowEnd"], *(told[name] for name in query.by), row["value"]])
    headers = {
        "content-disposition": f'attachment; filename="{query.meter.name.encode("ascii", "replace").decode()}.csv"'
    }
    return Response(text.getvalue(), headers=headers, media_type="text/csv")


def meter_of(call: Call) -> Meter:
    wanted = call.request.path_params["slug"]
    for meter in call.gateway.newest.catalog.meters:
        if meter.name == wanted:
            return meter
    raise Problem(404, "meter-unknown", "the catalog has no such meter", reason="meter_unknown")


def _told(call: Call, meter: Meter) -> dict[str, Any]:
    """A meter; it began, as far as can be told, with the catalog's version in force."""
    return {
        "id": meter.name,
        "slug": meter.name,
        "name": meter.name,
        "aggregation": _AGGREGATIONS.get(meter.aggregation, meter.aggregation.upper()),
        "eventType": meter.event_type,
        **({"valueProperty": f"$.{meter.value}"} if meter.value else {}),
        "groupBy": {name: f"$.{name}" for name in meter.dimensions},
        **since(call.gateway.newest.published_at),
    }


async def _list(call: Call) -> Response:
    return numbers_response([_told(call, meter) for meter in call.gateway.newest.catalog.meters])


async def _get(call: Call) -> Response:
    return numbers_response(_told(call, meter_of(call)))


async def _not_here(call: Call) -> Response:
    raise impossible("meters are part of the catalog: `tallygate catalog apply`, or POST /v1/catalog")


OPERATIONS: Final = (
    operation("GET", "/api/v1/meters/{slug}/query", _query, "read"),
    operation("POST", "/api/v1/meters/{slug}/query", _query_body, "read", example={"subject": ["acme"]}),
    operation("GET", "/api/v1/meters", _list, "read", tenant=True),
    operation("POST", "/api/v1/meters", _not_here, "admin", tenant=True),
    operation("GET", "/api/v1/meters/{slug}", _get, "read", tenant=True),
    operation("PUT", "/api/v1/meters/{slug}", _not_here, "admin", tenant=True),
    operation("DELETE", "/api/v1/meters/{slug}", _not_here, "admin", tenant=True),
)
