"""API keys as `tallygate.keys.v1` holds them, compacted by key id: who may ask the gateway what.

A key is `tg_`, its id and 256 random bits. Only the SHA-256 of the whole is kept: of 256 random bits that is enough,
since nobody can try them out. The id is public: it stands in lists and in the audit log.
"""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tallygate.schemas.names import Name

Scope: TypeAlias = Literal["ingest", "decide", "read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("ingest", "decide", "read", "admin")

KEY_ID_PATTERN: Final = r"^[a-z0-9]{12}(?![\s\S])"
KeyId = Annotated[str, Meta(pattern=KEY_ID_PATTERN)]


class KeyRecord(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="tallygate.key.v1"
):
    """A key, by its `id`; `hash` is the SHA-256 of the whole key, in hexadecimal.

    `scopes` say what it may do: send usage, decide (check, reserve, settle), read, administer. `customers`: for these
    alone; none: for everyone. It holds until `expires_at` or `revoked_at`, milliseconds since 1970 (0: without end).
    `replaces` names the key that it was made to follow. `per_second`: how many calls it may make (0: the gateway's
    setting).
    """

    id: KeyId
    hash: str
    scopes: tuple[Scope, ...]
    created_at: int
    name: str = ""
    customers: tuple[Name, ...] = ()
    expires_at: int = 0
    revoked_at: int = 0
    replaces: str = ""
    per_second: int = 0

    def holds_at(self, now: int) -> bool:
        return not self.revoked_at and (not self.expires_at or now < self.expires_at)


class KeyUse(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="tallygate.key-use.v1"
):
    """When a key was last used, to the hour, in milliseconds since 1970."""

    id: KeyId
    hour: int


Keyed = KeyRecord | KeyUse

encode_keyed = msgspec.json.Encoder().encode
decode_keyed = msgspec.json.Decoder(Keyed).decode


def record_key(record: Keyed) -> bytes:
    """The key under which compaction keeps the newest."""
    return (f"use/{record.id}" if isinstance(record, KeyUse) else f"key/{record.id}").encode()
