"""What the relay publishes for everybody else: decisions, postings and alerts, one JSON object a record.

They are the journal's, in the words of answers: amounts are decimal strings, instants RFC 3339 in UTC. The key is the
customer. A record comes at least once: the header `tallygate-record-id` (`partition/offset/number` of `entry`) is the
same each time, and so is every byte of the value.
"""

import msgspec

from tallygate.schemas.answers import LimitState
from tallygate.schemas.reasons import Reason


class EntryPlace(msgspec.Struct, frozen=True, gc=False):
    """Where the journal has it: the entry's offset, its owner's term and transition, and which of the entry's it is."""

    partition: int
    offset: int
    term: int
    seq: int
    number: int

    @property
    def record_id(self) -> str:
        return f"{self.partition}/{self.offset}/{self.number}"


class PublishedCause(msgspec.Struct, frozen=True, gc=False):
    """The input that caused it: the place of its record, and its request or event id."""

    topic: str
    partition: int
    offset: int
    id: str


class _Published(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    customer: str
    at: str
    catalog: int
    entry: EntryPlace
    cause: PublishedCause | None = None


class PublishedDecision(_Published, frozen=True, kw_only=True, omit_defaults=True, tag="tallygate.decision.v1"):
    """A decision: what was asked, what it costs, and every limit that said no.

    What was asked: `quantities` by meter, `asked` credits beside them, `at_least`, `ttl_seconds` (0: the feature's);
    of those who run the books the `request` itself, in JSON. `late`: a settle after its hold had ended.
    """

    id: str
    op: str
    allowed: bool
    reason: Reason
    credits: str
    overage: str
    asked: str
    feature: str = ""
    dimensions: dict[str, str] = {}
    hold: str = ""
    limits: tuple[LimitState, ...] = ()
    late: bool = False
    quantities: dict[str, str] = {}
    at_least: dict[str, str] = {}
    ttl_seconds: int = 0
    request: str = ""


class PublishedPosting(_Published, frozen=True, kw_only=True, omit_defaults=True, tag="tallygate.posting.v1"):
    """One leg: `amount` is added to `account`. Those of one entry sum to zero per pool.

    `grant`, `category` and `price` (paid per credit) are those of the grant whose credits move. Without a cause, stream
    time alone brought it about.
    """

    pool: str
    account: str
    amount: str
    price: str
    grant: str = ""
    category: str = ""
    feature: str = ""


class PublishedAlert(_Published, frozen=True, kw_only=True, omit_defaults=True, tag="tallygate.alert.v1"):
    """A budget's scope has reached a threshold (per cent of its limit), for the first time in its period.

    `period_at`: when the period began; without it, the budget is for a lifetime.
    """

    budget: str
    scope: dict[str, str]
    unit: str
    threshold: int
    limit: str
    used: str
    period_at: str | None = None


Published = PublishedDecision | PublishedPosting | PublishedAlert

encode_published = msgspec.json.Encoder().encode
decode_published = msgspec.json.Decoder(Published).decode
