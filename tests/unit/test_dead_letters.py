"""Where a dead letter is sent to: to its customer's partition; and what identifies it when it goes again."""

import pytest

from tallygate.connectors.usage_batches import encode_batch
from tallygate.schemas import topics
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.usage_batch import BatchId, batch_headers, read_batch_id
from tallygate.topologies.dead_letters import DeadLetter, Place, customers_of, headers_again, parse_place, route_of
from tallygate.topologies.exits import Trouble

PARTITIONS = 8
PLACE = Place(topics.USAGE, 3, 17)


def letter(value: bytes | None, reason: str = "wrong_partition", *headers: tuple[str, bytes]) -> DeadLetter:
    return DeadLetter(PLACE, 0, reason, "", b"old key", value, headers, 0)


def batch(*subjects: str) -> bytes:
    return encode_batch([(subject, "llm.call", None, {"n": 1}) for subject in subjects])


ARROW = tuple(batch_headers(BatchId("meter", 5, 9)))


@pytest.mark.parametrize(
    ("value", "headers", "customers"),
    [
        (b'{"subject": "acme", "data": {"n": "many"}}', (), ("acme",)),
        (b'{"type": "tallygate.fly.v1", "customer": "acme"}', (), ("acme",)),
        (b'[{"subject": "acme"}, {"subject": "bolt"}, {"subject": "acme"}]', (), ("acme", "bolt")),
        (b"{}", (("ce_subject", b"acme"),), ("acme",)),
        (batch("acme", "acme", "bolt"), ARROW, ("acme", "bolt")),
        (b"no arrow", ARROW, ()),
        (b"\xff\x00", (), ()),
        (b'{"subject": 5}', (), ()),
        (b"[" * 100_000, (), ()),
        (None, (), ()),
    ],
)
def test_whom_a_record_names(value: bytes | None, headers: tuple[tuple[str, bytes], ...], customers: object) -> None:
    assert customers_of(value, dict(headers)) == customers


def test_a_letter_goes_to_its_customers_partition_under_the_right_key() -> None:
    home = partition_of("acme", PARTITIONS)
    named = b'{"subject": "acme"}'
    assert route_of(letter(named), PARTITIONS)[1:] == (home, b"acme", "")
    assert route_of(letter(named, "quantity_invalid"), PARTITIONS)[1:] == (home, b"old key", "")
    assert route_of(letter(b"garbage", "malformed"), PARTITIONS)[1:] == (PLACE.partition, b"old key", "")
    several = b'[{"subject": "acme"}, {"subject": "bolt"}, {"subject": "initech"}]'
    assert "send them one by one" in route_of(letter(several), PARTITIONS).trouble


def test_a_batch_goes_again_under_an_identity_of_its_own_which_stays() -> None:
    one = letter(batch("acme"), "wrong_partition", *ARROW, ("trace", b"t"))
    again = dict(headers_again(one))
    assert read_batch_id(again) == BatchId(f"dead-letter/{PLACE}", 1, 1)
    assert again["trace"] == b"t"
    assert headers_again(one) == headers_again(one)
    assert len(headers_again(one)) == len(again)


def test_headers_stay_as_they_were_but_for_where_it_lay() -> None:
    old = (topics.HEADER_REPLAYED_FROM, b"tallygate.usage.v1/0/1")
    sent = headers_again(letter(b"{}", "malformed", ("a", b"1"), ("a", b"2"), old))
    assert sent == [("a", b"1"), ("a", b"2"), (topics.HEADER_REPLAYED_FROM, str(PLACE).encode())]


@pytest.mark.parametrize("text", ["", "17", "/3/17", "topic/3", "topic/x/17", "topic/3/-1"])
def test_no_place(text: str) -> None:
    with pytest.raises(Trouble, match="is no place: write topic/partition/offset"):
        parse_place(text)
    assert parse_place(str(PLACE)) == PLACE
