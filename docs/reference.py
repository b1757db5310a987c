"""The pages that are made from the code: commands, routes, topics, tools, settings, metrics. Nothing of them is kept.

`python docs/reference.py FOLDER` writes them, to be looked at.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from tallygate.connectors.gateway.figures import Figures
from tallygate.connectors.gateway.openapi import description
from tallygate.connectors.mcp.tools import INSTRUCTIONS, build_server
from tallygate.schemas import asyncapi
from tallygate.topologies.cli import app
from tallygate.topologies.exits import MEANINGS
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.settings import ENV_PREFIX, Settings
from tallygate.topologies.sink_metrics import SinkMetrics

CHECKOUT = Path(__file__).parents[1]
_RESULTS = CHECKOUT / "load-tests" / "results"
_SCHEMAS = CHECKOUT / "schemas" / "tallygate" / "schemas"


def generated() -> dict[str, str | bytes]:
    """Path below `pages` → content."""
    return {
        "reference/cli.md": "\n".join(_commands()),
        "reference/http.md": "\n".join(_routes()),
        "reference/openapi.json": _json(json.loads(description("http://127.0.0.1:8086"))),
        "reference/topics.md": "\n".join(_topics()),
        "reference/asyncapi.json": _json(asyncapi.document()),
        "reference/usage-batch.md": (_SCHEMAS / "usage-batch.md").read_text(),
        "reference/mcp-tools.md": "\n".join(_tools()),
        "reference/settings.md": "\n".join(_settings()),
        "reference/metrics.md": "\n".join(_metrics()),
        "reference/measurements.md": (_RESULTS / "README.md").read_text(),
        "reference/limits.md": (_RESULTS / "limits.md").read_text().replace("README.md", "measurements.md"),
        **{f"reference/{path.name}": path.read_bytes() for path in sorted(_RESULTS.glob("*.svg"))},
        **{f"reference/{path.name}": path.read_bytes() for path in sorted(_RESULTS.glob("*-profile.txt"))},
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    heads = list(head)
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"
    yield ""


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


# ---- commands ----


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "Settings are [environment variables](settings.md). Each command has `--help`.\n"
    yield from _table(("exit code", "means"), ((code.value, text) for code, text in MEANINGS.items()))
    root = typer.main.get_command(app)
    yield from _group(root, typer.Context(root, info_name="tallygate"))


def _group(group: Any, context: typer.Context) -> Iterator[str]:
    for name in sorted(group.list_commands(context)):
        command: Any = group.get_command(context, name)
        if command.hidden:
            continue
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "commands") and not command.params and not command.invoke_without_command:
            yield from _group(command, inner)
            continue
        yield from _command(command, inner)
        if hasattr(command, "commands"):
            yield from _group(command, inner)


def _command(command: Any, context: typer.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {context.command_path}\n"
    yield f"`{context.command_path} {usage}`\n"
    for paragraph in re.split(r"\n\s*\n", (command.help or "").replace("\f", "")):
        kept = "\b" in paragraph
        lines = [line for line in paragraph.replace("\b", "").strip("\n").splitlines() if line.strip()]
        if kept and any(line.strip().startswith(("tallygate ", "$ ")) for line in lines):
            yield "```bash elsewhere"
            yield from (line.strip() for line in lines if not line.strip().endswith(":"))
            yield "```\n"
        else:
            yield _prose(" ".join(line.strip() for line in lines)) + "\n"
    options = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    rows = [_option(each) for each in options if each.name != "help"]
    if rows:
        yield from _table(("option", "default", ""), rows)


def _prose(text: str) -> str:
    return re.sub(r"\[/?(bold|italic|dim|cyan|green|red|yellow)\]", "", text).replace("<", "&lt;")


def _option(option: Any) -> tuple[str, str, str]:
    if option.param_type_name == "argument":
        return f"`{(option.metavar or option.name or '').upper()}`", "", _prose(getattr(option, "help", None) or "")
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    default = option.default
    plain = isinstance(default, str | int) and default not in ("", False, None) and not callable(default)
    return names, f"`{default}`" if plain else "", _prose(option.help or "")


# ---- routes ----


def _routes() -> Iterator[str]:
    told = json.loads(description(""))
    yield "# HTTP routes\n"
    yield f"{told['info']['description']} [HTTP](../interfaces/http.md) says how to use them; this page is made from "
    yield "the gateway's own description, [OpenAPI 3.1](openapi.json), which it serves at `/openapi.json`.\n"
    groups: dict[str, list[tuple[str, str, Any]]] = {}
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    for group, operations in groups.items():
        yield f"## {group.capitalize()}\n"
        for method, path, operation in operations:
            yield from _route(method, path, operation)


def _route(method: str, path: str, operation: Any) -> Iterator[str]:
    yield f"### {method} {path}\n"
    yield f"{operation['summary'].rstrip('.')}. {operation.get('description', '')}\n"
    if parameters := operation.get("parameters"):
        rows = (
            (f"`{each['name']}`", each["in"], "yes" if each["required"] else "", each.get("description", ""))
            for each in parameters
        )
        yield from _table(("parameter", "in", "needed", ""), rows)
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from _example(f"Body, `{media}`:", content)
    problems = []
    for status, answer in operation["responses"].items():
        for media, content in answer["content"].items():
            if "problem" in media:
                problems.append((status, answer["description"]))
            else:
                yield from _example(f"{status}: {answer['description']}", content)
    if problems:
        yield from _table(("problem", ""), problems)


def _example(text: str, content: Any) -> Iterator[str]:
    example = content.get("example")
    if not isinstance(example, dict | list):
        yield f"{text}\n"
        return
    yield f'??? example "{_cell(text).replace(chr(34), chr(39))}"\n'
    yield from _indented("json", _json(example))


def _indented(language: str, text: str) -> Iterator[str]:
    yield f"    ```{language} elsewhere"
    yield from (f"    {line}" for line in text.splitlines())
    yield "    ```\n"


# ---- topics ----


def _topics() -> Iterator[str]:
    told = asyncapi.document()
    yield "# Topics\n"
    yield f"{told['info']['description']} This page is made from the [AsyncAPI 3.0 document](asyncapi.json), and that "
    yield "from the code; `tallygate topics` declares what is missing.\n"
    acts = {each["channel"]["$ref"].rpartition("/")[2]: each["action"] for each in told["operations"].values()}
    for name, channel in told["channels"].items():
        yield f"## {channel['address'].replace('{service}', '&lt;service&gt;')}\n"
        yield f"{channel['description']} Tallygate {'reads' if acts[name] == 'receive' else 'writes'} it.\n"
        binding = channel["bindings"]["kafka"]
        config = {"partitions": binding["partitions"], **binding["topicConfiguration"]}
        rows = ((f"`{key}`", ", ".join(v) if isinstance(v, list) else v) for key, v in sorted(config.items()))
        yield from _table(("declared with", ""), rows)
        for message in channel["messages"].values():
            yield from _message(message, told["components"]["schemas"])
    yield from _parts(told)


def _message(message: Any, components: Any) -> Iterator[str]:
    yield f"### {message['name']}\n"
    yield f"{_prose(message['summary'])} Content type `{message['contentType']}`.\n"
    key = message.get("bindings", {}).get("kafka", {}).get("key")
    rows = [("key", "", "", key.get("description", ""))] if key else []
    headers = message.get("headers", {"properties": {}, "required": []})
    for name, schema in headers["properties"].items():
        values = f"`{schema['const']}`" if "const" in schema else schema.get("description", "")
        pattern = f"`{schema['pattern']}`" if "pattern" in schema else ""
        rows.append((f"header `{name}`", "yes" if name in headers["required"] else "", pattern, values))
    if rows:
        yield from _table(("", "needed", "pattern", ""), rows)
    payload = message["payload"]["schema"]
    if "$ref" in payload:
        yield from _fields("field", components[payload["$ref"].split("/")[3]]["schema"])
    if examples := message.get("examples"):
        yield '??? example "The value"\n'
        yield from _indented("json", _json(examples[0]["payload"]))


def _parts(told: Any) -> Iterator[str]:
    """What the messages are made of."""
    messages = [each for channel in told["channels"].values() for each in channel["messages"].values()]
    whole = {each["payload"]["schema"].get("$ref", "////").split("/")[3] for each in messages}
    yield "## Parts\n"
    yield "What is in the fields above.\n"
    for name, component in told["components"]["schemas"].items():
        if name not in whole:
            schema = component["schema"]
            yield f"### {name}\n\n{_prose(' '.join(schema.get('description', '').split()))}\n"
            if "enum" in schema:
                yield ", ".join(f"`{each}`" for each in schema["enum"]) + "\n"
            if schema.get("type") == "array":
                count = len(schema.get("prefixItems", ()))
                yield f"As an array of {count}, in the order of `{name}` in `schemas/tallygate/schemas`.\n"
            yield from _fields("field", schema)


# ---- tools ----


def _tools() -> Iterator[str]:
    def nobody(context: Any) -> Any:
        raise AssertionError("tools are only listed")

    server = build_server(nobody)
    yield "# MCP tools\n"
    yield f"What an agent reads of them; [MCP](../interfaces/mcp.md) says how to connect one.\n\n> {INSTRUCTIONS}\n"
    for tool in asyncio.run(server.list_tools()):
        yield f"## {tool.name}\n\n{tool.description}\n"
        yield from _fields("argument", tool.input_schema)
        yield from _fields("result", tool.output_schema or {})


def _fields(what: str, schema: Any) -> Iterator[str]:
    needed = schema.get("required", ())
    rows = [
        (f"`{name}`", _kind(each), "yes" if name in needed else "", each.get("description", ""))
        for name, each in schema.get("properties", {}).items()
    ]
    if rows:
        third = "always" if what == "result" else "needed"
        yield from _table((what, "type", third, ""), rows)


def _kind(schema: Any) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "$ref" in schema:
        name = schema["$ref"].removesuffix("/schema").rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if schema["$ref"].startswith("#/components/") else str(name)
    if "const" in schema or len(schema.get("enum", ())) == 1:
        return f"`{schema.get('const', schema.get('enum', [''])[0])}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if isinstance(schema.get("type"), list):
        return " or ".join(schema["type"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


# ---- settings and metrics ----


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield "Environment variables; options on the command line win over them. Lists are written with commas, mappings "
    yield "as JSON. Addresses are `host:port`; port 0 takes a free one, an empty address is off.\n"
    yield from _table(("variable", "default", ""), map(_setting, Settings.model_fields))


def _setting(name: str) -> tuple[str, str, str]:
    field = Settings.model_fields[name]
    default: object = field.default
    if field.default_factory is not None:
        default = ",".join(sorted(Settings.model_construct().relay)) if name == "relay" else "the user's data folder"
    elif isinstance(default, bool):
        default = str(default).lower()
    shown = "" if default in ("", None, {}, frozenset()) else f"`{default}`"
    return f"`{ENV_PREFIX}{name.upper()}`", shown, field.description or ""


def _metrics() -> Iterator[str]:
    yield "# Metrics\n"
    yield "For Prometheus. No metric carries a customer or a key.\n"
    makers: tuple[tuple[str, Callable[[], Any], str], ...] = (
        ("Worker", Metrics, "metrics_address"),
        ("Sink", SinkMetrics, "metrics_address"),
        ("Gateway", Figures, "gateway_metrics_address"),
    )
    for who, make, setting in makers:
        yield f"## {who}\n\nAt `{ENV_PREFIX}{setting.upper()}`.\n"
        rows = [
            (
                f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
                family.type,
                _labels(metric),
                family.documentation,
            )
            for metric in make().registry._collector_to_names
            for family in metric.describe()
        ]
        yield from _table(("metric", "type", "labels", ""), rows)


def _labels(metric: Any) -> str:
    return ", ".join(f"`{label}`" for label in metric._labelnames)


def main(folder: str) -> None:
    for name, content in generated().items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


if __name__ == "__main__":
    main(sys.argv[1])
