"""What has been of a customer, from ClickHouse: its ledger, and its usage by window and dimension."""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.operations import Call, Operation, Parameter, Shown, json_response
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.catalog import Meter
from tallygate.schemas.instants import DAY_MS, format_instant, parse_instant, to_datetime

ROWS_MAX: Final = 10_000
LEDGER_ROWS_MAX: Final = 1_000
_LEDGER_ROWS: Final = 100
_DAYS: Final = 30
_CURSOR: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")
#: What ClickHouse's DateTime64(3) holds and a DateTime of a window's start does.
_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2105, 12, 31, tzinfo=UTC)

WINDOWS: Final = {
    "hour": "toStartOfHour(hour)",
    "day": "toStartOfDay(hour)",
    "week": "toDateTime(toMonday(hour), 'UTC')",
    "month": "toDateTime(toStartOfMonth(hour), 'UTC')",
}
INSTANT_TEXT: Final = "formatDateTime({}, '%Y-%m-%dT%H:%i:%SZ', 'UTC')"


class UsageInWindow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A meter's quantity from `window_at` on (without it: in all of the time asked for), for one set of dimensions."""

    meter: str
    quantity: str
    events: int
    dimensions: dict[str, str] = {}
    window_at: str = ""


class CustomerUsage(msgspec.Struct, frozen=True, omit_defaults=True, rename={"from_": "from"}):
    """`more`: there is more than one answer holds, so ask for less. `left_out`: meters that do not add up so."""

    customer: str
    from_: str
    to: str
    usage: tuple[UsageInWindow, ...]
    more: bool = False
    left_out: tuple[str, ...] = ()


class LedgerLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One leg of an entry: `amount` is added to `account`. Legs with the same `offset` sum to zero per pool."""

    at: str
    pool: str
    account: str
    amount: str
    offset: int
    leg: int
    grant: str = ""
    category: str = ""
    price: str = "0"
    feature: str = ""
    cause: str = ""


class CustomerLedger(msgspec.Struct, frozen=True, omit_defaults=True):
    """`next`: the `cursor` that goes on from here; there is none at the end."""

    customer: str
    postings: tuple[LedgerLine, ...]
    next: str = ""


def quoted(text: str) -> str:
    """A text as a string literal of ClickHouse, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Question(NamedTuple):
    """What usage is asked for."""

    customer: str
    begin: int
    end: int
    meters: Sequence[Meter]
    window: str | None
    by: Sequence[str]
    where: Sequence[tuple[str, str]]

    def sql(self) -> str:
        columns = ["meter", f"{self._quantity()} AS quantity", "sum(u.events) AS events"]
        groups = ["meter"]
        if self.window is not None:
            columns.append(f"{INSTANT_TEXT.format(WINDOWS[self.window])} AS window_at")
            groups.append("window_at")
        if self.by:
            pairs = ", ".join(f"{quoted(name)}, u.dimensions[{quoted(name)}]" for name in self.by)
            columns.append(f"map({pairs}) AS kept")
            groups.append("kept")
        conditions = [
            f"customer = {quoted(self.customer)}",
            f"hour >= {instant_sql(self.begin)}",
            f"hour < {instant_sql(self.end)}",
            f"meter IN ({', '.join(quoted(meter.name) for meter in self.meters)})",
            *(f"u.dimensions[{quoted(name)}] = {quoted(value)}" for name, value in self.where),
        ]
        return (
            f"SELECT {', '.join(columns)} FROM usage_hourly AS u WHERE {' AND '.join(conditions)} "
            f"GROUP BY {', '.join(groups)} ORDER BY {', '.join(groups)} LIMIT {ROWS_MAX + 1}"
        )

    def _quantity(self) -> str:
        """How hours add up, for each meter by its own aggregation."""
        ways = {"min": "min(u.quantity)", "max": "max(u.quantity)", "latest": "argMax(u.quantity, u.hour)"}
        cases = []
        for aggregation, way in ways.items():
            names = [quoted(meter.name) for meter in self.meters if meter.aggregation == aggregation]
            if names:
                cases.append(f"meter IN ({', '.join(names)}), toDecimal128({way}, 9)")
        total = "toDecimal128(sum(u.quantity), 9)"
        return f"multiIf({', '.join(cases)}, {total})" if cases else total


async def _usage(call: Call) -> Response:
    customer = call.customer()
    begin, end = _span(call)
    meters, left_out = _meters(call)
    window = call.query("window")
    if window is not None and window not in WINDOWS:
        raise _wrong(f"window: there are {', '.join(WINDOWS)}; without one, all is summed up")
    by = [name for name in (call.query("by") or "").split(",") if name]
    if len(by) > 10:
        raise _wrong("by: at most 10 dimensions")
    question = Question(customer, begin, end, meters, window, by, _where(call))
    rows = await ask_rows(call, question.sql()) if meters else []
    found = [_usage_row(row, by) for row in rows]
    return json_response(
        CustomerUsage(
            customer,
            format_instant(begin),
            format_instant(end),
            tuple(found[:ROWS_MAX]),
            more=len(found) > ROWS_MAX,
            left_out=tuple(left_out),
        )
    )


def _usage_row(row: bytes, by: Sequence[str]) -> UsageInWindow:
    found: dict[str, Any] = msgspec.json.decode(row)
    return UsageInWindow(
        meter=found["meter"],
        quantity=plain(found["quantity"]),
        events=int(found["events"]),
        dimensions=dict(found.get("kept", {})),
        window_at=found.get("window_at", ""),
    )


def _meters(call: Call) -> tuple[list[Meter], list[str]]:
    """The meters asked for, and those that cannot be summed up: distinct values of hours are not those of a day."""
    known = {meter.name: meter for meter in call.gateway.newest.catalog.meters}
    wanted = call.query("meter")
    if wanted is None:
        left_out = [name for name, meter in known.items() if meter.aggregation == "unique"]
        return [meter for name, meter in known.items() if name not in left_out], left_out
    if wanted not in known:
        raise Problem(404, "meter-unknown", "the catalog has no such meter", reason="meter_unknown")
    meter = known[wanted]
    whole = call.query("window") == "hour" and set((call.query("by") or "").split(",")) >= set(meter.dimensions)
    if meter.aggregation == "unique" and not whole:
        needed = ",".join(meter.dimensions)
        raise Problem(
            422,
            "meter-does-not-add-up",
            f"distinct values of hours do not add up: ask with window=hour{f'&by={needed}' if needed else ''}",
        )
    return [meter], []


def _where(call: Call) -> list[tuple[str, str]]:
    found = []
    for text in call.request.query_params.getlist("filter"):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise _wrong("filter: write it like team=research")
        found.append((name, value))
    return found


async def _ledger(call: Call) -> Response:
    customer = call.customer()
    begin, end = _span(call, whole=True)
    limit = _number(call, "limit", _LEDGER_ROWS, LEDGER_ROWS_MAX)
    conditions = [f"customer = {quoted(customer)}", f"at >= {instant_sql(begin)}", f"at < {instant_sql(end)}"]
    cursor = call.query("cursor")
    if cursor:
        place = _CURSOR.fullmatch(cursor)
        if place is None:
            raise _wrong("cursor: use the one that the last answer gave as `next`")
        conditions.append(f"(p.offset, p.leg) > ({place[1]}, {place[2]})")
    rows = await ask_rows(
        call,
        "SELECT formatDateTime(p.at, '%Y-%m-%dT%H:%i:%S.%fZ', 'UTC') AS at_text, asset, account, amount, p.offset AS "
        "place, leg, grant, category, price, feature, cause_id FROM postings AS p "
        f"WHERE {' AND '.join(conditions)} ORDER BY p.offset, p.leg LIMIT {limit + 1}",
    )
    lines = [_ledger_line(row) for row in rows]
    more = len(lines) > limit
    lines = lines[:limit]
    after = f"{lines[-1].offset}.{lines[-1].leg}" if more else ""
    return json_response(CustomerLedger(customer, tuple(lines), after))


def _ledger_line(row: bytes) -> LedgerLine:
    found: dict[str, Any] = msgspec.json.decode(row)
    return LedgerLine(
        at=format_instant(parse_instant(found["at_text"])),
        pool=found["asset"],
        account=found["account"],
        amount=plain(found["amount"]),
        offset=int(found["place"]),
        leg=int(found["leg"]),
        grant=found["grant"],
        category=found["category"],
        price=plain(found["price"]),
        feature=found["feature"],
        cause=found["cause_id"],
    )


def plain(amount: Any) -> str:
    """A decimal as ClickHouse writes it, without zeros that say nothing."""
    text = str(amount)
    return text.rstrip("0").rstrip(".") if "." in text else text


async def ask_rows(call: Call, sql: str) -> list[bytes]:
    return [line for line in (await call.gateway.ask_sql(sql)).split(b"\n") if line]


def _span(call: Call, *, whole: bool = False) -> tuple[int, int]:
    """From when to when is asked for: 30 days back from now, or all there is, unless it is said."""
    end = _at(call, "to", time.time_ns() // 1_000_000 + (DAY_MS if whole else 0))
    begin = _at(call, "from", 0 if whole else max(0, end - _DAYS * DAY_MS))
    if begin >= end:
        raise _wrong("`from` must be before `to`")
    return begin, end


def _at(call: Call, name: str, default: int) -> int:
    text = call.query(name)
    if text is None:
        return default
    try:
        at = parse_instant(text)
        inside = _FIRST <= to_datetime(at) <= _LAST
    except (ValueError, OverflowError):
        inside = False
    if not inside:
        raise _wrong(f"{name}: write an instant like 2026-01-31T00:00:00Z, in the years 1970 to 2105")
    return at


def _number(call: Call, name: str, default: int, most: int) -> int:
    text = call.query(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not 1 <= int(text) <= most:
        raise _wrong(f"{name}: a number from 1 to {most}")
    return int(text)


def instant_sql(at: int) -> str:
    return f"fromUnixTimestamp64Milli(toInt64({at}), 'UTC')"


def _wrong(detail: str) -> Problem:
    return Problem(400, "malformed", detail)


_INSTANT_SCHEMA: Final = {"type": "string", "format": "date-time"}
_WORD: Final = {"type": "string", "minLength": 1}
_FROM: Final = Parameter("from", "From this instant on.", _INSTANT_SCHEMA)
_TO: Final = Parameter("to", "Before this instant; now, unless said.", _INSTANT_SCHEMA)
_EXAMPLE_AT: Final = "2026-01-01T12:00:00Z"

OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/customers/{customer}/usage",
        name="customer-usage",
        summary="Usage by window and dimension",
        text="By the events' own hours, in UTC; of the last 30 days unless said. A moment behind the workers.",
        group="Customers",
        scope="read",
        handler=_usage,
        parameters=(
            _FROM,
            _TO,
            Parameter("meter", "This meter alone.", _WORD),
            Parameter(
                "window", "Without it, all is summed up.", {"type": "string", "enum": ["hour", "day", "week", "month"]}
            ),
            Parameter("by", "Dimensions, with commas, like `team,model`.", _WORD),
            Parameter("filter", "A dimension's value, like `team=research`; may be repeated.", _WORD),
        ),
        answers={
            200: Shown(
                "The usage.",
                CustomerUsage,
                CustomerUsage(
                    "acme",
                    "2026-01-01T00:00:00Z",
                    "2026-01-02T00:00:00Z",
                    (UsageInWindow("input_tokens", "4808", 1, {"team": "research"}, _EXAMPLE_AT),),
                ),
            )
        },
        problems=(400, 404, 422),
    ),
    Operation(
        method="GET",
        path="/v1/customers/{customer}/ledger",
        name="ledger",
        summary="Postings, oldest first",
        text="Double entry: the legs of an entry sum to zero per pool. A moment behind the workers.",
        group="Customers",
        scope="read",
        handler=_ledger,
        parameters=(
            _FROM,
            _TO,
            Parameter("limit", "How many postings.", {"type": "integer", "minimum": 1, "maximum": LEDGER_ROWS_MAX}),
            Parameter(
                "cursor", "The last answer's `next`.", {"type": "string", "pattern": "^[0-9]{1,18}[.][0-9]{1,9}$"}
            ),
        ),
        answers={
            200: Shown(
                "The postings.",
                CustomerLedger,
                CustomerLedger(
                    "acme",
                    (
                        LedgerLine(_EXAMPLE_AT, "credits", "grant:order-1", "-12.5", 41, 0, "order-1", "paid", "0.02"),
                        LedgerLine(_EXAMPLE_AT, "credits", "hold:call-7", "12.5", 41, 1, "order-1", "paid", "0.02"),
                    ),
                ),
            )
        },
        problems=(400,),
    ),
)
