"""What ClickHouse holds of the past, read page by page through whoever answers `tallygate sql`."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from tallygate.pipeline.past import PastDecision, PastUsage, limits_of
from tallygate.pipeline.tally import Line
from tallygate.schemas.amounts import to_nanos
from tallygate.schemas.journal import DecisionRecord
from tallygate.schemas.reasons import Reason
from tallygate.schemas.topics import USAGE
from tallygate.topologies.settings import Settings
from tallygate.topologies.sql_server import ask

PAGE_ROWS: Final = 20_000


class _Row(msgspec.Struct, frozen=True):
    partition: int
    offset: int
    number: int


class _Decision(_Row, frozen=True):
    id: str
    op: str
    allowed: bool
    reason: str
    at_ms: int
    feature: str
    credits: str
    overage: str
    dimensions: dict[str, str]
    hold: str
    limits: str
    late: bool
    quantities: dict[str, str]
    asked: str
    at_least: dict[str, str]
    ttl_seconds: int
    request: str


class _Usage(_Row, frozen=True):
    cause: int
    at_ms: int
    meter: str
    hour_ms: int
    dimensions: dict[str, str]
    quantity: str
    events: int


class _Customer(msgspec.Struct, frozen=True):
    customer: str


class _Charge(msgspec.Struct, frozen=True):
    feature: str
    charged: str
    overage: str
    written_off: str


class _Sum(msgspec.Struct, frozen=True):
    name: str
    total: str


_DECISION: Final = (
    "partition, offset, number, id, op, allowed, reason, toUnixTimestamp64Milli(at) AS at_ms, feature, "
    "toString(credits) AS credits, toString(overage) AS overage, dimensions, hold, limits, late, "
    "mapApply((k, v) -> (k, toString(v)), quantities) AS quantities, toString(asked) AS asked, "
    "mapApply((k, v) -> (k, toString(v)), at_least) AS at_least, ttl_seconds, request"
)
_USAGE: Final = (
    "partition, offset, number, cause, toUnixTimestamp64Milli(at) AS at_ms, meter, dimensions, "
    "toUnixTimestamp64Milli(toDateTime64(hour, 3, 'UTC')) AS hour_ms, toString(quantity) AS quantity, events"
)


class Record:
    """The sink's tables, asked about one customer at a time. Methods raise `QuestionError`.

    Instants are in ms; a window is `since <= at < until`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def customers(self, since: int, until: int) -> list[str]:
        """Those who asked or used anything in the window."""
        within = _within(since, until)
        sql = (
            f"SELECT DISTINCT customer FROM (SELECT customer FROM decisions WHERE {within} "
            f"UNION ALL SELECT customer FROM usage WHERE {within}) ORDER BY customer"
        )
        return [row.customer for row in self._ask(sql, _Customer)]

    def decisions(self, customer: str, since: int, until: int) -> list[PastDecision]:
        where = f"customer = {_quoted(customer)} AND {_within(since, until)}"
        return [_decision(row) for row in self._pages(_DECISION, "decisions", where, _Decision)]

    def administration(self, customer: str, until: int) -> list[PastDecision]:
        """What those who run the books had asked for before an instant."""
        where = f"customer = {_quoted(customer)} AND {_within(0, until)} AND request != ''"
        return [_decision(row) for row in self._pages(_DECISION, "decisions", where, _Decision)]

    def open_holds(self, customer: str, since: int, until: int) -> list[PastDecision]:
        """The reservations from before a window whose holds end, or are extended, in it."""
        own = f"customer = {_quoted(customer)}"
        where = (
            f"{own} AND {_within(0, since)} AND op = 'reserve' AND allowed AND hold IN (SELECT hold FROM decisions "
            f"WHERE {own} AND {_within(since, until)} AND op IN ('settle', 'release', 'extend') AND NOT late)"
        )
        found = {row.hold: row for row in self._pages(_DECISION, "decisions", where, _Decision)}
        return [_decision(row) for row in found.values()]  # of an id used twice, the later hold

    def usage(self, customer: str, since: int, until: int) -> list[PastUsage]:
        """What usage events added, that is, without what settles did."""
        where = f"customer = {_quoted(customer)} AND {_within(since, until)} AND cause_topic = {_quoted(USAGE)}"
        return [
            PastUsage(
                offset=row.offset,
                number=row.number,
                cause=row.cause,
                at=row.at_ms,
                meter=row.meter,
                hour=row.hour_ms,
                dimensions=row.dimensions,
                quantity_nanos=to_nanos(row.quantity),
                events=row.events,
            )
            for row in self._pages(_USAGE, "usage", where, _Usage)
        ]

    def charges(self, customer: str, since: int, until: int) -> dict[str, Line]:
        """What was charged in the window, by feature."""
        sql = (
            "SELECT feature, toString(sumIf(amount, startsWith(account, 'consumed:'))) AS charged, "
            "toString(-sumIf(amount, account = 'overage')) AS overage, "
            "toString(-sumIf(amount, account = 'write_off')) AS written_off "
            f"FROM postings WHERE customer = {_quoted(customer)} AND feature != '' AND {_within(since, until)} "
            "GROUP BY feature ORDER BY feature"
        )
        return {
            row.feature: Line(
                charged_nanos=to_nanos(row.charged),
                overage_nanos=to_nanos(row.overage),
                written_off_nanos=to_nanos(row.written_off),
            )
            for row in self._ask(sql, _Charge)
        }

    def has_used(self, customer: str, until: int) -> bool:
        """Whether anything was used before an instant, which makes a customer known."""
        sql = f"SELECT 1 AS one FROM usage WHERE customer = {_quoted(customer)} AND {_within(0, until)} LIMIT 1"
        return bool(ask(self._settings, sql, "jsonl"))

    def balances(self, customer: str, until: int) -> dict[str, int]:
        """What was left of each grant just before an instant, with what holds had of it."""
        sql = (
            "SELECT grant AS name, toString(sum(amount)) AS total FROM postings "
            f"WHERE customer = {_quoted(customer)} AND {_within(0, until)} AND grant != '' "
            "AND (startsWith(account, 'grant:') OR startsWith(account, 'hold:')) GROUP BY grant ORDER BY grant"
        )
        return {row.name: to_nanos(row.total) for row in self._ask(sql, _Sum)}

    def owed(self, customer: str, until: int) -> dict[str, int]:
        """What each pool owed just before an instant."""
        sql = (
            "SELECT asset AS name, toString(-sum(amount)) AS total FROM postings "
            f"WHERE customer = {_quoted(customer)} AND {_within(0, until)} AND account = 'overage' "
            "GROUP BY asset ORDER BY asset"
        )
        return {row.name: to_nanos(row.total) for row in self._ask(sql, _Sum)}

    def _pages(self, columns: str, view: str, where: str, type: Any) -> Iterator[Any]:
        """All rows in the order of the journal, whatever number of them one answer may have."""
        after = "(-1, -1, -1)"
        while True:
            sql = (
                f"SELECT {columns} FROM {view} WHERE {where} AND (partition, offset, number) > {after} "
                f"ORDER BY partition, offset, number LIMIT {PAGE_ROWS}"
            )
            rows = self._ask(sql, type)
            yield from rows
            if len(rows) < PAGE_ROWS:
                return
            after = f"({rows[-1].partition}, {rows[-1].offset}, {rows[-1].number})"

    def _ask(self, sql: str, type: Any) -> list[Any]:
        decode = msgspec.json.Decoder(type, strict=False).decode
        return [decode(line) for line in ask(self._settings, sql, "jsonl").splitlines()]


def _within(since: int, until: int) -> str:
    return f"at >= fromUnixTimestamp64Milli({since}) AND at < fromUnixTimestamp64Milli({until})"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _decision(row: _Decision) -> PastDecision:
    record = DecisionRecord(
        id=row.id,
        op=row.op,
        allowed=row.allowed,
        reason=Reason(row.reason),
        at=row.at_ms,
        cause=-1,
        feature=row.feature,
        credits_nanos=to_nanos(row.credits),
        overage_nanos=to_nanos(row.overage),
        dimensions=row.dimensions,
        hold=row.hold,
        limits=limits_of(row.limits),
        late=row.late,
        quantities={meter: to_nanos(text) for meter, text in row.quantities.items()},
        asked_nanos=to_nanos(row.asked),
        at_least={unit: to_nanos(text) for unit, text in row.at_least.items()},
        ttl_seconds=row.ttl_seconds,
        request=row.request,
    )
    return PastDecision(row.offset, row.number, record)
