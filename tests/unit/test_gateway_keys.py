"""API keys: their shape, who is let in, and what is told to those who are not."""

import re

import pytest
from msgspec.structs import replace

from tallygate.connectors.gateway.keys import KeyRing, digest, new_key
from tallygate.connectors.gateway.limits import CallRates, check_customers, check_scope, check_whole_tenant
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.instants import HOUR_MS
from tallygate.schemas.keys import KeyRecord, KeyUse, encode_keyed, record_key
from tallygate.schemas.records import Record

SECOND = 1_000_000_000
NOW = 1_767_268_800_000


def ring(*keyed: KeyRecord | KeyUse) -> KeyRing:
    found = KeyRing()
    for offset, each in enumerate(keyed):
        found.take(Record("keys", 0, offset, NOW, record_key(each), encode_keyed(each)))
    return found


def refused(found: KeyRing, header: str | None, now: int = NOW) -> Problem:
    with pytest.raises(Problem) as caught:
        found.find(header, now)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")
    return caught.value


def test_a_key_holds_256_random_bits_and_is_kept_as_a_hash_alone() -> None:
    made = new_key(("read",), NOW)
    assert re.fullmatch(r"tg_[a-z0-9]{12}_[A-Za-z0-9_-]{43}", made.text)
    assert new_key(("read",), NOW).text != made.text
    secret = made.text.rpartition(made.record.id)[2]
    assert secret.encode() not in encode_keyed(made.record)
    assert made.record.hash == digest(made.text)


def test_the_right_key_is_found() -> None:
    made = new_key(("read",), NOW)
    assert ring(made.record).find(f"Bearer {made.text}", NOW) == made.record
    assert ring(made.record).find(f"bearer {made.text}", NOW) == made.record


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer tg_",
        "Bearer x",
        "Basic dG86dG8=",
        "tg_{}",
        "Bearer {}x",
        "Bearer {} x",
        "Bearer \n{}",
    ],
)
def test_what_is_no_key_is_refused(header: str | None) -> None:
    made = new_key(("read",), NOW)
    problem = refused(ring(made.record), header and header.format(made.text))
    assert made.text not in problem.detail


def test_a_wrong_secret_says_the_same_as_an_unknown_key() -> None:
    made, other = new_key(("read",), NOW), new_key(("read",), NOW)
    wrong = made.text[:-43] + other.text[-43:]
    found = ring(made.record)
    assert refused(found, f"Bearer {wrong}").detail == refused(found, f"Bearer {other.text}").detail


def test_a_key_ends_when_it_expires_or_is_revoked() -> None:
    made = new_key(("read",), NOW, expires_at=NOW + 10)
    found = ring(made.record)
    assert found.find(f"Bearer {made.text}", NOW + 9)
    assert "expired" in refused(found, f"Bearer {made.text}", NOW + 10).detail
    revoked = ring(made.record, replace(made.record, revoked_at=NOW + 1))
    assert "revoked" in refused(revoked, f"Bearer {made.text}").detail
    assert not revoked.holds(made.record.id, NOW)


def test_a_record_that_cannot_be_read_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = new_key(("read",), NOW)
    found = ring(made.record)
    found.take(Record("keys", 0, 1, NOW, b"key/x", b"{"))
    assert found.find(f"Bearer {made.text}", NOW)
    found.take(Record("keys", 0, 2, NOW, record_key(made.record), None))
    refused(found, f"Bearer {made.text}")


def test_use_is_noted_once_an_hour() -> None:
    made = new_key(("read",), NOW)
    found = ring(made.record)
    assert found.note_use(made.record.id, NOW + 5) == KeyUse(id=made.record.id, hour=NOW)
    assert found.note_use(made.record.id, NOW + HOUR_MS - 1) is None
    assert found.note_use(made.record.id, NOW + HOUR_MS) == KeyUse(id=made.record.id, hour=NOW + HOUR_MS)
    other = ring(made.record, KeyUse(id=made.record.id, hour=NOW))
    assert other.note_use(made.record.id, NOW + 5) is None  # another gateway has noted it


def test_scopes_and_customers() -> None:
    everyone, acme = new_key(("read",), NOW).record, new_key(("decide",), NOW, customers=("acme",)).record
    check_scope(everyone, "read")
    check_customers(everyone, ("globex",))
    check_customers(acme, ("acme", "acme"))
    check_whole_tenant(everyone)
    for wrong in (
        lambda: check_scope(everyone, "admin"),
        lambda: check_customers(acme, ("acme", "globex")),
        lambda: check_whole_tenant(acme),
    ):
        with pytest.raises(Problem) as caught:
            wrong()
        assert caught.value.status == 403
        assert "globex" not in caught.value.detail


def test_a_key_may_call_twice_as_often_at_once_as_in_a_second() -> None:
    key = new_key(("read",), NOW, per_second=5).record
    other = new_key(("read",), NOW).record
    rates = CallRates(2)
    for _ in range(10):
        rates.take(key, 100 * SECOND)
    with pytest.raises(Problem) as caught:
        rates.take(key, 100 * SECOND)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    rates.take(other, 100 * SECOND)
    for _ in range(5):
        rates.take(key, 101 * SECOND)
    with pytest.raises(Problem):
        rates.take(key, 101 * SECOND)


def test_no_limit_is_no_limit() -> None:
    rates, key = CallRates(0), new_key(("read",), NOW).record
    for _ in range(10_000):
        rates.take(key, SECOND)
