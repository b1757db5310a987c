"""The topics as an AsyncAPI 3.0 document, made from `topics.py`, the records' types and the samples.

Source: AsyncAPI 3.0.0, with version 0.5.0 of its Kafka bindings. `export` writes it to `json/asyncapi.json`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from tallygate.schemas import samples, topics, usage_batch
from tallygate.schemas.events import BATCH, BATCH_EVENTS_MAX, STRUCTURED
from tallygate.schemas.json_schema import Json, refine_event, refined
from tallygate.schemas.samples_keys import AUDIT, KEYS
from tallygate.schemas.samples_published import PUBLISHED
from tallygate.schemas.samples_requests import REQUESTS, Sample

_BINDING: Final = "0.5.0"
_JSON: Final = "application/json"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"
_SERVICE: Final = "{service}"

_DECIMAL: Final = {"type": "string", "pattern": "^[0-9]{1,18}$"}
_TEXT: Final = {"type": "string"}
_BYTES: Final = {"type": "string", "description": "The bytes as they are."}
_CUSTOMER: Final = {"type": "string", "minLength": 1, "description": "The customer, in UTF-8."}


class _Message(NamedTuple):
    """`payload`: a struct's type, or a schema. `headers`: name → schema; those in `needed` must be there."""

    name: str
    text: str
    payload: Any
    headers: Mapping[str, Json] = {}
    needed: tuple[str, ...] = ()
    key: Json | None = None
    content_type: str = _JSON
    examples: tuple[Any, ...] = ()


class _Topic(NamedTuple):
    """`does`: what Tallygate does with its records; `reply`: whether each is answered on the topic that it names."""

    name: str
    channel: str
    text: str
    does: str
    messages: tuple[_Message, ...]
    reply: bool = False


def document() -> Json:
    told = _topics()
    payloads = [
        message.payload for topic in told for message in topic.messages if not isinstance(message.payload, dict)
    ]
    specs = {spec.name: spec for spec in topics.topic_specs(services=("service",))}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tallygate's topics",
            "version": "1",
            "description": "What is on Kafka, and what may be put there. Input topics and the journal have one "
            "partition count; a customer's partition is murmur2 of its name, as Kafka's own clients compute it. Readers"
            " ignore fields that they do not know; requests with fields that nobody knows are refused.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _JSON,
        "servers": {
            "kafka": {
                "host": "{brokers}",
                "protocol": "kafka",
                "variables": {"brokers": {"default": "127.0.0.1:9092", "description": "TALLYGATE_KAFKA_BROKERS"}},
            }
        },
        "channels": {topic.channel: _channel(topic, specs[topic.name.replace(_SERVICE, "service")]) for topic in told},
        "operations": {f"{topic.channel}.{topic.does}": _operation(topic) for topic in told},
        "components": {"schemas": _components(payloads)},
    }


def _topics() -> tuple[_Topic, ...]:
    return (
        _Topic(
            topics.USAGE,
            "usage",
            "Usage events, in any of four forms. One counts once in 24 hours, by its source and id; a columnar batch "
            "by its producer, epoch and sequence.",
            "receive",
            tuple(_usage()),
        ),
        _Topic(
            topics.REQUESTS,
            "requests",
            "What services ask. The same id with the same content is answered as it was the first time.",
            "receive",
            tuple(_of_samples(REQUESTS, _REQUEST_HEADERS, (), _CUSTOMER)),
            reply=True,
        ),
        _Topic(
            f"{topics.REPLIES_PREFIX}{_SERVICE}.v1",
            "replies",
            "Answers to one service.",
            "send",
            tuple(_of_samples((samples.ANSWER,), _REPLY_HEADERS, (topics.HEADER_CORRELATION,))),
        ),
        _Topic(
            topics.JOURNAL,
            "journal",
            "The only truth: rows, entries, one record batch a transition. For Tallygate's own processes; read it "
            "through the fence of terms or not at all.",
            "send",
            tuple(_of_samples(samples.JOURNAL, _JOURNAL_HEADERS, tuple(_JOURNAL_HEADERS), _JOURNAL_KEY)),
        ),
        _Topic(
            topics.CATALOG,
            "catalog",
            "Catalog versions, each whole and for good.",
            "send",
            tuple(_of_samples((samples.CATALOG,), key={**_DECIMAL, "description": "The version."})),
        ),
        _Topic(
            topics.DEAD_LETTERS,
            "deadLetters",
            "Records that could not be taken. A mark beside a letter says where it was sent again.",
            "send",
            _DEAD_LETTERS,
        ),
        *(
            _Topic(
                name,
                channel,
                f"{text} At least once, with the same {topics.HEADER_RECORD_ID} each time.",
                "send",
                tuple(_of_samples((sample,), _RECORD_ID, (topics.HEADER_RECORD_ID,), _CUSTOMER)),
            )
            for name, channel, text, sample in zip(
                (topics.DECISIONS, topics.POSTINGS, topics.ALERTS),
                ("decisions", "postings", "alerts"),
                ("Every decision.", "Every posting of the ledger.", "Thresholds that budgets have reached."),
                PUBLISHED,
                strict=True,
            )
        ),
        _Topic(
            topics.KEYS,
            "keys",
            "API keys of gateways, hashed.",
            "send",
            tuple(_of_samples(KEYS, key={**_TEXT, "description": "`key/` or `use/`, and the key's id."})),
        ),
        _Topic(
            topics.AUDIT,
            "audit",
            "Every administrative change: that it was asked for, and its outcome.",
            "send",
            tuple(_of_samples((AUDIT,), key={**_TEXT, "description": "The change's id."})),
        ),
    )


_REQUEST_HEADERS: Final = {
    topics.HEADER_REPLY_TO: {"type": "string", "pattern": topics.REPLY_TOPIC.pattern},
    topics.HEADER_REPLY_PARTITION: {**_DECIMAL, "description": "Of the reply topic; without it, any."},
    topics.HEADER_CORRELATION: {**_BYTES, "description": "Comes back with the answer, as it is."},
}
_REPLY_HEADERS: Final = {topics.HEADER_CORRELATION: _BYTES}
_JOURNAL_HEADERS: Final = {topics.HEADER_TERM: _DECIMAL, topics.HEADER_SEQ: _DECIMAL}
_JOURNAL_KEY: Final = {
    "type": "string",
    "description": "`customer ␀ kind ␀ id`; what begins with ␀ belongs to the partition.",
}
_RECORD_ID: Final = {
    topics.HEADER_RECORD_ID: {"type": "string", "pattern": "^[0-9]+/[0-9]+/[0-9]+$", "description": "Of the entry."}
}
_DEAD_KEY: Final = {"type": "string", "description": "Where it lay: topic/partition/offset."}
_DEAD_LETTERS: Final = (
    _Message(
        "dead-letter",
        "The original bytes. Original headers stand behind their names' prefix.",
        _BYTES,
        {
            topics.HEADER_DEAD_REASON: {"type": "string", "description": "A reason of answers, like `unpriced`."},
            topics.HEADER_DEAD_MESSAGE: {"type": "string", "description": "What is wrong, in a line."},
            topics.HEADER_DEAD_SOURCE: _DEAD_KEY,
            topics.HEADER_DEAD_KEY: {**_BYTES, "description": "The original key, where there was one."},
            f"{topics.DEAD_ORIGINAL_PREFIX}content-type": {**_BYTES, "description": "And so for each other header."},
        },
        (topics.HEADER_DEAD_REASON, topics.HEADER_DEAD_MESSAGE, topics.HEADER_DEAD_SOURCE),
        _DEAD_KEY,
        "application/octet-stream",
    ),
    _Message(
        "dead-letter-mark",
        "A letter was sent again; there is no value.",
        {"type": "string", "maxLength": 0},
        {
            topics.HEADER_DEAD_SOURCE: _DEAD_KEY,
            topics.HEADER_REPLAYED_TO: {"type": "string", "description": "Where the record lies now."},
        },
        (topics.HEADER_DEAD_SOURCE, topics.HEADER_REPLAYED_TO),
        _DEAD_KEY,
        "application/octet-stream",
    ),
)


def _usage() -> Iterable[_Message]:
    event = samples.EVENT
    binary = _as_json(event.full)
    kind = {"content-type": {"type": "string", "const": STRUCTURED.decode()}}
    yield _Message(
        "usage-event",
        "A CloudEvent 1.0 in structured mode.",
        type(event.full),
        kind,
        (),
        _CUSTOMER,
        STRUCTURED.decode(),
        (_as_json(event.full), _as_json(event.minimal)),
    )
    attributes = {
        f"ce_{name}": {"type": "string"} for name in ("specversion", "id", "source", "type", "subject", "time")
    }
    yield _Message(
        "usage-event-binary",
        "A CloudEvent 1.0 in binary mode: the value is its data.",
        {"type": "object", "description": "Quantities and dimensions."},
        {**attributes, "content-type": {"type": "string", "const": _JSON}},
        tuple(name for name in attributes if name != "ce_time"),
        _CUSTOMER,
        examples=(binary["data"],),
    )
    yield _Message(
        "usage-event-batch",
        "CloudEvents of customers of one partition, as an array.",
        {"type": "array", "minItems": 1, "maxItems": BATCH_EVENTS_MAX, "items": {"$ref": _ref_to(type(event.full))}},
        {"content-type": {"type": "string", "const": BATCH.decode()}},
        ("content-type",),
        None,
        BATCH.decode(),
        ([_as_json(event.full), _as_json(event.minimal)],),
    )
    yield _Message(
        "usage-batch",
        f"An Arrow IPC stream of up to {usage_batch.EVENTS_MAX} events of customers of one partition, by columns; "
        "usage-batch.md specifies it.",
        {"type": "string", "description": "An Arrow IPC stream.", "maxLength": usage_batch.BYTES_MAX},
        {
            usage_batch.HEADER_CONTENT_TYPE: {"type": "string", "const": usage_batch.ARROW.decode()},
            usage_batch.HEADER_PRODUCER: {"type": "string", "minLength": 1, "maxLength": 256},
            usage_batch.HEADER_EPOCH: _DECIMAL,
            usage_batch.HEADER_SEQUENCE: _DECIMAL,
        },
        (
            usage_batch.HEADER_CONTENT_TYPE,
            usage_batch.HEADER_PRODUCER,
            usage_batch.HEADER_EPOCH,
            usage_batch.HEADER_SEQUENCE,
        ),
        None,
        usage_batch.ARROW.decode(),
    )


def _of_samples(
    shown: Iterable[Sample], headers: Mapping[str, Json] = {}, needed: tuple[str, ...] = (), key: Json | None = None
) -> Iterable[_Message]:
    """A message for each sample: its type, its docstring, both its forms as examples."""
    for sample in shown:
        kind = type(sample.full)
        text = " ".join((kind.__doc__ or "").split())
        forms = tuple(_as_json(form) for form in (sample.full, sample.minimal))
        yield _Message(sample.name, text, kind, headers, needed, key, examples=forms)


def _channel(topic: _Topic, spec: topics.TopicSpec) -> Json:
    config: Json = {name: _number(value) for name, value in spec.config.items()}
    config["cleanup.policy"] = [spec.config.get("cleanup.policy", "delete")]
    bindings = {"partitions": spec.partitions, "topicConfiguration": config, "bindingVersion": _BINDING}
    found: Json = {
        "address": topic.name,
        "description": topic.text,
        "messages": {message.name: _message(message) for message in topic.messages},
        "bindings": {"kafka": bindings},
    }
    if _SERVICE in topic.name:
        found["parameters"] = {"service": {"description": "1 to 63 lower-case letters, digits and dashes."}}
    return found


def _message(message: _Message) -> Json:
    schema = message.payload if isinstance(message.payload, dict) else {"$ref": _ref_to(message.payload)}
    found: Json = {
        "name": message.name,
        "summary": message.text,
        "contentType": message.content_type,
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": schema},
    }
    if message.headers:
        found["headers"] = {"type": "object", "properties": dict(message.headers), "required": list(message.needed)}
    if topics.HEADER_CORRELATION in message.headers:
        found["correlationId"] = {"location": f"$message.header#/{topics.HEADER_CORRELATION}"}
    if message.key is not None:
        found["bindings"] = {"kafka": {"key": message.key, "bindingVersion": _BINDING}}
    if message.examples:
        found["examples"] = [{"payload": each} for each in message.examples]
    return found


def _operation(topic: _Topic) -> Json:
    found: Json = {"action": topic.does, "channel": {"$ref": f"#/channels/{topic.channel}"}, "summary": topic.text}
    if topic.reply:
        location = f"$message.header#/{topics.HEADER_REPLY_TO}"
        found["reply"] = {"address": {"location": location}, "channel": {"$ref": "#/channels/replies"}}
    return found


def _ref_to(kind: type) -> str:
    return f"#/components/schemas/{kind.__name__}/schema"


def _components(kinds: Iterable[Any]) -> Json:
    """Each record's schema, and all in it, under its name."""
    _, found = msgspec.json.schema_components(
        list(dict.fromkeys(kinds)), ref_template="#/components/schemas/{name}/schema"
    )
    refine_event({"$defs": found})
    return {name: {"schemaFormat": _SCHEMA_FORMAT, "schema": refined(found[name])} for name in sorted(found)}


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _number(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdigit() else text
