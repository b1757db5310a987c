"""A lease is a hold that its client decides within; a strict customer gets none."""

import pytest

from money import Money
from tallygate.schemas.requests import SetCustomer


def leased(story: str, credits: str = "5", feature: str = "work") -> str:
    told = Money(story)
    return told.hold("l", feature, credits, lease=True).reason.value


@pytest.mark.parametrize(
    ("who", "story", "reason"),
    [
        ("anybody else", "grant g 10", "allowed"),
        ("a strict customer", "grant g 10; strict", "customer_strict"),
        ("one that is so no more", "grant g 10; strict; lenient", "allowed"),
        ("one that is strict after a restart", "grant g 10; strict; restart", "customer_strict"),
        ("a strict one that was suspended", "grant g 10; strict; suspend", "customer_suspended"),
        ("a strict one that may go on", "grant g 10; strict; suspend; resume", "customer_strict"),
        ("a suspended one that becomes strict", "grant g 10; suspend; strict", "customer_suspended"),
        ("a suspended one that is strict no more", "grant g 10; suspend; lenient", "customer_suspended"),
        ("one that nobody knows", "", "customer_unknown"),
        ("a strict one without credits", "strict", "customer_strict"),
        ("one without credits", "grant g 4", "credits_exhausted"),
    ],
)
def test_who_gets_a_lease(who: str, story: str, reason: str) -> None:
    assert leased(story) == reason


def test_a_strict_customer_reserves_as_everybody_does() -> None:
    told = Money("grant g 10; strict; reserve h 4")
    assert told.said.split()[-1] == "yes"
    assert told.hold("l", credits="1", lease=True).allowed is False
    assert told.tell("settle h 4").purse == "g 6"


def test_a_strict_customers_lease_of_no_feature() -> None:
    assert leased("strict", feature="flying") == "customer_strict"
    assert leased("grant g 1", feature="flying") == "feature_unknown"


def test_a_lease_of_before_goes_on_and_its_end_gives_it_back() -> None:
    told = Money("grant g 10")
    assert told.hold("l", credits="6", lease=True, ttl_seconds=30).allowed
    told.tell("strict; wait 31s; tick 1s")
    assert told.purse == "g 10"


def test_the_end_of_a_lease_settles_nothing_whatever_its_feature_does_with_holds() -> None:
    told = Money("grant g 10; reserve h 3 estimate for 30s")
    assert told.hold("l", "estimate", "6", lease=True, ttl_seconds=30).allowed
    assert told.tell("wait 31s; tick 1s").purse == "g 7"
    assert told.tell("settle l 2").purse == "g 5"  # what was taken is recorded late, and never lost


def test_strict_and_suspended_are_changed_apart() -> None:
    told = Money("grant g 10; strict; suspend")
    told.partition.ask(SetCustomer(id="c1", customer="acme", suspended=False))
    row = told.partition.state.account("acme").row
    assert row is not None
    assert (row.suspended, row.strict) == (False, True)
