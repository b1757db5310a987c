"""The documentation builds without a warning, loads nothing from elsewhere, and its generated pages are whole."""

import html.parser
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from doc_blocks import blocks_of, check_elsewhere
from tallygate.schemas.requests import OPS
from tallygate.schemas.topics import topic_specs
from tallygate.topologies.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def build(config: Path, into: Path) -> "subprocess.CompletedProcess[str]":
    """As `make docs` does. Never with --quiet, under which mkdocs counts no warnings: nothing would be strict."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(into)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    ran = build(DOCS / "mkdocs.yml", folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="module")
def pages() -> dict[str, str | bytes]:
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str | bytes] = module.generated()
    return found


class Loads(html.parser.HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.found.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload") and given.get("href"):
            self.found.append(given["href"])


def test_a_broken_link_a_missing_anchor_and_a_page_in_no_menu_fail(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "pages", tmp_path / "pages")
    (tmp_path / "pages" / "forgotten.md").write_text("# Forgotten\n")
    with (tmp_path / "pages" / "index.md").open("a") as page:
        page.write("\n[one](no-such-page.md) [two](concepts.md#no-such-heading)\n")
    config = {
        "INHERIT": str(DOCS / "mkdocs.yml"),
        "docs_dir": str(tmp_path / "pages"),
        "hooks": [str(DOCS / "site_hooks.py")],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    ran = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert ran.returncode == 1
    for wrong in ("no-such-page.md", "no-such-heading", "forgotten.md", "Aborted with 3 warnings"):
        assert wrong in ran.stderr + ran.stdout


def test_make_builds_it_as_this_does() -> None:
    assert "mkdocs build --strict -f docs/mkdocs.yml\n" in (DOCS.parent / "Makefile").read_text()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = {one for page in site.rglob("*.html") for one in Loads(page).found}
    assert any(one.endswith(".js") for one in loaded)
    assert [one for one in sorted(loaded) if "//" in one] == []


def test_fences_lose_the_words_that_are_for_tests(site: Path) -> None:
    page = (site / "interfaces" / "catalog.html").read_text()
    assert page.count('<div class="highlight">') == len(
        blocks_of("", (DOCS / "pages/interfaces/catalog.md").read_text())
    )
    assert page.count('<span class="filename">catalog.yaml</span>') == 1
    for html_page in site.rglob("*.html"):
        assert "```" not in html_page.read_text(), html_page


def test_blocks_of_generated_pages_are_sound(pages: dict[str, str | bytes]) -> None:
    checked = 0
    for name, text in pages.items():
        if isinstance(text, str) and name.endswith(".md"):
            for block in blocks_of(name, text):
                assert block.role == "elsewhere"
                check_elsewhere(block)
                checked += 1
    assert checked > 100


def test_the_reference_names_everything(pages: dict[str, str | bytes]) -> None:
    def said(name: str) -> str:
        text = pages[f"reference/{name}.md"]
        assert isinstance(text, str)
        return text

    for spec in topic_specs():
        assert f"## {spec.name.replace('.cli.', '.&lt;service&gt;.')}\n" in said("topics")
    for op in OPS.values():
        assert f"### request-{op}\n" in said("topics") or op in ("reset", "grant", "void-grant", "budget")
    for name in Settings.model_fields:
        assert f"`TALLYGATE_{name.upper()}`" in said("settings")
    for command in ("reserve", "catalog apply", "dead-letters replay", "keys rotate", "ledger verify", "bench usage"):
        assert f"## tallygate {command}\n" in said("cli")
    for route in ("POST /v1/reserve", "GET /v1/customers/{customer}/balance", "POST /v1/usage", "GET /v1/stream"):
        assert f"### {route}\n" in said("http")
    for tool in ("check", "reserve", "settle", "release", "report_usage", "balance", "limits", "explain_denial"):
        assert f"## {tool}\n" in said("mcp-tools")
