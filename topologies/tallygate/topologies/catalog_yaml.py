"""Catalogs from YAML files, and back: a file, or a folder as one catalog; errors name file, line and field.

Values are read as YAML 1.2's core means them, and exactly: a fraction becomes a Decimal of its text, `no` and `on` are
words, an instant stays text. A key given twice is an error, in one file or across files.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_checks import Place
from tallygate.schemas.catalog_file import SECTIONS, CatalogError, CatalogFile, read_catalog
from tallygate.schemas.catalog_text import document

_INT: Final = re.compile(r"[-+]?[0-9][0-9_]{0,39}")
_FRACTION: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,4})?")
_WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAGS: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Document(NamedTuple):
    """A parsed file, and the line (from 1) on which each place in it is written."""

    value: Any
    lines: dict[Place, int]


def read_files(path: Path) -> CatalogFile:
    """The catalog in a YAML file, or in all `.yaml` and `.yml` files of a folder. Raises CatalogError."""
    if not path.is_dir():
        document = parse(path)
        return read_catalog(document.value, lambda place: f"{path}{_line(document.lines, place)}")
    found = sorted(each for each in path.iterdir() if each.suffix in (".yaml", ".yml"))
    if not found:
        raise CatalogError(f"{path}: the folder has no .yaml file")
    return _Folder(path, found).read()


class _Folder:
    """The sections of all files as one document. What two files define is refused: nobody could say which holds."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self._path = path
        self._lines: dict[Place, int] = {}
        self._homes: dict[Place, Path] = {}
        self._merged: dict[str, Any] = {}
        wrong = [line for file in files for line in self._take(file, parse(file))]
        if wrong:
            raise CatalogError("\n".join(wrong))

    def read(self) -> CatalogFile:
        return read_catalog(self._merged, self._where)

    def _take(self, file: Path, document: Document) -> Iterator[str]:
        if document.value is None:  # a file of comments
            return
        if not isinstance(document.value, dict):
            yield f"{file}: a catalog is a mapping with: {', '.join(SECTIONS)}"
            return
        for section, content in document.value.items():
            if section not in SECTIONS:
                line = _line(document.lines, (section,))
                yield f"{file}{line}: {section}: there is no such part of a catalog; there are: {', '.join(SECTIONS)}"
            elif isinstance(content, dict):
                known = self._merged.setdefault(section, {})
                for name, body in content.items():
                    yield from self._own(file, document, (section, name))
                    if isinstance(known, dict):
                        known[name] = body
            else:
                yield from self._own(file, document, (section,))
                self._merged[section] = content

    def _own(self, file: Path, document: Document, place: Place) -> Iterator[str]:
        if place in self._homes:
            other = f"{self._homes[place]}{_line(self._lines, place)}"
            yield f"{file}{_line(document.lines, place)}: {'.'.join(map(str, place))}: already defined in {other}"
            return
        self._homes[place] = file
        size = len(place)
        self._lines |= {each: line for each, line in document.lines.items() if each[:size] == place}

    def _where(self, place: Place) -> str:
        for size in (2, 1):
            if (home := self._homes.get(place[:size])) is not None:
                return f"{home}{_line(self._lines, place)}"
        return str(self._path)


def _line(lines: dict[Place, int], place: Place) -> str:
    """`:7` for the line of a place, or of what it is missing in."""
    for size in range(len(place), 0, -1):
        if (line := lines.get(place[:size])) is not None:
            return f":{line}"
    return ""


def parse(path: Path) -> Document:
    """A YAML file as plain values. Raises CatalogError, which names line and column."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), _LOADER)
        lines: dict[Place, int] = {}
        value = None if node is None else _Reading(path, lines).value(node, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise CatalogError(f"{place}: {error.problem or error.context or 'no YAML'}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CatalogError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from None
    return Document(value, lines)


class _Reading:
    """Nodes into values; `lines` learns where each place is written."""

    def __init__(self, path: Path, lines: dict[Place, int]) -> None:
        self._path = path
        self._lines = lines

    def value(self, node: yaml.Node, place: Place, within: tuple[yaml.Node, ...]) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if any(node is each for each in within):
            raise self._error(node, "an alias of what it stands in")
        if node.tag not in _TAGS:
            raise self._error(node, f"the tag {node.tag} is not used here")
        match node:
            case yaml.ScalarNode():
                return self._scalar(node)
            case yaml.SequenceNode():
                return [self.value(each, (*place, n), (*within, node)) for n, each in enumerate(node.value)]
            case yaml.MappingNode():
                return self._mapping(node, place, (*within, node))
            case _:
                raise self._error(node, "no YAML")

    def _mapping(self, node: yaml.MappingNode, place: Place, within: tuple[yaml.Node, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be a plain name")
            if key.value == "<<" and not key.style:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if key.value in found:
                raise self._error(key, f"{key.value!r} is given twice")
            self._lines[(*place, key.value)] = key.start_mark.line + 1
            found[key.value] = self.value(value, (*place, key.value), within)
        for each in merged:
            if not isinstance(each, yaml.MappingNode):
                raise self._error(each, "`<<` takes in a mapping")
            found = self._mapping(each, place, (*within, each)) | found
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if node.style:  # quoted, or a block of text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            return int(text.replace("_", ""))
        return Decimal(text) if _FRACTION.fullmatch(text) else text

    def _error(self, node: yaml.Node, text: str) -> CatalogError:
        mark = node.start_mark
        return CatalogError(f"{self._path}:{mark.line + 1}:{mark.column + 1}: {text}")


# ---- back ----


class _Dumper(yaml.SafeDumper):
    """Numbers plainly and in full; texts in quotes wherever a reader might see something else in them."""


def _number(dumper: yaml.SafeDumper, value: Decimal) -> yaml.ScalarNode:
    whole = value == value.to_integral_value()
    return dumper.represent_scalar(f"tag:yaml.org,2002:{'int' if whole else 'float'}", f"{value:f}")


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, None if _PLAIN.fullmatch(value) else '"')


_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./ -]*")
_Dumper.add_representer(Decimal, _number)
_Dumper.add_representer(str, _text)


def write_yaml(catalog: Catalog) -> str:
    """The catalog as a YAML file that compiles to it again."""
    return yaml.dump(
        document(catalog), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
