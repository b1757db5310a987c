"""Amounts: integers of 10⁻⁹ units ("nanos") inside, decimal strings at the edges, never a binary fraction.

Source of the bounds: ClickHouse keeps sums in `Decimal(38, 9)`, which holds 10²⁹ units; one input may carry at most
10¹⁵, so that 10¹⁴ of the largest inputs still fit.
"""

import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final

NANOS: Final = 1_000_000_000
UNITS_MAX: Final = 10**15
AMOUNT_NANOS_MAX: Final = UNITS_MAX * NANOS

#: How an amount may be written in JSON, for the JSON Schemas. Readers take a sign and more zeros, too.
AMOUNT_SCHEMA: Final[dict[str, Any]] = {
    "description": "A decimal string, or a JSON number read exactly; not negative, at most 9 decimal places.",
    "anyOf": [
        {"type": "string", "pattern": r"^[0-9]{1,16}(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,2})?$"},
        {"type": "number", "minimum": 0, "maximum": UNITS_MAX},
    ],
}

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_EXACT = Context(prec=80, traps=[Inexact])
_SCALE = Decimal(NANOS)


class AmountError(ValueError):
    """The text says what is wrong with the amount, ready to be shown."""


def to_nanos(value: object) -> int:
    """Nanos of an int, a Decimal or a decimal string, exactly; `AmountError` where that is not possible.

    >>> to_nanos("12.5")
    12500000000
    """
    if type(value) is int:
        if -UNITS_MAX <= value <= UNITS_MAX:
            return value * NANOS
        raise AmountError(f"{_short(value)} is absurdly large: at most {UNITS_MAX} units")
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value) or len(value) > 64:
            raise AmountError(f"{_short(value)} is no decimal number")
        try:
            value = Decimal(value)
        except InvalidOperation:
            raise AmountError(f"{_short(value)} has an absurdly large exponent") from None
    if not isinstance(value, Decimal):
        raise AmountError(f"{_short(value)} is no number")
    if not value.is_finite():
        raise AmountError(f"{value} is not finite")
    if not value:
        return 0
    if value.adjusted() > 15 or value.copy_abs() > UNITS_MAX:
        raise AmountError(f"{_short(value)} is absurdly large: at most {UNITS_MAX} units")
    try:
        return int(_EXACT.to_integral_exact(_EXACT.multiply(value, _SCALE)))
    except Inexact:
        raise AmountError(f"{_short(value)} has more than 9 decimal places") from None


def quantity_nanos(value: object) -> int:
    """`to_nanos` for what may not be negative."""
    nanos = to_nanos(value)
    if nanos < 0:
        raise AmountError(f"{_short(value)} is negative")
    return nanos


def from_nanos(nanos: int) -> str:
    """The shortest decimal string of an amount: `"12.5"`, `"-0.000000001"`, `"0"`."""
    whole, rest = divmod(abs(nanos), NANOS)
    text = f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)
    return f"-{text}" if nanos < 0 else text


def _short(value: object) -> str:
    # Python refuses to write out integers of thousands of digits.
    text = hex(value) if isinstance(value, int) and value.bit_length() > 1000 else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
