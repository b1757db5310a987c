"""From accepted journal records to rows of ClickHouse's tables; pure, one record at a time.

A removed grant or pool leaves a row marked `removed`, which its view does not show. A usage row that the journal drops
leaves nothing: the worker may forget an hour that lies far back, but the usage has happened.
"""

from typing import Any, Final

import msgspec

from tallygate.connectors.clickhouse_tables import ALERTS, BALANCES, DECISIONS, POSTINGS, USAGE, USAGE_DELTAS, Table
from tallygate.schemas.instants import SECOND_MS
from tallygate.schemas.journal import (
    ENTRY_KIND,
    Cause,
    GrantRow,
    PoolRow,
    ShownEntry,
    UsageRow,
    decode_record,
    decode_shown,
    split_key,
)

#: What ClickHouse's DateTime64 can hold: the years 1900 to 2299.
INSTANT_MIN: Final = -2_208_988_800_000
INSTANT_MAX: Final = 10_413_791_999_999

#: The cause of what stream time alone brought about.
_TIME: Final = Cause("", -1, -1, "")

_TABLES: Final = (POSTINGS, DECISIONS, USAGE, USAGE_DELTAS, BALANCES, ALERTS)
_MAPPED: Final = frozenset({"entry", "usage", "grant", "pool"})

_limits_text = msgspec.json.Encoder().encode


class UnreadableRecord(ValueError):
    """A journal record that this version cannot read."""


class Batch:
    """Rows by table, column by column, as `Store.insert` takes them (units: nanos, ms, hours in seconds).

    What comes by the handful, postings and deltas, is appended column by column, which takes half the time; what comes
    alone is kept as rows until the end, which takes a third.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[list[Any]]] = {table.name: [[] for _ in table.columns] for table in _TABLES}
        self._rows: dict[str, list[tuple[Any, ...]]] = {table.name: [] for table in _TABLES}

    @property
    def has_rows(self) -> bool:
        return any(self._rows.values()) or any(columns[0] for columns in self._columns.values())

    def filled(self) -> list[tuple[Table, list[list[Any]]]]:
        """The tables that have rows."""
        for name, rows in self._rows.items():
            for column, added in zip(self._columns[name], zip(*rows, strict=True), strict=False):
                column += added
            rows.clear()
        return [(table, self._columns[table.name]) for table in _TABLES if self._columns[table.name][0]]

    def add(
        self, partition: int, offset: int, term: int, seq: int, key: bytes, value: bytes | None
    ) -> ShownEntry | None:
        """Adds an accepted record's rows; returns it where it is an entry. Raises `UnreadableRecord`."""
        if key[:1] == b"\0":
            return None
        try:
            customer, kind, id = split_key(key)
            if kind not in _MAPPED:
                return None
            # An entry is mostly what its owner needs: decoding all of it takes 7 times as long as what is shown.
            decode = decode_shown if kind == ENTRY_KIND else decode_record
            record = None if value is None else decode(value)
        except (ValueError, msgspec.MsgspecError) as error:
            raise UnreadableRecord(str(error)) from error
        match record:
            case None:
                if kind in ("grant", "pool"):
                    self._row(BALANCES, customer, kind, id, "", 0, 0, 0, 0, "", 0, None, None, False, offset, 1)
            case ShownEntry():
                place = (record.catalog, partition, term, seq, offset)
                if record.postings:
                    self._add_postings(record, place)
                self._add_decisions(record, place)
                if record.usage:
                    self._add_deltas(record, place)
                self._add_alerts(record, place)
                return record
            case UsageRow():
                self._add_usage(customer, id, record, offset)
            case GrantRow():
                self._add_grant(customer, record, offset)
            case PoolRow():
                overage = record.overage_nanos
                self._row(
                    BALANCES, customer, kind, id, record.pool, 0, 0, overage, 0, "", 0, None, None, True, offset, 0
                )
            case _:
                raise UnreadableRecord(f"a record of kind {kind!r} holds {type(record).__name__}")
        return None

    def _add_postings(self, entry: ShownEntry, place: tuple[int, ...]) -> None:
        legs = entry.postings
        count = len(legs)
        causes = [entry.causes[leg.cause] if leg.cause >= 0 else _TIME for leg in legs]
        columns: tuple[list[Any], ...] = (
            [entry.customer] * count,
            [leg.asset for leg in legs],
            [leg.account for leg in legs],
            [leg.amount_nanos for leg in legs],
            [leg.at for leg in legs],
            [leg.grant for leg in legs],
            [leg.category for leg in legs],
            [leg.price_nanos for leg in legs],
            [leg.feature for leg in legs],
            *_cause_columns(causes),
            *([figure] * count for figure in place),
            list(range(count)),
        )
        self._extend(POSTINGS, columns)

    def _add_decisions(self, entry: ShownEntry, place: tuple[int, ...]) -> None:
        for number, decision in enumerate(entry.decisions):
            cause = entry.causes[decision.cause] if decision.cause >= 0 else _TIME
            self._row(
                DECISIONS,
                entry.customer,
                decision.id,
                decision.op,
                decision.allowed,
                decision.reason.value,
                decision.at,
                decision.feature,
                decision.credits_nanos,
                decision.overage_nanos,
                decision.dimensions,
                decision.hold,
                _limits_text(decision.limits).decode(),
                decision.late,
                cause.topic,
                cause.partition,
                cause.offset,
                cause.id,
                *place,
                number,
                decision.quantities,
                decision.asked_nanos,
                decision.at_least,
                decision.ttl_seconds,
                decision.request,
            )

    def _add_alerts(self, entry: ShownEntry, place: tuple[int, ...]) -> None:
        for number, alert in enumerate(entry.alerts):
            cause = entry.causes[alert.cause] if alert.cause >= 0 else _TIME
            self._row(
                ALERTS,
                entry.customer,
                alert.budget,
                alert.scope,
                alert.unit,
                alert.threshold,
                alert.limit_nanos,
                alert.used_nanos,
                alert.period_at,
                alert.at,
                cause.topic,
                cause.partition,
                cause.offset,
                cause.id,
                *place,
                number,
            )

    def _add_deltas(self, entry: ShownEntry, place: tuple[int, ...]) -> None:
        deltas = entry.usage
        count = len(deltas)
        causes = [entry.causes[delta.cause] if delta.cause >= 0 else _TIME for delta in deltas]
        columns: tuple[list[Any], ...] = (
            [entry.customer] * count,
            [delta.meter for delta in deltas],
            [delta.dimensions for delta in deltas],
            [delta.hour // SECOND_MS for delta in deltas],
            [delta.quantity_nanos for delta in deltas],
            [delta.events for delta in deltas],
            [delta.late_events for delta in deltas],
            [entry.at] * count,
            [delta.cause for delta in deltas],
            *_cause_columns(causes),
            *([figure] * count for figure in place),
            list(range(count)),
        )
        self._extend(USAGE_DELTAS, columns)

    def _add_usage(self, customer: str, id: str, usage: UsageRow, offset: int) -> None:
        self._row(
            USAGE,
            customer,
            usage.meter,
            usage.dimensions,
            usage.hour // SECOND_MS,
            usage.quantity_nanos,
            usage.events,
            usage.late_events,
            id.rpartition("\0")[2],  # the dimensions' text
            offset,
            usage.since,
            usage.aggregation,
            usage.latest_at,
        )

    def _add_grant(self, customer: str, grant: GrantRow, offset: int) -> None:
        self._row(
            BALANCES,
            customer,
            "grant",
            grant.id,
            grant.pool,
            grant.balance_nanos,
            grant.held_nanos,
            0,
            grant.amount_nanos,
            grant.category,
            grant.priority,
            _shown(grant.effective_at),
            None if grant.expires_at is None else _shown(grant.expires_at),
            grant.active,
            offset,
            0,
        )

    def _extend(self, table: Table, columns: tuple[list[Any], ...]) -> None:
        for column, added in zip(self._columns[table.name], columns, strict=True):
            column += added

    def _row(self, table: Table, *row: Any) -> None:
        self._rows[table.name].append(row)


def _cause_columns(causes: list[Cause]) -> tuple[list[Any], ...]:
    return (
        [cause.topic for cause in causes],
        [cause.partition for cause in causes],
        [cause.offset for cause in causes],
        [cause.id for cause in causes],
    )


def _shown(at: int) -> int:
    """An instant that somebody chose, as far as ClickHouse can show it."""
    return min(max(at, INSTANT_MIN), INSTANT_MAX)
