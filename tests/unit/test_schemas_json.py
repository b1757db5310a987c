"""The JSON Schemas say yes to what is read and no to what is refused, where a schema can say it."""

import re
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from tallygate.schemas import export
from tallygate.schemas.catalog_file import CatalogError, read_catalog
from tallygate.schemas.events import decode_events
from tallygate.schemas.reasons import Refused
from tallygate.schemas.requests import parse_request

NAMES = sorted(path.name.removesuffix(".schema.json") for path in export.SCHEMA_FOLDER.glob("*.schema.json"))


def schema(name: str) -> Any:
    return msgspec.json.decode(export.SCHEMA_FOLDER.joinpath(f"{name}.schema.json").read_bytes())


def valid(name: str, document: Any) -> bool:
    return Draft202012Validator(schema(name)).is_valid(document)


def test_every_wire_form_has_a_schema() -> None:
    assert NAMES == [
        "answer",
        "audit",
        "catalog",
        "catalog-file",
        "decision",
        "journal-record",
        "key",
        "posting",
        "published",
        "request",
        "usage-event",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_sound_and_its_examples_are_valid(name: str) -> None:
    document = schema(name)
    Draft202012Validator.check_schema(document)
    assert document["title"]
    assert len(document["description"]) > 20
    assert document["examples"]
    for example in document["examples"]:
        Draft202012Validator(document).validate(example)


def cases(rows: list[tuple[Any, ...]]) -> list[Any]:
    """A row each, named by its first column."""
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


RESERVE = {"type": "tallygate.reserve.v1", "id": "r1", "customer": "acme", "feature": "llm"}
GRANT = {"type": "tallygate.grant.v1", "id": "g1", "customer": "acme", "amount": "10"}
BUDGET = {"type": "tallygate.budget.v1", "id": "b1", "customer": "acme", "name": "all", "limit": "500"}
SETTLE = {"type": "tallygate.settle.v1", "id": "s1", "customer": "acme", "hold": "r1"}

GOOD_REQUESTS = [
    ("a decimal string", RESERVE | {"credits": "12.000000001"}),
    ("an integer", RESERVE | {"credits": 12}),
    ("a JSON number", RESERVE | {"quantities": {"seconds": 1.5}}),
    ("the largest amount", RESERVE | {"credits": "1000000000000000"}),
    ("an offset", GRANT | {"expires_at": "2027-01-01T00:00:00+02:00"}),
    ("a fraction of a second", GRANT | {"effective_at": "2027-01-01T00:00:00.123Z"}),
    ("null for not said", SETTLE | {"credits": None, "quantities": None}),
    ("letters of any language", RESERVE | {"customer": "Ægir\u200d 株式会社"}),
]

BAD_REQUESTS = [
    ("no type", {k: v for k, v in RESERVE.items() if k != "type"}),
    ("an unknown type", RESERVE | {"type": "tallygate.borrow.v1"}),
    ("no id", {k: v for k, v in RESERVE.items() if k != "id"}),
    ("no customer", {k: v for k, v in RESERVE.items() if k != "customer"}),
    ("an empty customer", RESERVE | {"customer": ""}),
    ("a null customer", RESERVE | {"customer": None}),
    ("a customer of 257 characters", RESERVE | {"customer": "c" * 257}),
    ("a control character", RESERVE | {"customer": "a\0b"}),
    ("a line feed at the end", RESERVE | {"customer": "acme\n"}),
    ("a C1 control character", RESERVE | {"feature": "llm\x85"}),
    ("a control character in a dimension", RESERVE | {"dimensions": {"team": "a\tb"}}),
    ("an empty dimension", RESERVE | {"dimensions": {"team": ""}}),
    ("a misspelt field", RESERVE | {"credit": "1"}),
    ("a boolean as an amount", RESERVE | {"credits": True}),
    ("a boolean as a quantity", RESERVE | {"quantities": {"calls": True}}),
    ("a boolean as seconds", RESERVE | {"ttl_seconds": True}),
    ("no time to live", RESERVE | {"ttl_seconds": 0}),
    ("a time to live of over 30 days", RESERVE | {"ttl_seconds": 30 * 24 * 3600 + 1}),
    ("a fraction of a second to live", RESERVE | {"ttl_seconds": 1.5}),
    ("a null amount", RESERVE | {"credits": None}),
    ("words as an amount", RESERVE | {"credits": "many"}),
    ("an empty amount", RESERVE | {"credits": ""}),
    ("quantities in a list", RESERVE | {"quantities": [1]}),
    ("no time offset", GRANT | {"expires_at": "2027-01-01T00:00:00"}),
    ("seconds as a time", GRANT | {"expires_at": 1798761600}),
    ("a priority over 255", GRANT | {"priority": 256}),
    ("an unknown category", GRANT | {"category": "free"}),
    ("an unknown period", BUDGET | {"period": "year"}),
    ("a budget without a limit", {k: v for k, v in BUDGET.items() if k != "limit"}),
    ("a list", [RESERVE]),
]

#: What the reader takes as a request and the rules refuse, with `quantity_invalid` and a reason.
BAD_AMOUNTS = ["-1", -1, "NaN", "Infinity", "-Infinity", "1e400", "0.0000000001", "10000000000000000", 1e16, "1_000"]


@pytest.mark.parametrize("document", cases(GOOD_REQUESTS))
def test_a_good_request_is_valid_and_read(document: Any) -> None:
    assert valid("request", document)
    parse_request(msgspec.json.encode(document))


@pytest.mark.parametrize("document", cases(BAD_REQUESTS))
def test_a_refused_request_is_invalid(document: Any) -> None:
    assert not valid("request", document)
    with pytest.raises(Refused):
        parse_request(msgspec.json.encode(document))


@pytest.mark.parametrize("amount", BAD_AMOUNTS)
def test_an_amount_that_no_rule_accepts_is_invalid(amount: Any) -> None:
    assert not valid("request", RESERVE | {"credits": amount})
    assert not valid("request", RESERVE | {"quantities": {"seconds": amount}})
    assert not valid("request", SETTLE | {"credits": amount})


EVENT = {"specversion": "1.0", "id": "e1", "source": "/s", "type": "llm.call", "subject": "acme", "data": {"n": 1}}

GOOD_EVENTS = [
    ("an extension", EVENT | {"traceparent": "00-ab", "sampled": True}),
    ("data not set", EVENT | {"data": None}),
    ("time not set", EVENT | {"time": None}),
    ("data in base64", {k: v for k, v in EVENT.items() if k != "data"} | {"data_base64": "eyJuIjoxfQ=="}),
    ("a time with an offset", EVENT | {"time": "2026-01-01T00:00:00-03:30"}),
]

BAD_EVENTS = [
    ("no specversion", {k: v for k, v in EVENT.items() if k != "specversion"}),
    ("another specversion", EVENT | {"specversion": "0.3"}),
    ("no subject", {k: v for k, v in EVENT.items() if k != "subject"}),
    ("an empty subject", EVENT | {"subject": ""}),
    ("a null subject", EVENT | {"subject": None}),
    ("a control character", EVENT | {"subject": "a\x1fb"}),
    ("a control character in the id", EVENT | {"id": "a\0b"}),
    ("an id of 513 characters", EVENT | {"id": "i" * 513}),
    ("a type of 257 characters", EVENT | {"type": "t" * 257}),
    ("no source", {k: v for k, v in EVENT.items() if k != "source"}),
    ("data in a list", EVENT | {"data": [1]}),
    ("data in text", EVENT | {"data": "n=1"}),
    ("no time offset", EVENT | {"time": "2026-01-01T00:00:00"}),
    ("seconds as a time", EVENT | {"time": 1767225600}),
]


@pytest.mark.parametrize("document", cases(GOOD_EVENTS))
def test_a_good_event_is_valid_and_read(document: Any) -> None:
    assert valid("usage-event", document)
    decode_events(msgspec.json.encode(document), {})


@pytest.mark.parametrize("document", cases(BAD_EVENTS))
def test_a_refused_event_is_invalid(document: Any) -> None:
    assert not valid("usage-event", document)
    with pytest.raises(Refused):
        decode_events(msgspec.json.encode(document), {})


def catalog_with(**feature: Any) -> Any:
    return {"meters": {"m": {"event_type": "t", "value": "n"}}, "features": {"f": {"meters": ["m"], **feature}}}


BAD_CATALOGS = [
    ("an unknown section", {"metres": {}}),
    ("a name in capitals", {"meters": {"M": {"event_type": "t", "value": "n"}}}),
    ("no event type", {"meters": {"m": {"value": "n"}}}),
    ("an unknown aggregation", {"meters": {"m": {"event_type": "t", "value": "n", "aggregation": "mean"}}}),
    ("a negative rate", catalog_with(rates=[{"meter": "m", "credits": "-1"}])),
    ("a rate of more than 9 places", catalog_with(rates=[{"meter": "m", "credits": "0.0000000001"}])),
    ("a rate of truth", catalog_with(rates=[{"meter": "m", "credits": True}])),
    ("no offset", catalog_with(rates=[{"meter": "m", "credits": 1, "since": "2026-01-01T00:00:00"}])),
    ("an overage in words", catalog_with(overage="some")),
    ("a negative overage", catalog_with(overage=-1)),
    ("no time to live", catalog_with(hold={"ttl_seconds": 0})),
]


@pytest.mark.parametrize("document", cases(BAD_CATALOGS))
def test_a_refused_catalog_file_is_invalid(document: Any) -> None:
    assert not valid("catalog-file", document)
    with pytest.raises(CatalogError, match=re.escape("c.yaml: ")):
        read_catalog(document, "c.yaml")
