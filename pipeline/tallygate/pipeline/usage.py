"""Usage events: counted, charged, and undone again where a later event says so.

An event is priced by the rate card of its own time and burnt at stream time: the ledger never rewrites the past.
"""

import msgspec
from msgspec.structs import replace

from tallygate.pipeline import budgets, corrections, entitlements, holds
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.credits import Shares
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.entitlements import access, allowances, cost_of, offer_of
from tallygate.pipeline.gathering import Gathering, count_together
from tallygate.pipeline.memory import Charge, CountedEvent, Payment, decode_counted, digest, encode_memory
from tallygate.pipeline.metering import Measured, measure, record
from tallygate.pipeline.transition import Source
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.catalog import Feature
from tallygate.schemas.events import CORRECTIONS, VOIDED, UsageEvent
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import Cause, HeldShare
from tallygate.schemas.reasons import Reason, Refused


class Correction(msgspec.Struct, frozen=True, gc=False):
    """An event that undoes the one remembered as `id` and may put new data in its place."""

    event: UsageEvent
    id: bytes
    after: Measured | None


class _Known(msgspec.Struct, frozen=True, gc=False):
    """What a correction has to know of the event that it names."""

    type: str
    at: int


def read(draft: Draft, events: tuple[UsageEvent, ...], source: Source) -> list[Measured | Correction]:
    """What a record's events amount to; `Refused` where one is wrong. Changes nothing."""
    found: list[Measured | Correction] = []
    earlier: dict[bytes, _Known] = {}
    for event in events:
        if event.type in CORRECTIONS:
            found.append(_correction(draft, event, earlier))
            continue
        measured = measure(draft.tariff, event, source.at)
        ahead = measured.at - draft.stream_at
        if ahead > draft.rules.future_ms_max:
            raise Refused(
                Reason.TIME_IN_FUTURE,
                f"time {format_instant(measured.at)} is {from_nanos(ahead * 1_000_000)} s ahead: check that clock",
            )
        if len(events) > 1:
            earlier.setdefault(digest(event.subject, "event", event.source, event.id), _Known(event.type, measured.at))
        found.append(measured)
    return found


def _correction(draft: Draft, event: UsageEvent, earlier: dict[bytes, _Known]) -> Correction:
    source, named = event.data.get("source"), event.data.get("id")
    if not isinstance(source, str) or not isinstance(named, str):
        raise Refused(Reason.MALFORMED, f"{event.type} names the event's `source` and `id` in its data")
    id = digest(event.subject, "event", source, named)
    memory = draft.seen(id)
    if memory is not None:
        counted = decode_counted(memory)
        before: _Known | None = _Known(counted.type, counted.at)
    else:
        before = earlier.get(id)
    if before is None:
        raise Refused(Reason.EVENT_UNKNOWN, f"no event {named[:80]!r} of {source[:80]!r} was counted lately")
    if event.type == VOIDED:
        return Correction(event, id, None)
    data = event.data.get("data")
    if not isinstance(data, dict):
        raise Refused(Reason.MALFORMED, f"{event.type} has the right data under `data`")
    if before.type in CORRECTIONS:
        raise Refused(Reason.EVENT_UNKNOWN, f"{named[:80]!r} of {source[:80]!r} is itself a correction")
    corrected = replace(event, type=before.type, data=data, time=None)
    return Correction(event, id, measure(draft.tariff, corrected, before.at))


def take(draft: Draft, account: AccountDraft, one: Measured | Correction, source: Source) -> None:
    """Put an event that was read in force, unless it is known already."""
    event = one.event
    own = digest(event.subject, "event", event.source, event.id)
    if draft.seen(own) is not None:
        draft.duplicates += 1
        return
    account.know(draft.stream_at)
    cause = account.cause(Cause(source.topic, source.partition, source.offset, event.id))
    draft.events += 1
    if isinstance(one, Measured):
        late = draft.stream_at - one.at > draft.rules.grace_ms
        counted = _count(draft, account, one, event.type, late, cause, draft.stream_at)
        draft.remember(account, own, encode_memory(counted))
        return
    draft.remember(account, own, encode_memory(CountedEvent(event.type, 0, draft.stream_at, {}, {}, voided=True)))
    memory = draft.seen(one.id)
    assert memory is not None, "an event that was read is counted before its correction"
    before = decode_counted(memory)
    if before.voided:
        return
    corrections.undo(account, draft.tariff, before, own.hex(), draft.stream_at, cause)
    after = replace(before, voided=True)
    if one.after is not None:
        after = _count(draft, account, one.after, before.type, before.late, cause, draft.stream_at)
    draft.remember(account, one.id, encode_memory(after))


def count_gathered(draft: Draft, gathered: Gathering) -> None:
    """Put gathered events in force: together, or one after the other."""
    if count_together(draft, gathered):
        return
    account = gathered.account
    for each in gathered.members:
        event = each.event
        cause = account.cause(Cause(each.topic, each.partition, each.offset, event.id))
        one, at = each.measured(), each.counted_at
        counted = _count(draft, account, one, event.type, at - one.at > draft.rules.grace_ms, cause, at)
        draft.remember(account, each.digest, encode_memory(counted))


def _count(
    draft: Draft, account: AccountDraft, one: Measured, type: str, late: bool, cause: int, at: int
) -> CountedEvent:
    billed = record(account, draft.tariff, one.quantities, one.dimensions, one.at, late, cause, one.values)
    offer = offer_of(account, draft.tariff)
    by_feature: dict[str, dict[str, int]] = {}
    for meter, quantity in billed.items():
        feature = draft.tariff.feature_of.get(meter)
        if feature is not None:
            by_feature.setdefault(feature.name, {})[meter] = quantity
    charges: list[Charge] = []
    counted: list[HeldShare] = []
    total = 0
    for name, quantities in by_feature.items():
        feature = draft.tariff.features[name]
        included = allowances(account, access(account, draft.tariff, offer, feature), quantities, at)
        cost = cost_of(draft.tariff, included, quantities, one.dimensions, one.at)
        entitlements.consume(account, included)
        counted += [HeldShare(each.scope.id, each.counted_nanos) for each in included if each.counted_nanos]
        if cost:
            charges.append(_charge(account, feature, cost, at, cause))
            total += cost
    found = budgets.levels(account, offer, one.dimensions, total, billed, at)
    budgets.consume(account, found, at, cause)
    counted += [HeldShare(level.scope.id, level.asked_nanos) for level in found if level.asked_nanos]
    return CountedEvent(type, one.at, at, billed, one.dimensions, tuple(charges), tuple(counted), late)


def _charge(account: AccountDraft, feature: Feature, cost: int, at: int, cause: int) -> Charge:
    last = feature.pools[-1]
    before = account.pool(last).overage_nanos
    shares, uncovered = holds.charge(account, feature.pools, cost, feature.name, feature.overage_nanos_max, at, cause)
    owed = account.pool(last).overage_nanos - before
    return Charge(feature.name, last, cost, _payments(account, shares), owed, uncovered - owed)


def _payments(account: AccountDraft, shares: Shares) -> tuple[Payment, ...]:
    found = []
    for share in shares:
        grant = account.grants.get(share.id)
        assert grant is not None, "who has just paid is there"
        found.append(Payment(grant.id, grant.pool, share.nanos, grant.category, grant.price_nanos))
    return tuple(found)
