"""What a subscription takes from the catalog, and what a former one leaves behind: nothing."""

from typing import Any

import pytest

from partition import Partition
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.reasons import Reason, Refused
from tallygate.schemas.requests import Balance, Subscribe, parse_request

DAY = 24 * 3600


def partition(plans: dict[str, Any], add_ons: dict[str, Any] | None = None) -> Partition:
    document = {"features": {"work": {}}, "plans": plans, "add_ons": add_ons or {}}
    return Partition(read_catalog(document, "tests").compile(1))


def balances(at: Partition) -> list[str]:
    statement = at.ask(Balance(id="b", customer="acme")).statement
    assert statement is not None
    return [grant.balance for grant in statement.grants if grant.active]


def test_the_resets_of_a_former_plan_end_with_it() -> None:
    grants = {"once": {"amount": 10}}
    at = partition({"daily": {"grants": grants, "resets": {"credits": "P1D"}}, "plain": {"grants": grants}})
    at.ask(Subscribe(id="s1", customer="acme", plan="daily"))
    at.ask(Subscribe(id="s2", customer="acme", plan="plain"))
    at.tick(3 * DAY)
    assert balances(at) == ["10"]


def test_an_add_on_named_twice_is_refused() -> None:
    at = partition({"pro": {}}, {"pack": {"grants": {"pack": {"amount": 1}}}})
    answer = at.ask(Subscribe(id="s", customer="acme", plan="pro", add_ons=("pack", "pack")))
    assert (answer.reason, answer.message) == (Reason.MALFORMED, "add_ons: names one twice")
    assert [entry.postings for entry in at.entries() if entry.postings] == []


@pytest.mark.parametrize("field", ["anchor", "recurrence.anchor"])
@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_anchor_no_calendar_has_is_refused(field: str, instant: str) -> None:
    request = {
        "anchor": f'{{"type":"tallygate.subscribe.v1","id":"s","customer":"a","plan":"p","anchor":"{instant}"}}',
        "recurrence.anchor": '{"type":"tallygate.grant.v1","id":"g","customer":"a","amount":1,'
        f'"recurrence":{{"interval":"P1M","anchor":"{instant}"}}}}',
    }[field]
    with pytest.raises(Refused, match=f"{field} lies outside the years 1970 to 9999") as refused:
        parse_request(request.encode())
    assert refused.value.reason is Reason.MALFORMED
