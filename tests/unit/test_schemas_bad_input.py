"""Bad input, a line a case: refused with its reason and one clear line; nothing else is ever raised."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tallygate.schemas.amounts import AmountError, quantity_nanos, to_nanos
from tallygate.schemas.events import BATCH, STRUCTURED, decode_events
from tallygate.schemas.instants import parse_instant
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import parse_request

KIB_64 = 64 * 1024
DEEP = b"[" * 30_000 + b"]" * 30_000


def cases(rows: list[tuple[Any, ...]]) -> list[Any]:
    """A row each, named by its first column."""
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


def event(extra: str = "", data: str = '{"n":1}') -> bytes:
    return (
        f'{{"specversion":"1.0","id":"e1","source":"/s","type":"llm.call","subject":"acme"{extra},"data":{data}}}'
    ).encode()


def sized_event(size: int) -> bytes:
    empty = event(',"pad":""')
    return event(f',"pad":"{"x" * (size - len(empty))}"')


def request(extra: str = "", type: str = "tallygate.reserve.v1", customer: str = "acme") -> bytes:
    return f'{{"type":"{type}","id":"r1","customer":"{customer}","feature":"llm"{extra}}}'.encode()


MALFORMED = [
    ("empty", b"", "truncated"),
    ("not JSON", b"call=1", "malformed"),
    ("cut off", b'{"specversion":"1.0","id"', "truncated"),
    ("not UTF-8", event(',"source":"\xff"').decode().encode("latin-1"), "utf-8"),
    ("UTF-16", event().decode().encode("utf-16"), "malformed"),
    ("half a surrogate pair", event(r',"id":"\ud800"'), "surrogate"),
    ("a list", b"[]", "Expected `object`"),
    ("null", b"null", "Expected `object`"),
    ("more after the end", event() + b"{}", "trailing"),
    ("no id", b'{"specversion":"1.0","source":"/s","type":"t","subject":"acme"}', "`id`"),
    ("an empty id", event(',"id":""'), "must not be empty"),
    ("a number as id", event(',"id":7'), "$.id"),
    ("an empty source", event(',"source":""'), "must not be empty"),
    ("an empty type", event(',"type":""'), "must not be empty"),
    ("another specversion", event(',"specversion":"0.3"'), "only 1.0"),
    ("a long subject", event(f',"subject":"{"s" * 257}"'), "longer than 256"),
    ("a long type", event(f',"type":"{"t" * 257}"'), "longer than 256"),
    ("a long id", event(f',"id":"{"i" * 513}"'), "longer than 512"),
    ("a long source", event(f',"source":"{"s" * 513}"'), "longer than 512"),
    ("␀ in the subject", event(r',"subject":"a\u0000b"'), "control characters"),
    ("a line feed in the subject", event(r',"subject":"acme\n"'), "control characters"),
    ("C1 in the subject", event(r',"subject":"a\u0085"'), "control characters"),
    ("a tab in the id", event(r',"id":"a\tb"'), "control characters"),
    ("no time offset", event(',"time":"2026-01-01T00:00:00"'), "no offset"),
    ("no time", event(',"time":"yesterday"'), "RFC3339"),
    ("a date", event(',"time":"2026-01-01"'), "RFC3339"),
    ("seconds as a time", event(',"time":1767225600'), "$.time"),
    ("before 1970", event(',"time":"1969-12-31T23:59:59.999Z"'), "1970 to 9999"),
    ("year 1 with an offset", event(',"time":"0001-01-01T00:00:00+14:00"'), "1970 to 9999"),
    ("after 9999 in UTC", event(',"time":"9999-12-31T23:59:59-14:00"'), "1970 to 9999"),
    ("data in a list", event(data="[1]"), "$.data"),
    ("data in text", event(data='"n=1"'), "$.data"),
    ("data nested deeply", event(data='{"n":' + DEEP.decode() + "}"), "nested too deeply"),
    ("an extension nested deeply", event(f',"x":{DEEP.decode()}'), "nested too deeply"),
    ("an open-ended nest", b'{"data":{"n":' + b"[" * 60_000, "nested too deeply"),
    ("NaN", event(data='{"n":NaN}'), "malformed"),
    ("Infinity", event(data='{"n":-Infinity}'), "malformed"),
    ("an integer of 5 000 digits", event(data='{"n":' + "9" * 5_000 + "}"), "out of range"),
    ("an exponent beyond decimals", event(data='{"n":1e99999999999999999999}'), "exponent is out of range"),
    ("base64 that is none", event(',"data_base64":"%%%"'), "data_base64"),
    ("base64 of no JSON", event(',"data_base64":"bj0x"'), "data_base64"),
    ("base64 of a list", event(',"data_base64":"WzFd"'), "data_base64"),
]


@pytest.mark.parametrize(("value", "says"), cases(MALFORMED))
def test_a_malformed_event_is_refused(value: bytes, says: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_events(value, {})
    assert refused.value.reason is Reason.MALFORMED
    assert says in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    cases(
        [
            ("a tombstone", None, {}, Reason.MALFORMED),
            ("no subject", event().replace(b',"subject":"acme"', b""), {}, Reason.CUSTOMER_MISSING),
            ("an empty subject", event(',"subject":""'), {}, Reason.CUSTOMER_MISSING),
            ("a null subject", event(',"subject":null'), {}, Reason.CUSTOMER_MISSING),
            ("over 64 KiB", sized_event(KIB_64 + 1), {}, Reason.TOO_LARGE),
            ("over 64 KiB in binary mode", b" " * (KIB_64 + 1), {"ce_specversion": b"1.0"}, Reason.TOO_LARGE),
            (
                "over 64 KiB in a batch",
                b"[" + sized_event(KIB_64 + 1) + b"]",
                {"content-type": BATCH},
                Reason.TOO_LARGE,
            ),
            ("10 001 in a batch", b"[" + b",".join([b"{}"] * 10_001) + b"]", {"content-type": BATCH}, Reason.TOO_LARGE),
            ("one of a batch", b"[" + event() + b',{"id":"x"}]', {"content-type": BATCH}, Reason.MALFORMED),
            ("a batch that is none", event(), {"content-type": BATCH}, Reason.MALFORMED),
            ("a batch nested deeply", b"[" * 1_000_000, {"content-type": BATCH}, Reason.MALFORMED),
            ("a batch without an end", b"[" + event() + b",", {"content-type": BATCH}, Reason.MALFORMED),
            ("a batch, not UTF-8", b'["\xff"]', {"content-type": BATCH}, Reason.MALFORMED),
        ]
    ),
)
def test_other_events_are_refused_with_their_reason(
    value: bytes | None, headers: dict[str, bytes], reason: Reason
) -> None:
    with pytest.raises(Refused) as refused:
        decode_events(value, headers)
    assert refused.value.reason is reason


def test_an_event_of_64_kib_and_a_batch_of_10_000_are_read() -> None:
    assert decode_events(sized_event(KIB_64), {})[0].subject == "acme"
    batch = b"[" + b",".join([event()] * 10_000) + b"]"
    assert len(decode_events(batch, {"content-type": BATCH})) == 10_000


def test_the_wrong_event_of_a_batch_is_named() -> None:
    batch = b"[" + event() + b"," + event(',"subject":""') + b"]"
    with pytest.raises(Refused, match="event 1 of the batch: the event has no subject"):
        decode_events(batch, {"content-type": BATCH})


BINARY = {
    "ce_specversion": b"1.0",
    "ce_id": b"e1",
    "ce_source": b"/s",
    "ce_type": b"llm.call",
    "ce_subject": b"acme",
}


@pytest.mark.parametrize(
    ("value", "headers"),
    cases(
        [
            ("a header that is not UTF-8", b"{}", {"ce_subject": b"\xff"}),
            ("a content type that is not UTF-8", b"{}", {"content-type": b"\xff"}),
            ("a time without an offset", b"{}", {"ce_time": b"2026-01-01T00:00:00"}),
            ("data in a list", b"[1]", {}),
            ("data that is no JSON", b"n=1", {"content-type": b"text/plain"}),
            ("data not UTF-8", b'{"n":"\xff"}', {}),
            ("data nested deeply", b'{"n":' + DEEP + b"}", {}),
            ("an exponent beyond decimals", b'{"n":1e99999999999999999999}', {}),
        ]
    ),
)
def test_a_malformed_binary_event_is_refused(value: bytes, headers: dict[str, bytes]) -> None:
    assert decode_events(b"{}", BINARY)[0].subject == "acme"
    with pytest.raises(Refused) as refused:
        decode_events(value, BINARY | headers)
    assert refused.value.reason is Reason.MALFORMED


def test_of_a_key_that_comes_twice_the_last_one_holds() -> None:
    """Which one is a choice; that it is one and the same everywhere is not."""
    (found,) = decode_events(event(',"subject":"beta"', '{"n":1,"n":2}'), {})
    assert (found.subject, found.data) == ("beta", {"n": 2})
    twice = parse_request(request(',"customer":"beta","credits":"1","credits":"2"'))
    assert (twice.customer, msgspec.structs.asdict(twice)["credits"]) == ("beta", Decimal(2))


def test_numbers_in_data_are_exact() -> None:
    (found,) = decode_events(event(data='{"a":0.1,"b":1e2,"c":123456789012345.123456789,"d":true}'), {})
    assert found.data == {"a": Decimal("0.1"), "b": Decimal(100), "c": Decimal("123456789012345.123456789"), "d": True}


def test_a_structured_event_may_carry_the_binary_headers_too() -> None:
    (found,) = decode_events(event(), {**BINARY, "ce_subject": b"beta", "content-type": STRUCTURED})
    assert found.subject == "acme"


REQUESTS = [
    ("a tombstone", None, Reason.MALFORMED, "no value"),
    ("empty", b"", Reason.MALFORMED, "truncated"),
    ("not JSON", b"reserve", Reason.MALFORMED, "malformed"),
    ("not UTF-8", request().replace(b"llm", b"\xff"), Reason.MALFORMED, "utf-8"),
    ("a list", b"[]", Reason.MALFORMED, "Expected `object`"),
    ("over 64 KiB", request(f',"x":"{"x" * KIB_64}"'), Reason.TOO_LARGE, "at most 65536"),
    ("no type", b'{"id":"r1","customer":"acme"}', Reason.TYPE_UNKNOWN, "known: tallygate.reserve.v1"),
    ("an unknown type", request(type="tallygate.borrow.v1"), Reason.TYPE_UNKNOWN, "borrow"),
    ("a later version", request(type="tallygate.reserve.v2"), Reason.TYPE_UNKNOWN, "known: "),
    ("a number as type", request().replace(b'"tallygate.reserve.v1"', b"1"), Reason.TYPE_UNKNOWN, "$.type"),
    ("two types", request(',"type":"tallygate.check.v1"'), Reason.TYPE_UNKNOWN, "$.type"),
    ("no customer", request().replace(b'"customer":"acme",', b""), Reason.CUSTOMER_MISSING, "customer"),
    ("an empty customer", request(customer=""), Reason.CUSTOMER_MISSING, "customer"),
    ("a null customer", request(',"customer":null'), Reason.CUSTOMER_MISSING, "customer"),
    ("a number as customer", request(',"customer":1'), Reason.MALFORMED, "customer"),
    ("␀ in the customer", request(customer=r"a\u0000b"), Reason.MALFORMED, "control characters"),
    ("a line feed at the end", request(customer=r"acme\n"), Reason.MALFORMED, "control characters"),
    ("a long customer", request(customer="c" * 257), Reason.MALFORMED, "$.customer"),
    ("an empty id", request(',"id":""'), Reason.MALFORMED, "$.id"),
    ("a misspelt field", request(',"credit":"1"'), Reason.MALFORMED, "`credit`"),
    ("a field like customer", request(',"customers":"1"'), Reason.MALFORMED, "`customers`"),
    ("bare NaN", request(',"credits":NaN'), Reason.MALFORMED, "malformed"),
    ("an exponent beyond decimals", request(',"credits":"1e99999999999999999999"'), Reason.MALFORMED, "$.credits"),
    ("a boolean as an amount", request(',"credits":true'), Reason.MALFORMED, "$.credits"),
    ("a boolean as a quantity", request(',"quantities":{"n":false}'), Reason.MALFORMED, "$.quantities"),
    ("a boolean as seconds", request(',"ttl_seconds":true'), Reason.MALFORMED, "$.ttl_seconds"),
    ("no time to live", request(',"ttl_seconds":0'), Reason.MALFORMED, "$.ttl_seconds"),
    ("nested deeply", request(f',"quantities":{DEEP.decode()}'), Reason.MALFORMED, "$.quantities"),
    ("nested deeply before its type", b'{"x":' + DEEP + b',"type":"x"}', Reason.MALFORMED, "nested too deeply"),
]


@pytest.mark.parametrize(("value", "reason", "says"), cases(REQUESTS))
def test_a_bad_request_is_refused(value: bytes | None, reason: Reason, says: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_request(value)
    assert refused.value.reason is reason
    assert says in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("field", "instant"),
    [
        ("expires_at", "2027-01-01T00:00:00"),
        ("effective_at", "2027-01-01"),
        ("expires_at", "1969-12-31T23:59:59Z"),
        ("expires_at", "9999-12-31T23:59:59-01:00"),
        ("effective_at", "0001-01-01T00:00:00+01:00"),
    ],
)
def test_a_grant_with_a_bad_instant_is_refused(field: str, instant: str) -> None:
    grant = {"type": "tallygate.grant.v1", "id": "g1", "customer": "acme", "amount": "10", field: instant}
    with pytest.raises(Refused, match=field) as refused:
        parse_request(msgspec.json.encode(grant))
    assert refused.value.reason is Reason.MALFORMED


AMOUNTS = [
    ("negative", "-1", "is negative"),
    ("the least negative", Decimal("-0.000000001"), "is negative"),
    ("not a number", Decimal("NaN"), "not finite"),
    ("a signalling one", Decimal("sNaN"), "not finite"),
    ("infinite", Decimal("-Infinity"), "not finite"),
    ("NaN in text", "NaN", "no decimal number"),
    ("one over the largest", 10**15 + 1, "absurdly large"),
    ("a nano over the largest", "1000000000000000.000000001", "absurdly large"),
    ("a little over, past 28 digits", Decimal("1000000000000000.00000000000000000001"), "absurdly large"),
    ("a huge exponent", Decimal("1E+999999999"), "absurdly large"),
    ("an exponent beyond decimals", "1e99999999999999999999", "exponent"),
    ("an integer of 5 000 digits", 10**5000, "absurdly large"),
    ("more than 9 places", "0.0000000001", "more than 9 decimal places"),
    ("a 10th place, large", "999999999999999.0000000001", "more than 9 decimal places"),
    ("a 101st place", Decimal("0.5" + "0" * 99 + "1"), "more than 9 decimal places"),
    ("a vanishing exponent", Decimal("1E-999999999"), "more than 9 decimal places"),
    ("a boolean", True, "no number"),
    ("nothing", None, "no number"),
    ("a list", [1], "no number"),
    ("empty", "", "no decimal number"),
    ("blanks", " 1 ", "no decimal number"),
    ("a line feed", "1\n", "no decimal number"),
    ("underscores", "1_000", "no decimal number"),
    ("a comma", "1,5", "no decimal number"),
    ("digits of another script", "१२", "no decimal number"),
    ("no digit after the point", "1.", "no decimal number"),
    ("over 64 characters", "0." + "0" * 63, "no decimal number"),
]


@pytest.mark.parametrize(("value", "says"), cases(AMOUNTS))
def test_a_bad_amount_is_refused(value: object, says: str) -> None:
    with pytest.raises(AmountError, match=says) as error:
        quantity_nanos(value)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        ("0", 0),
        ("-0", 0),
        ("+12.5", 12_500_000_000),
        ("1e-9", 1),
        ("1.50000000000000000000", 1_500_000_000),
        ("1e15", 10**24),
        (10**15, 10**24),
        (-(10**15), -(10**24)),
        (Decimal("0.5" + "0" * 100), 500_000_000),
        (Decimal("0E-999999999"), 0),
    ],
)
def test_amounts_at_the_edge_are_exact(value: object, nanos: int) -> None:
    assert to_nanos(value) == nanos


@pytest.mark.parametrize(
    "text", ["2026-01-01", "20260101T000000Z", "2026-W01-1T00:00:00Z", "now", "", "2026-01-01T00Z"]
)
def test_text_that_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no instant: write it like 2026-01-31T00:00:00Z"):
        parse_instant(text)


def test_an_instant_without_an_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="has no offset"):
        parse_instant("2026-01-01T00:00:00")
