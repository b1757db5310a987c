"""The tables that the sink fills, and the views that people read; those for accountants are in `clickhouse_revenue`.

| view | a row is | the table behind it, and what makes a row the same row |
|---|---|---|
| `postings` | one leg of an entry | `sink_postings`: customer, partition, offset, leg |
| `decisions` | one decision, and what was asked | `sink_decisions`: customer, partition, offset, number |
| `usage` | what one event or settled call added to an hour | `sink_usage_deltas`: customer, partition, offset, number |
| `usage_hourly` | a meter's total in an hour, by dimensions | `sink_usage`: customer, meter, hour, scope, since |
| `balances` | a grant, or a pool itself (`grant` = '') | `sink_balances`: customer, kind, id |
| `alerts` | a threshold of a budget reached for the first time in its period | `sink_alerts`: as decisions |
| `audit` | an administrative change: who asked for it, and its outcome | `sink_audit`: id, outcome |

`balances` adds up: `sum(balance)`, `sum(held)` and `sum(overage)` by pool are the pool's own, because a grant's row
carries what it holds, and the pool's own row only what is owed. A grant that is not active has a balance of 0.

**Exactly once.** A row is a function of one journal record and of where it lies, so reading a range of the journal
again makes the same rows under the same keys. Every table is a `ReplacingMergeTree` on those keys, and every view reads
`FINAL`: two equal rows are one to whoever asks, merged or not. Rows that are states (usage, balances) are absolute and
carry the journal offset as their version, so an older state never covers a newer one. A batch is inserted first and
its offsets last; a crash in between costs reading the batch again, and nothing else. Compaction in between is harmless:
rows that are there stay, rows that come again replace themselves. So are two sinks at once, and an insert that a
server carried out although its answer got lost.

What was weighed and rejected:

* *Block deduplication* (`non_replicated_deduplication_window` and a token for a fixed batch): ClickHouse writes a
  block's id into the deduplication log before the part is renamed into place (`MergeTreeSink::commitPart`). A crash
  between the two makes the retry a duplicate of rows that do not exist: they are lost. It also needs the batch's bounds
  in a table of their own, and breaks when compaction changes what lies between them.
* *Plain `MergeTree`, and deleting what lies beyond the stored offset at start*: no `FINAL` to pay for, but it counts
  twice where an insert's answer got lost, or where a paused sink wakes up beside its successor.
* *`SummingMergeTree`, sums by materialised views*: they count a batch that is read again twice.
* *`ENGINE = Kafka`*: not exactly once, blind to the fence, and a failed one breaks an embedded database for good.

`FINAL` costs 20 ns a row (4 M postings, embedded, 2 cores: a sum over all of them in 88 ms instead of 12, one
customer's in 7 ms instead of 5). With the partition before the customer in the key the two take 56 and 69 ms.

Tables are synced to disk with each insert: the offsets must not survive a power cut that the rows do not.
"""

from dataclasses import dataclass
from typing import Final

from tallygate.connectors.clickhouse_revenue import REVENUE_VIEWS

STRING: Final = "String"
WORD: Final = "LowCardinality(String)"
AMOUNT: Final = "Decimal(38, 9)"
INSTANT: Final = "DateTime64(3, 'UTC')"
MAYBE_INSTANT: Final = "Nullable(DateTime64(3, 'UTC'))"
#: Not `DateTime`, which begins in 1970: an event may claim any time, and two hours must not become one.
HOUR: Final = "DateTime64(0, 'UTC')"
INTEGER: Final = "Int64"
BOOLEAN: Final = "Bool"
MAPPING: Final = "Map(String, String)"
AMOUNTS: Final = "Map(String, Decimal(38, 9))"
FLAG: Final = "UInt8"

_DURABLE = "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"


@dataclass(frozen=True)
class Table:
    """`columns` maps names to ClickHouse types, in the order in which rows are given; amounts are given in nanos."""

    name: str
    columns: dict[str, str]
    engine: str

    @property
    def ddl(self) -> str:
        columns = ", ".join(f"`{name}` {type}" for name, type in self.columns.items())
        return f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}) ENGINE = {self.engine} {_DURABLE}"


_CAUSE = {"cause_topic": WORD, "cause_partition": INTEGER, "cause_offset": INTEGER, "cause_id": STRING}
_PLACE = {"catalog": INTEGER, "partition": INTEGER, "term": INTEGER, "seq": INTEGER, "offset": INTEGER}

#: What a call asked for, and the request of those who run the books, in JSON.
_ASKED = {"quantities": AMOUNTS, "asked": AMOUNT, "at_least": AMOUNTS, "ttl_seconds": INTEGER, "request": STRING}

POSTINGS: Final = Table(
    "sink_postings",
    {
        "customer": STRING,
        "asset": WORD,
        "account": STRING,
        "amount": AMOUNT,
        "at": INSTANT,
        "grant": STRING,
        "category": WORD,
        "price": AMOUNT,
        "feature": WORD,
        **_CAUSE,
        **_PLACE,
        "leg": INTEGER,
    },
    "ReplacingMergeTree PARTITION BY toYYYYMM(at) ORDER BY (customer, partition, offset, leg)",
)

DECISIONS: Final = Table(
    "sink_decisions",
    {
        "customer": STRING,
        "id": STRING,
        "op": WORD,
        "allowed": BOOLEAN,
        "reason": WORD,
        "at": INSTANT,
        "feature": WORD,
        "credits": AMOUNT,
        "overage": AMOUNT,
        "dimensions": MAPPING,
        "hold": STRING,
        "limits": STRING,
        "late": BOOLEAN,
        **_CAUSE,
        **_PLACE,
        "number": INTEGER,
        **_ASKED,
    },
    "ReplacingMergeTree PARTITION BY toYYYYMM(at) ORDER BY (customer, partition, offset, number)",
)

#: What each input added to usage; `cause` numbers the inputs of one entry.
USAGE_DELTAS: Final = Table(
    "sink_usage_deltas",
    {
        "customer": STRING,
        "meter": WORD,
        "dimensions": MAPPING,
        "hour": HOUR,
        "quantity": AMOUNT,
        "events": INTEGER,
        "late_events": INTEGER,
        "at": INSTANT,
        "cause": INTEGER,
        **_CAUSE,
        **_PLACE,
        "number": INTEGER,
    },
    "ReplacingMergeTree PARTITION BY toYYYYMM(at) ORDER BY (customer, partition, offset, number)",
)

#: An hour that was closed may have several rows, told apart by `since`; `aggregation` says how they make one.
_LATER: Final = {"since": INTEGER, "aggregation": WORD, "latest_at": INTEGER}
_HOUR_KEY: Final = "(customer, meter, hour, scope, since)"
USAGE: Final = Table(
    "sink_usage",
    {
        "customer": STRING,
        "meter": WORD,
        "dimensions": MAPPING,
        "hour": HOUR,
        "quantity": AMOUNT,
        "events": INTEGER,
        "late_events": INTEGER,
        "scope": STRING,
        "version": "UInt64",
        **_LATER,
    },
    f"ReplacingMergeTree(version) ORDER BY {_HOUR_KEY}",
)

BALANCES: Final = Table(
    "sink_balances",
    {
        "customer": STRING,
        "kind": WORD,
        "id": STRING,
        "pool": WORD,
        "balance": AMOUNT,
        "held": AMOUNT,
        "overage": AMOUNT,
        "amount": AMOUNT,
        "category": WORD,
        "priority": INTEGER,
        "effective_at": MAYBE_INSTANT,
        "expires_at": MAYBE_INSTANT,
        "active": BOOLEAN,
        "version": "UInt64",
        "removed": FLAG,
    },
    "ReplacingMergeTree(version, removed) ORDER BY (customer, kind, id)",
)

ALERTS: Final = Table(
    "sink_alerts",
    {
        "customer": STRING,
        "budget": WORD,
        "scope": MAPPING,
        "unit": WORD,
        "threshold": INTEGER,
        "budget_limit": AMOUNT,
        "used": AMOUNT,
        "period_at": INSTANT,
        "at": INSTANT,
        **_CAUSE,
        **_PLACE,
        "number": INTEGER,
    },
    "ReplacingMergeTree PARTITION BY toYYYYMM(at) ORDER BY (customer, partition, offset, number)",
)

#: The records of the audit log. An insert is one part, for there are no partitions: what is there is all to the largest
#: offset, and the sink goes on behind that.
AUDIT: Final = Table(
    "sink_audit",
    {
        "id": STRING,
        "at": INSTANT,
        "who": STRING,
        "action": WORD,
        "outcome": WORD,
        "origin": STRING,
        "customer": STRING,
        "target": STRING,
        "details": STRING,
        "reason": STRING,
        "offset": INTEGER,
    },
    "ReplacingMergeTree ORDER BY (id, outcome)",
)

OFFSETS: Final = Table(
    "sink_offsets",
    {
        "journal": STRING,
        "partition": INTEGER,
        "next_offset": "UInt64",
        "term": INTEGER,
        "seq": INTEGER,
        "saved_at": INSTANT,
    },
    "ReplacingMergeTree(next_offset) ORDER BY (journal, partition)",
)

SCHEMA: Final = Table("sink_schema", {"version": INTEGER}, "ReplacingMergeTree ORDER BY version")

#: What each version of the schema adds; the last one is today's. Statements bear being run twice.
VERSIONS: Final = (
    tuple(table.ddl for table in (POSTINGS, DECISIONS, USAGE, BALANCES, OFFSETS)),
    (
        USAGE_DELTAS.ddl,
        *(f"ALTER TABLE {DECISIONS.name} ADD COLUMN IF NOT EXISTS `{n}` {type}" for n, type in _ASKED.items()),
    ),
    (ALERTS.ddl,),
    (
        f"ALTER TABLE {USAGE.name} "
        + "".join(f"ADD COLUMN IF NOT EXISTS `{n}` {type}, " for n, type in _LATER.items())
        + f"MODIFY ORDER BY {_HOUR_KEY}",
    ),
    (AUDIT.ddl,),
)

_HOUR_TOTAL = (
    "multiIf(max(u.aggregation) = 'min', min(u.quantity), max(u.aggregation) = 'max', max(u.quantity), "
    "max(u.aggregation) = 'latest', argMax(u.quantity, (u.latest_at, u.version)), sum(u.quantity))"
)

#: Made anew at each start: a view holds nothing.
VIEWS: Final = (
    f"CREATE OR REPLACE VIEW postings AS SELECT * FROM {POSTINGS.name} FINAL",
    f"CREATE OR REPLACE VIEW decisions AS SELECT * FROM {DECISIONS.name} FINAL",
    f"CREATE OR REPLACE VIEW usage AS SELECT * FROM {USAGE_DELTAS.name} FINAL",
    "CREATE OR REPLACE VIEW usage_hourly AS "
    f"SELECT u.customer AS customer, u.meter AS meter, any(u.dimensions) AS dimensions, u.hour AS hour, "
    f"{_HOUR_TOTAL} AS quantity, sum(u.events) AS events, sum(u.late_events) AS late_events "
    f"FROM {USAGE.name} AS u FINAL GROUP BY u.customer, u.meter, u.hour, u.scope",
    "CREATE OR REPLACE VIEW balances AS "
    "SELECT customer, pool, if(kind = 'grant', id, '') AS grant, balance, held, overage, "
    "amount, category, priority, effective_at, expires_at, active "
    f"FROM {BALANCES.name} FINAL",
    f"CREATE OR REPLACE VIEW alerts AS SELECT * FROM {ALERTS.name} FINAL",
    # Of a change's two records, `asked` has the details and the other the outcome.
    "CREATE OR REPLACE VIEW audit AS "
    "SELECT min(a.at) AS at, any(a.who) AS who, any(a.origin) AS origin, any(a.action) AS action, "
    "any(a.customer) AS customer, argMin(a.target, a.outcome = 'asked') AS target, "
    "argMin(a.outcome, a.outcome = 'asked') AS outcome, argMin(a.reason, a.outcome = 'asked') AS reason, "
    "argMax(a.details, a.outcome = 'asked') AS details, max(a.at) AS ended_at, a.id AS id "
    f"FROM {AUDIT.name} AS a FINAL GROUP BY a.id",
    *REVENUE_VIEWS,
)
