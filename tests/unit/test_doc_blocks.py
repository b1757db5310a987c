"""The rules for code blocks of the documentation: nothing is left undone, and what differs is seen."""

import json
from pathlib import Path

import pytest

from doc_blocks import Block, DocError, blocks_of, check_elsewhere, commands_of, differs, pages_in

DOCS = Path(__file__).parents[2] / "docs" / "pages"


def fenced(info: str, text: str = "true") -> str:
    return f"```{info}\n{text}\n```\n"


def block(language: str, text: str, **flags: str) -> Block:
    return Block("page.md", 1, language, flags, text, "elsewhere" if "elsewhere" in flags else "expected")


def test_each_block_has_its_part() -> None:
    page = "".join(
        [
            fenced("text diagram", "a → b"),
            fenced('yaml title="catalog.yaml"', "meters: {}"),
            fenced("bash", "tallygate catalog apply catalog.yaml"),
            fenced("text", "…"),
            fenced("bash elsewhere", "tallygate up"),
            fenced("python", "print(1)"),
            fenced("sql", "SELECT 1"),
        ]
    )
    roles = [each.role for each in blocks_of("page.md", page)]
    assert roles == ["diagram", "file", "run", "expected", "elsewhere", "run", "run"]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (fenced(""), "nothing is done with this block"),
        (fenced("text", "a"), "nothing is done"),
        (fenced("json", "{}"), "nothing is done"),
        (fenced("yaml", "a: 1"), "nothing is done"),
        (fenced("console", "$ true"), "nothing is done"),
        (fenced("bash") + fenced("text", "") + fenced("text", ""), "nothing is done"),
        (fenced("bash skip"), "no such word in a fence: skip"),
        (fenced('yaml title="x.yaml"', "a: 1") + fenced("bash"), "no later block uses x.yaml"),
    ],
)
def test_a_block_without_a_part_is_an_error(page: str, says: str) -> None:
    with pytest.raises(DocError, match=says):
        blocks_of("page.md", page)


@pytest.mark.parametrize(
    ("wanted", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\nc\n", False),
        ("a", "a\nb\n", False),
        ("held until …; 9 left", "held until 12:00; 9 left", True),
        ("held until …; 9 left", "held until 12:00; 8 left", False),
        ("held until …; 9 left", "held until\n12:00; 9 left", False),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…\nz", "a\nb\nc", False),
        ("a\n…", "a", True),
        ("…\nz", "z", True),
        ("a.c", "abc", False),
    ],
)
def test_text_beside_what_was_printed(wanted: str, printed: str, same: bool) -> None:
    assert (differs(block("text", wanted), printed) == "") is same


@pytest.mark.parametrize(
    ("wanted", "printed", "says"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": 1}, {"a": 2}, "$.a is 2"),
        ({"a": 1}, {"a": 1, "b": 2}, "$ also has b"),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, ""),
        ({"a": 1, "…": "…"}, {"b": 2}, "$ has no a"),
        ({"a": "…"}, {"a": [1]}, ""),
        ([1], [1, 2], "$ has 2 elements"),
        ([1, "…"], [1, 2], ""),
        ([{"a": 1}, "…"], [{"a": 3}], "$[0].a is 3"),
    ],
)
def test_json_beside_what_was_printed(wanted: object, printed: object, says: str) -> None:
    found = differs(block("json", json.dumps(wanted)), json.dumps(printed))
    assert found.startswith(says) if says else found == ""


@pytest.mark.parametrize(
    ("language", "text", "why", "says"),
    [
        ("bash", "tallygate worker --data-dir /x", "", ""),
        ("bash", "KEY=1 tallygate gateway --address 0.0.0.0:1 | tee x", "", ""),
        ("bash", "tallygate wroker", "", "there is no command 'wroker'"),
        ("bash", "tallygate worker --data-dri /x", "", "No such option"),
        ("bash", "true && tallygate catalog aply x.yaml", "", "there is no command 'aply'"),
        ("bash", "if true; then", "", "syntax error"),
        ("ini", "[Service]\nExecStart=/opt/tallygate worker", "a unit of systemd", ""),
        ("ini", "[Service]\nExecStart=/opt/tallygate wroker", "a unit of systemd", "there is no command"),
        ("yaml", "kind: Pod", "Kubernetes", "no manifest"),
        ("yaml", "a: 1", "", "whose file"),
        ("yaml", "groups: [{rules: [{expr: tallygate_owned_partitions}]}]", "Prometheus", ""),
        ("yaml", "groups: [{rules: [{expr: tallygate_owned}]}]", "Prometheus", "no such metrics"),
        ("yaml", "callback_settings: {tallygate: {customer: user_id, url: x}}", "LiteLLM", ""),
        ("yaml", "callback_settings: {tallygate: {custommer: user_id}}", "LiteLLM", "custommer"),
        ("json", "{", "", "Expecting"),
        ("json", '{"sasl.pasword": "x"}', "librdkafka's options", "not carried"),
        ("rust", "fn main", "", "nobody reads rust"),
    ],
)
def test_blocks_for_elsewhere_are_looked_at(language: str, text: str, why: str, says: str) -> None:
    checked = block(language, text, elsewhere=why)
    if not says:
        check_elsewhere(checked)
        return
    with pytest.raises(DocError, match=says):
        check_elsewhere(checked)


def test_commands_are_found_in_a_shell_text() -> None:
    text = "tallygate a 'b c' \\\n  --d | tallygate e > f\nX=1 tallygate g # not h\necho tallygate"
    assert list(commands_of(text)) == [
        ["tallygate", "a", "b c", "--d"],
        ["tallygate", "e", ">", "f"],
        ["tallygate", "g"],
    ]


@pytest.mark.parametrize(("page", "text"), pages_in(DOCS).items(), ids=pages_in(DOCS))
def test_every_block_of_a_page_has_its_part(page: str, text: str) -> None:
    """Running them is `tests/integration/test_docs.py`."""
    blocks = blocks_of(page, text)
    assert len(blocks) * 2 == sum(line.lstrip().startswith("```") for line in text.splitlines())
    for each in blocks:
        if each.role == "elsewhere":
            check_elsewhere(each)
