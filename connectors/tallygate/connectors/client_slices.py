"""What a lease has in hand: slices, each of them a hold; decisions within them, and how large the next one is.

No clock and no connection: time is an argument (seconds, of any clock that does not stand still), requests are
returned and their answers taken. So what a client may decide by itself can be tested without one.

A slice's time is counted from the moment its reserve was first sent: the hold, counted from when the worker decided,
ends later. It ends a margin earlier still, for clocks that do not run alike and for the settle that follows. What is
taken is never more than what is held, so the sum over all clients stays within every limit, as it does for holds.
"""

import threading
from decimal import Decimal
from typing import Final

import msgspec

from tallygate.connectors.client_content import id_of
from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, NANOS, from_nanos, to_nanos
from tallygate.schemas.answers import Answer
from tallygate.schemas.catalog import CREDITS_UNIT
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import Release, Reserve, Settle

#: A slice is to last so long at the rate of takes: a reserve and a settle for each of these, whatever the rate is.
AIM_SECONDS: Final = 2.0
#: A slice that costs more than one part in so many of what the pools have left makes the next one smaller.
NEAR_PARTS: Final = 4
#: The least slice is so many times smaller than the first one.
_LEAST_PARTS: Final = 64
_SHRINK_PARTS_MAX: Final = 8
_MARGIN_PART: Final = 0.1
_MARGIN_SECONDS_MIN: Final = 1.0
#: After a no: so long until the worker is asked again, doubling; and only if something is to be taken.
_PAUSE_SECONDS: Final = (0.2, 5.0)
_DENIED_BY_SIZE: Final = frozenset(
    {Reason.RATE_LIMITED, Reason.BUDGET_EXHAUSTED, Reason.ALLOWANCE_EXHAUSTED, Reason.CREDITS_EXHAUSTED}
)

Amounts = dict[str, int]


class LeaseDecision(msgspec.Struct, frozen=True):
    """What `take` says; true where it is allowed. Without a `reason`: nothing in hand, a slice is on its way."""

    allowed: bool
    reason: Reason | None = None
    message: str = ""

    def __bool__(self) -> bool:
        return self.allowed


YES: Final = LeaseDecision(True, Reason.ALLOWED)


class LeaseTerms(msgspec.Struct, frozen=True):
    """For whom and what; `first` is the first slice, in nanos by meter or credits, and sets the shape of the others."""

    customer: str
    feature: str
    first: Amounts
    dimensions: dict[str, str]
    ttl_seconds: int

    @property
    def margin_seconds(self) -> float:
        return max(_MARGIN_SECONDS_MIN, self.ttl_seconds * _MARGIN_PART)

    def grain(self, unit: str) -> int:
        """Tokens have no parts; credits have."""
        return 1 if unit == CREDITS_UNIT or self.first[unit] % NANOS else NANOS

    def least(self, unit: str) -> int:
        return _whole(max(1, self.first[unit] // _LEAST_PARTS), self.grain(unit))


class Granted(msgspec.Struct, frozen=True):
    """What the worker gave of what was asked, its cost, and what the feature's pools had left then."""

    asked: Amounts
    held: Amounts
    cost_nanos: int = 0
    balance_nanos: int = 0


class Slice(msgspec.Struct):
    """A hold that is taken from until `until`, or until one of its units is used up: the next one has all of them."""

    id: str
    left: Amounts
    taken: Amounts
    until: float

    def has_ended(self, now: float) -> bool:
        return now >= self.until or not all(self.left.values())


class Asked(msgspec.Struct, frozen=True):
    """A slice that is asked for: its size, and since when it has been under way."""

    request: Reserve
    size: Amounts
    at: float


def next_size(terms: LeaseTerms, last: Granted, taken: Amounts, seconds: float) -> Amounts:
    """How large the next slice is, after `taken` in `seconds` out of the last one.

    As much as `AIM_SECONDS` take at this rate, at most doubled and at least halved each time. Near the limit it does
    not grow where the worker gave less than was asked, and shrinks where a slice took a large part of the pools.
    """
    size = {}
    for unit, held in last.held.items():
        most = held * 2
        if held < last.asked[unit]:
            most = held
        if 0 < last.balance_nanos < last.cost_nanos * NEAR_PARTS:
            shrunk = held * last.balance_nanos // (last.cost_nanos * NEAR_PARTS)
            most = max(shrunk, held // _SHRINK_PARTS_MAX)
        wanted = int(taken.get(unit, 0) * AIM_SECONDS / max(seconds, 1e-3))
        nanos = min(max(wanted, held // 2), most)
        size[unit] = min(_whole(max(nanos, terms.least(unit)), terms.grain(unit)), AMOUNT_NANOS_MAX)
    return size


class Slices:
    """Takes from the slices in hand, for many threads; says what to send, and takes in what was answered."""

    def __init__(self, terms: LeaseTerms) -> None:
        self.terms = terms
        self.allowed = 0
        self._lock = threading.Lock()
        self._slices: list[Slice] = []
        self._asked: Asked | None = None
        self._last = Granted(terms.first, terms.first)
        self._size = dict(terms.first)
        self._since = 0.0
        self._taken: Amounts = {}
        self._smallest: Amounts = {}
        self._unmet: Amounts = {}
        self._no: LeaseDecision | None = None
        self._again_at = 0.0
        self._pause = _PAUSE_SECONDS[0]
        self._closed = False
        self._first = True

    def take(self, amounts: Amounts, now: float) -> tuple[LeaseDecision, bool]:
        """The decision, and whether `due` has something new to say. All of it is taken, or nothing."""
        with self._lock:
            left = self._in_hand(now)
            for unit, nanos in amounts.items():
                if nanos > left[unit]:
                    return self._not_taken(amounts, now)
            used_up = self._draw(amounts, now)
            self.allowed += 1
            if used_up or self._asked is not None or self._no is not None:
                return YES, used_up
            return YES, any((left[unit] - nanos) * 2 < self._size[unit] for unit, nanos in amounts.items())

    def due(self, now: float, new_id: str) -> tuple[Asked | None, list[Slice]]:
        """The next slice to be asked for under this id, if any, and those that are to be settled: they have ended."""
        with self._lock:
            ended = [each for each in self._slices if self._closed or each.has_ended(now)]
            self._slices = [each for each in self._slices if not (self._closed or each.has_ended(now))]
            if self._asked is None and not self._closed and self._wants(now):
                size = self._next_size(now)
                self._asked = Asked(self._request(size, new_id), size, now)
                return self._asked, ended
            return None, ended

    def next_at(self, now: float) -> float | None:
        """When to look at `due` again, should nothing be taken until then."""
        with self._lock:
            found = [each.until for each in self._slices]
            if self._asked is None and not self._closed:
                found += [each.until - self.terms.margin_seconds for each in self._slices]
                if self._no is not None and self._unmet:
                    found.append(self._again_at)
            later = [at for at in found if at > now]
            return min(later) if later else None

    def answered(self, answer: Answer, now: float, new_id: str) -> Asked | None:
        """Takes the worker's answer to what was asked; a smaller slice to be asked for instead, where that may do."""
        with self._lock:
            asked = self._asked
            assert asked is not None
            if not answer.allowed:
                smaller = self._smaller(asked, answer, new_id)
                if smaller is None:
                    self._refuse(answer.reason, answer.message, now, answer.retry_after_ms)
                return smaller
            self._asked, self._no, self._pause = None, None, _PAUSE_SECONDS[0]
            held = _held(answer, asked)
            self._last = Granted(asked.size, held, to_nanos(answer.credits or 0), to_nanos(answer.balance or 0))
            self._size, self._first = held, False
            until = asked.at + self.terms.ttl_seconds - self.terms.margin_seconds
            if now < until:  # else the answer was late, and what is to be taken is yet to be asked for
                self._unmet = {}
            self._slices.append(Slice(asked.request.id, dict(held), dict.fromkeys(held, 0), until))
            return None

    def refused(self, reason: Reason | None, message: str, now: float) -> None:
        """No slice, and why; without a `reason` the worker has not said it."""
        with self._lock:
            self._refuse(reason, message, now, None)

    def close(self) -> None:
        """From now on nothing is taken, and `due` gives everything back."""
        with self._lock:
            self._closed = True

    def _in_hand(self, now: float) -> Amounts:
        left = dict.fromkeys(self.terms.first, 0)
        if not self._closed:
            for each in self._slices:
                if now < each.until:
                    for unit, nanos in each.left.items():
                        left[unit] += nanos
        return left

    def _refuse(self, reason: Reason | None, message: str, now: float, retry_after_ms: int | None) -> None:
        """Until a slice is asked for again, takes that go beyond what is in hand hear why."""
        self._asked, self._unmet = None, {}
        self._no = LeaseDecision(False, reason, message)
        self._again_at = now + max(self._pause, min((retry_after_ms or 0) / 1000, _PAUSE_SECONDS[1]))
        self._pause = min(self._pause * 2, _PAUSE_SECONDS[1])

    def _draw(self, amounts: Amounts, now: float) -> bool:
        """The oldest slices first; one take may draw on several. Is any of them used up by it?"""
        used_up = False
        for unit, nanos in amounts.items():
            if not nanos:
                continue
            self._taken[unit] = self._taken.get(unit, 0) + nanos
            if nanos < self._smallest.get(unit, AMOUNT_NANOS_MAX):
                self._smallest[unit] = nanos
            for each in self._slices:
                if now < each.until:
                    part = min(nanos, each.left[unit])
                    each.left[unit] -= part
                    used_up = used_up or not each.left[unit]
                    each.taken[unit] += part
                    nanos -= part
                    if not nanos:
                        break
        return used_up

    def _not_taken(self, amounts: Amounts, now: float) -> tuple[LeaseDecision, bool]:
        if self._closed:
            return LeaseDecision(False, None, "the lease is closed"), False
        self._unmet = {unit: max(nanos, self._unmet.get(unit, 0)) for unit, nanos in amounts.items()}
        if self._no is not None and now < self._again_at:
            return self._no, False
        said = self._no.message if self._no is not None and self._no.reason is None else ""
        return LeaseDecision(False, None, said or "nothing in hand: a slice is on its way"), self._asked is None

    def _wants(self, now: float) -> bool:
        if self._no is not None and (now < self._again_at or not self._unmet):
            return False
        left = self._in_hand(now + self.terms.margin_seconds)
        unmet = any(nanos > left[unit] for unit, nanos in self._unmet.items())
        return self._first or unmet or any(left[unit] * 2 < self._size[unit] for unit in left)

    def _next_size(self, now: float) -> Amounts:
        size = (
            dict(self.terms.first) if self._first else next_size(self.terms, self._last, self._taken, now - self._since)
        )
        self._since, self._taken = now, {}
        left = self._in_hand(now)
        for unit, nanos in self._unmet.items():
            size[unit] = min(max(size[unit], _whole(nanos - left[unit], self.terms.grain(unit))), AMOUNT_NANOS_MAX)
        return size

    def _request(self, size: Amounts, id: str) -> Reserve:
        """Of a single meter as much as is affordable will do, down to the smallest take."""
        terms, at_least = self.terms, {}
        [(unit, nanos), *more] = size.items()
        if not more and unit != CREDITS_UNIT:
            at_least = {unit: _decimal(min(nanos, self._smallest.get(unit, terms.grain(unit))))}
        return Reserve(
            id=id,
            customer=terms.customer,
            feature=terms.feature,
            quantities={unit: _decimal(nanos) for unit, nanos in sorted(size.items()) if unit != CREDITS_UNIT},
            credits=_decimal(size.get(CREDITS_UNIT, 0)),
            dimensions=terms.dimensions,
            at_least=at_least,
            ttl_seconds=terms.ttl_seconds,
            lease=True,
        )

    def _smaller(self, asked: Asked, answer: Answer, new_id: str) -> Asked | None:
        """Where the worker does not find what is affordable (of several units, of credits), half of it is tried."""
        if asked.request.at_least or answer.reason not in _DENIED_BY_SIZE:
            return None
        smaller = {}
        for unit, nanos in asked.size.items():
            grain = self.terms.grain(unit)
            floor = self._smallest.get(unit, self.terms.least(unit))
            smaller[unit] = min(nanos, max(floor, nanos // 2 // grain * grain))
        if smaller == asked.size:
            return None
        self._asked = Asked(self._request(smaller, new_id), smaller, asked.at)
        return self._asked


def ending_of(terms: LeaseTerms, slice: Slice) -> Settle | Release:
    """What ends a slice: what was taken of it is settled, the rest comes back with that."""
    if not any(slice.taken.values()):
        return Release(id=id_of("release", terms.customer, slice.id), customer=terms.customer, hold=slice.id)
    credits = slice.taken.get(CREDITS_UNIT)
    return Settle(
        id=id_of("settle", terms.customer, slice.id),
        customer=terms.customer,
        hold=slice.id,
        quantities={unit: _decimal(nanos) for unit, nanos in sorted(slice.taken.items()) if unit != CREDITS_UNIT},
        credits=None if credits is None else _decimal(credits),
    )


def _held(answer: Answer, asked: Asked) -> Amounts:
    """What is held of what was asked: only where `at_least` was said it may be less."""
    assert answer.hold is not None
    quantities = answer.hold.quantities
    return {unit: to_nanos(quantities[unit]) if asked.request.at_least else nanos for unit, nanos in asked.size.items()}


def _whole(nanos: int, grain: int) -> int:
    return -(-nanos // grain) * grain


def _decimal(nanos: int) -> Decimal:
    return Decimal(from_nanos(nanos))
