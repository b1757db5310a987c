"""Laws of the vocabulary. `--hypothesis-seed=N` replays a run; a failure prints how."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from confluent_kafka.cimpl import murmur2 as librdkafka_partition
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallygate.schemas.amounts import AMOUNT_NANOS_MAX, NANOS, AmountError, from_nanos, to_nanos
from tallygate.schemas.instants import EPOCH, LATEST, format_instant, from_datetime, parse_instant, to_datetime
from tallygate.schemas.journal import row_key, scope_text, split_key, usage_id
from tallygate.schemas.partitions import murmur2, partition_of

law = settings(deadline=None, print_blob=True)

nanos = st.integers(-AMOUNT_NANOS_MAX, AMOUNT_NANOS_MAX)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
#: What intake lets through as a customer, a kind or a dimension: no control characters.
name = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
scopes = st.dictionaries(text, text, max_size=4)
instant = st.integers(0, 253_402_300_799_999)


@law
@given(nanos)
def test_nanos_survive_their_text(amount: int) -> None:
    assert to_nanos(from_nanos(amount)) == amount
    assert to_nanos(Decimal(from_nanos(amount))) == amount


@law
@given(nanos)
def test_text_of_nanos_is_exact_and_short(amount: int) -> None:
    text = from_nanos(amount)
    assert Fraction(text) * NANOS == amount
    assert not ("." in text and text.endswith(("0", ".")))
    assert "e" not in text.lower()


decimals = st.decimals(allow_nan=False, allow_infinity=False)
written = st.from_regex(r"[+-]?[0-9]{1,17}(\.[0-9]{1,12})?", fullmatch=True)


@law
@given(st.integers() | decimals | written)
@example(Decimal("1E-400"))
@example(Decimal("0." + "0" * 90 + "1"))
@example(Decimal("1000000000000000.00000000000000000000000000001"))
def test_an_amount_is_exact_or_refused(value: int | Decimal | str) -> None:
    exact = Fraction(value) * NANOS
    try:
        assert to_nanos(value) == exact
    except AmountError:
        assert exact.denominator > 1 or abs(exact) > AMOUNT_NANOS_MAX
    else:
        assert abs(exact) <= AMOUNT_NANOS_MAX


@law
@given(instant)
@example(0)
@example(253_402_300_799_999)
def test_instants_survive_their_text(at: int) -> None:
    assert parse_instant(format_instant(at)) == at
    assert from_datetime(to_datetime(at)) == at
    assert EPOCH <= to_datetime(at) <= LATEST


@law
@given(instant, st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_an_offset_does_not_move_an_instant(at: int, minutes: int) -> None:
    if not timedelta(days=1) < to_datetime(at) - EPOCH < LATEST - EPOCH - timedelta(days=1):
        return
    elsewhere = to_datetime(at).astimezone(timezone(timedelta(minutes=minutes)))
    assert from_datetime(elsewhere) == at
    assert parse_instant(elsewhere.isoformat()) == at


@law
@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_instants_keep_order_and_drop_what_is_below_a_millisecond(when: datetime) -> None:
    assert timedelta() <= when - to_datetime(from_datetime(when)) < timedelta(milliseconds=1)


@law
@given(name, st.sampled_from(["account", "grant", "usage"]), text)
def test_a_row_key_is_taken_apart_into_what_made_it(customer: str, kind: str, id: str) -> None:
    assert split_key(row_key(customer, kind, id)) == (customer, kind, id)


@law
@given(st.tuples(name, name, text), st.tuples(name, name, text))
def test_different_rows_have_different_keys(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (row_key(*one) == row_key(*other)) == (one == other)


@law
@given(name, name, text)
def test_no_row_key_is_the_partitions_own(customer: str, kind: str, id: str) -> None:
    assert row_key(customer, kind, id)[:1] != b"\0"


@law
@given(scopes, scopes)
@example({"a": "1,b=2"}, {"a": "1", "b": "2"})
@example({"a": "%2C"}, {"a": ","})
@example({"": ""}, {})
@example({"a=": "b"}, {"a": "=b"})
def test_different_scopes_have_different_texts(one: dict[str, str], other: dict[str, str]) -> None:
    assert (scope_text(one) == scope_text(other)) == (one == other)


@law
@given(scopes)
def test_a_scope_has_one_text_whatever_its_order(scope: dict[str, str]) -> None:
    assert scope_text(dict(reversed(scope.items()))) == scope_text(scope)


@law
@given(name, name, st.integers(0, 10**13), st.integers(0, 10**13), scopes, scopes)
def test_different_usage_has_different_ids(
    meter: str, other_meter: str, hour: int, other_hour: int, by: dict[str, str], other_by: dict[str, str]
) -> None:
    one, other = (meter, hour, by), (other_meter, other_hour, other_by)
    assert (usage_id(*one) == usage_id(*other)) == (one == other)


@law
@given(st.binary(max_size=300))
@example(b"")
@example("acme␀".encode())
def test_murmur2_is_kafkas(key: bytes) -> None:
    assert murmur2(key) == aiokafka_murmur2(key) & 0xFFFFFFFF


@law
@given(name, st.integers(1, 10_000))
def test_a_customer_lies_where_kafkas_clients_put_it(customer: str, partitions: int) -> None:
    found = partition_of(customer, partitions)
    assert found == librdkafka_partition(customer.encode(), partitions)
    assert found == (aiokafka_murmur2(customer.encode()) & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize(
    ("key", "hash"),
    # Source: org.apache.kafka.common.utils.UtilsTest.testMurmur2.
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_of_kafkas_own_test(key: bytes, hash: int) -> None:
    assert murmur2(key) == hash & 0xFFFFFFFF
