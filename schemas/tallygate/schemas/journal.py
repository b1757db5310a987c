"""Journal records: rows, entries, the partition row and the open record, JSON values under binary keys.

One RecordBatch of `tallygate.journal.v1` is one state transition. Row keys are `customer ␀ kind ␀ id`; customers are
never empty, so keys that start with ␀ belong to the partition. Every record carries the headers `term` and `seq`.
"""

from typing import Final

import msgspec

from tallygate.schemas.answers import LimitState
from tallygate.schemas.catalog import Entitlement
from tallygate.schemas.ledger import Posting
from tallygate.schemas.reasons import Reason

# ---- rows: the state, each written whole whenever it changes ----


class _Row(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="row"):
    pass


class AccountRow(_Row, frozen=True, tag="account.v1"):
    """A known customer. `due_at`: when stream time next changes something (0: never); before that `was_due_at`.

    A `strict` one gets no leases: each of its calls is decided by the worker.
    """

    customer: str
    created_at: int
    due_at: int = 0
    was_due_at: int = 0
    suspended: bool = False
    strict: bool = False


class PoolRow(_Row, frozen=True, tag="pool.v1"):
    """A wallet. `overage_nanos` is owed, `overage_held_nanos` may become so by open holds.

    Both usage counters are since `period_at`, the last reset (0: there was none); one at `dropped_at` has dropped
    overage. `resets`: when it is reset by itself.
    """

    pool: str
    overage_nanos: int = 0
    overage_held_nanos: int = 0
    usage_nanos: int = 0
    grant_usage_nanos: int = 0
    period_at: int = 0
    resets: "Recurrence | None" = None
    resets_at: int | None = None
    preserve_overage: bool = False
    dropped_at: int = 0


class Recurrence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Every `interval` (ISO 8601, like `P1M`) from `anchor` (ms) on, in both directions."""

    interval: str
    anchor: int


class GrantRow(_Row, frozen=True, tag="grant.v1"):
    """Credits given once. `balance_nanos` can be spent; `held_nanos` is set aside by holds.

    A recurrence sets the balance to the amount at `recurs_at`, the next one; a reset keeps between the two rollovers.
    Either opens a new `cycle`, in which holds of earlier ones return `returnable_nanos` at most. `source`: the
    subscription that gave it.
    """

    id: str
    pool: str
    amount_nanos: int
    balance_nanos: int
    held_nanos: int
    priority: int
    created_at: int
    effective_at: int
    expires_at: int | None = None
    voided_at: int | None = None
    category: str = "paid"
    price_nanos: int = 0
    active: bool = False
    ended: bool = False
    recurrence: Recurrence | None = None
    recurs_at: int | None = None
    rollover_min_nanos: int = 0
    rollover_max_nanos: int = 0
    cycle: int = 0
    returnable_nanos: int = 0
    source: str = ""


class HeldShare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a hold holds of a grant (in that `cycle` of it), or of a budget's scope."""

    id: str
    nanos: int
    cycle: int = 0


class HoldRow(_Row, frozen=True, tag="hold.v1"):
    """A reservation: a receipt per grant in burn order, and what it holds of every budget scope, in its unit.

    `credits_nanos` is the cost held: the receipt and `overage_nanos`, which no grant covers.
    """

    id: str
    feature: str
    pool: str
    created_at: int
    expires_at: int
    receipt: tuple[HeldShare, ...]
    scopes: tuple[HeldShare, ...]
    quantities: dict[str, int]
    credits_nanos: int
    dimensions: dict[str, str]
    overage_nanos: int = 0
    at_end: str = "release"


class BudgetRow(_Row, frozen=True, tag="budget.v1"):
    """A limit on every scope that `scope` selects."""

    name: str
    limit_nanos: int
    scope: dict[str, str]
    unit: str
    period: str
    hard: bool = True
    anchor: int | None = None
    thresholds: tuple[int, ...] = ()
    observe: bool = False


class RateLimitRow(_Row, frozen=True, tag="rate_limit.v1"):
    """A rate limit of this customer alone; where it stands is in the owner's memory and not in the journal."""

    name: str
    limit_nanos: int
    per_seconds: int
    burst_nanos: int
    scope: dict[str, str]
    unit: str
    observe: bool = False


class SubscriptionRow(_Row, frozen=True, tag="subscription.v1"):
    """The plan a customer is on, what was added and what differs; periods are counted from `anchor`."""

    plan: str
    add_ons: tuple[str, ...]
    overrides: tuple[Entitlement, ...]
    anchor: int
    since: int


class ScopeRow(_Row, frozen=True, tag="scope.v1"):
    """One budget's (or allowance's) use by one concrete scope: `used_nanos` since `period_at`, `held_nanos` now.

    `alerted` is the highest threshold (per cent) reported in this period, of the limit `alerted_limit_nanos`.
    """

    id: str
    budget: str
    scope: dict[str, str]
    period_at: int
    used_nanos: int = 0
    held_nanos: int = 0
    alerted: int = 0
    alerted_limit_nanos: int = 0


class UsageRow(_Row, frozen=True, tag="usage.v1"):
    """One meter in one hour (`hour`: its start in ms, by event time) for one set of dimensions; absolute.

    `quantity_nanos` is the sum, count, least, greatest, latest (of `latest_at`) or number of distinct values. A row
    with `since` (stream time) holds what came after its hour was closed, beside what came before: `aggregation` says
    how they make one. What is taken back there makes it negative.
    """

    meter: str
    hour: int
    dimensions: dict[str, str]
    quantity_nanos: int = 0
    events: int = 0
    late_events: int = 0
    latest_at: int = 0
    since: int = 0
    aggregation: str = ""


class ValueRow(_Row, frozen=True, tag="value.v1"):
    """A value that a `unique` meter has met in an hour."""

    at: int


Row = (
    AccountRow
    | PoolRow
    | GrantRow
    | HoldRow
    | BudgetRow
    | RateLimitRow
    | SubscriptionRow
    | ScopeRow
    | UsageRow
    | ValueRow
)


class UsageRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run of batch records that is in force in part: up to offset `upto`, for customers up to `after` in order.

    `skipped`: the records of it that count for nobody. `catalog`: the version that all of it is decided under.
    """

    upto: int
    after: str
    skipped: tuple[int, ...]
    catalog: int


class PartitionRow(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="row", tag="partition.v1"):
    """Where the partition stands: per input topic the last offset applied, stream time, the catalog decided under.

    `run`: batches behind the applied offset of the usage topic that are in force for some customers.
    """

    applied: dict[str, int]
    stream_at: int
    catalog: int
    run: UsageRun | None = None


class ProducerRow(msgspec.Struct, frozen=True, tag_field="row", tag="producer.v1"):
    """The last batch of a producer in this partition, and when it came (stream time)."""

    epoch: int
    sequence: int
    at: int


class OpenRow(msgspec.Struct, frozen=True, tag_field="row", tag="open.v1"):
    """A new owner's first record; its `term` header fences every former owner."""

    owner: str
    at: int


# ---- the entry: what one transition did to one customer, and why ----


class Cause(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An input: topic, partition and offset of its record, and its request or event id."""

    topic: str
    partition: int
    offset: int
    id: str


class UsageDelta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What this transition added to one usage row."""

    meter: str
    hour: int
    dimensions: dict[str, str]
    quantity_nanos: int
    events: int
    late_events: int
    cause: int


class DecisionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision as it was taken: what was asked, by whom, and every limit that said no (also one that only observes).

    `credits_nanos` is what it costs. What was asked: `quantities` by meter, `asked_nanos` of credits beside them,
    `at_least`, `ttl_seconds` (0: the feature's). Those who run the books ask in other words: theirs is the `request`
    itself, in JSON.
    """

    id: str
    op: str
    allowed: bool
    reason: Reason
    at: int
    cause: int
    feature: str = ""
    credits_nanos: int = 0
    overage_nanos: int = 0
    dimensions: dict[str, str] = {}
    hold: str = ""
    limits: tuple[LimitState, ...] = ()
    late: bool = False
    quantities: dict[str, int] = {}
    asked_nanos: int = 0
    at_least: dict[str, int] = {}
    ttl_seconds: int = 0
    request: str = ""


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An id that must not be applied twice: `key` is 32 hex digits, `value` what is remembered (`null`: just that)."""

    key: str
    value: msgspec.Raw


class GroupCharge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a feature was charged for each of a group's events: all of it paid by one grant, or owed (`grant` empty)."""

    feature: str
    pool: str
    grant: str
    category: str
    price_nanos: int
    costs: list[int]


#: In a `GroupShare`, the column of the events' whole costs.
COST_COLUMN: Final = -1


class GroupShare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """That each of a group's events was counted in a budget or allowance: its quantity of `meters[column]`, or its
    whole cost (`COST_COLUMN`).
    """

    id: str
    column: int


class CountedEvents(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Usage events that were counted together: what they have in common, then, event by event, what they do not.

    They are of one customer, `type`, `source`, set of dimensions and hour. `quantities` has a column for each of
    `meters`. `cause` is that of the first; `offsets` are of the usage topic. Their ids are taken, as those in `seen`.
    """

    cause: int
    type: str
    source: str
    dimensions: dict[str, str]
    late: bool
    counted_at: int
    ids: list[str]
    offsets: list[int]
    times: list[int]
    meters: list[str]
    quantities: list[list[int]]
    charges: list[GroupCharge] = []
    shares: list[GroupShare] = []


class Alert(msgspec.Struct, frozen=True, omit_defaults=True):
    """A budget's scope has reached a threshold (per cent of its limit), for the first time in its period."""

    budget: str
    scope: dict[str, str]
    unit: str
    threshold: int
    limit_nanos: int
    used_nanos: int
    period_at: int
    at: int
    cause: int


class PoolBalance(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pool: str
    balance_nanos: int
    held_nanos: int
    overage_nanos: int


class ShownEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="row", tag="entry.v1"):
    """An entry without what only owners need of it: the greater part, which others need not decode."""

    customer: str
    at: int
    catalog: int
    causes: tuple[Cause, ...]
    postings: tuple[Posting, ...] = ()
    decisions: tuple[DecisionRecord, ...] = ()
    usage: tuple[UsageDelta, ...] = ()
    alerts: tuple[Alert, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="row", tag="entry.v1"):
    """Everything a transition did to one customer; `balances` are those after it."""

    customer: str
    at: int
    catalog: int
    causes: tuple[Cause, ...]
    postings: tuple[Posting, ...] = ()
    decisions: tuple[DecisionRecord, ...] = ()
    usage: tuple[UsageDelta, ...] = ()
    balances: tuple[PoolBalance, ...] = ()
    seen: tuple[Seen, ...] = ()
    alerts: tuple[Alert, ...] = ()
    counted: tuple[CountedEvents, ...] = ()


Journaled = Row | PartitionRow | ProducerRow | OpenRow | Entry

# ---- keys ----

SEPARATOR: Final = b"\0"
PARTITION_KEY: Final = b"\0partition"
OPEN_KEY: Final = b"\0open"
_PRODUCER: Final = b"\0producer\0"
ENTRY_KIND: Final = "entry"
#: The kinds that make up an account sort before `usage`, so that one range scan loads an account without its history.
ROW_KINDS: Final = (
    "account",
    "budget",
    "grant",
    "hold",
    "pool",
    "rate_limit",
    "scope",
    "subscription",
    "usage",
    "value",
)


def row_key(customer: str, kind: str, id: str = "") -> bytes:
    return f"{customer}\0{kind}\0{id}".encode()


def producer_key(producer: str) -> bytes:
    return _PRODUCER + producer.encode()


def producer_range() -> tuple[bytes, bytes]:
    """The range of keys of all producers."""
    return _PRODUCER, _PRODUCER[:-1] + b"\1"


def producer_of(key: bytes) -> str:
    return key[len(_PRODUCER) :].decode()


def entry_key(customer: str) -> bytes:
    return row_key(customer, ENTRY_KIND)


def split_key(key: bytes) -> tuple[str, str, str]:
    """(customer, kind, id) of a row's or an entry's key."""
    customer, kind, id = key.decode().split("\0", 2)
    return customer, kind, id


def scope_text(scope: dict[str, str]) -> str:
    """A scope or set of dimensions in one canonical text, `agent=drafter,team=research`; empty for the whole customer.

    `%`, `,` and `=` inside names and values are percent-encoded, so that different scopes never share a text.
    """
    if not scope:
        return ""
    items = sorted(scope.items())
    text = ",".join([f"{k}={v}" for k, v in items])
    if "%" not in text and text.count("=") == len(items) and text.count(",") == len(items) - 1:
        return text  # nothing in it needs escaping, as is usual
    return ",".join([f"{_escaped(k)}={_escaped(v)}" for k, v in items])


def _escaped(text: str) -> str:
    if "%" in text or "," in text or "=" in text:
        return text.replace("%", "%25").replace(",", "%2C").replace("=", "%3D")
    return text


def usage_id(meter: str, hour: int, dimensions: dict[str, str]) -> str:
    return usage_id_of(meter, hour, scope_text(dimensions))


def usage_id_of(meter: str, hour: int, scope: str) -> str:
    """The same with the dimensions as their `scope_text`."""
    return f"{meter}\0{hour}\0{scope}"


_encoder = msgspec.json.Encoder()
encode_record = _encoder.encode
decode_record = msgspec.json.Decoder(Journaled).decode
decode_shown = msgspec.json.Decoder(ShownEntry).decode
