"""Catalogs from files into the catalog topic, and back: one record a version, the highest version is in force.

A catalog may be one file or a folder of them, each with a part of the meters and features. It is published whole or
not at all: what is wrong is named with its file and field, and with line and column where the YAML itself is broken.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml
from confluent_kafka import KafkaException, Producer

from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.schemas.catalog import EMPTY, Catalog, catalog_key, decode_catalog, encode_catalog
from tallygate.schemas.catalog_file import CatalogError, CatalogFile, read_catalog
from tallygate.schemas.records import Record
from tallygate.schemas.topics import CATALOG
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import TIMEOUT_SECONDS, bounds, records

_PARTS: Final = ("meters", "features")


class Published(NamedTuple):
    """What `publish` did: the version now in force, and whether it is a new one."""

    catalog: Catalog
    changed: bool


# ---- from files ----


def read_files(path: Path) -> CatalogFile:
    """The catalog in a YAML file, or in all `.yaml` and `.yml` files of a folder. Raises CatalogError."""
    if not path.is_dir():
        return read_catalog(_parse(path), str(path))
    found = sorted(each for each in path.iterdir() if each.suffix in (".yaml", ".yml"))
    if not found:
        raise CatalogError(f"{path}: the folder has no .yaml file")
    return _read_folder(found, str(path))


def _read_folder(found: list[Path], folder: str) -> CatalogFile:
    """All parts as one catalog. A name that two files define is refused: nobody could say which one holds."""
    merged: dict[str, dict[Any, Any]] = {part: {} for part in _PARTS}
    defined_in: dict[tuple[str, Any], Path] = {}
    wrong = []
    for path in found:
        document = _parse(path)
        if not isinstance(document, dict):
            raise CatalogError(f"{path}: a catalog is a mapping with `meters` and `features`")
        for part, content in document.items():
            if part not in _PARTS:
                wrong.append(f"{path}: {part}: there is no such part of a catalog; use `meters` and `features`")
                continue
            if not isinstance(content, dict):
                wrong.append(f"{path}: {part}: a mapping of names is needed")
                continue
            for name, body in content.items():
                if (part, name) in defined_in:
                    wrong.append(f"{path}: {part}.{name}: already defined in {defined_in[part, name]}")
                defined_in[part, name] = path
                merged[part][name] = body
    if wrong:
        raise CatalogError("\n".join(wrong))
    try:
        return read_catalog(merged, folder)
    except CatalogError as error:
        raise CatalogError(_with_files(str(error), folder, defined_in)) from None


def _with_files(text: str, folder: str, defined_in: dict[tuple[str, Any], Path]) -> str:
    """The same lines, each naming the file that its field stands in."""
    lines = []
    for line in text.splitlines():
        field = line.removeprefix(f"{folder}: ").split(":")[0].split(".")
        path = defined_in.get((field[0], field[1])) if len(field) > 1 else None
        lines.append(line if path is None else f"{path}{line.removeprefix(folder)}")
    return "\n".join(lines)


class _Loader(yaml.SafeLoader):
    """YAML in which a name given twice is an error rather than the last one winning silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _parse(path: Path) -> Any:
    try:
        # The loader is a SafeLoader: it makes plain values only.
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise CatalogError(f"{place}: {error.problem or error.context or 'no YAML'}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CatalogError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from None


# ---- to and from the topic ----


def newest_catalog(settings: Settings) -> Catalog:
    """The catalog in force, or the empty one, version 0. Raises KafkaUnreachable, KafkaRefused."""
    return max(_versions(settings), key=lambda catalog: catalog.version, default=EMPTY)


def catalog_version(settings: Settings, version: int) -> Catalog | None:
    """One version as it was published; None where there is none. Raises KafkaUnreachable, KafkaRefused."""
    return next((catalog for catalog in _versions(settings) if catalog.version == version), None)


def publish(settings: Settings, file: CatalogFile) -> Published:
    """Puts a catalog in force as the next version, unless the newest one says the same.

    Raises KafkaUnreachable and KafkaRefused, the latter also where another catalog was applied at the same moment.
    """
    newest = newest_catalog(settings)
    if newest.version and file.compile(newest.version) == newest:
        return Published(newest, False)
    catalog = file.compile(newest.version + 1)
    _produce(settings, catalog)
    if catalog_version(settings, catalog.version) != catalog:
        raise KafkaRefused(f"another catalog was applied as version {catalog.version} at the same moment: apply again")
    return Published(catalog, True)


def _versions(settings: Settings) -> list[Catalog]:
    """Every version in the topic, in the order in which they came; the first of a version is the one that holds."""
    [(begin, end)] = bounds(settings, CATALOG).values()
    return [_catalog(record) for record in records(settings, CATALOG, 0, begin, end) if record.value is not None]


def _catalog(record: Record) -> Catalog:
    try:
        return decode_catalog(record.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise KafkaRefused(
            f"record {record.offset} of {CATALOG} cannot be read ({error}): is it of a newer tallygate?"
        ) from None


def _produce(settings: Settings, catalog: Catalog) -> None:
    failed: list[str] = []
    producer = Producer(
        {
            **settings.librdkafka,
            "acks": "all",
            "enable.idempotence": True,  # not twice, however often the connection breaks
            "message.timeout.ms": str(int(TIMEOUT_SECONDS * 1000)),
            "message.max.bytes": str(4 * 1024 * 1024),
            "log_level": "2",
            "error_cb": lambda error: None,
        }
    )
    try:
        producer.produce(
            CATALOG,
            encode_catalog(catalog),
            catalog_key(catalog.version),
            partition=0,
            on_delivery=lambda error, message: failed.append(error.str()) if error else None,
        )
        unsent = producer.flush(TIMEOUT_SECONDS + 1)
    except (KafkaException, BufferError) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise KafkaRefused(f"the catalog cannot be published to {CATALOG}: {why}") from error
    if failed or unsent:
        why = failed[0] if failed else f"no answer within {TIMEOUT_SECONDS:g} s"
        raise KafkaUnreachable(f"the catalog was not published to {CATALOG} on {settings.kafka_brokers}: {why}")
