"""API keys: how they look, and the ring of those that hold now, as `tallygate.keys.v1` says."""

import hashlib
import hmac
import logging
import re
import secrets
import string
from typing import Final, NamedTuple

import msgspec

from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.keys import KeyRecord, KeyUse, Scope, decode_keyed
from tallygate.schemas.records import Record

logger = logging.getLogger(__name__)

PREFIX: Final = "tg_"
_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 12
_SECRET_BYTES: Final = 32  # 256 bits
_SHAPE: Final = re.compile(rf"{PREFIX}([a-z0-9]{{{_ID_LENGTH}}})_[A-Za-z0-9_-]{{43}}")
_NOBODY: Final = hashlib.sha256(b"nobody's").hexdigest()


class NewKey(NamedTuple):
    """`text` is shown once and kept nowhere."""

    text: str
    record: KeyRecord


def new_key(
    scopes: tuple[Scope, ...],
    now: int,
    *,
    name: str = "",
    customers: tuple[str, ...] = (),
    expires_at: int = 0,
    replaces: str = "",
    per_second: int = 0,
) -> NewKey:
    id = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    text = f"{PREFIX}{id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    record = KeyRecord(
        id=id,
        hash=digest(text),
        scopes=scopes,
        created_at=now,
        name=name,
        customers=customers,
        expires_at=expires_at,
        replaces=replaces,
        per_second=per_second,
    )
    return NewKey(text, record)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class KeyRing:
    """Every key that the topic holds, and when each was last used, to the hour."""

    def __init__(self) -> None:
        self._keys: dict[str, KeyRecord] = {}
        self._used: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, record: Record) -> None:
        """One record of the topic. A tombstone ends the key."""
        if record.value is None:
            self._keys.pop((record.key or b"").decode(errors="replace").removeprefix("key/"), None)
            return
        try:
            keyed = decode_keyed(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            logger.error("key record %d cannot be read and is not used", record.offset)
            return
        if isinstance(keyed, KeyUse):
            self._used[keyed.id] = max(keyed.hour, self._used.get(keyed.id, 0))
        else:
            self._keys[keyed.id] = keyed

    def find(self, authorization: str | None, now: int) -> KeyRecord:
        """The key that an Authorization header holds. Raises Problem 401 that says no more than it must.

        A key that is not known takes as long as a wrong secret of one that is.
        """
        if authorization is None:
            raise _unauthenticated("send an API key: Authorization: Bearer tg_…")
        scheme, _, text = authorization.partition(" ")
        found = _SHAPE.fullmatch(text.strip(" ")) if scheme.lower() == "bearer" else None
        if found is None:
            raise _unauthenticated("this is no API key: Authorization: Bearer tg_… is needed")
        record = self._keys.get(found[1])
        right = hmac.compare_digest(digest(found[0]), record.hash if record else _NOBODY)
        if record is None or not right:
            raise _unauthenticated("this API key is not known")
        if not record.holds_at(now):
            raise _unauthenticated("this API key has been revoked, or has expired")
        return record

    def holds(self, id: str, now: int) -> bool:
        record = self._keys.get(id)
        return record is not None and record.holds_at(now)

    def note_use(self, id: str, now: int) -> KeyUse | None:
        """What is to be recorded, once an hour: that the key is in use."""
        hour = now - now % HOUR_MS
        if self._used.get(id, 0) >= hour:
            return None
        self._used[id] = hour
        return KeyUse(id=id, hour=hour)


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "not-authenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="tallygate"'})
