"""Catalog files: what people get wrong, and the line that tells them where."""

from typing import Any

import pytest
import yaml

from tallygate.schemas.catalog_file import CatalogError, read_catalog

FILE = """
meters:
  tokens: {event_type: llm.call, value: tokens, dimensions: [team, model]}
  calls: {event_type: llm.call, aggregation: count}
features:
  llm:
    meters: [tokens, calls]
    rates:
      - {meter: tokens, credits: 0.15, per: 1000000, when: {model: small}, since: 2026-01-01T00:00:00Z}
    overage: 10.5
"""


def changed(old: str, new: str) -> Any:
    assert old in FILE
    return yaml.safe_load(FILE.replace(old, new))


def test_numbers_as_people_write_them_are_exact() -> None:
    feature = read_catalog(yaml.safe_load(FILE), "c.yaml").compile(7).features[0]
    assert (feature.rates[0].credits_nanos, feature.rates[0].per_nanos) == (150_000_000, 10**15)
    assert feature.overage_nanos_max == 10_500_000_000


@pytest.mark.parametrize(("written", "nanos"), [("none", 0), ("unlimited", None), ("'0.000000001'", 1), ("0", 0)])
def test_overage(written: str, nanos: int | None) -> None:
    found = read_catalog(changed("overage: 10.5", f"overage: {written}"), "c.yaml").compile(1)
    assert found.features[0].overage_nanos_max == nanos


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("credits: 0.15", "credits: -1", "features.llm.rates.0.credits: -1 is negative"),
        ("credits: 0.15", "credits: .nan", "features.llm.rates.0.credits: nan is no decimal number"),
        ("credits: 0.15", "credits: .inf", "features.llm.rates.0.credits: inf is no decimal number"),
        ("credits: 0.15", "credits: yes", "features.llm.rates.0.credits: True is no number"),
        ("credits: 0.15", "credits:", "features.llm.rates.0.credits: None is no decimal number"),
        ("credits: 0.15", "credits: [1]", "features.llm.rates.0.credits: [1] is no decimal number"),
        ("credits: 0.15", "credits: 1.0e-10", "features.llm.rates.0.credits: 1E-10 has more than 9 decimal places"),
        ("credits: 0.15", "credits: 1.0e+16", "features.llm.rates.0.credits: 1E+16 is absurdly large"),
        ("per: 1000000", "per: 0", "features.llm.rates.0: `per` must be more than 0"),
        ("since: 2026-01-01T00:00:00Z", "since: 2026-01-01", "features.llm.rates.0: `since` needs an offset"),
        ("model: small", "modell: small", "features.llm.rates.0.when: 'modell' is no dimension there"),
        ("model: small", "model: 4", "features.llm.rates.0.when.model: Input should be a valid string"),
        ("meter: tokens", "meter: token", "features.llm.rates.0: 'token' is no meter of this feature"),
        ("meters: [tokens, calls]", "meters: [tokens, call]", "features.llm.meters: there is no meter 'call'"),
        (
            "meters: [tokens, calls]",
            "meters: [tokens, tokens]",
            "features.llm.meters: 'tokens' already belongs to 'llm'",
        ),
        ("value: tokens, ", "", "meters.tokens: a sum meter needs `value`"),
        ("event_type: llm.call, value", "value", "meters.tokens.event_type: Field required"),
        ("  tokens:", "  Tokens:", "meters.Tokens.[key]: String should match pattern"),
        ("overage: 10.5", "overage: some", "features.llm.overage: neither `none` nor `unlimited` nor an amount"),
        ("overage: 10.5", "overage: -1", "features.llm.overage: neither `none` nor `unlimited` nor an amount: -1 is"),
        ("overage: 10.5", "hold: {ttl_seconds: 0}", "features.llm.hold.ttl_seconds: Input should be greater than"),
        ("overage: 10.5", "overages: 1", "features.llm.overages: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, line: str) -> None:
    with pytest.raises(CatalogError) as error:
        read_catalog(changed(old, new), "c.yaml")
    assert f"c.yaml: {line}" in str(error.value)
    assert all(each.startswith("c.yaml: ") for each in str(error.value).splitlines())


@pytest.mark.parametrize("text", ["", "[]", "meters", "7"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    with pytest.raises(CatalogError, match="a catalog is a mapping"):
        read_catalog(yaml.safe_load(text), "c.yaml")
