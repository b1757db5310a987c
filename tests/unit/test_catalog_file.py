"""Catalog files: what people get wrong, and the line that tells them where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tallygate.schemas.catalog import Catalog, Tier
from tallygate.schemas.catalog_file import CatalogError, read_catalog
from tallygate.schemas.catalog_values import span_seconds, span_text
from tallygate.topologies.catalog_yaml import read_files

FILE = """
meters:
  tokens: {event_type: llm.call, value: tokens, dimensions: [team, model]}
  calls: {event_type: llm.call, aggregation: count, dimensions: [team]}
  peak: {event_type: gpu, aggregation: latest, value: memory}
features:
  llm:
    meters: [tokens, calls]
    rates:
      - {meter: tokens, credits: 0.15, per: 1_000_000, when: {model: small}, since: 2026-01-01T00:00:00Z}
      - {meter: tokens, credits: 0.30, tiers: [{above: 1000, credits: 0.40}]}
    overage: 10.5
  gpu: {meters: [peak], pools: [gpu, credits]}
rate_cards:
  more: {feature: llm, rates: [{meter: tokens, credits: 3, when: {model: big}}]}
plans:
  pro:
    entitlements:
      llm: {meter: tokens, limit: 5000, beyond: credits}
      gpu: false
    grants:
      monthly: {amount: 100, every: P1M, rollover_min: 1, rollover_max: 10}
    budgets:
      teams: {limit: 50, scope: {team: "*"}, period: day, thresholds: [100, 50]}
    rate_limits:
      pace: {limit: 60, per: minute, burst: 10}
    resets: {gpu: P1W}
add_ons:
  more-tokens: {entitlements: {llm: {meter: tokens, limit: 100, beyond: credits}}}
default_plan: pro
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Catalog]:
    def from_text(text: str) -> Catalog:
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return read_files(path).compile(7)
        except CatalogError as error:
            raise CatalogError(str(error).replace(f"{path}", "c.yaml")) from None

    return from_text


def changed(old: str, new: str) -> str:
    assert FILE.count(old) == 1, f"{old!r} stands there {FILE.count(old)} times"
    return FILE.replace(old, new)


def test_numbers_as_people_write_them_are_exact(read: Callable[[str], Catalog]) -> None:
    feature = read(FILE).features[0]
    assert (feature.rates[0].credits_nanos, feature.rates[0].per_nanos) == (150_000_000, 10**15)
    assert feature.rates[1].tiers == (Tier(10**12, 400_000_000),)
    assert feature.overage_nanos_max == 10_500_000_000


def test_the_parts_of_a_plan(read: Callable[[str], Catalog]) -> None:
    catalog = read(FILE)
    (plan,) = catalog.plans
    assert [(each.kind, each.limit_nanos, each.beyond, each.value) for each in plan.entitlements] == [
        ("metered", 5000 * 10**9, "credits", ""),
        ("boolean", 0, "deny", "false"),
    ]
    assert plan.budgets[0].thresholds == (50, 100)
    assert (plan.rate_limits[0].per_seconds, plan.rate_limits[0].burst_nanos) == (60, 10 * 10**9)
    assert [(each.pool, each.every) for each in plan.resets] == [("gpu", "P1W")]
    assert (catalog.default_plan, catalog.features[1].pools) == ("pro", ("gpu", "credits"))


def test_a_rate_card_adds_to_its_feature(read: Callable[[str], Catalog]) -> None:
    assert [rate.when for rate in read(FILE).features[0].rates] == [{"model": "small"}, {}, {"model": "big"}]


def test_without_a_burst_as_much_as_the_limit_comes_at_once(read: Callable[[str], Catalog]) -> None:
    found = read(changed(", burst: 10", ""))
    assert found.plans[0].rate_limits[0].burst_nanos == 60 * 10**9


@pytest.mark.parametrize(("written", "nanos"), [("none", 0), ("unlimited", None), ("'0.000000001'", 1), ("0", 0)])
def test_overage(read: Callable[[str], Catalog], written: str, nanos: int | None) -> None:
    assert read(changed("overage: 10.5", f"overage: {written}")).features[0].overage_nanos_max == nanos


@pytest.mark.parametrize(
    ("written", "kinds"),
    [
        ("true", [("boolean", "")]),
        ("credits", [("credit", "")]),
        ("{value: 4.50}", [("static", "4.50")]),
        ("[{meter: tokens, limit: 1}, {meter: calls, limit: 2, period: day}]", [("metered", "")] * 2),
    ],
)
def test_forms_of_entitlements(read: Callable[[str], Catalog], written: str, kinds: list[tuple[str, str]]) -> None:
    found = read(changed("{meter: tokens, limit: 5000, beyond: credits}", written)).plans[0].entitlements
    assert [(each.kind, each.value) for each in found if each.feature == "llm"] == kinds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("second", 1),
        ("minute", 60),
        ("hour", 3600),
        ("day", 86400),
        ("90s", 90),
        ("15m", 900),
        ("6h", 21600),
        ("30d", 30 * 86400),
    ],
)
def test_spans_and_back(text: str, seconds: int) -> None:
    assert span_seconds(text) == seconds
    assert span_text(seconds) == text


@pytest.mark.parametrize(
    ("aggregation", "field"), [("sum", ", value: v"), ("count", ""), ("max", ", value: v"), ("unique", ", value: v")]
)
def test_what_can_be_charged(read: Callable[[str], Catalog], aggregation: str, field: str) -> None:
    text = (
        "meters: {m: {event_type: t, aggregation: %s%s}}\nfeatures: {f: {meters: [m], rates: [{meter: m, credits: 1}]}}"
    )
    assert read(text % (aggregation, field)).meters[0].aggregation == aggregation


MISTAKES = [
    # values
    ("credits: 0.15", "credits: -1", "10: features.llm.rates.0.credits: -1 is negative"),
    ("credits: 0.15", "credits: .nan", "10: features.llm.rates.0.credits: .nan is no decimal number"),
    ("credits: 0.15", "credits: 0x10", "10: features.llm.rates.0.credits: 0x10 is no decimal number"),
    ("credits: 0.15", "credits: 1:30", "10: features.llm.rates.0.credits: 1:30 is no decimal number"),
    ("credits: 0.15", "credits: yes", "10: features.llm.rates.0.credits: yes is no decimal number"),
    ("credits: 0.15", "credits: true", "10: features.llm.rates.0.credits: True is no number"),
    ("credits: 0.15", "credits: ~", "10: features.llm.rates.0.credits: None is no decimal number"),
    ("credits: 0.15", "credits: [1]", "10: features.llm.rates.0.credits: [1] is no decimal number"),
    ("credits: 0.15", "credits: 1.0e-10", "10: features.llm.rates.0.credits: 1.0E-10 has more than 9 decimal places"),
    ("credits: 0.15", "credits: 1.0e+16", "10: features.llm.rates.0.credits: 1.0E+16 is absurdly large"),
    ("per: 1_000_000", "per: 0", "10: features.llm.rates.0: `per` must be more than 0"),
    ("since: 2026-01-01T00:00:00Z", "since: 2026-01-01", "10: features.llm.rates.0.since: '2026-01-01' is no instant"),
    ("since: 2026-01-01T00:00:00Z", "since: 2026", "10: features.llm.rates.0.since: '2026' is no instant"),
    ("since: 2026-01-01T00:00:00Z", "since: soon", "10: features.llm.rates.0.since: 'soon' is no instant"),
    ("value: tokens, ", "", "3: meters.tokens: a sum meter needs `value`"),
    ("aggregation: count,", "aggregation: count, value: x,", "4: meters.calls: a count meter counts events"),
    ("event_type: llm.call, value", "value", "3: meters.tokens.event_type: is needed"),
    ("  tokens:", "  Tokens:", "3: meters.Tokens: 'Tokens': a name has up to 64 of a-z"),
    ("overage: 10.5", "overage: some", "12: features.llm.overage: neither `none` nor `unlimited` nor an amount"),
    ("overage: 10.5", "hold: {ttl_seconds: 0}", "12: features.llm.hold.ttl_seconds: Input should be greater than"),
    ("overage: 10.5", "overages: 1", "12: features.llm.overages: there is no such field here"),
    ("overage: 10.5", "pool: a\n    pools: [b]", "7: features.llm: write `pool` for one or `pools` for several"),
    ("features:\n  llm:", "features:\n  llm: []\n  old:", "7: features.llm: fields are needed here"),
    ("gpu: false", "gpu: perhaps", "20: plans.pro.entitlements.gpu: write `true`, `false`, `credits`,"),
    ("limit: 5000", "limt: 5000", "19: plans.pro.entitlements.llm.limt: there is no such field here"),
    ("every: P1M", "every: monthly", "22: plans.pro.grants.monthly.every: 'monthly' is no interval"),
    ("gpu: P1W", "gpu: P1X", "27: plans.pro.resets.gpu.every: 'P1X' is no interval"),
    ("rollover_min: 1", "rollover_min: 11", "22: plans.pro.grants.monthly: `rollover_min` 11 is more than"),
    ("per: minute", "per: fortnight", "26: plans.pro.rate_limits.pace.per: 'fortnight' is no span"),
    ("per: minute", "per: 31d", "26: plans.pro.rate_limits.pace.per: '31d' is no span"),
    ("limit: 60", "limit: 0", "26: plans.pro.rate_limits.pace: `limit` must be more than 0"),
    ("burst: 10", "burst: 0.5", "26: plans.pro.rate_limits.pace: a `burst` under 1 lets no request through"),
    ("thresholds: [100, 50]", "thresholds: [0]", "24: plans.pro.budgets.teams.thresholds.0: Input should be greater"),
    ("above: 1000", "above: 0", "11: features.llm.rates.1: `tiers` must rise"),
    ("credits: 0.40", "credits: 0.20", "11: features.llm.rates.1: prices must not fall with the quantity"),
    # references
    ("model: small", "modell: small", "10: features.llm.rates.0.when.modell: 'tokens' has no such dimension; it has:"),
    (
        "- {meter: tokens, credits: 0.15",
        "- {meter: token, credits: 0.15",
        "10: features.llm.rates.0.meter: 'token' is no",
    ),
    ("[tokens, calls]", "[tokens, call]", "8: features.llm.meters.1: there is no meter 'call'; there are: calls, peak"),
    ("[tokens, calls]", "[tokens, tokens]", "8: features.llm.meters.1: 'tokens' already belongs to feature 'llm'"),
    ("{meters: [peak], ", "{meters: [peak, calls], ", "13: features.gpu.meters.1: 'calls' already belongs to feature"),
    (
        "pools: [gpu, credits]}",
        "rates: [{meter: peak, credits: 1}]}",
        "13: features.gpu.rates.0.meter: 'peak' is a latest",
    ),
    ("when: {model: big}", "when: {}", "15: rate_cards.more.rates.0: features.llm.rates.1 prices the same already"),
    ("more: {feature: llm,", "more: {feature: lm,", "15: rate_cards.more.feature: there is no feature 'lm'"),
    ("gpu: false", "gpt: false", "20: plans.pro.entitlements.gpt: there is no feature 'gpt'"),
    (
        "meter: tokens, limit: 5000",
        "meter: peak, limit: 5000",
        "19: plans.pro.entitlements.llm.meter: 'peak' is no meter",
    ),
    ("gpu: false", "gpu: {meter: peak, limit: 1}", "20: plans.pro.entitlements.gpu.meter: 'peak' is a latest meter"),
    (
        "meter: tokens, limit: 5000",
        "meter: calls, limit: 5",
        "19: plans.pro.entitlements.llm.beyond: 'calls' has no rate",
    ),
    ("amount: 100,", "amount: 100, pool: credit,", "22: plans.pro.grants.monthly.pool: no feature is paid from pool"),
    (
        "gpu: P1W",
        "cpu: P1W",
        "27: plans.pro.resets.cpu: no feature is paid from pool 'cpu'; pools in use: credits, gpu",
    ),
    ("scope: {team:", "scope: {taem:", "24: plans.pro.budgets.teams.scope.taem: no meter has this dimension"),
    ("limit: 50,", "limit: 50, unit: minutes,", "24: plans.pro.budgets.teams.unit: 'minutes' is neither credits nor a"),
    ("limit: 50,", "limit: 50, unit: peak,", "24: plans.pro.budgets.teams.unit: 'peak' is a latest meter"),
    (
        "limit: 60,",
        "limit: 60, unit: minutes,",
        "26: plans.pro.rate_limits.pace.unit: 'minutes' is neither requests nor",
    ),
    ("  more-tokens:", "  pro:", "29: add_ons.pro: a plan has this name"),
    ("limit: 100,", "limit: 100, period: day,", "29: add_ons.more-tokens.entitlements.llm.period: an allowance a day"),
    ("default_plan: pro", "default_plan: por", "30: default_plan: there is no plan 'por'; there are: pro"),
    ("  peak:", "  requests: {event_type: t, value: v}\n  peak:", "5: meters.requests: 'requests' is what budgets and"),
]


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES)
def test_a_mistake_is_named_with_its_place(read: Callable[[str], Catalog], old: str, new: str, line: str) -> None:
    with pytest.raises(CatalogError) as error:
        read(changed(old, new))
    assert f"c.yaml:{line}" in str(error.value)
    assert all(each.startswith("c.yaml:") for each in str(error.value).splitlines())


def test_every_mistake_is_told_at_once(read: Callable[[str], Catalog]) -> None:
    text = changed("[tokens, calls]", "[tokens, call]").replace("default_plan: pro", "default_plan: por")
    with pytest.raises(CatalogError) as error:
        read(text)
    assert [line.split(" ")[0] for line in str(error.value).splitlines()] == ["c.yaml:8:", "c.yaml:30:"]


def test_documents_of_other_readers_are_read_too() -> None:
    """From JSON, or with PyYAML's own floats and datetimes."""
    feature = read_catalog(yaml.safe_load(FILE), "c.yaml").compile(7).features[0]
    assert (feature.rates[0].credits_nanos, feature.rates[0].since) == (150_000_000, 1_767_225_600_000)


@pytest.mark.parametrize("document", [None, [], "meters", 7])
def test_a_file_that_is_no_mapping(document: Any) -> None:
    with pytest.raises(CatalogError, match=r"c\.yaml: a catalog is a mapping with: meters, features"):
        read_catalog(document, "c.yaml")
