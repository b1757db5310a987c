"""Catalog files as text: what values mean, where things are written, folders of files, and back to text."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallygate.schemas import samples_catalog
from tallygate.schemas.catalog import Catalog, Feature, Meter, Rate
from tallygate.schemas.catalog_file import CatalogError
from tallygate.topologies.catalog_example import example_files
from tallygate.topologies.catalog_yaml import parse, read_files, write_yaml


def parsed(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(path).value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.15", Decimal("0.15")),
        ("0.1000000000000000000000000001", Decimal("0.1000000000000000000000000001")),
        ("1e3", Decimal("1e3")),
        (".5", Decimal("0.5")),
        ("1_000_000", 1_000_000),
        ("010", 10),
        ("-3", -3),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("~", None),
        ("", None),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("9" * 50, Decimal("9" * 50)),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_values(tmp_path: Path, text: str, value: object) -> None:
    assert parsed(tmp_path, f"key: {text}") == {"key": value}
    assert type(parsed(tmp_path, f"key: {text}")["key"]) is type(value)


def test_keys_are_texts(tmp_path: Path) -> None:
    assert parsed(tmp_path, "{1: a, true: b, ~: c}") == {"1": "a", "true": "b", "~": "c"}


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\nlist: &l [1]\nagain: *l"
    assert parsed(tmp_path, text) == {"base": {"a": 1, "b": 2}, "more": {"b": 3, "a": 1}, "list": [1], "again": [1]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", ":3:1: 'a' is given twice"),
        ("m:\n  x: {a: 1, a: 2}", ":2:13: 'a' is given twice"),
        ("a: [1", ":"),
        ("a: &a [*a]", ":1:4: an alias of what it stands in"),
        ("a: !!python/name:os.system x", ":1:4: the tag tag:yaml.org,2002:python/name:os.system is not used here"),
        ("a: !mine x", ":1:4: the tag !mine is not used here"),
        ("? [1]\n: 2", ":1:3: a key must be a plain name"),
        ("a: {<<: 3}", ":1:9: `<<` takes in a mapping"),
        ("--- 1\n--- 2", ":"),
        ("a: \x00", ": no YAML"),
        ("[" * 5000, ":"),
    ],
)
def test_what_is_no_catalog_at_all(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(CatalogError) as error:
        parsed(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'c.yaml'}{line}")
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read: No such file"):
        read_files(tmp_path / "none.yaml")


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


METERS = "meters:\n  m: {event_type: t, value: v}\n"
FEATURES = "# what is sold\nfeatures:\n  f:\n    meters: [m]\n"


def test_a_folder_is_one_catalog(tmp_path: Path) -> None:
    path = folder(tmp_path, b=METERS, a=FEATURES, empty="# nothing yet\n")
    (path / "README.md").write_text("no catalog: [")
    assert read_files(path).compile(1) == Catalog(
        1, (Meter("m", "t", "sum", "v"),), (Feature("f", ("credits",), ("m",)),)
    )


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"a": METERS, "b": "\n" + METERS}, "b.yaml:3: meters.m: already defined in {}a.yaml:2"),
        ({"a": METERS, "b": "default_plan: x\n", "c": "default_plan: y\n"}, "c.yaml:1: default_plan: already defined"),
        ({"a": METERS, "b": "metres: {}\n"}, "b.yaml:1: metres: there is no such part of a catalog; there are: meters"),
        ({"a": METERS, "b": "[]"}, "b.yaml: a catalog is a mapping with"),
        ({"a": METERS, "b": "features: [f]\n"}, "b.yaml:1: features: a mapping of names is needed here"),
        ({"b": FEATURES.replace("[m]", "[n]"), "a": METERS}, "b.yaml:4: features.f.meters.0: there is no meter 'n'"),
        (
            {"a": METERS, "b": FEATURES + "    rates:\n    - meter: m\n"},
            "b.yaml:6: features.f.rates.0.credits: is needed",
        ),
    ],
)
def test_mistakes_across_files(tmp_path: Path, files: dict[str, str], line: str) -> None:
    path = folder(tmp_path, **files)
    with pytest.raises(CatalogError) as error:
        read_files(path)
    assert str(error.value).startswith(f"{path}/{line.format(f'{path}/')}")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"the folder has no \.yaml file"):
        read_files(tmp_path)


# ---- back to text ----


def again(catalog: Catalog, path: Path) -> Catalog:
    path.write_text(write_yaml(catalog), encoding="utf-8")
    return read_files(path).compile(catalog.version)


def test_what_is_shown_can_be_applied_again(tmp_path: Path) -> None:
    assert again(samples_catalog.FULL, tmp_path / "c.yaml") == samples_catalog.FULL


def test_the_example_survives_being_shown(tmp_path: Path) -> None:
    example = tmp_path / "example"
    example.mkdir()
    for name, text in example_files().items():
        (example / name).write_text(text, encoding="utf-8")
    catalog = read_files(example).compile(1)
    assert again(catalog, tmp_path / "c.yaml") == catalog


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12) | st.sampled_from(
    ["no", "1e5", "007", "0x1", "~", "1.0", "true", "2026-01-01", "*", "- a", "#", "a: b", "1_0", "=", "<<"]
)
nanos = st.integers(0, 10**24)


@given(texts, nanos, nanos.filter(bool), st.integers(0, 253_402_300_799_999))
def test_any_text_and_amount_survives(
    tmp_path_factory: pytest.TempPathFactory, text: str, credits: int, per: int, since: int
) -> None:
    catalog = Catalog(
        1,
        (Meter("m", "t", "sum", "v", ("d",), {"w": (text, "x")}),),
        (Feature("f", ("credits",), ("m",), (Rate("m", credits, per, {"d": text}, since),)),),
    )
    assert again(catalog, tmp_path_factory.mktemp("text") / "c.yaml") == catalog
