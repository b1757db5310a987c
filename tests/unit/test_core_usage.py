"""Usage: what an event amounts to, what it costs, where it counts; and what is put aside."""

from decimal import Decimal
from typing import Any

import pytest

from partition import T0, Partition, event
from stories import Story
from tallygate.pipeline.metering import Tariff
from tallygate.pipeline.transition import Transition
from tallygate.schemas import topics
from tallygate.schemas.amounts import from_nanos, to_nanos
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import BATCH, UsageEvent, encode_event
from tallygate.schemas.instants import DAY_MS, HOUR_MS, MINUTE_MS, format_instant, parse_instant, to_datetime
from tallygate.schemas.journal import UsageRow, decode_record, split_key
from tallygate.schemas.reasons import Refused
from tallygate.schemas.requests import Balance, GiveGrant, Reserve


def catalog(rates: list[dict[str, Any]], dimensions: tuple[str, ...] = ("model", "team")) -> Catalog:
    """One meter of tokens with these rates."""
    meter = {"event_type": "call", "value": "n", "dimensions": dimensions}
    feature = {"meters": ["tokens"], "rates": [{"meter": "tokens", **rate} for rate in rates]}
    return read_catalog({"meters": {"tokens": meter}, "features": {"llm": feature}}, "test").compile(1)


# ---- rates ----

ANY, SMALL = {"credits": 9}, {"credits": 1, "when": {"model": "small"}}
BOTH = {"credits": 5, "when": {"model": "small", "team": "x"}}
MARCH_SMALL = {"credits": 2, "when": {"model": "small"}, "since": "2026-03-01T00:00:00Z"}
BEFORE, EXACTLY = "2026-02-28T23:59:59.999Z", "2026-03-01T00:00:00Z"

RATES = [
    ("no rates cost nothing", [], {}, BEFORE, "0"),
    ("the only rate", [ANY], {}, BEFORE, "9"),
    ("the more specific one", [ANY, SMALL], {"model": "small"}, BEFORE, "1"),
    ("whatever its place", [SMALL, ANY], {"model": "small"}, BEFORE, "1"),
    ("else the general one", [ANY, SMALL], {"model": "large"}, BEFORE, "9"),
    ("also without the dimension", [ANY, SMALL], {}, BEFORE, "9"),
    ("two values beat one", [ANY, SMALL, BOTH], {"model": "small", "team": "x"}, BEFORE, "5"),
    ("all of them must hold", [ANY, SMALL, BOTH], {"model": "small", "team": "y"}, BEFORE, "1"),
    ("not yet", [ANY, {**ANY, "credits": 7, "since": EXACTLY}], {}, BEFORE, "9"),
    ("from its instant on", [ANY, {**ANY, "credits": 7, "since": EXACTLY}], {}, EXACTLY, "7"),
    ("the latest that has begun", [{"credits": 8, "since": "2026-01-01T00:00:00Z"}, ANY], {}, EXACTLY, "8"),
    ("specific and old beats general and new", [{**ANY, "since": EXACTLY}, SMALL], {"model": "small"}, EXACTLY, "1"),
    ("specific and not yet, so general", [ANY, MARCH_SMALL], {"model": "small"}, BEFORE, "9"),
    ("specific and new", [ANY, SMALL, MARCH_SMALL], {"model": "small"}, EXACTLY, "2"),
    ("unpriced: no general one", [SMALL], {"model": "large"}, BEFORE, "unpriced"),
    ("unpriced: not yet", [{**ANY, "since": EXACTLY}], {}, BEFORE, "unpriced"),
]


@pytest.mark.parametrize(("law", "rates", "dimensions", "at", "cost"), RATES)
def test_rates(law: str, rates: list[dict[str, Any]], dimensions: dict[str, str], at: str, cost: str) -> None:
    assert cost_of(catalog(rates), "1", dimensions, parse_instant(at)) == cost


def cost_of(catalog: Catalog, quantity: str, dimensions: dict[str, str], at: int) -> str:
    try:
        return from_nanos(Tariff(catalog).cost("tokens", to_nanos(quantity), dimensions, at))
    except Refused as refused:
        return str(refused.reason)


ROUNDING = [  # quantity × credits ÷ per, to the nano, half up
    ("1", "1", "3", "0.333333333"),
    ("2", "1", "3", "0.666666667"),
    ("1", "0.000000001", "2", "0.000000001"),
    ("3", "0.000000001", "2", "0.000000002"),
    ("1", "0.000000001", "4", "0"),
    ("0.000000001", "0.5", "1", "0.000000001"),
    ("0.000000001", "0.499999999", "1", "0"),
    ("1000000000000000", "1", "1", "1000000000000000"),
    ("1000000000000000", "1.000000001", "1", "quantity_invalid"),
    ("1000000000000000", "1000000000000000", "0.000000001", "quantity_invalid"),
    ("0", "5", "1", "0"),
    ("1500", "2.50", "1000000", "0.00375"),
]


@pytest.mark.parametrize(("quantity", "credits", "per", "cost"), ROUNDING)
def test_costs_are_rounded_half_up_to_a_nano(quantity: str, credits: str, per: str, cost: str) -> None:
    assert cost_of(catalog([{"credits": credits, "per": per}]), quantity, {}, 0) == cost


def test_usage_is_priced_at_its_own_time_and_burnt_now() -> None:
    old, new = {"credits": 9}, {"credits": 7, "since": format_instant(T0)}
    partition = Partition(catalog([old, new]))
    partition.use(call("a", at=T0 - 1, n=1), call("b", at=T0, n=1), call("c", n=1))
    assert owed(partition) == "23"
    [entry] = partition.entries()
    assert {leg.at for leg in entry.postings} == {T0}


def test_a_reservation_without_a_price_is_refused_and_so_is_usage() -> None:
    partition = Partition(catalog([SMALL]))
    partition.ask(GiveGrant(id="g", customer="acme", amount=Decimal(100)))
    asked = {"tokens": Decimal(5)}
    for dimensions, reason in ({"model": "large"}, "unpriced"), ({"model": "small"}, "allowed"):
        id = dimensions["model"]
        answer = partition.ask(Reserve(id=id, customer="acme", feature="llm", quantities=asked, dimensions=dimensions))
        assert answer.reason == reason
    transition = partition.use(call("e", n=5, model="large"))
    assert [letter.reason for letter in transition.dead_letters] == ["unpriced"]
    assert "model=large" in transition.dead_letters[0].message


# ---- quantities and dimensions ----


def call(id: str, customer: str = "acme", at: int | None = None, **data: Any) -> UsageEvent:
    time = None if at is None else to_datetime(at)
    return UsageEvent(specversion="1.0", id=id, source="test", type="call", subject=customer, time=time, data=data)


def owed(partition: Partition, customer: str = "acme") -> str:
    statement = partition.ask(Balance(id="b", customer=customer)).statement
    assert statement is not None
    return statement.pools[0].overage if statement.pools else "0"


def usage_rows(partition: Partition) -> dict[tuple[str, int], UsageRow]:
    """By dimensions in one text, and hour after T0."""
    found = {}
    for key, value in partition.rows.items():
        if key[:1] != b"\0" and split_key(key)[1] == "usage":
            row = decode_record(value)
            assert isinstance(row, UsageRow)
            text = " ".join([row.meter, *(f"{k}={v}" for k, v in row.dimensions.items())])
            found[text, (row.hour - T0) // HOUR_MS] = row
    return found


QUANTITIES = [
    (b"5", "5"),
    (b'"5"', "5"),
    (b"0", "0"),
    (b"0.1", "0.1"),
    (b"0.000000001", "0.000000001"),
    (b'"1e3"', "1000"),
    (b"1E+3", "1000"),
    (b"1000000000000000", "1000000000000000"),
    (b"5.0000000000000000", "5"),
    (b"1000000000000001", "quantity_invalid"),
    (b"1e16", "quantity_invalid"),
    (b"0.0000000001", "quantity_invalid"),
    (b"-1", "quantity_invalid"),
    (b'"-0.5"', "quantity_invalid"),
    (b"-0.0", "0"),
    (b"true", "quantity_invalid"),
    (b"null", "quantity_invalid"),
    (b'""', "quantity_invalid"),
    (b'"NaN"', "quantity_invalid"),
    (b'"five"', "quantity_invalid"),
    (b'"0x5"', "quantity_invalid"),
    (b"[5]", "quantity_invalid"),
    (b"{}", "quantity_invalid"),
]


@pytest.mark.parametrize(("written", "counted"), QUANTITIES)
def test_quantities(written: bytes, counted: str) -> None:
    partition = Partition(catalog([]))
    value = encode_event(call("e", n=0)).replace(b'"n":0', b'"n":' + written)
    transition = partition.use(value)
    if transition.dead_letters:
        assert [letter.reason for letter in transition.dead_letters] == [counted]
        assert not usage_rows(partition)
    else:
        assert from_nanos(usage_rows(partition)["tokens", 0].quantity_nanos) == counted


DIMENSIONS = [
    (b'"small"', "small"),
    (b'"Small "', "Small "),
    ('"gro\u00df, = %"'.encode(), "gro\u00df, = %"),
    (b"true", "true"),
    (b"7", "7"),
    (b"7.50", "7.50"),
    (b"null", None),
    (b'""', "malformed"),
    (b'"' + b"x" * 256 + b'"', "x" * 256),
    (b'"' + b"x" * 257 + b'"', "malformed"),
    (b'"a\\u0000b"', "malformed"),
    (b"[]", "malformed"),
    (b'{"a": 1}', "malformed"),
]


@pytest.mark.parametrize(("written", "kept"), DIMENSIONS)
def test_dimensions(written: bytes, kept: str | None) -> None:
    partition = Partition(catalog([]))
    value = encode_event(call("e", n=1, model="m", other="dropped")).replace(b'"model":"m"', b'"model":' + written)
    transition = partition.use(value)
    if transition.dead_letters:
        assert [letter.reason for letter in transition.dead_letters] == [kept]
    else:
        [row] = usage_rows(partition).values()
        assert row.dimensions == ({} if kept is None else {"model": kept})


COUNTED = [  # of the catalog of the tests: two sums and a count
    ("both sums and the call", {"input_tokens": 1000, "output_tokens": 500},
     "input_tokens 1000, output_tokens 500, calls 1", "2"),
    ("one sum and the call", {"input_tokens": 1000}, "input_tokens 1000, calls 1", "1"),
    ("the call alone", {}, "calls 1", "0"),
    ("the rate of the model", {"output_tokens": 500, "model": "large"}, "output_tokens 500, calls 1", "2"),
    ("nothing of a kind is counted", {"input_tokens": 0}, "input_tokens 0, calls 1", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "data", "counted", "cost"), COUNTED)
def test_meters_of_one_event(law: str, data: dict[str, Any], counted: str, cost: str) -> None:
    partition = Partition()
    partition.use(event("e", **data))
    deltas = partition.entries()[-1].usage
    assert ", ".join(f"{d.meter} {from_nanos(d.quantity_nanos)}" for d in deltas) == counted
    assert owed(partition) == cost
    assert all((d.events, d.late_events, d.cause) == (1, 0, 0) for d in deltas)


def test_an_event_none_of_whose_meters_finds_a_value_is_put_aside() -> None:
    [letter] = Partition(catalog([])).use(call("e", m=5)).dead_letters
    assert (letter.reason, letter.message) == ("quantity_invalid", "data has none of: n")


# ---- time ----

TIMES = [
    ("now, by the broker's stamp", None, 0, 0),
    ("its own hour", -HOUR_MS, -1, 0),
    ("the last ms of an hour", -1, -1, 0),
    ("the hour before T0, in whole hours", -HOUR_MS - 1, -2, 0),
    ("within the grace of a day", -DAY_MS, -24, 0),
    ("late", -DAY_MS - 1, -25, 1),
    ("very late, counted all the same", -400 * DAY_MS, -9600, 1),
    ("five minutes ahead", 5 * MINUTE_MS, 0, 0),
]


@pytest.mark.parametrize(("law", "ahead", "hour", "late"), TIMES)
def test_hours_are_of_the_events_own_time(law: str, ahead: int | None, hour: int, late: int) -> None:
    partition = Partition(catalog([ANY]))
    partition.use(call("e", at=None if ahead is None else T0 + ahead, n=5))
    [((_, found), row)] = usage_rows(partition).items()
    assert (found, row.events, row.late_events) == (hour, 1, late)
    assert owed(partition) == "45"


def test_an_event_from_the_future_is_put_aside() -> None:
    partition = Partition(catalog([ANY]))
    [letter] = partition.use(call("e", at=T0 + 5 * MINUTE_MS + 1, n=5)).dead_letters
    assert letter.reason == "time_in_future"
    assert "2026-01-01T00:05:00.001Z is 300.001 s ahead" in letter.message
    partition.now += 1
    assert partition.use(call("e", at=T0 + 5 * MINUTE_MS + 1, n=5)).events == 1


# ---- duplicates, batches, newcomers ----


def batch(partition: Partition, *events: UsageEvent) -> Transition:
    value = b"[%s]" % b",".join(map(encode_event, events))
    return partition.apply(partition.record(topics.USAGE, value, {"content-type": BATCH}))


def test_duplicates_are_counted_once_in_a_chunk_a_batch_later_and_after_a_restart() -> None:
    partition = Partition(catalog([ANY]))
    transitions = [partition.use(call("e", n=1), call("e", n=1))]
    transitions.append(batch(partition, call("e", n=1), call("f", n=1), call("f", n=1)))
    partition.restart()
    transitions.append(partition.use(call("e", n=1)))
    partition.now += DAY_MS - 1
    transitions.append(partition.use(call("e", n=1)))
    assert [(t.events, t.duplicates) for t in transitions] == [(1, 1), (1, 2), (0, 1), (0, 1)]
    assert owed(partition) == "18"


def test_source_and_id_and_customer_make_an_event() -> None:
    partition = Partition(catalog([ANY]))
    other = UsageEvent(specversion="1.0", id="e", source="other", type="call", subject="acme", data={"n": 1})
    transition = partition.use(call("e", n=1), other, call("e", customer="zeta", n=1))
    assert (transition.events, transition.duplicates) == (3, 0)


BAD = [
    ("type_unknown", UsageEvent(specversion="1.0", id="x", source="s", type="never", subject="acme", data={"n": 1})),
    ("quantity_invalid", call("x", n="many")),
    ("time_in_future", call("x", n=1, model="small", at=T0 + HOUR_MS)),
    ("unpriced", call("x", n=1, model="large")),
    ("malformed", call("x", n=1, model="")),
    ("malformed", call("", n=1)),
    ("customer_missing", call("x", customer="", n=1)),
]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize(("reason", "bad"), BAD)
def test_one_bad_event_puts_its_whole_batch_aside(reason: str, bad: UsageEvent, place: int) -> None:
    partition = Partition(catalog([SMALL]))
    events = [call("a", n=1, model="small"), call("b", n=1, model="small")]
    events.insert(place, bad)
    transition = batch(partition, *events)
    assert [letter.reason for letter in transition.dead_letters] == [reason]
    assert (transition.events, [key for key, _ in transition.records]) == (0, [b"\0partition"])
    again = batch(partition, *(each for each in events if each is not bad))
    assert (again.events, again.duplicates) == (2, 0), "the others' ids are not taken"


def test_a_bad_record_harms_no_other_in_its_chunk() -> None:
    partition = Partition(catalog([ANY]))
    transition = partition.use(call("a", n=1), b"{", call("b", n=-1), call("c", n=1))
    assert (transition.events, [letter.source.offset for letter in transition.dead_letters]) == (2, [1, 2])
    assert owed(partition) == "18"


def test_usage_makes_a_customer_known_and_a_dead_letter_does_not() -> None:
    story = Story("check 0; use -1; check 0; use 1; check 0")
    assert story.said == "customer_unknown customer_unknown yes"
