"""What may stand in a catalog file for one value: names, exact amounts, instants, intervals, spans of a rate limit."""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from tallygate.schemas.amounts import AMOUNT_SCHEMA, AmountError, quantity_nanos
from tallygate.schemas.instants import format_instant, from_datetime, parse_instant
from tallygate.schemas.intervals import INTERVAL_PATTERN, parse_interval
from tallygate.schemas.names import NAME_MAX, has_control

SLUG_PATTERN: Final = r"^[a-z][a-z0-9_.-]{0,63}$"
PROPERTY_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"

#: What meters, features, plans and everything within them is called.
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
#: A property of an event's data: a dimension, or what a meter filters on.
Property = Annotated[str, Field(pattern=PROPERTY_PATTERN)]


class Part(BaseModel):
    """A mapping of known fields; any other is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _exact(value: object) -> str:
    # A reader that makes a binary fraction of 0.15 loses nothing yet: its shortest text is what the person wrote.
    text = value if isinstance(value, int | str | Decimal) else repr(value)
    quantity_nanos(text)
    return str(text)


_Decimal = Annotated[Decimal, WithJsonSchema(AMOUNT_SCHEMA)]
#: Never negative, at most 9 places: written as a number or, so that every reader keeps it exact, as a string.
Amount = Annotated[_Decimal, BeforeValidator(_exact)]


def _overage(value: object) -> object:
    if value in ("none", "unlimited"):
        return value
    try:
        return Decimal(_exact(value))
    except AmountError as error:
        raise ValueError(f"neither `none` nor `unlimited` nor an amount: {error}") from None


Overage = Annotated[Literal["none", "unlimited"] | _Decimal, BeforeValidator(_overage)]


def _interval(value: object) -> object:
    if isinstance(value, str):
        parse_interval(value)
    return value


Interval = Annotated[str, BeforeValidator(_interval), WithJsonSchema({"type": "string", "pattern": INTERVAL_PATTERN})]


def _instant(value: object) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return format_instant(from_datetime(value))
    text = value if isinstance(value, str) else str(value)
    if parse_instant(text) < 0:
        raise ValueError(f"{text!r} is before 1970")
    return text


#: RFC 3339, kept as text; `parse_instant` reads it.
Instant = Annotated[str, BeforeValidator(_instant), WithJsonSchema({"type": "string", "format": "date-time"})]


def _text(value: object) -> object:
    """A value of a property, worded as meters word it: booleans and numbers as in JSON."""
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool | int | Decimal) else None
    if text is None:
        return value
    if not 0 < len(text) <= NAME_MAX or has_control(text):
        raise ValueError(f"a value has 1 to {NAME_MAX} characters, none of them a control character")
    return text


_TEXT_SCHEMA: Final[dict[str, Any]] = {"type": ["string", "boolean", "number"], "minLength": 1, "maxLength": NAME_MAX}
Text = Annotated[str, BeforeValidator(_text), WithJsonSchema(_TEXT_SCHEMA)]


def _texts(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


#: One value or several.
Texts = Annotated[
    tuple[Text, ...],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [_TEXT_SCHEMA, {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1}]}),
]

_WORDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 24 * 3600}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
SPAN_SECONDS_MAX: Final = 30 * 24 * 3600


def span_seconds(text: str) -> int:
    """Seconds of `second`, `minute`, `hour`, `day`, `10s`, `15m`, `6h`, `7d`; `ValueError` where it is none."""
    if text in _WORDS:
        return _WORDS[text]
    found = _SPAN.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= SPAN_SECONDS_MAX:
        raise ValueError(f"{text!r} is no span: write second, minute, hour, day, or like 10s, 15m, 6h, up to 30d")
    return seconds


def span_text(seconds: int) -> str:
    """How people write so many seconds."""
    for word, length in _WORDS.items():
        if seconds == length:
            return word
    unit = next(unit for unit in "dhms" if seconds % _UNITS[unit] == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def _span(value: object) -> object:
    if isinstance(value, str):
        span_seconds(value)
    return value


Span = Annotated[
    str,
    BeforeValidator(_span),
    WithJsonSchema({"type": "string", "pattern": r"^(second|minute|hour|day|[1-9][0-9]{0,6}[smhd])$"}),
]
