"""Stories: a customer's life in one line, told to the real core, so that a test reads like the domain.

    "grant a 100 p0 for 1d; reserve h 80; wait 2h; settle h 30"

Steps, separated by `;` (spans are 500ms, 30s, 5m, 1h, 7d; `k=v` are dimensions; `as ID` names the request):

    grant ID AMOUNT [pN] [in SPAN] [for SPAN] [category C] [price P] [pool P]      takes effect, then expires, from now
    budget NAME LIMIT [k=v …] [per PERIOD] [soft] [of UNIT]
    reserve ID AMOUNT [FEATURE] [for SPAN] [k=v …]         check AMOUNT [FEATURE] [k=v …]
    settle HOLD [AMOUNT]                                   release HOLD
    use AMOUNT [FEATURE] [ago SPAN] [k=v …]                a usage event; each unit of each feature costs one credit
    wait SPAN      time passes unnoticed                   tick SPAN      time passes, and the owner takes note
    restart        memory is lost; the table stays         by CUSTOMER    whose life the next steps are (first: acme)
"""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

from partition import Partition
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Transition
from tallygate.schemas.answers import Answer, Statement
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import to_datetime
from tallygate.schemas.journal import Entry
from tallygate.schemas.ledger import Posting
from tallygate.schemas.requests import Balance, Check, GiveGrant, Release, Request, Reserve, SetBudget, Settle

DIMENSIONS = ["team", "user", "agent", "model"]
FEATURES: dict[str, dict[str, Any]] = {
    "work": {},
    "owing": {"overage": "unlimited"},
    "capped": {"overage": "10"},
    "estimate": {"hold": {"at_end": "settle", "ttl_seconds": 60}},
    "lending": {"hold": {"at_end": "settle", "ttl_seconds": 60}, "overage": "unlimited"},
    "message": {"pool": "messages"},
}
WORDS = read_catalog(
    {
        "meters": {f"{f}_units": {"event_type": f, "value": "units", "dimensions": DIMENSIONS} for f in FEATURES},
        "features": {
            f: {"meters": [f"{f}_units"], "rates": [{"meter": f"{f}_units", "credits": 1}], **more}
            for f, more in FEATURES.items()
        },
    },
    "stories",
).compile(1)

_SPAN = re.compile(r"([0-9]+)(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def span_ms(text: str) -> int:
    found = _SPAN.fullmatch(text)
    assert found, f"no span: {text!r}"
    return int(found[1]) * _UNIT_MS[found[2]]


class Story:
    """A partition to which a story has been told; `answers` has each request's answer in order."""

    def __init__(self, text: str = "", rules: Rules | None = None) -> None:
        self.partition = Partition(WORDS, rules)
        self.customer = "acme"
        self.answers: list[Answer] = []
        self.transitions: list[Transition] = []
        self._number = 0
        self.tell(text)

    def tell(self, text: str) -> "Story":
        for step in text.split(";"):
            words = step.split()
            if words:
                self._step(words[0], words[1:])
        return self

    def _step(self, verb: str, words: list[str]) -> None:
        match verb:
            case "wait":
                self.partition.now += span_ms(words[0])
            case "tick":
                self.transitions.append(self.partition.tick_ms(span_ms(words[0])))
            case "restart":
                self.partition.restart()
            case "by":
                self.customer = words[0]
            case "use":
                self.transitions.append(self.partition.use(self.event(words)))
            case _:
                self.answers.append(self.partition.ask(self.request(verb, words)))
                self.transitions.append(self.partition.transitions[-1])

    def request(self, verb: str, words: list[str]) -> Request:
        """The request that a step asks; every step without `as` has an id of its own."""
        self._number += 1
        plain, dimensions, options = _sorted_out(words)
        who: dict[str, Any] = {"id": options.get("as", f"{verb}-{self._number}"), "customer": self.customer}
        match verb:
            case "grant":
                return self._grant(plain, options, {**who, "id": options.get("as", plain[0])})
            case "budget":
                return SetBudget(
                    **who,
                    name=plain[0],
                    limit=Decimal(plain[1]),
                    scope=dimensions,
                    period=options.get("per", "lifetime"),  # type: ignore[arg-type]
                    unit=options.get("of", "credits"),
                    hard="soft" not in plain,
                )
            case "reserve":
                asked: dict[str, Any] = {
                    "feature": _feature(plain, 2),
                    "credits": Decimal(plain[1]),
                    "dimensions": dimensions,
                }
                ttl = span_ms(options["for"]) // 1000 if "for" in options else None
                return Reserve(**{**who, "id": plain[0]}, **asked, ttl_seconds=ttl)
            case "check":
                return Check(**who, feature=_feature(plain, 1), credits=Decimal(plain[0]), dimensions=dimensions)
            case "settle":
                return Settle(**who, hold=plain[0], credits=Decimal(plain[1]) if len(plain) > 1 else None)
            case "release":
                return Release(**who, hold=plain[0])
            case _:
                raise AssertionError(f"no step: {verb}")

    def _grant(self, plain: list[str], options: dict[str, str], who: dict[str, Any]) -> GiveGrant:
        now = to_datetime(self.partition.now)
        start, end = options.get("in"), options.get("for")
        priority = next((int(word[1:]) for word in plain[2:] if re.fullmatch("p[0-9]+", word)), 1)
        return GiveGrant(
            **who,
            amount=Decimal(plain[1]),
            priority=priority,
            effective_at=None if start is None else now + timedelta(milliseconds=span_ms(start)),
            expires_at=None if end is None else now + timedelta(milliseconds=span_ms(end)),
            category=options.get("category", "paid"),  # type: ignore[arg-type]
            price=Decimal(options.get("price", "0")),
            pool=options.get("pool", "credits"),
        )

    def event(self, words: list[str]) -> UsageEvent:
        self._number += 1
        plain, dimensions, options = _sorted_out(words)
        ago = options.get("ago")
        return UsageEvent(
            specversion="1.0",
            id=options.get("as", f"event-{self._number}"),
            source="stories",
            type=_feature(plain, 1),
            subject=self.customer,
            time=None if ago is None else to_datetime(self.partition.now - span_ms(ago)),
            data={"units": plain[0], **dimensions},
        )

    # ---- what has come of it, in words ----

    @property
    def said(self) -> str:
        """Each answer in a word: `yes`, `late`, or the reason for a no."""
        return " ".join("late" if a.late else "yes" if a.allowed else str(a.reason) for a in self.answers)

    def statement(self) -> Statement:
        answer = self.partition.ask(Balance(id="balance", customer=self.customer))
        assert answer.statement is not None
        return answer.statement

    @property
    def purse(self) -> str:
        """Grants in burn order, then debts: `a 20 held 50, b 100, owed 5`."""
        found = self.statement()
        parts = [f"{g.id} {g.balance}" + (f" held {g.held}" if g.held != "0" else "") for g in found.grants]
        parts += [f"owed {p.overage}" for p in found.pools if p.overage != "0"]
        return ", ".join(parts)

    @property
    def budgets(self) -> str:
        """Budget scopes: `cap[team=research] 30+50 of 100`, used + held."""
        return ", ".join(
            f"{s.name}[{','.join(f'{k}={v}' for k, v in sorted(s.scope.items()))}] {s.used}+{s.held} of {s.limit}"
            for s in self.statement().limits
        )

    @property
    def postings(self) -> list[str]:
        """Every movement so far: `issued:paid > grant:a 100`."""
        return [line for entry in self.partition.entries() for line in movements(entry)]


def movements(entry: Entry) -> list[str]:
    """An entry's postings as movements between two accounts, written without the ends of decimals."""
    legs: list[Posting] = list(entry.postings)
    lines = []
    for source, target in zip(legs[::2], legs[1::2], strict=True):
        assert source.amount_nanos == -target.amount_nanos < 0
        assert source.asset == target.asset
        lines.append(f"{source.account} > {target.account} {Decimal(target.amount_nanos).scaleb(-9).normalize():f}")
    return lines


def _feature(plain: list[str], place: int) -> str:
    return plain[place] if len(plain) > place else "work"


def _sorted_out(words: list[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Plain words, dimensions (`k=v`) and options (a keyword and its value)."""
    plain, dimensions, options = [], {}, {}
    rest = iter(words)
    for word in rest:
        if word in ("in", "for", "category", "price", "pool", "per", "of", "ago", "as"):
            options[word] = next(rest)
        elif "=" in word:
            name, _, value = word.partition("=")
            dimensions[name] = value
        else:
            plain.append(word)
    return plain, dimensions, options
