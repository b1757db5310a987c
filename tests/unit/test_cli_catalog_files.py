"""Catalog files: read whole or refused whole, with every error's place."""

from pathlib import Path

import pytest

from tallygate.schemas.catalog_file import CatalogError
from tallygate.topologies.catalog_topic import read_files
from tallygate.topologies.demo_trace import data_path

METER = "meters: {tokens: {event_type: call, value: tokens, dimensions: [model]}}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("meters:\n  a: {event_type: x\nfeatures: {}\n", "c.yaml:3:9: expected ',' or '}', but got ':'"),
        ("meters: {a: [}", "c.yaml:1:14: "),
        ("\tmeters: {}", "c.yaml:1:1: "),
        ("meters:\n  a: {event_type: x, value: v}\n  a: {event_type: y, value: v}\n", "c.yaml:3:3: 'a' is given twice"),
        ("", "c.yaml: a catalog is a mapping with `meters` and `features`"),
        ("[]", "c.yaml: a catalog is a mapping with `meters` and `features`"),
        ("meters: {a: {event_type: x}}", "c.yaml: meters.a: a sum meter needs `value`"),
        (METER + "features: {f: {meters: [token]}}", "c.yaml: features.f.meters: there is no meter 'token'"),
        (
            METER + "features: {f: {meters: [tokens], rates: [{meter: tokens, credits: -1}]}}",
            "c.yaml: features.f.rates.0.credits: -1 is negative",
        ),
        (METER + "feature: {}", "c.yaml: feature: "),
        ("meters: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_a_broken_file_names_its_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CatalogError) as refused:
        read_files(tmp_path / "c.yaml")
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))


def test_every_error_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("meters: {a: {event_type: 5}, B: {event_type: x, value: v}}")
    with pytest.raises(CatalogError) as refused:
        read_files(tmp_path / "c.yaml")
    assert [line.split(": ")[1] for line in str(refused.value).splitlines()] == [
        "meters.a.event_type",
        "meters.B.[key]",
    ]


def test_a_folder_is_one_catalog(tmp_path: Path) -> None:
    (tmp_path / "meters.yaml").write_text(METER)
    (tmp_path / "features.yml").write_text("features: {llm: {meters: [tokens]}}")
    (tmp_path / "notes.txt").write_text("not a catalog")
    catalog = read_files(tmp_path).compile(7)
    assert catalog.version == 7
    assert [meter.name for meter in catalog.meters] == ["tokens"]
    assert [feature.name for feature in catalog.features] == ["llm"]


def test_a_folder_names_the_file_of_each_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(METER)
    (tmp_path / "b.yaml").write_text("features: {f: {pool: 'A B'}}")
    with pytest.raises(CatalogError) as refused:
        read_files(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'b.yaml'}: features.f.pool: ")


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(METER)
    (tmp_path / "b.yaml").write_text(METER)
    with pytest.raises(CatalogError) as refused:
        read_files(tmp_path)
    assert str(refused.value) == f"{tmp_path / 'b.yaml'}: meters.tokens: already defined in {tmp_path / 'a.yaml'}"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"the folder has no \.yaml file"):
        read_files(tmp_path)


def test_the_example_is_a_catalog() -> None:
    with data_path("catalog.yaml") as path:
        catalog = read_files(path).compile(1)
    assert {meter.name for meter in catalog.meters} == {"input_tokens", "output_tokens", "calls"}
    assert [feature.name for feature in catalog.features] == ["llm"]
