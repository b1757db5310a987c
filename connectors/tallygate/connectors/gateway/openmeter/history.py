"""How an entitlement's credits have burnt down, in OpenMeter's form: from the ledger's postings, window by window."""

from collections import defaultdict
from decimal import Decimal
from typing import Any, Final

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.history import INSTANT_TEXT, ask_rows, instant_sql, quoted
from tallygate.connectors.gateway.openmeter.asked import impossible, instant, numbers_response, operation, wrong
from tallygate.connectors.gateway.openmeter.rights import Right, right_of
from tallygate.connectors.gateway.operations import Call
from tallygate.schemas.instants import DAY_MS, HOUR_MS, format_instant, parse_instant

WINDOWS_MAX: Final = 2_000
_SIZES: Final = {"HOUR": HOUR_MS, "DAY": DAY_MS}
_START: Final = {"HOUR": "toStartOfHour(p.at)", "DAY": "toStartOfDay(p.at)"}
#: What was before the first window.
_BEFORE: Final = 0

#: Movements by (window, account kind, grant).
Moved = dict[tuple[int, str, str], Decimal]


async def _history(call: Call) -> Response:
    customer = call.customer()
    right = await right_of(call, customer, str(call.request.path_params["entitlement"]))
    if right.shown.kind != "credit":
        raise impossible(f"an entitlement that is {right.shown.kind} has no history: query its meter")
    size = call.query("windowSize") or ""
    if size not in _SIZES:
        raise impossible(f"windowSize: windows of a history are {' and '.join(_SIZES)}")
    if call.query("windowTimeZone") not in (None, "", "UTC", "Etc/UTC"):
        raise impossible("windowTimeZone: windows are in UTC")
    length = _SIZES[size]
    now = parse_instant(right.at)
    end = instant(call, "to")
    end = -(-(now if end is None else end) // length) * length
    begin = instant(call, "from")
    begin = (end - 30 * DAY_MS if begin is None else begin) // length * length
    if not begin < end:
        raise wrong("`from` must be before `to`")
    if (end - begin) // length > WINDOWS_MAX:
        raise wrong(f"at most {WINDOWS_MAX} windows: ask for less time")
    moved = _moved(await ask_rows(call, _sql(right, begin, end, size)))
    return numbers_response(_told(moved, range(begin, end, length), length))


def _sql(right: Right, begin: int, end: int, size: str) -> str:
    """Legs of grants (what can be spent), and of consumption under the feature."""
    consumed = f"consumed:{right.feature.name}"
    window = f"if(p.at < {instant_sql(begin)}, '', {INSTANT_TEXT.format(_START[size])})"
    return (
        f"SELECT {window} AS window_at, if(startsWith(account, 'grant:'), 'grant', 'consumed') AS kind, "
        "p.grant AS grant, toString(sum(p.amount)) AS total FROM postings AS p "
        f"WHERE customer = {quoted(right.customer)} AND asset IN ({', '.join(map(quoted, right.feature.pools))}) "
        f"AND p.at < {instant_sql(end)} "
        f"AND (startsWith(account, 'grant:') OR account = {quoted(consumed)}) "
        "GROUP BY window_at, kind, grant"
    )


def _moved(rows: list[bytes]) -> Moved:
    found: Moved = {}
    for row in rows:
        each = msgspec.json.decode(row)
        at = parse_instant(each["window_at"]) if each["window_at"] else _BEFORE
        found[at, each["kind"], each["grant"]] = Decimal(each["total"])
    return found


def _told(moved: Moved, windows: range, length: int) -> dict[str, Any]:
    by_window: dict[int, list[tuple[str, str, Decimal]]] = defaultdict(list)
    for (at, kind, grant), amount in moved.items():
        by_window[at].append((kind, grant, amount))
    balances: dict[str, Decimal] = defaultdict(Decimal)
    for kind, grant, amount in by_window.pop(_BEFORE, []):
        if kind == "grant":
            balances[grant] += amount
    shown, segments = [], []
    for begin in windows:
        period = {"from": format_instant(begin), "to": format_instant(begin + length)}
        before = _left(balances)
        legs = by_window.get(begin, [])
        usages: dict[str, Decimal] = defaultdict(Decimal)
        for kind, grant, amount in legs:
            if kind == "grant":
                balances[grant] += amount
            elif kind == "consumed" and amount:
                usages[grant] += amount
        usage = sum(usages.values(), Decimal(0))
        shown.append({"period": period, "usage": usage, "balanceAtStart": sum(before.values(), Decimal(0))})
        if legs:
            segments.append(_segment(period, before, _left(balances), dict(usages), usage))
    return {"windowedHistory": shown, "burndownHistory": segments}


def _segment(
    period: dict[str, str],
    before: dict[str, Decimal],
    after: dict[str, Decimal],
    usages: dict[str, Decimal],
    usage: Decimal,
) -> dict[str, Any]:
    """A window in which something moved; usage that no grant paid is overage."""
    return {
        "period": period,
        "usage": usage,
        "overage": usages.get("", Decimal(0)),
        "balanceAtStart": sum(before.values(), Decimal(0)),
        "grantBalancesAtStart": before,
        "balanceAtEnd": sum(after.values(), Decimal(0)),
        "grantBalancesAtEnd": after,
        "grantUsages": [{"grantId": grant, "usage": each} for grant, each in sorted(usages.items()) if grant],
    }


def _left(balances: dict[str, Decimal]) -> dict[str, Decimal]:
    return {grant: amount for grant, amount in sorted(balances.items()) if amount}


OPERATIONS: Final = (
    operation("GET", "/api/v2/customers/{customer}/entitlements/{entitlement}/history", _history, "read"),
)
