"""A scenario's JSON read field by field; every error is one line that names the field."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from tallygate.schemas.amounts import AmountError, quantity_nanos
from tallygate.schemas.instants import LATEST, SECOND_MS, from_datetime, parse_instant
from tallygate.schemas.intervals import parse_interval
from tallygate.schemas.journal import Recurrence

T = TypeVar("T")
_MISSING: Final = object()
_LATEST: Final = from_datetime(LATEST)


class ScenarioError(ValueError):
    """What is wrong with a scenario, in one line that names the field."""


class Fields:
    """A JSON object whose place is known."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, Mapping):
            raise ScenarioError(f"{place or 'scenario'}: wants an object")
        self._values: Mapping[str, Any] = value
        self._place = place

    @property
    def place(self) -> str:
        return self._place

    def rest(self, *taken: str) -> dict[str, Any]:
        """What is given beside the fields `taken`; null is as good as absent."""
        return {name: value for name, value in self._values.items() if name not in taken and value is not None}

    def only(self, known: Sequence[str]) -> None:
        for name in self._values:
            if name not in known:
                raise ScenarioError(f"{self._at(name)}: unknown field; known: {', '.join(known)}")

    def take(self, name: str, read: Callable[[Any], T], default: Any = _MISSING) -> T:
        value = self._values.get(name)
        if value is None:
            if default is _MISSING:
                raise ScenarioError(f"{self._at(name)}: is missing")
            return default  # type: ignore[no-any-return]
        return checked(read, value, self._at(name))

    def part(self, name: str) -> "Fields":
        if self._values.get(name) is None:
            raise ScenarioError(f"{self._at(name)}: is missing")
        return Fields(self._values[name], self._at(name))

    def parts(self, name: str) -> list["Fields"]:
        return [Fields(value, f"{self._at(name)}[{i}]") for i, value in enumerate(self._list(name))]

    def each(self, name: str, read: Callable[[Any], T]) -> list[T]:
        return [checked(read, value, f"{self._at(name)}[{i}]") for i, value in enumerate(self._list(name))]

    def _list(self, name: str) -> list[Any]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ScenarioError(f"{self._at(name)}: wants a list")
        return value

    def _at(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name


def checked(read: Callable[[Any], T], value: Any, place: str) -> T:
    try:
        return read(value)
    except (ValueError, OverflowError) as error:
        raise ScenarioError(f"{place}: {error}") from None


def amount(value: Any) -> int:
    try:
        return quantity_nanos(value)
    except AmountError as error:
        raise ValueError(str(error)) from None


def instant(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no instant: write it like 2024-01-01T00:00:00Z")
    at = parse_instant(value)
    if not 0 <= at <= _LATEST:
        raise ValueError(f"{value!r} lies outside the years 1970 to 9999 in UTC")
    return at


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("wants a text that is not empty")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("wants true or false")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("wants an object")
    return value


def priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError("wants a whole number from 0 to 255")
    return value


def seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value * SECOND_MS < 1 << 50:
        raise ValueError("wants a whole number of seconds above 0")
    return value


def interval(value: Any) -> str:
    parse_interval(text(value))
    return str(value)


def recurrence(fields: "Fields", effective: int) -> Recurrence | None:
    """The `recurrence` of a grant that takes effect at an instant; its anchor unless another is given."""
    if fields.take("recurrence", mapping, None) is None:
        return None
    given = fields.part("recurrence")
    given.only(("interval", "anchor"))
    return Recurrence(given.take("interval", interval), given.take("anchor", instant, effective))
