"""How much of something is affordable now? The gate asked again and again, halving what is left to ask."""

from msgspec.structs import replace

from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.tariff import Tariff
from tallygate.pipeline.waterfall import Ask, Verdict, gate
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, NANOS
from tallygate.schemas.catalog import CREDITS_UNIT


def of(ask: Ask, unit: str, nanos: int) -> Ask:
    """The same call with another quantity of a meter, or other credits."""
    if unit == CREDITS_UNIT:
        return replace(ask, credits_nanos=nanos)
    return replace(ask, quantities={**ask.quantities, unit: nanos})


def most(
    draft: AccountDraft, tariff: Tariff, ask: Ask, unit: str, least: int, at: int, most_nanos: int = AMOUNT_NANOS_MAX
) -> tuple[int, Verdict]:
    """The most between `least` and `most_nanos` that is allowed, with its verdict; `least`'s where nothing is.

    Credits are exact, of a meter it is whole units above the least: tokens have no parts. More is never allowed where
    less is not: every limit and every price grows with the quantity.
    """
    verdict = gate(draft, tariff, of(ask, unit, least), at)
    if not verdict.allowed:
        return least, verdict
    step = 1 if unit == CREDITS_UNIT else NANOS
    low, high = 0, (most_nanos - least) // step
    while low < high:
        middle = (low + high + 1) // 2
        tried = gate(draft, tariff, of(ask, unit, least + middle * step), at)
        if tried.allowed:
            low, verdict = middle, tried
        else:
            high = middle - 1
    return least + low * step, verdict
