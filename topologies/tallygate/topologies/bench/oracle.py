"""The oracle of overdraft: what was let through, added up by nothing but the limits and the order of what happened.

It knows no rule of Tallygate's but one: for every limit at every instant, `used + held <= limit`. Amounts in nanos.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from tallygate.schemas.catalog import CREDITS_UNIT, Plan

_EACH: Final = "*"


class Limit(msgspec.Struct, frozen=True):
    """At most `limit_nanos` of `unit`, for each scope that `scope` selects; `"*"` is each value for itself."""

    name: str
    limit_nanos: int
    unit: str = CREDITS_UNIT
    scope: dict[str, str] = {}


class Move(msgspec.Struct, frozen=True):
    """What was answered or recorded: a `hold` sets amounts (by unit) aside, a `settle` ends it and takes its own.

    `spent` is a sum of settled calls without their order.
    """

    kind: Literal["hold", "settle", "release", "spent"]
    customer: str
    hold: str
    dimensions: dict[str, str] = {}
    amounts: dict[str, int] = {}


class Overdrawn(msgspec.Struct, frozen=True):
    """A limit that was passed, and by how much at most."""

    customer: str
    limit: str
    scope: dict[str, str]
    over_nanos: int


def limits_of(plan: Plan) -> list[Limit]:
    """Every hard limit that a plan sets, and what its grants give. Limits by time (rates) are not among them."""
    return [
        *(Limit(each.name, each.limit_nanos, each.unit, each.scope) for each in plan.budgets if each.hard),
        *(
            Limit(f"allowance {each.meter}", each.limit_nanos, each.meter)
            for each in plan.entitlements
            if each.kind == "metered" and each.beyond == "deny"
        ),
        Limit("credits", sum(grant.amount_nanos for grant in plan.grants)),
    ]


def overdrawn(limits_by_customer: Mapping[str, Sequence[Limit]], moves: Iterable[Move]) -> list[Overdrawn]:
    """Which limits were passed at any instant; a customer that is not known may do nothing at all."""
    totals: dict[tuple[str, str, tuple[str, ...]], int] = {}
    worst: dict[tuple[str, str, tuple[str, ...]], Overdrawn] = {}
    held: dict[tuple[str, str], Move] = {}
    for move in moves:
        ended = held.pop((move.customer, move.hold), None) if move.kind in ("settle", "release") else None
        if move.kind == "hold":
            held[move.customer, move.hold] = move
        who = ended.dimensions if ended is not None else move.dimensions
        for limit in limits_by_customer.get(move.customer, [Limit("unknown customer", 0)]):
            if not all(
                who.get(name) == value or (value == _EACH and name in who) for name, value in limit.scope.items()
            ):
                continue
            place = (move.customer, limit.name, tuple(who[name] for name in sorted(limit.scope)))
            total = totals.get(place, 0) + move.amounts.get(limit.unit, 0)
            totals[place] = total - (ended.amounts.get(limit.unit, 0) if ended is not None else 0)
            over = totals[place] - limit.limit_nanos
            if over > 0 and (place not in worst or over > worst[place].over_nanos):
                scope = {name: who[name] for name in sorted(limit.scope)}
                worst[place] = Overdrawn(move.customer, limit.name, scope, over)
    return list(worst.values())
