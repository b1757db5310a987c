"""The description of the API is sound, its examples fit its schemas, and it names every error."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tallygate.connectors.gateway import mounts
from tallygate.connectors.gateway.openapi import description
from tallygate.connectors.gateway.problems import llm_denial, refusal
from tallygate.schemas.answers import Answer
from tallygate.schemas.reasons import DENIALS, Reason

DOCUMENT: dict[str, Any] = msgspec.json.decode(description("http://127.0.0.1:8086"))
REGISTRY: Any = Registry().with_resource("urn:api", Resource(DOCUMENT, DRAFT202012))


def contents() -> Iterator[Any]:
    """Every body and answer that has an example."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            bodies = {"body": operation["requestBody"]} if "requestBody" in operation else {}
            for place, holder in {**operation["responses"], **bodies}.items():
                for media, content in holder.get("content", {}).items():
                    yield pytest.param(media, content, id=f"{method} {path} {place} {media}")


def test_it_is_openapi() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert [str(error) for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


@pytest.mark.parametrize(("media", "content"), list(contents()))
def test_every_example_fits_its_schema(media: str, content: dict[str, Any]) -> None:
    assert "example" in content
    linked = msgspec.json.decode(msgspec.json.encode(content["schema"]).replace(b'"#/', b'"urn:api#/'))
    Draft202012Validator(linked, registry=REGISTRY).validate(content["example"])


def test_every_described_operation_is_there_and_says_what_it_needs() -> None:
    for operation in mounts.operations():
        if not operation.described:
            continue
        found = DOCUMENT["paths"][operation.path][operation.method.lower()]
        assert found["operationId"] == operation.name
        statuses = {int(status) for status in found["responses"]}
        if operation.scope is None:
            assert "security" not in found
        else:
            assert found["security"] == [{"key": []}]
            assert {401, 403, 429, 503} <= statuses
            assert f"`{operation.scope}`" in found["description"]
        if operation.body:
            assert {400, 413, 415} <= statuses


def test_operation_ids_are_told_apart() -> None:
    names = [operation.name for operation in mounts.operations() if operation.described]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.ALLOWED])
def test_every_reason_has_a_status(reason: Reason) -> None:
    problem = refusal(reason, "because")
    assert problem.details().reason == reason
    assert 400 <= problem.status < 500 or problem.status == 503


@pytest.mark.parametrize(
    ("reason", "retry_after_ms", "status", "retry_after"),
    [
        (Reason.RATE_LIMITED, 1, 429, "1"),
        (Reason.RATE_LIMITED, 2_001, 429, "3"),
        (Reason.RATE_LIMITED, None, 429, "1"),
        (Reason.BUDGET_EXHAUSTED, 86_400_000, 402, "86400"),
        (Reason.CREDITS_EXHAUSTED, None, 402, None),
    ],
)
def test_a_denial_on_an_llm_route(
    reason: Reason, retry_after_ms: int | None, status: int, retry_after: str | None
) -> None:
    answer = Answer(
        id="1", op="reserve", customer="acme", allowed=False, reason=reason, at="", retry_after_ms=retry_after_ms
    )
    found, headers = llm_denial(answer)
    assert found == status
    assert headers["x-should-retry"] == "false"
    assert headers.get("Retry-After") == retry_after


def test_every_denial_is_402_or_429_there() -> None:
    for reason in DENIALS:
        answer = Answer(id="1", op="reserve", customer="acme", allowed=False, reason=reason, at="")
        assert llm_denial(answer)[0] == (429 if reason is Reason.RATE_LIMITED else 402)
