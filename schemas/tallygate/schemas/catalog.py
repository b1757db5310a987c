"""The catalog as machines hold it: one immutable version a record of `tallygate.catalog.v1`.

People write it as YAML (`catalog_file.py`). The record's key is its version number, so that compaction keeps every
version: each decision names the one it was made under.
"""

from typing import Final, Literal

import msgspec

Aggregation = Literal["sum", "count"]
AtEnd = Literal["release", "settle"]
Fail = Literal["closed", "open"]


class Meter(msgspec.Struct, frozen=True, omit_defaults=True):
    """How events become a quantity: events of `event_type`, the number in data property `value`, by `dimensions`."""

    name: str
    event_type: str
    aggregation: Aggregation
    value: str = ""
    dimensions: tuple[str, ...] = ()


class Rate(msgspec.Struct, frozen=True, omit_defaults=True):
    """`credits_nanos` for each `per_nanos` of the meter's quantity, for events since an instant `when` these hold."""

    meter: str
    credits_nanos: int
    per_nanos: int
    when: dict[str, str] = {}
    since: int = 0


class Feature(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is sold. `overage_nanos_max`: how much may be owed: 0 nothing, None without limit."""

    name: str
    pool: str
    meters: tuple[str, ...] = ()
    rates: tuple[Rate, ...] = ()
    ttl_seconds: int = 300
    at_end: AtEnd = "release"
    overage_nanos_max: int | None = 0
    fail: Fail = "closed"


class Catalog(msgspec.Struct, frozen=True, tag_field="type", tag="tallygate.catalog.v1"):
    version: int
    meters: tuple[Meter, ...] = ()
    features: tuple[Feature, ...] = ()


EMPTY: Final = Catalog(version=0)

encode_catalog = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Catalog] = msgspec.json.Decoder(Catalog)


def decode_catalog(value: bytes) -> Catalog:
    return _decoder.decode(value)


def catalog_key(version: int) -> bytes:
    return b"%d" % version
