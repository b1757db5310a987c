"""The AsyncAPI document of the topics is sound, complete, and says what is declared.

`conformance/vectors/asyncapi-3.0.0.json` is AsyncAPI's schema of 3.0.0 documents, unchanged but for its white space:
`schemas/3.0.0-without-$id.json` of npm's `@asyncapi/specs` 6.11.1, Apache License 2.0.
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tallygate.schemas import export, samples
from tallygate.schemas.topics import topic_specs

VECTORS = Path(__file__).parents[1] / "conformance" / "vectors"
OFFICIAL = Draft7Validator(msgspec.json.decode((VECTORS / "asyncapi-3.0.0.json").read_bytes()))
DOCUMENT: dict[str, Any] = msgspec.json.decode((export.SCHEMA_FOLDER / "asyncapi.json").read_bytes())
REGISTRY: Any = Registry().with_resource("urn:topics", Resource(DOCUMENT, DRAFT202012))
MESSAGES = [
    pytest.param(message, id=f"{channel}.{name}")
    for channel, told in DOCUMENT["channels"].items()
    for name, message in told["messages"].items()
]


def test_it_is_asyncapi() -> None:
    OFFICIAL.check_schema(OFFICIAL.schema)
    assert [error.message[:300] for error in OFFICIAL.iter_errors(DOCUMENT)] == []


def test_the_official_schema_sees_mistakes() -> None:
    for spoil in (
        lambda it: it.pop("info"),
        lambda it: it["channels"]["usage"].update(adress="x"),
        lambda it: it["channels"]["usage"]["bindings"]["kafka"].update(partitions="8"),
        lambda it: it["operations"]["usage.receive"].update(action="subscribe"),
    ):
        wrong = deepcopy(DOCUMENT)
        spoil(wrong)
        assert not OFFICIAL.is_valid(wrong)


def test_every_topic_is_a_channel_as_it_is_declared() -> None:
    told = {channel["address"]: channel["bindings"]["kafka"] for channel in DOCUMENT["channels"].values()}
    for spec in topic_specs():
        found = told.pop(spec.name.replace(".cli.", ".{service}."))
        assert found["partitions"] == spec.partitions
        config = {name: str(value) for name, value in found["topicConfiguration"].items() if name != "cleanup.policy"}
        declared = dict(spec.config)
        assert found["topicConfiguration"]["cleanup.policy"] == [declared.pop("cleanup.policy", "delete")]
        assert config == declared
    assert told == {}


def test_every_record_of_the_samples_is_a_message() -> None:
    """But for the parts of others: postings and decisions as an entry of the journal holds them."""
    named = {name for channel in DOCUMENT["channels"].values() for name in channel["messages"]}
    assert {sample.name for sample in samples.SAMPLES} - named == {"posting", "decision"}


@pytest.mark.parametrize("message", MESSAGES)
def test_examples_fit_their_schemas(message: dict[str, Any]) -> None:
    schema = message["payload"]["schema"]
    linked = msgspec.json.decode(msgspec.json.encode(schema).replace(b'"#/', b'"urn:topics#/'))
    validator = Draft202012Validator(linked, registry=REGISTRY)
    for example in message.get("examples", ()):
        validator.validate(example["payload"])
    if "examples" not in message:
        assert message["contentType"] in ("application/octet-stream", "application/vnd.apache.arrow.stream")


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    led = set(references(DOCUMENT))
    for reference in led:
        found = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    used = {reference.split("/")[3] for reference in led if reference.startswith("#/components/schemas/")}
    assert used == set(DOCUMENT["components"]["schemas"])
