"""The audit log as the command line writes and reads it.

A change is in the log before it is made, and its outcome before it is told; where the log cannot be written, nothing is
changed. The gateway does the same for its calls.
"""

import getpass
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tallygate.connectors.client_async import Tallygate
from tallygate.connectors.client_errors import RefusedRequest
from tallygate.connectors.kafka_admin import KafkaRefused
from tallygate.schemas.answers import Answer
from tallygate.schemas.audit import AuditRecord, Outcome, decode_audit, details_of, encode_audit
from tallygate.schemas.reasons import DENIALS
from tallygate.schemas.requests import OPS, Balance, Check, Estimate, Extend, Release, Request, Reserve, Settle
from tallygate.schemas.topics import AUDIT
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import bounds, records
from tallygate.topologies.topic_writing import write

_ASKING: Final = (Reserve, Settle, Release, Extend, Check, Estimate, Balance)
_REASON_MAX: Final = 500


class Change:
    """A change under way. Without an error it is done, unless `outcome` says otherwise."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.outcome: Outcome = "done"
        self.reason = ""


@contextmanager
def audited(
    settings: Settings, action: str, target: str, details: dict[str, Any], customer: str = ""
) -> Iterator[Change]:
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
    change = Change(target)
    try:
        yield change
    except BaseException as error:
        change.outcome = "refused" if isinstance(error, KafkaRefused | RefusedRequest) else "failed"
        change.reason = str(error) or type(error).__name__
        raise
    finally:
        said = {"outcome": change.outcome, "reason": change.reason[:_REASON_MAX], "target": change.target}
        _append(settings, replace(asked, at=_now(), details={}, **said))


class AuditedTallygate(Tallygate):
    """The command line's client: what it changes is in the audit log. It waits for Kafka on its loop, being alone."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        super().__init__(settings.kafka_brokers, service="cli", timeout=timeout, kafka=settings.kafka_config)
        self._settings = settings

    async def _send(self, request: Request, value: bytes, within: float) -> Answer:
        if isinstance(request, _ASKING):
            return await super()._send(request, value, within)
        action = OPS[type(request)]
        with audited(self._settings, action, request.id, details_of(request), request.customer) as change:
            answer = await super()._send(request, value, within)
            if not answer.allowed:
                change.outcome = "denied" if answer.reason in DENIALS else "refused"
                change.reason = f"{answer.reason.value}: {answer.message}" if answer.message else answer.reason.value
        return answer


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
    write(settings, AUDIT, [(record.id.encode(), encode_audit(record))])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _now() -> int:
    return time.time_ns() // 1_000_000
