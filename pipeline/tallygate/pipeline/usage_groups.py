"""Groups: many usage events that differ in nothing but their quantities, counted as one.

A batch's events are grouped before the rules see them, so that the rules' work grows with the groups and not with the
events. What one group shares is a `Combination`: type, dimensions, which meters count it, the hour, the rates in force,
the tier of each priced quantity. It is worked out once, however many customers and batches have it.
"""

import msgspec

from tallygate.schemas.catalog import Meter


class Use(msgspec.Struct, frozen=True, gc=False):
    """One meter of a combination: the dimensions it keeps, its usage row, the feature that charges for it.

    `price`: nanos of credits for so many nanos of the meter; None where no rate holds. `tiered`: it is another one for
    more, and only what the group adds to its hour says for how much.
    """

    meter: Meter
    kept: dict[str, str]
    row_id: str
    feature: str
    price: tuple[int, int] | None
    tiered: bool = False

    def cost(self, nanos: int) -> int:
        """Of so much, at `price`."""
        return cost_at(self.price, nanos)


def cost_at(price: tuple[int, int] | None, nanos: int) -> int:
    """Rounded half up to a nano, once for all that a group adds."""
    assert price is not None, "what has no price was refused"
    credits, per = price
    return (2 * nanos * credits + per) // (2 * per)


class Combination(msgspec.Struct, frozen=True, gc=False):
    """What the events of a group have in common; `at` is not later than any of them, under the same rates and hour."""

    type: str
    dimensions: dict[str, str]
    at: int
    hour: int
    uses: tuple[Use, ...]


class Figure(msgspec.Struct, frozen=True, gc=False):
    """What a group adds to one meter: the sum, or least, greatest or latest (of `at`) value, or distinct `values`."""

    events: int
    quantity_nanos: int = 0
    at: int = 0
    values: tuple[str, ...] = ()


class Group(msgspec.Struct, frozen=True, gc=False):
    """Events of one customer; `figures` are of the combination's uses, in their order. `late`: all of them are."""

    combination: Combination
    events: int
    late: bool
    figures: tuple[Figure, ...]
