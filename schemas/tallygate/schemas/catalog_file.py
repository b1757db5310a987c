"""The catalog as people write it: YAML checked by pydantic; every error names the file and the field.

```yaml
meters:
  input_tokens: {event_type: llm.call, value: input_tokens, dimensions: [team, user, agent, model]}
  calls:        {event_type: llm.call, aggregation: count, where: {status: [ok, partial]}, dimensions: [team]}
features:
  llm:
    pools: [trial, credits]          # in order; `pool: credits` for one
    meters: [input_tokens, calls]
    rates:                           # the one with most conditions wins, then the latest, then the first
      - {meter: input_tokens, credits: 2.50, per: 1000000, tiers: [{above: 200000, credits: 5}]}
      - {meter: input_tokens, credits: 0.15, per: 1000000, when: {model: small}, since: 2026-01-01T00:00:00Z}
    hold: {ttl_seconds: 300, at_end: release}
    overage: none                    # or: unlimited, or an amount
    fail: closed
  support: {}
rate_cards:                          # rates of a feature in a place of their own
  vendor: {feature: llm, rates: []}
plans:
  pro:
    entitlements:
      llm: {meter: calls, limit: 1000, period: month, beyond: credits}   # or: credits, true, false
      support: {value: gold}
    grants:      {monthly: {amount: 10000, every: P1M, rollover_max: 2000}}
    budgets:     {teams: {scope: {team: "*"}, limit: 500, period: day, thresholds: [80, 100]}}
    rate_limits: {calls: {limit: 60, per: minute, burst: 10}}
    resets:      {credits: P1M}
add_ons:
  more: {entitlements: {llm: {meter: calls, limit: 500, beyond: credits}}}
default_plan: pro
```
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import Field, ValidationError

from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_checks import Place, Problem, problems, written
from tallygate.schemas.catalog_features import FeatureFile, MeterFile, RateCardFile
from tallygate.schemas.catalog_plans import ENTITLEMENT_FORMS, PlanFile
from tallygate.schemas.catalog_values import PROPERTY_PATTERN, SLUG_PATTERN, Part, Slug


class CatalogError(ValueError):
    """What is wrong with a catalog file, a line each, ready to be shown."""


class CatalogFile(Part):
    meters: dict[Slug, MeterFile] = Field(default_factory=dict)
    features: dict[Slug, FeatureFile] = Field(default_factory=dict)
    rate_cards: dict[Slug, RateCardFile] = Field(default_factory=dict)
    plans: dict[Slug, PlanFile] = Field(default_factory=dict)
    add_ons: dict[Slug, PlanFile] = Field(default_factory=dict)
    default_plan: Slug | None = None

    def compile(self, version: int) -> Catalog:
        """The same as machines hold it, under a version number."""
        more = {
            name: tuple(rate for card in self.rate_cards.values() if card.feature == name for rate in card.rates)
            for name in self.features
        }
        return Catalog(
            version=version,
            meters=tuple(meter.compile(name) for name, meter in self.meters.items()),
            features=tuple(feature.compile(name, more[name]) for name, feature in self.features.items()),
            plans=tuple(plan.compile(name) for name, plan in self.plans.items()),
            add_ons=tuple(plan.compile(name) for name, plan in self.add_ons.items()),
            default_plan=self.default_plan or "",
        )


SECTIONS: Final = tuple(CatalogFile.model_fields)


def read_catalog(document: object, where: str | Callable[[Place], str]) -> CatalogFile:
    """A checked catalog from a parsed YAML document; `CatalogError` names the field after `where`.

    `where` is the file, or says for a place in the document in which file and line it is written.
    """
    find = where if callable(where) else lambda place: where
    if not isinstance(document, Mapping):
        raise CatalogError(f"{find(())}: a catalog is a mapping with: {', '.join(SECTIONS)}")
    try:
        file = CatalogFile.model_validate(document)
        found = list(problems(file))
    except ValidationError as error:
        found = list(_problems(error))
    if found:
        raise CatalogError("\n".join(_line(find, problem) for problem in found))
    return file


def _line(find: Callable[[Place], str], problem: Problem) -> str:
    place = written(problem.place)
    return f"{find(problem.place)}: {place}: {problem.text}" if place else f"{find(())}: {problem.text}"


_PATTERNS: Final = {
    SLUG_PATTERN: "a name has up to 64 of a-z, 0-9, `_`, `.` and `-`, and begins with a letter",
    PROPERTY_PATTERN: "a property has up to 64 letters, digits, `_`, `.` and `-`, and begins with a letter",
}
_MESSAGES: Final = {
    "missing": "is needed",
    "extra_forbidden": "there is no such field here",
    "model_type": "fields are needed here: a mapping",
    "dict_type": "a mapping of names is needed here",
    "tuple_type": "a list is needed here",
    "union_tag_not_found": ENTITLEMENT_FORMS,
}


def _problems(error: ValidationError) -> Iterator[Problem]:
    for each in error.errors(include_url=False):
        # Tags of unions and pydantic's mark for a key are no part of what was written.
        place = tuple(part for part in each["loc"] if not (isinstance(part, str) and part.startswith(("<", "["))))
        yield Problem(place, _words(each))


def _words(problem: Any) -> str:
    kind = problem["type"]
    if kind == "string_pattern_mismatch":
        return f"{problem['input']!r}: {_PATTERNS[problem['ctx']['pattern']]}"
    return _MESSAGES.get(kind) or problem["msg"].removeprefix("Value error, ")
