"""API keys as operators handle them: made, listed, rotated, revoked.

Every change is in the audit log before it is made, and its outcome before it is told.
"""

import os
import time
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from tallygate.connectors.gateway.keys import NewKey, digest, new_key
from tallygate.connectors.kafka_admin import KafkaRefused
from tallygate.schemas.instants import SECOND_MS
from tallygate.schemas.keys import SCOPES, KeyRecord, KeyUse, Scope, decode_keyed, encode_keyed, record_key
from tallygate.schemas.topics import KEYS
from tallygate.topologies.audit_log import audited
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import bounds, records
from tallygate.topologies.topic_writing import write

LOCAL_KEY_FILE: Final = "gateway-key"


class KnownKey(NamedTuple):
    """A key, and the hour in which it was last used, or 0."""

    record: KeyRecord
    used: int


def known_keys(settings: Settings) -> list[KnownKey]:
    """Every key, oldest first. Raises KafkaUnreachable, KafkaRefused."""
    [(begin, end)] = bounds(settings, KEYS).values()
    keys: dict[str, KeyRecord] = {}
    used: dict[str, int] = {}
    for record in records(settings, KEYS, 0, begin, end):
        if record.value is None:
            continue
        try:
            keyed = decode_keyed(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise KafkaRefused(
                f"record {record.offset} of {KEYS} cannot be read ({error}): is it of a newer tallygate?"
            ) from None
        if isinstance(keyed, KeyUse):
            used[keyed.id] = max(keyed.hour, used.get(keyed.id, 0))
        else:
            keys[keyed.id] = keyed
    found = [KnownKey(key, used.get(key.id, 0)) for key in keys.values()]
    return sorted(found, key=lambda known: (known.record.created_at, known.record.id))


def find_key(settings: Settings, id: str) -> KeyRecord:
    """Raises Trouble where there is none."""
    for known in known_keys(settings):
        if known.record.id == id:
            return known.record
    raise Trouble(Exit.WRONG, f"there is no key {id!r}: `tallygate keys list` names them by their ids")


def create_key(
    settings: Settings,
    scopes: tuple[Scope, ...],
    *,
    name: str = "",
    customers: tuple[str, ...] = (),
    expires_at: int = 0,
    per_second: int = 0,
) -> NewKey:
    """A new key, known to every gateway in a moment. Raises KafkaUnreachable, KafkaRefused."""
    made = new_key(scopes, _now(), name=name, customers=customers, expires_at=expires_at, per_second=per_second)
    with audited(settings, "key.create", made.record.id, _details(made.record)):
        _put(settings, made.record)
    return made


def local_key(settings: Settings) -> str:
    """The key for everything that `tallygate up` shows: kept in a file that only its user can read.

    Made anew where this Kafka does not know it. Raises KafkaUnreachable, KafkaRefused, OSError.
    """
    path = settings.data_dir / LOCAL_KEY_FILE
    text = path.read_text().strip() if path.exists() else ""
    hashed = digest(text)
    if any(known.record.hash == hashed and known.record.holds_at(_now()) for known in known_keys(settings)):
        return text
    made = create_key(settings, SCOPES, name="tallygate up")
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(made.text)
    return made.text


def rotate_key(settings: Settings, id: str, overlap_seconds: int) -> NewKey:
    """A new key that may do what the old one may; the old one holds for `overlap_seconds` more."""
    old = find_key(settings, id)
    now = _now()
    if not old.holds_at(now):
        raise Trouble(Exit.WRONG, f"key {id!r} holds no more: make a new one with `tallygate keys create`")
    made = new_key(
        old.scopes,
        now,
        name=old.name,
        customers=old.customers,
        replaces=old.id,
        per_second=old.per_second,
    )
    ends = now + overlap_seconds * SECOND_MS
    ended = replace(old, expires_at=min(ends, old.expires_at or ends))
    details = {**_details(made.record), "old_holds_for_seconds": overlap_seconds}
    with audited(settings, "key.rotate", made.record.id, details):
        _put(settings, made.record, ended)
    return made


def revoke_key(settings: Settings, id: str) -> KeyRecord:
    """The key holds no more. Once is enough; again changes nothing."""
    old = find_key(settings, id)
    if old.revoked_at:
        return old
    ended = replace(old, revoked_at=_now())
    with audited(settings, "key.revoke", id, {}):
        _put(settings, ended)
    return ended


def _details(record: KeyRecord) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(encode_keyed(record))
    return {name: value for name, value in found.items() if name not in ("type", "id", "hash")}


def _put(settings: Settings, *keyed: KeyRecord) -> None:
    write(settings, KEYS, [(record_key(each), encode_keyed(each)) for each in keyed])


def _now() -> int:
    return time.time_ns() // 1_000_000
