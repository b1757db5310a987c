"""What the client says before anything is sent."""

import socket
from decimal import Decimal
from typing import Any

import pytest

from tallygate.connectors.client import (
    ClientClosed,
    Denied,
    NotConnected,
    RefusedRequest,
    Tallygate,
    TallygateSync,
)
from tallygate.connectors.client_content import amounts, exact, id_of
from tallygate.schemas.answers import Answer, LimitState
from tallygate.schemas.reasons import Reason


@pytest.mark.parametrize(
    ("given", "sent"),
    [(75, "75"), ("75.0", "75"), (Decimal("7.5E1"), "75"), ("0.000000001", "0.000000001"), (0, "0"), ("0.50", "0.5")],
)
def test_an_amount_is_sent_in_one_form_however_it_was_written(given: Any, sent: str) -> None:
    assert format(exact("credits", given), "f") == sent


def test_quantities_are_sent_in_one_order() -> None:
    assert list(amounts({"b": 1, "a": 2})) == ["a", "b"]


@pytest.mark.parametrize("given", [1.5, True, None, b"1", float("nan")])
async def test_an_amount_that_is_not_exact_raises_type_error(given: Any) -> None:
    client = Tallygate("127.0.0.1:1", service="test")
    with pytest.raises(TypeError, match=r"^input_tokens is .*amounts are int, str or Decimal"):
        await client.check("acme", feature="llm", quantities={"input_tokens": given})


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"credits": "-1"}, Reason.QUANTITY_INVALID, "credits: -1 is negative"),
        ({"credits": "1e99"}, Reason.QUANTITY_INVALID, "absurdly large"),
        ({"credits": Decimal("Infinity")}, Reason.QUANTITY_INVALID, "not finite"),
        ({"quantities": {"input_tokens": "many"}}, Reason.QUANTITY_INVALID, "input_tokens: many is no decimal number"),
        ({"customer": ""}, Reason.CUSTOMER_MISSING, "customer"),
        ({"customer": None}, Reason.CUSTOMER_MISSING, "customer"),
        ({"feature": ""}, Reason.MALFORMED, "feature"),
        ({"dimensions": {"team": 7}}, Reason.MALFORMED, "dimensions"),
        ({"ttl_seconds": 0}, Reason.MALFORMED, "ttl_seconds"),
        ({"dimensions": {f"d{i}": "x" * 250 for i in range(300)}}, Reason.TOO_LARGE, "at most 65536"),
    ],
)
async def test_a_wrong_request_is_refused_before_it_is_sent(changes: dict[str, Any], reason: Reason, says: str) -> None:
    client = Tallygate("127.0.0.1:1", service="test")
    arguments = {"customer": "acme", "feature": "llm", **changes}
    with pytest.raises(RefusedRequest, match=says) as caught:
        await client.reserve(arguments.pop("customer"), **arguments)
    assert caught.value.reason is reason
    assert caught.value.answer is None


def test_ids_of_settle_and_release_follow_from_the_hold() -> None:
    ids = [
        id_of("settle", "acme", "h1"),
        id_of("release", "acme", "h1"),
        id_of("settle", "acme", "h2"),
        id_of("settle", "acm", "eh1"),
    ]
    assert id_of("settle", "acme", "h1") == ids[0]
    assert len(set(ids)) == 4


def test_generated_ids_differ() -> None:
    one, other = (Tallygate("127.0.0.1:1", service="test") for _ in range(2))
    ids = [client.reserve("acme", feature="llm")._request.id for client in (one, other) for _ in range(100)]
    assert len(set(ids)) == 200


def test_a_service_name_that_is_no_topic_is_refused() -> None:
    with pytest.raises(ValueError, match="service name 'No Good'"):
        Tallygate("127.0.0.1:1", service="No Good")


async def test_a_client_that_is_not_started_says_so() -> None:
    with pytest.raises(ClientClosed, match="is not started"):
        await Tallygate("127.0.0.1:1", service="test").balance("acme")
    with pytest.raises(ClientClosed, match="is not running"):
        TallygateSync("127.0.0.1:1", service="test").balance("acme")


async def test_no_broker_is_one_clear_line() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NotConnected, match=rf"^no Kafka broker answers at {where} within 0.3 s \(.*refused.*\): "):
            await Tallygate(where, service="test", timeout=0.3).start()
        with pytest.raises(NotConnected, match=r"^no Kafka broker answers"):
            TallygateSync(where, service="test", timeout=0.3).start()


async def test_a_setting_that_librdkafka_does_not_know_is_named() -> None:
    with pytest.raises(NotConnected, match="nonsense"):
        await Tallygate("127.0.0.1:1", service="test", kafka={"nonsense": "1"}).start()


def test_a_denial_says_which_limit_and_what_is_left_of_it() -> None:
    limits = (
        LimitState("budget", "runaway", False, "credits", "75", "500", "400", "50", "50"),
        LimitState("credits", "credits", True, "credits", "75", "900", "0", "0", "900"),
    )
    answer = Answer(
        id="h1", op="reserve", customer="acme", allowed=False, reason=Reason.BUDGET_EXHAUSTED, at="", limits=limits
    )
    assert str(Denied(answer)) == (
        "reserve of customer 'acme' denied: budget_exhausted (budget 'runaway' has 50 of 500 credits left, 75 asked)"
    )
