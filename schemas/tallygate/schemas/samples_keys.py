"""The samples of API keys and of the audit log: Acme's checkout has one, somebody gave Acme credits."""

from typing import Final

from tallygate.schemas.audit import AuditRecord
from tallygate.schemas.keys import KeyRecord, KeyUse
from tallygate.schemas.samples_requests import Sample

_AT: Final = 1_767_268_800_000  # 2026-01-01T12:00:00Z
_DAY: Final = 24 * 3_600_000
_HASH: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

KEYS: Final = (
    Sample(
        "key",
        KeyRecord(
            id="k3v9x0q7m2ab",
            hash=_HASH,
            scopes=("decide", "ingest"),
            created_at=_AT,
            name="acme's checkout",
            customers=("acme",),
            expires_at=_AT + _DAY,
            revoked_at=_AT + _DAY,
            replaces="b2m7q0x9v3ka",
            per_second=200,
        ),
        KeyRecord(id="k3v9x0q7m2ab", hash=_HASH, scopes=("read",), created_at=_AT),
    ),
    Sample("key-use", KeyUse(id="k3v9x0q7m2ab", hour=_AT), KeyUse(id="k3v9x0q7m2ab", hour=_AT)),
)

AUDIT: Final = Sample(
    "audit",
    AuditRecord(
        id="7d444840-9dc0-11d1-b245-5ffdce74fad2",
        at=_AT,
        who="k3v9x0q7m2ab",
        action="grant",
        outcome="refused",
        origin="10.1.2.3",
        customer="acme",
        target="order-1",
        details={"amount": "1000"},
        reason="id_conflict: grant 'order-1' was given with other content",
    ),
    AuditRecord(
        id="7d444840-9dc0-11d1-b245-5ffdce74fad2", at=_AT, who="cli:ada", action="catalog.apply", outcome="asked"
    ),
)
