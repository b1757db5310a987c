"""What a scenario expects, compared with what happens, only on what the expectation names."""

from collections.abc import Mapping
from typing import Any, Final

from tallygate.pipeline.scenario_fields import ScenarioError
from tallygate.schemas.amounts import AmountError, to_nanos

_LISTS: Final = ("queries", "ops")

#: Expected parts of a result by name; None: a refusal.
Expected = dict[str, Any] | None


def read_expected(value: Any, place: str) -> Expected:
    """A list is what the queries answer; an object names `queries`, `ops`, `summary`, or an `error`."""
    if isinstance(value, Mapping) and "error" in value:
        return None
    parts = value if isinstance(value, Mapping) else {"queries": value}
    for kind, wanted in parts.items():
        if kind == "summary":
            _object(wanted, f"{place}.summary")
            continue
        if kind not in _LISTS:
            raise ScenarioError(f"{place}.{kind}: unknown field; known: {', '.join(_LISTS)}, summary, error")
        if not isinstance(wanted, list):
            raise ScenarioError(f"{place}: wants a list, or an object of the lists queries and ops")
        for number, each in enumerate(wanted):
            here = f"{place}[{number}]" if parts is not value else f"{place}.{kind}[{number}]"
            _object(each, here)
            for field in ("balances", "amounts"):
                _object(each.get(field, {}), f"{here}.{field}")
    return dict(parts)


def _object(value: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        raise ScenarioError(f"{place}: wants an object")


def differences(expected: Expected, found: Mapping[str, Any]) -> list[str]:
    """A line for each difference, saying where."""
    if expected is None:
        return [] if "error" in found else ["expected a refusal, found none"]
    if "error" in found:
        return [f"refused: {found['error']}"]
    lines = []
    for kind, wanted in expected.items():
        have = found.get(kind, {})
        if kind not in _LISTS:
            lines += [f"{kind}: {line}" for line in _compare(wanted, have)]
            continue
        if len(wanted) > len(have):
            lines.append(f"{kind}: {len(wanted)} expected, {len(have)} found")
        for number, (want, answer) in enumerate(zip(wanted, have, strict=False)):
            lines += [f"{kind}[{number}] at {answer['at']}: {line}" for line in _compare(want, answer)]
    return lines


def _compare(want: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    lines = []
    for field, wanted in want.items():
        if field in ("balances", "amounts"):
            found = have.get(field, {})
            names = sorted({*wanted, *found}) if field == "amounts" else sorted(wanted)
            for name in names:
                lines += _values(wanted.get(name, 0), found.get(name, 0), f"{field}.{name}")
        else:
            lines += _values(wanted, have.get(field), field)
    return lines


def _values(want: Any, have: Any, place: str) -> list[str]:
    """Objects are compared on what is named, lists one by one, the rest as amounts or as it is."""
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        return [line for name, each in want.items() for line in _values(each, have.get(name), f"{place}.{name}")]
    if isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
        pairs = enumerate(zip(want, have, strict=True))
        return [line for n, (first, second) in pairs for line in _values(first, second, f"{place}[{n}]")]
    return [] if _same(want, have) else [f"{place}: expected {want}, found {have}"]


def _same(first: Any, second: Any) -> bool:
    if first == second:
        return True
    try:
        return to_nanos(first) == to_nanos(second)
    except AmountError:
        return False
