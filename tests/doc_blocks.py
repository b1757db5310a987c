"""The code blocks of a page of documentation, and what a test does with each.

A fence's language and the words after it say what becomes of it; a block without a part to play is an error.

    ```bash                   run in the page's folder, with `tallygate`, `curl` and $KEY, an API key for everything
    ```bash exit=1            … and it ends with 1
    ```bash eventually        … and again, until what follows it is what it says: for what comes a moment later
    ```python                 run; a page's Python blocks share their names, and may `await`
    ```sql                    run by `tallygate sql`, as `eventually`
    ```yaml title="x.yaml"    a file in the page's folder, of any language; a later block has to name it
    ```text, ```json          what the block before it printed; `…` stands for anything, see `differs`
    ```text diagram           nothing to run
    ```bash elsewhere         for other machines or a program that goes on: its syntax is checked, and that each
                              `tallygate …` in it is a command with such options
    ```ini elsewhere="…"      systemd's and Kubernetes' files and the like: parsed as what the language says

Where a page says 127.0.0.1:9092 or 127.0.0.1:8086 (or localhost:…), the test's own broker and gateway are meant.
"""

import configparser
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import typer
import yaml

from tallygate.connectors.gateway.figures import Figures
from tallygate.connectors.kafka_security import wrong_options
from tallygate.connectors.litellm_settings import GateSettings
from tallygate.topologies.cli import app
from tallygate.topologies.metrics import Metrics
from tallygate.topologies.sink_metrics import SinkMetrics

Role = Literal["run", "file", "expected", "elsewhere", "diagram"]

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^ *(?P=ticks) *$", re.M | re.S)
_WORD = re.compile(r'(?P<name>[\w-]+)(?:=(?:"(?P<quoted>[^"]*)"|(?P<plain>\S+)))?')
_RUN = ("bash", "python", "sql")
_SHOWN = ("text", "json")
_FLAGS = ("exit", "eventually", "title", "diagram", "elsewhere")
_ANY = "…"
#: What a wrong option raises; typer brings a click of its own.
_UsageError: Any = typer.BadParameter.__base__


class DocError(AssertionError):
    """A block that has no part to play, or that is not what it says it is."""


class Block(NamedTuple):
    page: str
    line: int
    language: str
    flags: dict[str, str]
    text: str
    role: Role

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


class Fence(NamedTuple):
    line: int
    info: str
    text: str


def fences_of(markdown: str) -> Iterator[Fence]:
    for fence in _FENCE.finditer(markdown):
        text = re.sub(rf"^{fence['indent']}", "", fence["text"], flags=re.M) if fence["indent"] else fence["text"]
        yield Fence(markdown.count("\n", 0, fence.start()) + 1, fence["info"].strip(), text)


def blocks_of(page: str, markdown: str) -> list[Block]:
    """The blocks of a page in their order. Raises DocError for one that nothing would be done with."""
    found: list[Block] = []
    for line, info, text in fences_of(markdown):
        language, _, rest = info.partition(" ")
        flags = {word["name"]: word["quoted"] or word["plain"] or "" for word in _WORD.finditer(rest)}
        if unknown := set(flags) - set(_FLAGS):
            raise DocError(f"{page}:{line}: no such word in a fence: {', '.join(sorted(unknown))}")
        role = _role(language, flags, found[-1] if found else None)
        if role is None:
            raise DocError(f"{page}:{line}: nothing is done with this block ({info or 'no language'})")
        found.append(Block(page, line, language, flags, text, role))
    _check_files(found)
    return found


def _role(language: str, flags: dict[str, str], before: Block | None) -> Role | None:
    if "elsewhere" in flags:
        return "elsewhere"
    if "title" in flags:
        return "file"
    if language in _RUN:
        return "run"
    if language == "text" and "diagram" in flags:
        return "diagram"
    return "expected" if language in _SHOWN and before is not None and before.role == "run" else None


def _check_files(blocks: list[Block]) -> None:
    for index, block in enumerate(blocks):
        if block.role == "file":
            name = block.flags["title"]
            if not any(name in later.text for later in blocks[index + 1 :] if later.role == "run"):
                raise DocError(f"{block.place}: no later block uses {name}")


# ---- what a block printed, beside what the page says ----


def differs(expected: Block, printed: str) -> str:
    """What is otherwise than the page says; empty: nothing.

    In text `…` stands for anything within a line, and alone in a line for any lines. In JSON the value "…" stands for
    any value, the key "…" for any further keys, and "…" at the end of a list for any further elements; of several
    JSON values, a line each, the last is meant.
    """
    if expected.language == "json":
        found = _last_json(printed)
        where = _json_differs(json.loads(expected.text), found, "$")
        return f"{where}, in {json.dumps(found, ensure_ascii=False)}" if where else ""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == _ANY else ".*?".join(map(re.escape, line.rstrip().split(_ANY))) + r"\n"
        for line in expected.text.rstrip().splitlines()
    )
    shown = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
    return "" if re.fullmatch(pattern, shown) else f"it printed:\n{shown}"


def _last_json(printed: str) -> Any:
    for text in (printed, (printed.strip().splitlines() or [""])[-1]):
        try:
            return json.loads(text)
        except ValueError:
            continue
    return f"no JSON: {printed}"


def _json_differs(wanted: Any, found: Any, where: str) -> str:
    if wanted == _ANY:
        return ""
    if isinstance(wanted, dict) and isinstance(found, dict):
        if _ANY not in wanted and (further := found.keys() - wanted.keys()):
            return f"{where} also has {', '.join(sorted(further))}"
        for key, value in wanted.items():
            if key != _ANY:
                if key not in found:
                    return f"{where} has no {key}"
                if found_in := _json_differs(value, found[key], f"{where}.{key}"):
                    return found_in
        return ""
    if isinstance(wanted, list) and isinstance(found, list):
        open_ended = wanted[-1:] == [_ANY]
        parts = wanted[:-1] if open_ended else wanted
        if len(found) < len(parts) or (len(found) > len(parts) and not open_ended):
            return f"{where} has {len(found)} elements"
        pairs = enumerate(zip(parts, found, strict=False))
        return next((it for n, (a, b) in pairs if (it := _json_differs(a, b, f"{where}[{n}]"))), "")
    return "" if wanted == found else f"{where} is {json.dumps(found, ensure_ascii=False)}"


# ---- blocks that are for elsewhere ----


def check_elsewhere(block: Block) -> None:
    """Parses it as what it says it is."""
    try:
        if block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, capture_output=True)
            for words in commands_of(block.text):
                check_command(words)
        elif block.language == "yaml":
            documents = list(yaml.safe_load_all(block.text))
            if "Kubernetes" in block.flags["elsewhere"]:
                assert all({"apiVersion", "kind", "metadata", "spec"} <= set(each) for each in documents), "no manifest"
            elif "Prometheus" in block.flags["elsewhere"]:
                assert all(rule["expr"] for group in documents[0]["groups"] for rule in group["rules"]), "no rules"
                unknown = set(re.findall(r"tallygate_\w+", block.text)) - _metric_names()
                assert not unknown, f"no such metrics: {unknown}"
            elif "LiteLLM" in block.flags["elsewhere"]:
                msgspec.convert(documents[0]["callback_settings"]["tallygate"], GateSettings)
            else:
                raise AssertionError("whose file is it? Kubernetes', Prometheus', LiteLLM's?")
        elif block.language == "ini":
            parser = configparser.ConfigParser(strict=False, interpolation=None)
            parser.optionxform = str  # type: ignore[assignment, method-assign]
            parser.read_string(block.text)
            assert {"Service"} <= set(parser.sections()), "no unit of systemd"
            words = shlex.split(parser["Service"]["ExecStart"])
            assert words[0].endswith("/tallygate"), words
            check_command(["tallygate", *words[1:]])
        elif block.language == "json":
            value = json.loads(block.text)
            if "librdkafka" in block.flags["elsewhere"] and (wrong := wrong_options(value)):
                raise AssertionError(wrong)
        else:
            raise AssertionError(f"nobody reads {block.language}")
    except (AssertionError, ValueError, yaml.YAMLError, configparser.Error) as error:
        raise DocError(f"{block.place}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise DocError(f"{block.place}: {error.stderr}") from error


def _metric_names() -> set[str]:
    """Every name that Prometheus keeps of the metrics of a worker, a sink and a gateway."""
    names = set()
    for registry in (Metrics().registry, SinkMetrics().registry, Figures().registry):
        for name in registry._names_to_collectors:
            names |= {name, f"{name}_bucket"}
    return names


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each `tallygate …` in a shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:
            continue  # a string over several lines: bash has looked at it
        command: list[str] = []
        for word in [*words, ";"]:
            if word and set(word) <= set("|&;"):
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0], re.S):
                    del command[0]
                if command[:1] == ["tallygate"]:
                    yield command
                command = []
            else:
                command.append(word)


def check_command(words: list[str]) -> None:
    """Raises DocError unless it is a command of ours with options that it has. Nothing is run."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="tallygate")
    left = [word for word in words[1:] if word != "--traceback"]
    redirect = next((n for n, word in enumerate(left) if word and set(word) <= set("<>")), None)
    left = left[:redirect]
    while hasattr(command, "commands"):
        if not left or left[0].startswith("-"):
            return  # options of the program itself
        name = left.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise DocError(f"there is no command {name!r}")
        command = found
        context = typer.Context(command, info_name=name, parent=context)
    try:
        command.make_context(context.info_name, left, parent=context.parent)
    except typer.Exit:  # --help
        return
    except _UsageError as error:
        if "does not exist" not in error.format_message():  # a file of the reader's
            raise DocError(f"{' '.join(words)}: {error.format_message()}") from error


def pages_in(folder: Path) -> dict[str, str]:
    """The text of every page below a folder, by its path there."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.md"))}
