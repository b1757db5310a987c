"""The catalog topic: one record a version, the highest version is in force, and every version stays as it was."""

from typing import NamedTuple

import msgspec
from confluent_kafka import KafkaException, Producer

from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.connectors.kafka_security import said_of
from tallygate.schemas.catalog import EMPTY, Catalog, catalog_key, decode_catalog, encode_catalog
from tallygate.schemas.catalog_file import CatalogFile
from tallygate.schemas.records import Record
from tallygate.schemas.topics import CATALOG
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import TIMEOUT_SECONDS, bounds, records


class Version(NamedTuple):
    """A version as it was published, and when: milliseconds since 1970, by the clock of who applied it."""

    catalog: Catalog
    at: int


class Published(NamedTuple):
    """What `publish` did: the version now in force, and the one before where it is a new one."""

    catalog: Catalog
    before: Catalog | None

    @property
    def changed(self) -> bool:
        return self.before is not None


def versions(settings: Settings) -> list[Version]:
    """Every version, oldest first. Raises KafkaUnreachable, KafkaRefused."""
    [(begin, end)] = bounds(settings, CATALOG).values()
    found: dict[int, Version] = {}
    for record in records(settings, CATALOG, 0, begin, end):
        if record.value is not None:
            catalog = _catalog(record)
            # Two applied at the same moment: the first one holds.
            found.setdefault(catalog.version, Version(catalog, record.timestamp_ms))
    return [found[version] for version in sorted(found)]


def newest_catalog(settings: Settings) -> Catalog:
    """The catalog in force, or the empty one, version 0. Raises KafkaUnreachable, KafkaRefused."""
    found = versions(settings)
    return found[-1].catalog if found else EMPTY


def catalog_version(settings: Settings, version: int) -> Catalog | None:
    """One version as it was published; None where there is none. Raises KafkaUnreachable, KafkaRefused."""
    return next((each.catalog for each in versions(settings) if each.catalog.version == version), None)


def publish(settings: Settings, file: CatalogFile) -> Published:
    """Puts a catalog in force as the next version, unless the newest one says the same.

    Raises KafkaUnreachable and KafkaRefused, the latter also where another catalog was applied at the same moment.
    """
    newest = newest_catalog(settings)
    if newest.version and file.compile(newest.version) == newest:
        return Published(newest, None)
    catalog = file.compile(newest.version + 1)
    _produce(settings, catalog)
    held = catalog_version(settings, catalog.version)
    if held != catalog:
        if held is not None:
            _produce(settings, held)  # compaction keeps the last record of a version, which must not be the loser's
        raise KafkaRefused(f"another catalog was applied as version {catalog.version} at the same moment: apply again")
    return Published(catalog, newest)


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
            on_delivery=lambda error, message: failed.append(said_of(error)) if error else None,
        )
        unsent = producer.flush(TIMEOUT_SECONDS + 1)
    except (KafkaException, BufferError) as error:
        why = said_of(error.args[0]) if isinstance(error, KafkaException) else str(error)
        raise KafkaRefused(f"the catalog cannot be published to {CATALOG}: {why}") from error
    if failed or unsent:
        why = failed[0] if failed else f"no answer within {TIMEOUT_SECONDS:g} s"
        raise KafkaUnreachable(f"the catalog was not published to {CATALOG} on {settings.kafka_brokers}: {why}")
