"""JSON Schemas of the vocabulary, as precise as its readers: what neither msgspec nor pydantic says by itself."""

from inspect import cleandoc
from typing import Any, Final

from tallygate.schemas.amounts import AMOUNT_SCHEMA
from tallygate.schemas.events import ID_MAX
from tallygate.schemas.names import NAME_MAX, NAME_PATTERN

Json = dict[str, Any]

_OFFSET: Final = r"([Zz]|[+-][0-9]{2}:[0-9]{2})$"


def refined(node: Any) -> Any:
    """A schema with its amounts, offsets and closed maps told; and without OpenAPI's keywords."""
    if isinstance(node, list):
        return [refined(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: refined(part) for key, part in node.items() if not (key == "discriminator" and "anyOf" in node)}
    if node.get("format") == "decimal":
        del node["format"], node["type"]
        return AMOUNT_SCHEMA | node
    if node.get("format") == "date-time":
        node["pattern"] = _OFFSET
    if "patternProperties" in node:
        node["additionalProperties"] = False
    if isinstance(node.get("description"), str):
        node["description"] = cleandoc(node["description"])
    return node


def refine_event(schema: Json) -> None:
    """The checks that the reader makes by hand, because it has a reason of its own for each."""
    event = schema["$defs"]["UsageEvent"]
    event["required"].append("subject")
    name = {"type": "string", "minLength": 1, "maxLength": NAME_MAX, "pattern": NAME_PATTERN}
    long = name | {"maxLength": ID_MAX}
    event["properties"] |= {
        "specversion": {"const": "1.0"},
        "id": long | {"description": "With `source`, what is counted once."},
        "source": long,
        "type": name | {"description": "Chooses the meters."},
        "subject": name | {"description": "The customer; also the record's key."},
        "time": {
            "description": "When it happened; without it, when it arrived.",
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}],
        },
        "datacontenttype": {"type": ["string", "null"], "default": "application/json"},
        "data": {
            "description": "Quantities (decimal strings, or JSON numbers read exactly) and dimensions.",
            "type": ["object", "null"],
        },
        "data_base64": {
            "description": "In place of `data`: the JSON object's bytes.",
            "type": ["string", "null"],
            "contentEncoding": "base64",
            "contentMediaType": "application/json",
        },
    }
