"""The vocabulary for other languages and for its own tests: `python -m tallygate.schemas.export [--check]`.

Writes JSON Schemas (draft 2020-12) and an AsyncAPI document next to this module, as package data, and golden files into
the checkout's `tests/golden`: the exact bytes that each sample encodes to. `--check` writes nothing and names what is
not current.
Exit codes: 0 current or written, 1 something is not current, 2 not a checkout.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tallygate.schemas import asyncapi, samples, samples_catalog, samples_keys, samples_published, samples_requests
from tallygate.schemas.answers import Answer
from tallygate.schemas.audit import AuditRecord
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.catalog_file import CatalogFile
from tallygate.schemas.events import BATCH, UsageEvent, encode_event
from tallygate.schemas.journal import DecisionRecord, Journaled
from tallygate.schemas.json_schema import refine_event, refined
from tallygate.schemas.keys import Keyed
from tallygate.schemas.ledger import Posting
from tallygate.schemas.published import Published
from tallygate.schemas.requests import Request
from tallygate.schemas.samples_requests import Sample

Json = dict[str, Any]

SCHEMA_FOLDER: Final = Path(__file__).parent.joinpath("json")
CHECKOUT: Final = Path(__file__).parents[3]
GOLDEN_FOLDER: Final = CHECKOUT.joinpath("tests", "golden")


def golden_files() -> dict[str, bytes]:
    """Name → the exact bytes, one file per sample and wire form."""
    files = {}
    for sample in samples.SAMPLES:
        files[f"{sample.name}.full.json"] = msgspec.json.encode(sample.full)
        files[f"{sample.name}.minimal.json"] = msgspec.json.encode(sample.minimal)
    event = samples.EVENT
    files["usage-event.batch.json"] = b"[%b,%b]" % (encode_event(event.full), encode_event(event.minimal))
    files["usage-event.binary.json"] = msgspec.json.encode(_binary_form(event.full))
    return files


def _binary_form(event: UsageEvent) -> dict[str, Any]:
    """An event in Kafka's binary mode, as text: its record's headers and value."""
    attributes = _as_json(event)
    value = msgspec.json.encode(attributes.pop("data")).decode()
    headers = {"content-type": attributes.pop("datacontenttype")}
    return {"headers": headers | {f"ce_{name}": text for name, text in attributes.items()}, "value": value}


def schema_files() -> dict[str, bytes]:
    """Name → JSON Schema, as written; and all of them as AsyncAPI tells them, topic by topic."""
    schemas = {f"{name}.schema.json": _written(schema) for name, schema in _schemas()}
    return {**schemas, "asyncapi.json": _written(asyncapi.document())}


def schema_documents() -> dict[str, Json]:
    """Name → JSON Schema."""
    return dict(_schemas())


def _written(schema: Json) -> bytes:
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def _schemas() -> Iterator[tuple[str, Json]]:
    yield "usage-event", _document("Usage event", UsageEvent, (samples.EVENT,), refine_event, _EVENT_TEXT)
    yield "request", _document("Request", Request, samples_requests.REQUESTS, text=_REQUEST_TEXT)
    yield "answer", _document("Answer", Answer, (samples.ANSWER,), text=_ANSWER_TEXT)
    yield "journal-record", _document("Journal record", Journaled, samples.JOURNAL, text=_JOURNAL_TEXT)
    yield "posting", _document("Posting", Posting, (samples.POSTING,), text=_POSTING_TEXT)
    yield "decision", _document("Decision", DecisionRecord, (samples.DECISION,), text=_DECISION_TEXT)
    yield "published", _document("Published", Published, samples_published.PUBLISHED, text=_PUBLISHED_TEXT)
    yield "key", _document("Key", Keyed, samples_keys.KEYS, text=_KEY_TEXT)
    yield "audit", _document("Audit", AuditRecord, (samples_keys.AUDIT,), text=_AUDIT_TEXT)
    yield "catalog", _document("Catalog", Catalog, (samples.CATALOG,), text=_CATALOG_TEXT)
    yield "catalog-file", _framed("Catalog file", CatalogFile.model_json_schema(), [samples_catalog.FILE], _FILE_TEXT)


_EVENT_TEXT: Final = f"""
One fact of consumption on tallygate.usage.v1: a CloudEvent 1.0 in JSON, keyed by its subject. In binary mode its
attributes are ce_ headers and the value is `data` alone; {BATCH.decode()} is an array of these."""
_REQUEST_TEXT: Final = """
What a service asks on tallygate.requests.v1, keyed by customer. The same id with the same content is answered as it
was the first time. Unknown fields are refused."""
_ANSWER_TEXT: Final = """
What comes back on tallygate.replies.<service>.v1. Amounts are decimal strings, instants RFC 3339 in UTC. Readers
ignore fields they do not know."""
_JOURNAL_TEXT: Final = """
A value on tallygate.journal.v1; `row` says which. Amounts are integers of 10⁻⁹ units, instants milliseconds since 1970
in UTC. Readers ignore fields they do not know."""
_POSTING_TEXT: Final = "One leg of an entry, as an array; an entry's legs sum to zero per asset."
_DECISION_TEXT: Final = "A decision as an entry of the journal holds it."
_PUBLISHED_TEXT: Final = """
A value on tallygate.decisions.v1, tallygate.postings.v1 or tallygate.alerts.v1, keyed by customer; `type` says which.
Amounts are decimal strings, instants RFC 3339 in UTC. It comes at least once, each time with the same
tallygate-record-id header. Readers ignore fields they do not know."""
_KEY_TEXT: Final = """
A value on tallygate.keys.v1: an API key of the gateway, without the key itself, or when one was last used."""
_AUDIT_TEXT: Final = """
A value on tallygate.audit.v1: an administrative change was asked for, or this is its outcome."""
_CATALOG_TEXT: Final = "One immutable version of the catalog on tallygate.catalog.v1, keyed by its version number."
_FILE_TEXT: Final = "The catalog as people write it in YAML, for `tallygate catalog apply`."


def _document(
    title: str, of: Any, shown: tuple[Sample, ...], refine: Callable[[Json], None] | None = None, text: str = ""
) -> Json:
    schema = msgspec.json.schema(of)
    if refine:
        refine(schema)
    examples = [_as_json(value) for sample in shown for value in (sample.full, sample.minimal)]
    return _framed(title, schema, examples, text)


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _framed(title: str, schema: Json, examples: list[Any], text: str) -> Json:
    schema = refined(schema)
    definitions = {"$defs": dict(sorted(schema.pop("$defs", {}).items()))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:tallygate:schema:{title.lower().replace(' ', '-')}",
        **schema,
        "title": title,
        "description": " ".join(text.split()),
        "examples": examples,
        **definitions,
    }


def stale_files() -> list[str]:
    """What is not current, a line each."""
    lines = []
    for folder, files in ((SCHEMA_FOLDER, schema_files()), (GOLDEN_FOLDER, golden_files())):
        for name, content in files.items():
            path = folder.joinpath(name)
            if not path.is_file() or path.read_bytes() != content:
                lines.append(
                    f"{path.relative_to(CHECKOUT)} is not current: run `make schemas`, then read the difference"
                )
        known = {folder.joinpath(name) for name in files}
        lines += [
            f"{path.relative_to(CHECKOUT)} is generated by nothing: delete it"
            for path in sorted(folder.glob("*"))
            if path not in known
        ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tallygate.schemas.export", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 naming what is not current")
    options = parser.parse_args(arguments)
    if not CHECKOUT.joinpath("pyproject.toml").is_file():
        sys.stderr.write(f"{CHECKOUT} is no checkout of Tallygate: run this where the sources are\n")
        return 2
    if not options.check:
        for folder, files in ((SCHEMA_FOLDER, schema_files()), (GOLDEN_FOLDER, golden_files())):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                folder.joinpath(name).write_bytes(content)
    lines = stale_files()
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
