"""What differs between two catalogs, in plain words: meter by meter, rate by rate, plan by plan."""

from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_text import Document, document

#: Sections and what one of them is called; the parts of plans likewise.
_SECTIONS: Final = {"meters": "meter", "features": "feature", "plans": "plan", "add_ons": "add-on"}
_PARTS: Final = {
    "grants": "grant",
    "budgets": "budget",
    "rate_limits": "rate limit",
    "resets": "reset of",
}
Subject = tuple[str, ...]


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One difference. `subject`: kinds and names, like plan, pro, budget, teams; `field`: what of it, where it stays.

    `before` and `after` are as in a catalog file; null: not there, or the default.
    """

    subject: Subject
    change: Literal["new", "gone", "changed"]
    field: str = ""
    before: Any = None
    after: Any = None

    @property
    def text(self) -> str:
        """In one line."""
        pairs = zip(self.subject[::2], self.subject[1::2], strict=False)
        subject = ": ".join(f"{kind} {name}" for kind, name in pairs) or "the catalog"
        match self.change:
            case "new":
                what = f"new: {_words(self.after)}" if self.after != {} else "new"
            case "gone":
                what = f"gone; it was: {_words(self.before)}" if self.before != {} else "gone"
            case "changed":
                field = f"{self.field}: " if self.field else ""
                what = f"{field}{_words(self.before)} becomes {_words(self.after)}"
        return f"{subject}: {what}"


def changes(old: Catalog, new: Catalog) -> tuple[Change, ...]:
    """Everything that the new catalog says otherwise; empty where both say the same. Versions are not compared."""
    before, after = _entities(document(old)), _entities(document(new))
    found: list[Change] = []
    gone: set[Subject] = set()
    for subject, value in before.items():
        if subject not in after:
            gone.add(subject)
            if not any(subject[:size] in gone for size in range(2, len(subject), 2)):
                found.append(Change(subject, "gone", before=value))
        elif value != after[subject]:
            found.extend(_fields(subject, value, after[subject]))
    found.extend(Change(subject, "new", after=value) for subject, value in after.items() if subject not in before)
    if not found and replace(old, version=0) != replace(new, version=0):
        found.append(Change((), "changed", "order of its parts", "as it was", "another"))
    return tuple(found)


def summary(found: tuple[Change, ...], shown: int = 2) -> str:
    """The differences in one line."""
    texts = [change.text for change in found[:shown]]
    if len(found) > shown:
        texts.append(f"and {len(found) - shown} more")
    return "; ".join(texts) or "no difference"


def _entities(whole: Document) -> dict[Subject, Any]:
    """Everything in a catalog that has a name, by its kinds and names."""
    found: dict[Subject, Any] = {}
    for section, kind in _SECTIONS.items():
        for name, body in whole.get(section, {}).items():
            subject = (kind, name)
            if section in ("plans", "add_ons"):
                found[subject] = {}
                found.update(_plan(subject, body))
            else:
                found[subject] = {field: value for field, value in body.items() if field != "rates"}
                found.update(_rates(subject, body.get("rates", [])))
    if "default_plan" in whole:
        found[("default", "plan")] = whole["default_plan"]
    return found


def _plan(subject: Subject, body: Document) -> dict[Subject, Any]:
    found: dict[Subject, Any] = {}
    for feature, form in body.get("entitlements", {}).items():
        for each in form if isinstance(form, list) else [form]:
            metered = isinstance(each, dict) and "meter" in each
            name = f"{feature} ({each['meter']})" if metered else feature
            found[(*subject, "entitlement", name)] = each
    for part, kind in _PARTS.items():
        for name, each in body.get(part, {}).items():
            found[(*subject, kind, name)] = each
    return found


def _rates(subject: Subject, rates: list[Document]) -> dict[Subject, Any]:
    found: dict[Subject, Any] = {}
    for rate in rates:
        name = rate["meter"]
        if "when" in rate:
            name += " where " + " and ".join(f"{key}={value}" for key, value in sorted(rate["when"].items()))
        if "since" in rate:
            name += f" since {rate['since']}"
        found[(*subject, "rate of", name)] = {
            field: value for field, value in rate.items() if field not in ("meter", "when", "since")
        }
    return found


def _fields(subject: Subject, before: Any, after: Any) -> list[Change]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [Change(subject, "changed", "", before, after)]
    return [
        Change(subject, "changed", field, before.get(field), after.get(field))
        for field in {**before, **after}
        if before.get(field) != after.get(field)
    ]


def _words(value: Any, inner: bool = False) -> str:
    match value:
        case None:
            return "the default"
        case Decimal():
            return f"{value:f}"
        case bool():
            return "true" if value else "false"
        case dict():
            text = ", ".join(f"{field} {_words(each, True)}" for field, each in value.items())
            return f"({text})" if inner else text
        case list():
            text = ", ".join(_words(each, True) for each in value)
            return f"({text})" if inner else text
        case _:
            return str(value)
