"""What the bench tells its processes, and what they bring back: JSON in files of the run's folder."""

import msgspec

Sample = tuple[int, int, int]
Spot = tuple[int, int, int]
Step = tuple[int, int, int, int]


class UsageJob(msgspec.Struct, frozen=True, kw_only=True):
    """Send usage events of `customers` customers, named `<prefix>-<n>`; the first ones get most of them.

    With a `rate` (events a second) for `seconds`, each when it is due; without, `count` events as fast as they go. With
    `each`, event n goes to customer n. One record in `duplicate_every` is sent twice. `run` is in what events are known
    by: those of another run are others. The shape `batch` needs the number of `partitions`.
    """

    kafka: dict[str, str]
    prefix: str
    run: str
    customers: int
    rate: int = 0
    seconds: float = 0
    count: int = 0
    each: bool = False
    shape: str = "single"
    dimensions: int = 1
    partitions: int = 0
    duplicate_every: int = 100


class UsageSent(msgspec.Struct, frozen=True, kw_only=True):
    """`records` are all, those that were sent again too; `events`, `duplicates` and `value_bytes` tell them apart.

    `samples`: when a record was due (monotonic ns), and its partition and offset.
    """

    begin_ns: int
    end_ns: int
    events: int
    duplicates: int
    records: int
    events_per_record: int
    value_bytes: int
    late_ms_max: float
    cpu_seconds: float
    samples: list[Sample]


class WatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """Watch the journal from `begins` on (next offset by partition), and how much of it ClickHouse has."""

    settings: dict[str, object]
    begins: dict[int, int]
    ask_seconds: float = 0.25


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """`applied`: when (monotonic ns) a partition row was seen, its partition and offset, and the usage offset in it.

    `visible`: when ClickHouse was seen to have the journal up to an offset, excluded.
    """

    applied: list[Step]
    visible: list[Spot]
    cpu_seconds: float


class DecisionsJob(msgspec.Struct, frozen=True, kw_only=True):
    """Reserve and settle, through the client: `rate` pairs a second, or `clients` that each wait for their answers.

    What is due within the first `warm_seconds` is not among the latencies. With `hot`, client n is agent n of the one
    customer. Every twentieth customer is poor.
    """

    kafka: dict[str, str]
    prefix: str
    customers: int
    seconds: float
    warm_seconds: float
    rate: int = 0
    clients: int = 0
    hot: bool = False
    seed: int = 0


class Spent(msgspec.Struct, frozen=True):
    """What the answers say that calls of one kind cost: settled, and held by what was not."""

    customer: str
    dimensions: dict[str, str]
    used_nanos: int
    held_nanos: int
    calls: int


class DecisionsDone(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in ms. `sent` and `answered` count requests, `allowed` and `denied` reservations."""

    sent: int
    answered: int
    allowed: int
    denied: int
    settled: int
    seconds: float
    cpu_seconds: float
    reserve_ms: list[float]
    settle_ms: list[float]
    spent: list[Spent]
    troubles: list[str]


class LeasesJob(msgspec.Struct, frozen=True, kw_only=True):
    """Take from leases, `rate` times a second by `clients` in turns, each of one of `customers`."""

    kafka: dict[str, str]
    customers: list[str]
    clients: int
    rate: int
    seconds: float
    warm_seconds: float
    seed: int = 0


class LeasesDone(msgspec.Struct, frozen=True, kw_only=True):
    """Local decisions, how long each took, and the counter's beside; `tokens` that were allowed, by customer."""

    sent: int
    allowed: int
    slices: int
    late: int
    seconds: float
    cpu_seconds: float
    take_us: list[float]
    peer_us: list[float]
    tokens: dict[str, int]
    troubles: list[str]


class LimitsJob(msgspec.Struct, frozen=True, kw_only=True):
    """Produce, consume and decode records like `value`, bare, for about `seconds` each, on a topic made for it."""

    kafka: dict[str, str]
    topic: str
    partitions: int
    value: bytes
    seconds: float
    decode: bool


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What librdkafka and msgspec do with the same records when nothing else is to be done."""

    record_bytes: int
    produced_per_second: float
    produced_bytes_per_second: float
    consumed_per_second: float
    consumed_bytes_per_second: float
    decoded_per_cpu_second: float | None


class EchoJob(msgspec.Struct, frozen=True, kw_only=True):
    """Ask and answer over two one-partition topics: `ask` for the one who asks, the other one only answers."""

    kafka: dict[str, str]
    requests: str
    replies: str
    ask: bool
    rate: int = 0
    clients: int = 0
    seconds: float = 0


class Echoed(msgspec.Struct, frozen=True, kw_only=True):
    latencies_ms: list[float]
    answers_per_second: float
