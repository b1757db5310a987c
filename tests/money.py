"""Stories about money: more steps than `stories.py` has, and catalogs to tell them under.

reset [POOL] [preserve]             void GRANT                     extend HOLD SPAN
grant … every P1M [anchor INSTANT] [at INSTANT] [until INSTANT] [keep MIN-MAX]
rate NAME LIMIT per SECONDS [burst N] [of UNIT] [k=v …]
subscribe PLAN [add-on …] [anchor INSTANT]         suspend | resume | strict | lenient
until INSTANT      time passes unnoticed up to an instant, like 2026-02-28 or 2026-02-28T12:30
undo EVENT | correct EVENT AMOUNT                  `use … as EVENT` names the event; of source `stories`
cap NAME LIMIT …   a budget with [at P,P] thresholds, [observe], [anchor INSTANT]; else like `budget`
"""

from decimal import Decimal
from typing import Any

from partition import Partition
from stories import DIMENSIONS, FEATURES, Story, movements, span_ms
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.transition import Transition
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import parse_instant, to_datetime
from tallygate.schemas.journal import Alert, Entry
from tallygate.schemas.requests import (
    Check,
    Estimate,
    Extend,
    GiveGrant,
    Recurring,
    Request,
    Reserve,
    ResetPool,
    SetBudget,
    SetCustomer,
    SetRateLimit,
    Settle,
    Subscribe,
    VoidGrant,
)

MORE: dict[str, dict[str, Any]] = {
    **FEATURES,
    "both": {"pools": ["trial", "credits"]},
    "bothowing": {"pools": ["trial", "credits"], "overage": "unlimited"},
    "bothcapped": {"pools": ["trial", "credits"], "overage": "10"},
    "watched": {"observe": True},
}


def catalog(version: int = 1, features: dict[str, dict[str, Any]] = MORE, **sections: Any) -> Catalog:
    """A catalog in which each unit of each feature costs one credit; `sections` are those of a catalog file."""
    meters = {f"{f}_units": {"event_type": f, "value": "units", "dimensions": DIMENSIONS} for f in features}
    document = {
        "meters": {**meters, **sections.pop("meters", {})},
        "features": {
            f: {"meters": [f"{f}_units"], "rates": [{"meter": f"{f}_units", "credits": 1}], **more}
            for f, more in features.items()
        },
        **sections,
    }
    return read_catalog(document, "money").compile(version)


DEFAULT = catalog()


class Money(Story):
    """A story under a catalog of its own."""

    def __init__(self, text: str = "", of: Catalog = DEFAULT, rules: Rules | None = None) -> None:
        super().__init__("", rules)
        self.partition = Partition(of, rules)
        self.tell(text)

    def tell(self, text: str) -> "Money":
        super().tell(text)
        return self

    def _step(self, verb: str, words: list[str]) -> None:
        match verb:
            case "until":
                self.partition.now = instant_ms(words[0])
            case "undo" | "correct":
                self.transitions.append(self.partition.use(self.change(verb, words)))
            case _:
                super()._step(verb, words)

    def change(self, verb: str, words: list[str]) -> UsageEvent:
        """An event that voids or corrects another one."""
        self._number += 1
        data: dict[str, Any] = {"source": "stories", "id": words[0]}
        if verb == "correct":
            data["data"] = {"units": words[1], **dict(word.split("=") for word in words[2:] if "=" in word)}
        kind = {"undo": "tallygate.usage.voided", "correct": "tallygate.usage.corrected"}[verb]
        id = words[words.index("as") + 1] if "as" in words else f"{verb}-{self._number}"
        return UsageEvent(specversion="1.0", id=id, source="stories", type=kind, subject=self.customer, data=data)

    def request(self, verb: str, words: list[str]) -> Request:
        who: dict[str, Any] = {"customer": self.customer}
        rest, options = _options(words)
        match verb:
            case "reset":
                pool = next((word for word in rest if word != "preserve"), "credits")
                return ResetPool(**who, id=self._id(verb, options), pool=pool, preserve_overage="preserve" in rest)
            case "void":
                return VoidGrant(**who, id=self._id(verb, options), grant=rest[0])
            case "extend":
                return Extend(**who, id=self._id(verb, options), hold=rest[0], ttl_seconds=span_ms(rest[1]) // 1000)
            case "suspend" | "resume":
                return SetCustomer(**who, id=self._id(verb, options), suspended=verb == "suspend")
            case "strict" | "lenient":
                return SetCustomer(**who, id=self._id(verb, options), suspended=None, strict=verb == "strict")
            case "rate":
                return self._rate(rest, options, who)
            case "subscribe":
                anchor = to_datetime(instant_ms(options["anchor"])) if "anchor" in options else None
                id = self._id(verb, options)
                return Subscribe(**who, id=id, plan=rest[0], add_ons=tuple(rest[1:]), anchor=anchor)
            case "cap":
                return self._cap(rest, options, who)
            case "grant" if {"every", "at", "until", "keep", "anchor"} & set(options):
                return self._recurring(rest, options, who)
            case _:
                return super().request(verb, words)

    def _id(self, verb: str, options: dict[str, str]) -> str:
        self._number += 1
        return options.get("as", f"{verb}-{self._number}")

    def _rate(self, rest: list[str], options: dict[str, str], who: dict[str, Any]) -> SetRateLimit:
        return SetRateLimit(
            **who,
            id=self._id("rate", options),
            name=rest[0],
            limit=Decimal(rest[1]),
            per_seconds=int(options["per"]),
            burst=Decimal(options["burst"]) if "burst" in options else None,
            unit=options.get("of", "requests"),
            scope=dict(word.split("=") for word in rest if "=" in word),
            observe="observe" in rest,
        )

    def _cap(self, rest: list[str], options: dict[str, str], who: dict[str, Any]) -> SetBudget:
        return SetBudget(
            **who,
            id=self._id("cap", options),
            name=rest[0],
            limit=Decimal(rest[1]),
            scope=dict(word.split("=") for word in rest if "=" in word),
            period=options.get("per", "lifetime"),  # type: ignore[arg-type]
            unit=options.get("of", "credits"),
            hard="soft" not in rest,
            observe="observe" in rest,
            thresholds=tuple(int(each) for each in options["at"].split(",")) if "at" in options else (),
            anchor=to_datetime(instant_ms(options["anchor"])) if "anchor" in options else None,
        )

    def _recurring(self, rest: list[str], options: dict[str, str], who: dict[str, Any]) -> GiveGrant:
        def at(name: str) -> Any:
            return to_datetime(instant_ms(options[name])) if name in options else None

        low, _, high = options.get("keep", "0-0").partition("-")
        plain = [f"for {options['for']}"] if "for" in options else []
        plain += [f"{name} {options[name]}" for name in ("in", "category", "price", "pool") if name in options]
        base = super().request("grant", " ".join([*rest, *plain]).split())
        assert isinstance(base, GiveGrant)
        fields = {name: getattr(base, name) for name in base.__struct_fields__ if name not in ("effective_at",)}
        fields["effective_at"] = at("at") or base.effective_at
        fields["expires_at"] = at("until") or base.expires_at
        fields["recurrence"] = Recurring(options["every"], at("anchor")) if "every" in options else None
        return GiveGrant(**{**fields, "rollover_min": Decimal(low), "rollover_max": Decimal(high)})

    # ---- asking ----

    def ask(self, feature: str, credits: str = "0", **more: Any) -> Answer:
        """Check a call; `more` are the request's other fields."""
        self._number += 1
        id = f"check-{self._number}"
        asked = Check(id=id, customer=self.customer, feature=feature, credits=Decimal(credits), **more)
        return self.partition.ask(asked)

    def hold(self, id: str, feature: str = "work", credits: str = "0", **more: Any) -> Answer:
        asked = Reserve(id=id, customer=self.customer, feature=feature, credits=Decimal(credits), **more)
        return self.partition.ask(asked)

    def settle(self, hold: str, quantities: dict[str, Decimal]) -> Answer:
        """Settle by a meter's units."""
        self._number += 1
        id = f"settle-{self._number}"
        return self.partition.ask(Settle(id=id, customer=self.customer, hold=hold, quantities=quantities))

    def estimate(self, feature: str, of: str, **more: Any) -> Answer:
        self._number += 1
        return self.partition.ask(
            Estimate(id=f"estimate-{self._number}", customer=self.customer, feature=feature, of=of, **more)
        )

    # ---- what has come of it ----

    @property
    def balances(self) -> str:
        """Active grants by id: `a 20, b 100`."""
        return ", ".join(f"{g.id} {g.balance}" for g in sorted(self.statement().grants, key=lambda g: g.id) if g.active)

    @property
    def alerts(self) -> list[str]:
        """Every alert so far: `b[team=x] 80 at 85 of 100`."""
        return [alert_text(alert) for entry in self.partition.entries() for alert in entry.alerts]

    @property
    def last_movements(self) -> list[str]:
        """The movements of the last entry."""
        return movements(self.partition.entries()[-1])

    def pool(self, name: str = "credits") -> tuple[str, str]:
        """A pool's usage in its period, and what of it grants paid, in credits."""
        account = self.partition.state.account(self.customer)
        row = account.pools[name]
        return tuple(f"{Decimal(n).scaleb(-9).normalize():f}" for n in (row.usage_nanos, row.grant_usage_nanos))  # type: ignore[return-value]

    @property
    def dead(self) -> list[str]:
        return [str(letter.reason) for t in self.partition.transitions for letter in t.dead_letters]

    def entries_of(self, transition: Transition) -> list[Entry]:
        """The entries that came with one transition."""
        at = self.partition.transitions.index(transition)
        before = sum(len(t.records) for t in self.partition.transitions[:at])
        keep, self.partition.journal = (
            self.partition.journal,
            self.partition.journal[before:][: len(transition.records)],
        )
        found = self.partition.entries()
        self.partition.journal = keep
        return found


def alert_text(alert: Alert) -> str:
    scope = ",".join(f"{k}={v}" for k, v in sorted(alert.scope.items()))
    used, limit = alert.used_nanos // 10**9, alert.limit_nanos // 10**9
    return f"{alert.budget}[{scope}] {alert.threshold} at {used} of {limit}"


def instant_ms(text: str) -> int:
    """`2026-02-28`, `2026-02-28T12:30` or a whole RFC 3339 instant."""
    if "T" not in text:
        text += "T00:00:00Z"
    elif not text.endswith("Z"):
        text += ":00Z"
    return parse_instant(text)


def _options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    rest, options = [], {}
    found = iter(words)
    for word in found:
        if word in _OPTIONS:
            options[word] = next(found)
        else:
            rest.append(word)
    return rest, options


_OPTIONS = frozenset(
    {"in", "for", "category", "price", "pool", "per", "of", "as", "every", "anchor", "at", "until", "keep", "burst"}
)
