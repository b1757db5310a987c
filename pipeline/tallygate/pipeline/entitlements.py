"""Entitlements: may this customer use the feature at all, and what of it is included?"""

from typing import Final

import msgspec
from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.tariff import NOTHING, Offer, Tariff
from tallygate.pipeline.windows import period_end, period_start
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import EntitlementState, LimitState
from tallygate.schemas.catalog import Entitlement, Feature
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import HeldShare, ScopeRow
from tallygate.schemas.reasons import Reason

_ALLOWANCE: Final = "allowance:"


class Access(msgspec.Struct, frozen=True, gc=False):
    """A customer's right to a feature; without entitlements it is open to all, or only `reason` says why not."""

    feature: Feature
    entitlements: tuple[Entitlement, ...] = ()
    reason: Reason = Reason.ALLOWED

    @property
    def value(self) -> str | None:
        """What a static entitlement tells."""
        return next((each.value for each in self.entitlements if each.kind == "static"), None)


def offer_of(draft: AccountDraft, tariff: Tariff) -> Offer:
    """What the customer's plan and add-ons give under this catalog."""
    if not tariff.plans:
        return NOTHING
    subscription = draft.subscription
    return tariff.offer(subscription.plan, subscription.add_ons) if subscription else tariff.offer("", ())


def access(draft: AccountDraft, tariff: Tariff, offer: Offer, feature: Feature) -> Access:
    """The customer's own override first, then the plan; without plans in the catalog every feature is open."""
    subscription = draft.subscription
    own = tuple(each for each in subscription.overrides if each.feature == feature.name) if subscription else ()
    found = own or offer.entitlements.get(feature.name, ())
    if not found and tariff.plans:
        return Access(feature, (), Reason.FEATURE_NOT_ENTITLED)
    if any(each.kind == "boolean" and each.value == "false" for each in found):
        return Access(feature, found, Reason.FEATURE_NOT_ENTITLED)
    return Access(feature, found)


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """A metered entitlement in its present period, with what a call asks of it."""

    entitlement: Entitlement
    scope: ScopeRow
    asked_nanos: int
    anchor: int | None

    @property
    def remaining_nanos(self) -> int:
        return self.entitlement.limit_nanos - self.scope.used_nanos - self.scope.held_nanos

    @property
    def has_room(self) -> bool:
        return self.entitlement.beyond != "deny" or not self.asked_nanos or self.asked_nanos <= self.remaining_nanos

    @property
    def counted_nanos(self) -> int:
        """What of the asked falls to the allowance; beyond it, credits may pay."""
        if self.entitlement.beyond != "credits":
            return self.asked_nanos
        return min(self.asked_nanos, max(0, self.remaining_nanos))


def allowances(draft: AccountDraft, right: Access, quantities: dict[str, int], at: int) -> list[Allowance]:
    """The metered entitlements that a call draws on."""
    return [
        _allowance(draft, each, quantities[each.meter], at)
        for each in right.entitlements
        if each.kind == "metered" and each.meter in quantities
    ]


def _allowance(draft: AccountDraft, entitlement: Entitlement, asked_nanos: int, at: int) -> Allowance:
    anchor = draft.anchor
    start = period_start(entitlement.period, at, anchor)
    id = f"{_ALLOWANCE}{entitlement.feature}\0{entitlement.meter}"
    row = draft.scopes.get(id) or ScopeRow(id, "", {}, start)
    if row.period_at != start:
        row = replace(row, period_at=start, used_nanos=0)
    return Allowance(entitlement, row, asked_nanos, anchor)


def states(draft: AccountDraft, offer: Offer, at: int) -> tuple[EntitlementState, ...]:
    """All that the customer is entitled to, by feature: its own, or else the plan's."""
    subscription = draft.subscription
    own = {each.feature: (each,) for each in subscription.overrides} if subscription else {}
    return tuple(
        _state(draft, each, feature in own, at)
        for feature, given in sorted({**offer.entitlements, **own}.items())
        for each in given
    )


def _state(draft: AccountDraft, given: Entitlement, own: bool, at: int) -> EntitlementState:
    if given.kind != "metered":
        return EntitlementState(given.feature, given.kind, given.value, own=own)
    found = _allowance(draft, given, 0, at)
    shown = limit_state(found)
    return EntitlementState(
        given.feature,
        "metered",
        meter=given.meter,
        limit=shown.limit,
        used=shown.used,
        held=shown.held,
        remaining=shown.remaining,
        period=given.period,
        period_at=None if given.period == "lifetime" else format_instant(found.scope.period_at),
        resets_at=shown.resets_at,
        beyond=given.beyond,
        own=own,
    )


def cost_of(
    tariff: Tariff, found: list[Allowance], quantities: dict[str, int], dimensions: dict[str, str], at: int
) -> int:
    """What a call costs in credits beside its allowances."""
    billed = quantities
    if found:
        billed = dict(quantities)
        for each in found:
            paid = each.entitlement.beyond == "credits"
            billed[each.entitlement.meter] = each.asked_nanos - each.counted_nanos if paid else 0
    return sum(tariff.cost(meter, quantity, dimensions, at) for meter, quantity in billed.items())


def hold(draft: AccountDraft, found: list[Allowance]) -> tuple[HeldShare, ...]:
    """Set aside what falls to the allowances."""
    shares = []
    for each in found:
        if each.counted_nanos:
            held = each.scope.held_nanos + each.counted_nanos
            draft.scopes.put(each.scope.id, replace(each.scope, held_nanos=held))
            shares.append(HeldShare(each.scope.id, each.counted_nanos))
    return tuple(shares)


def is_allowance(share: HeldShare) -> bool:
    """Whether a hold holds this of an allowance, and not of a budget."""
    return share.id.startswith(_ALLOWANCE)


def consume(draft: AccountDraft, found: list[Allowance], as_held: dict[str, int] | None = None) -> None:
    """Count what falls to the allowances; with `as_held`, by scope, just what a hold has held of them."""
    for each in found:
        counted = each.counted_nanos if as_held is None else as_held.get(each.scope.id, 0)
        if counted:
            used = each.scope.used_nanos + counted
            draft.scopes.put(each.scope.id, replace(each.scope, used_nanos=used))


def wait_ms(each: Allowance, at: int) -> int | None:
    """How long until the next period includes what is asked, if what is held stays held; None: never."""
    ends = period_end(each.entitlement.period, each.scope.period_at, each.anchor)
    fits = each.asked_nanos <= each.entitlement.limit_nanos - each.scope.held_nanos
    return ends - at if ends is not None and fits else None


def limit_state(each: Allowance) -> LimitState:
    row = each.scope
    ends = period_end(each.entitlement.period, row.period_at, each.anchor)
    return LimitState(
        kind="allowance",
        name=each.entitlement.feature,
        ok=each.has_room,
        unit=each.entitlement.meter,
        asked=from_nanos(each.asked_nanos),
        limit=from_nanos(each.entitlement.limit_nanos),
        used=from_nanos(row.used_nanos),
        held=from_nanos(row.held_nanos),
        remaining=from_nanos(each.remaining_nanos),
        hard=each.entitlement.beyond == "deny",
        resets_at=None if ends is None else format_instant(ends),
        observe=each.entitlement.observe,
    )
