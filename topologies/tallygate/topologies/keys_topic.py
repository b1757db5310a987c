"""API keys as operators handle them: made, listed, rotated, revoked; and the audit log, written and read.

Every change is in the audit log before it is made, and its outcome before it is told.
"""

import getpass
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import KafkaException, Producer
from msgspec.structs import replace

from tallygate.connectors.gateway.keys import NewKey, digest, new_key
from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.schemas.audit import AuditRecord, Outcome, decode_audit, encode_audit
from tallygate.schemas.instants import SECOND_MS
from tallygate.schemas.keys import SCOPES, KeyRecord, KeyUse, Scope, decode_keyed, encode_keyed, record_key
from tallygate.schemas.topics import AUDIT, KEYS
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import TIMEOUT_SECONDS, bounds, records

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
    _send(settings, KEYS, [(record_key(each), encode_keyed(each)) for each in keyed])


# ---- the audit log ----


@contextmanager
def audited(
    settings: Settings, action: str, target: str, details: dict[str, Any], customer: str = ""
) -> Iterator[None]:
    """What happens within is in the audit log, with its outcome. Raises KafkaUnreachable, KafkaRefused."""
    asked = AuditRecord(
        id=str(uuid.uuid4()),
        at=_now(),
        who=f"cli:{_user()}",
        action=action,
        outcome="asked",
        origin=socket.gethostname(),
        customer=customer,
        target=target,
        details=details,
    )
    _append(settings, asked)
    outcome: Outcome = "done"
    reason = ""
    try:
        yield
    except KafkaRefused as error:
        outcome, reason = "refused", str(error)
        raise
    except Exception as error:
        outcome, reason = "failed", str(error)
        raise
    finally:
        _append(settings, replace(asked, at=_now(), outcome=outcome, reason=reason[:500], details={}))


def audit_log(settings: Settings) -> Iterator[AuditRecord]:
    """Every record, oldest first. Raises KafkaUnreachable, KafkaRefused."""
    [(begin, end)] = bounds(settings, AUDIT).values()
    for record in records(settings, AUDIT, 0, begin, end):
        try:
            yield decode_audit(record.value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise KafkaRefused(
                f"record {record.offset} of {AUDIT} cannot be read ({error}): is it of a newer tallygate?"
            ) from None


def _append(settings: Settings, record: AuditRecord) -> None:
    _send(settings, AUDIT, [(record.id.encode(), encode_audit(record))])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _now() -> int:
    return time.time_ns() // 1_000_000


_CONFIG: Final = {"acks": "all", "enable.idempotence": True, "log_level": "2", "error_cb": lambda error: None}


def _send(settings: Settings, topic: str, sent: list[tuple[bytes, bytes]]) -> None:
    """Returns when the broker has confirmed all of it."""
    bounds(settings, topic)  # says what to do where it is missing; a broker might make it, in its own way
    failed: list[str] = []
    producer = Producer({**settings.librdkafka, **_CONFIG, "message.timeout.ms": str(int(TIMEOUT_SECONDS * 1000))})
    try:
        for key, value in sent:
            producer.produce(
                topic,
                value,
                key,
                partition=0,
                on_delivery=lambda error, message: failed.append(error.str()) if error else None,
            )
        unsent = producer.flush(TIMEOUT_SECONDS + 1)
    except (KafkaException, BufferError) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise KafkaRefused(f"{topic} on {settings.kafka_brokers} cannot be written: {why}") from error
    if failed or unsent:
        why = failed[0] if failed else f"no answer within {TIMEOUT_SECONDS:g} s"
        raise KafkaUnreachable(f"{topic} on {settings.kafka_brokers} was not written: {why}")
