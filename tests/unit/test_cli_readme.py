"""The README says what is there: every command, setting, exit code and topic, and figures of the demo that agree."""

import re
from pathlib import Path

import pytest
import yaml

from doc_blocks import check_command, commands_of, fences_of
from tallygate.connectors.litellm_settings import read_settings
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.topics import topic_specs
from tallygate.topologies.exits import MEANINGS
from tallygate.topologies.settings import ENV_PREFIX, Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_table(name: str) -> None:
    [row] = re.findall(rf"^\| `{ENV_PREFIX}{name.upper()}` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    field = Settings.model_fields[name]
    assert row[1] == field.description
    if field.default_factory is None and field.default not in ("", {}, frozenset(), None):
        assert row[0] == f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def test_every_exit_code_is_in_the_table() -> None:
    for code in MEANINGS:
        assert f"\n| {code.value} | " in README


def test_every_topic_is_in_the_table() -> None:
    for spec in topic_specs():
        assert f"\n| `{spec.name.replace('.cli.', '.<service>.')}` | " in README


def test_the_demos_figures_are_those_that_it_must_find() -> None:
    assert README.count("│ 28 185 │   40 421 844 │     4 334 561 │") == 3
    assert "20 reservations of 75 credits at once, against its budget of 500: 6 allowed." in README


def test_what_is_to_be_put_into_files_is_accepted() -> None:
    found = []
    for block in re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        given = yaml.safe_load(block)
        if "meters" in given:
            found.append(read_catalog(given, "README.md").compile(1).features[0].name)
        else:
            fields = ("metadata", "team_metadata", "team_id", "user_id")
            found.append(read_settings(given["callback_settings"]["tallygate"], fields).feature)
    assert found == ["llm", "llm"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^):#]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target


def test_every_command_is_one_with_such_options() -> None:
    commands = [words for fence in fences_of(README) for words in commands_of(fence.text)]
    assert len(commands) >= 30
    for words in commands:
        check_command(words)
