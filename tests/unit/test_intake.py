"""From records to inputs: what is read, what is refused and what its answer can still say. Nothing raises."""

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallygate.pipeline.intake import Intake
from tallygate.pipeline.transition import RefusedInput, RequestInput, Route, Source, UsageInput
from tallygate.schemas import topics
from tallygate.schemas.events import BATCH, UsageEvent, encode_event
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.reasons import Reason
from tallygate.schemas.records import Record
from tallygate.schemas.requests import Reserve, encode_request

PARTITIONS = 8
HERE = partition_of("acme", PARTITIONS)
STRANGER = next(name for name in ("beta", "gamma", "delta") if partition_of(name, PARTITIONS) != HERE)
NEIGHBOUR = next(name for name in map(str, range(1000)) if partition_of(name, PARTITIONS) == HERE)
REPLIES = "tallygate.replies.checkout.v1"
DEEP = b"[" * 30_000 + b"]" * 30_000


def record(topic: str, value: bytes | None, headers: dict[str, bytes] | None = None) -> Record:
    return Record(topic, HERE, 41, 1_767_268_800_000, b"acme", value, tuple((headers or {}).items()))


def requested(value: bytes | None, **headers: bytes) -> Record:
    return record(
        topics.REQUESTS, value, {f"tallygate-{name.replace('_', '-')}": text for name, text in headers.items()}
    )


def event(subject: str = "acme", id: str = "e1") -> UsageEvent:
    return UsageEvent(specversion="1.0", id=id, source="/s", type="llm.call", subject=subject, data={"n": 1})


def batch(*events: UsageEvent) -> Record:
    return record(topics.USAGE, b"[" + b",".join(map(encode_event, events)) + b"]", {"content-type": BATCH})


RESERVE = Reserve(id="r1", customer="acme", feature="llm")
GOOD = encode_request(RESERVE)
SOURCE = Source(topics.REQUESTS, HERE, 41, 1_767_268_800_000)
NESTED = GOOD.replace(b"}", b',"x":' + DEEP + b"}")
intake = Intake(PARTITIONS)


def test_a_request_is_read_with_its_way_back() -> None:
    way = {"reply_to": REPLIES.encode(), "reply_partition": b"3", "correlation_id": b"\x00\xff"}
    assert intake.read(requested(GOOD, **way)) == RequestInput(SOURCE, RESERVE, Route(REPLIES, 3, b"\x00\xff"))


@pytest.mark.parametrize(
    ("headers", "route"),
    [
        pytest.param({}, None, id="nobody waits"),
        pytest.param({"correlation_id": b"7"}, None, id="a correlation id alone"),
        pytest.param({"reply_to": REPLIES.encode()}, Route(REPLIES, None, b""), id="any partition"),
        pytest.param({"reply_to": REPLIES.encode(), "reply_partition": b""}, Route(REPLIES, None, b""), id="empty"),
        pytest.param({"reply_to": REPLIES.encode(), "reply_partition": b"0"}, Route(REPLIES, 0, b""), id="nought"),
    ],
)
def test_ways_back(headers: dict[str, bytes], route: Route | None) -> None:
    assert intake.read(requested(GOOD, **headers)) == RequestInput(SOURCE, RESERVE, route)


@pytest.mark.parametrize(
    "topic",
    [
        b"tallygate.usage.v1",
        b"tallygate.replies..v1",
        b"tallygate.replies.Checkout.v1",
        b"tallygate.replies.checkout.v2",
        b"tallygate.replies.checkout.v1\n",
        b"tallygate.replies.a.b.v1",
        b"tallygate.replies.-a.v1",
        b"tallygate.replies." + b"a" * 64 + b".v1",
        b"\xff",
        b"",
    ],
)
def test_a_reply_topic_that_is_none_is_refused_and_not_answered(topic: bytes) -> None:
    found = intake.read(requested(GOOD, reply_to=topic))
    assert isinstance(found, RefusedInput)
    assert (found.reason, found.route) == (Reason.REPLY_TOPIC_NOT_ALLOWED, None)
    assert (found.id, found.customer) == ("r1", "acme")


def test_an_allow_list_is_all_that_is_allowed() -> None:
    strict = Intake(PARTITIONS, frozenset({"billing.answers"}))
    allowed = strict.read(requested(GOOD, reply_to=b"billing.answers"))
    assert isinstance(allowed, RequestInput)
    assert allowed.route == Route("billing.answers", None, b"")
    refused = strict.read(requested(GOOD, reply_to=REPLIES.encode()))
    assert isinstance(refused, RefusedInput)
    assert refused.reason is Reason.REPLY_TOPIC_NOT_ALLOWED


@pytest.mark.parametrize("number", [b"x", b"-1", b"1.0", b"1234567", b" 1", b"1\n", b"\xff", "१".encode()])
def test_a_reply_partition_that_is_no_number_is_refused(number: bytes) -> None:
    found = intake.read(requested(GOOD, reply_to=REPLIES.encode(), reply_partition=number))
    assert isinstance(found, RefusedInput)
    assert (found.reason, found.route) == (Reason.MALFORMED, None)


@pytest.mark.parametrize(
    ("value", "reason", "id", "customer"),
    [
        pytest.param(None, Reason.MALFORMED, "", "", id="a tombstone"),
        pytest.param(b"", Reason.MALFORMED, "", "", id="empty"),
        pytest.param(b"\xff", Reason.MALFORMED, "", "", id="not UTF-8"),
        pytest.param(b"[]", Reason.MALFORMED, "", "", id="a list"),
        pytest.param(b'{"id":"r1","customer":"acme"}', Reason.TYPE_UNKNOWN, "r1", "acme", id="no type"),
        pytest.param(GOOD.replace(b'"acme"', b'""'), Reason.CUSTOMER_MISSING, "r1", "", id="an empty customer"),
        pytest.param(GOOD.replace(b'"acme"', b"7"), Reason.MALFORMED, "", "", id="a number as customer"),
        pytest.param(GOOD.replace(b"}", b',"x":1}'), Reason.MALFORMED, "r1", "acme", id="a misspelt field"),
        pytest.param(b'{"id":"r1","x":' + DEEP + b"}", Reason.MALFORMED, "", "", id="nested deeply"),
        pytest.param(NESTED, Reason.MALFORMED, "", "", id="nested in a field"),
        pytest.param(
            encode_request(Reserve(id="r1", customer=STRANGER, feature="llm")),
            Reason.WRONG_PARTITION,
            "r1",
            STRANGER,
            id="another partition's customer",
        ),
        pytest.param(
            GOOD.replace(b"r1", b"r" * 300), Reason.MALFORMED, "r" * 256, "acme", id="a long id, cut for the answer"
        ),
    ],
)
def test_a_refused_request_can_still_be_answered(value: bytes | None, reason: Reason, id: str, customer: str) -> None:
    found = intake.read(requested(value, reply_to=REPLIES.encode(), correlation_id=b"7"))
    assert isinstance(found, RefusedInput)
    assert (found.source, found.reason) == (SOURCE, reason)
    assert found.route == Route(REPLIES, None, b"7")
    assert (found.id, found.customer) == (id, customer)
    assert found.message
    assert "\n" not in found.message


def test_single_and_batched_events_are_read() -> None:
    source = Source(topics.USAGE, HERE, 41, 1_767_268_800_000)
    assert intake.read(record(topics.USAGE, encode_event(event()))) == UsageInput(source, (event(),))
    both = (event(), event(NEIGHBOUR, "e2"))
    assert intake.read(batch(*both)) == UsageInput(source, both)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param(record(topics.USAGE, None), Reason.MALFORMED, id="a tombstone"),
        pytest.param(record(topics.USAGE, b"\xff"), Reason.MALFORMED, id="not UTF-8"),
        pytest.param(record(topics.USAGE, encode_event(event(""))), Reason.CUSTOMER_MISSING, id="no subject"),
        pytest.param(record(topics.USAGE, b" " * 65_537), Reason.TOO_LARGE, id="over 64 KiB"),
        pytest.param(record(topics.USAGE, encode_event(event(STRANGER))), Reason.WRONG_PARTITION, id="elsewhere"),
        pytest.param(batch(event(), event(STRANGER)), Reason.WRONG_PARTITION, id="one of a batch lives elsewhere"),
        pytest.param(batch(event(), event("")), Reason.CUSTOMER_MISSING, id="one of a batch has no subject"),
    ],
)
def test_refused_events(given: Record, reason: Reason) -> None:
    found = intake.read(given)
    assert isinstance(found, RefusedInput)
    assert (found.reason, found.route, found.id, found.customer) == (reason, None, "", "")


def test_the_wrong_partition_says_what_to_do() -> None:
    found = intake.read(record(topics.USAGE, encode_event(event(STRANGER))))
    assert isinstance(found, RefusedInput)
    belongs = partition_of(STRANGER, PARTITIONS)
    assert f"{STRANGER!r} belongs to partition {belongs}, not {HERE}" in found.message
    assert "partitioner=murmur2_random" in found.message


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["type", "id", "customer", "feature", "credits", "quantities", "specversion", "source", "subject", "time", "data"]
)
values = st.binary(max_size=60) | st.dictionaries(fields, json_like).map(msgspec.json.encode)


@settings(deadline=None, print_blob=True)
@given(
    st.sampled_from([topics.USAGE, topics.REQUESTS]),
    st.none() | values,
    st.dictionaries(
        st.sampled_from(
            [
                "content-type",
                "ce_specversion",
                "ce_id",
                "ce_time",
                "ce_data",
                topics.HEADER_REPLY_TO,
                topics.HEADER_REPLY_PARTITION,
            ]
        ),
        st.sampled_from([BATCH, b"application/json", b"1.0", b"", REPLIES.encode()]) | st.binary(max_size=8),
    ),
)
@example(topics.USAGE, b'{"a":' * 10_000, {})
@example(topics.USAGE, b'{"data":{"n":1e99999999999999999999}}', {})
def test_whatever_comes_becomes_an_input(topic: str, value: bytes | None, headers: dict[str, bytes]) -> None:
    assert isinstance(intake.read(record(topic, value, headers)), UsageInput | RequestInput | RefusedInput)
