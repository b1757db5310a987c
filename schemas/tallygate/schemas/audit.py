"""The audit log on `tallygate.audit.v1`: every administrative change, never deleted, in the order of its records.

A change has two records under one `id`: one that it was asked for, confirmed by the broker before anything is done,
and one with its outcome, confirmed before it is acknowledged. Where the second is missing, the outcome is not known.
"""

from typing import Any, Literal

import msgspec

from tallygate.schemas.requests import Request, encode_request

Outcome = Literal["asked", "done", "denied", "refused", "failed"]


class AuditRecord(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="tallygate.audit.v1"
):
    """Who did what, when, from where, with which outcome.

    `who` is a key's id, or `cli:` and the operating system's user; `origin` the address that the call came from, or the
    host. `action` names the operation; `details` is what was asked, without secrets; `reason` says why not.
    """

    id: str
    at: int
    who: str
    action: str
    outcome: Outcome
    origin: str = ""
    customer: str = ""
    target: str = ""
    details: dict[str, Any] = {}
    reason: str = ""


encode_audit = msgspec.json.Encoder().encode
decode_audit = msgspec.json.Decoder(AuditRecord).decode


def details_of(request: Request) -> dict[str, Any]:
    """What a request asks for, besides what a record of it says anyway."""
    found: dict[str, Any] = msgspec.json.decode(encode_request(request))
    return {name: value for name, value in found.items() if name not in ("type", "id", "customer")}
