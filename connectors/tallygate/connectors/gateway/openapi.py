"""The description of the API, OpenAPI 3.1, made of the operations, the vocabulary's types and its samples."""

import functools
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec

from tallygate.connectors.gateway import mounts
from tallygate.connectors.gateway.operations import Operation, Parameter, Shown
from tallygate.connectors.gateway.problems import PROBLEM_JSON, Problem, ProblemDetails
from tallygate.connectors.gateway.usage import BATCH_EVENTS_MAX
from tallygate.schemas.export import schema_documents
from tallygate.schemas.json_schema import refined
from tallygate.schemas.names import NAME_MAX

Json = dict[str, Any]

_COMPONENTS: Final = "#/components/schemas/"
_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")

#: What a body may be that no struct describes, by the name that an operation gives it.
_NAMED: Final[dict[str, Json]] = {
    "usage-event": {"$ref": f"{_COMPONENTS}UsageEvent"},
    "usage-events": {
        "type": "array",
        "items": {"$ref": f"{_COMPONENTS}UsageEvent"},
        "minItems": 1,
        "maxItems": BATCH_EVENTS_MAX,
    },
    "usage-event-or-events": {"$ref": f"{_COMPONENTS}UsageEvent"},
    "usage-lines": {"type": "string", "description": "One CloudEvent a line."},
    "catalog-file": {"$ref": f"{_COMPONENTS}CatalogFile"},
}

_PROBLEM_TEXTS: Final = {
    400: "The request is wrong in itself.",
    401: "No API key, or one that does not hold.",
    403: "The key may not do that.",
    404: "There is no such thing.",
    405: "Not with this method.",
    408: "The body came too slowly.",
    409: "It was done otherwise before, or has ended.",
    413: "Too large.",
    415: "Another content type or encoding is needed.",
    422: "Understood, and refused.",
    429: "Too many calls with this key; Retry-After says when to go on.",
    503: "No answer from a worker, or from Kafka: nothing is known, and asking again with the same id is safe.",
}


@functools.cache
def description(url: str) -> bytes:
    """The document, as JSON; `url` is where the gateway is reached."""
    return msgspec.json.encode(document(url))


def document(url: str) -> Json:
    shown = [operation for operation in mounts.operations() if operation.described]
    types, components = _components(shown)
    paths: dict[str, Json] = {}
    for operation in shown:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, types)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tallygate",
            "version": version("tallygate"),
            "description": "Meters usage, holds customers' credits and limits, and says yes or no before the work is "
            "done. Amounts are decimal strings, instants RFC 3339 in UTC. Errors are problem details (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        **({"servers": [{"url": url}]} if url else {}),
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key: `tg_…`."}},
        },
    }


def _components(shown: Iterable[Operation]) -> tuple[dict[Any, Json], Json]:
    """Schemas of all structs that occur, by type and by name."""
    found: list[Any] = [ProblemDetails]
    for operation in shown:
        found += [kind for kind, _ in operation.body.values() if isinstance(kind, type)]
        found += [answer.type for answer in operation.answers.values() if isinstance(answer.type, type)]
    kinds = list(dict.fromkeys(found))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=f"{_COMPONENTS}{{name}}")
    all_of_them: Json = {name: refined(schema) for name, schema in components.items()}
    for name, title in (("usage-event", "UsageEvent"), ("catalog-file", "CatalogFile")):
        all_of_them |= _borrowed(title, schema_documents()[name])
    return dict(zip(kinds, map(refined, schemas), strict=True)), dict(sorted(all_of_them.items()))


def _borrowed(title: str, schema: Json) -> Json:
    """A document of the vocabulary as components."""
    parts = {name: _relinked(part) for name, part in schema["$defs"].items()}
    if title not in parts:
        whole = {name: part for name, part in schema.items() if name not in ("$defs", "$schema", "$id", "examples")}
        parts[title] = _relinked(whole)
    return parts


def _relinked(node: Any) -> Any:
    if isinstance(node, list):
        return [_relinked(part) for part in node]
    if isinstance(node, dict):
        return {
            key: part.replace("#/$defs/", _COMPONENTS) if key == "$ref" else _relinked(part)
            for key, part in node.items()
            # "Not said" is no value that may be said.
            if not (key == "default" and part == "" and "pattern" in node)
        }
    return node


def _operation(operation: Operation, types: Mapping[Any, Json]) -> Json:
    problems = set(operation.problems)
    if operation.scope is not None:
        problems |= {401, 403, 429, 503}
    elif operation.name == "ready":
        problems |= {503}
    found: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.group],
        "responses": {
            **{str(status): _answer(shown, types) for status, shown in operation.answers.items()},
            **{str(status): _problem(status) for status in sorted(problems)},
        },
    }
    if operation.text or operation.scope:
        needed = f"Needs the scope `{operation.scope}`." if operation.scope else ""
        found["description"] = f"{operation.text} {needed}".strip()
    if operation.scope is not None:
        found["security"] = [{"key": []}]
    parameters = [*map(_in_path, _PARAMETER.findall(operation.path)), *map(_parameter, operation.parameters)]
    if parameters:
        found["parameters"] = parameters
    if operation.body:
        content = {media: _content(kind, example, types) for media, (kind, example) in operation.body.items()}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _content(kind: Any, example: Any, types: Mapping[Any, Json]) -> Json:
    found: Json = {}
    if isinstance(kind, str):
        found["schema"] = _NAMED[kind]
    elif isinstance(kind, dict):
        found["schema"] = kind
    elif kind is not None:
        found["schema"] = types[kind]
    else:
        found["schema"] = {"type": "string"}
    if example is not None:
        found["example"] = msgspec.json.decode(msgspec.json.encode(example))
    return found


def _answer(shown: Shown, types: Mapping[Any, Json]) -> Json:
    return {"description": shown.text, "content": {shown.media: _content(shown.type, shown.example, types)}}


def _problem(status: int) -> Json:
    example = Problem(status, "kind-of-problem", _PROBLEM_TEXTS[status]).details()
    found: Json = {
        "description": _PROBLEM_TEXTS[status],
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"{_COMPONENTS}ProblemDetails"}, "example": example}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer"}}}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found


def _in_path(name: str) -> Json:
    schema = {"type": "string", "minLength": 1, "maxLength": NAME_MAX}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _parameter(parameter: Parameter) -> Json:
    found: Json = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.text,
        "required": parameter.required,
        "schema": dict(parameter.schema),
    }
    return found
