"""Every block of the documentation does what its page says, against one broker, worker, sink and gateway."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tallygate.topologies
from doc_blocks import DocError, blocks_of, pages_in
from doc_runner import Place, Reading, page_environment
from fake_provider import fake_provider
from gateway_stack import gateway_stack
from kafka_fixture import Broker
from quick_commands import quick_commands

PAGES = pages_in(Path(__file__).parents[2] / "docs" / "pages")
#: What `tallygate up` puts in force where there is no catalog.
EXAMPLE = Path(tallygate.topologies.__path__[0], "demo_data", "catalog.yaml")


@pytest.fixture(scope="module")
def place(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("docs")
    catalog: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    with (
        fake_provider() as provider,
        gateway_stack(module_kafka.bootstrap, folder, sink=True, catalog=catalog) as stack,
    ):
        environment = page_environment(
            stack,
            module_kafka.bootstrap,
            folder,
            TALLYGATE_PARTITIONS="4",  # as the topics here are declared
            OPENAI_BASE_URL=f"{provider.url}/v1",
            OPENAI_API_KEY="none",
        )
        with quick_commands(folder / "bin", environment) as commands:
            environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
            yield Place(stack, module_kafka.bootstrap, folder, environment)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_does_what_it_says(place: Place, page: str) -> None:
    if not blocks_of(page, PAGES[page]):
        return
    place.apply(EXAMPLE)
    with Reading(place, page, PAGES[page]) as reading:
        reading.run()
    assert reading.done == blocks_of(page, PAGES[page])


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```bash\nfalse\n```\n", "page.md:1: it ended with 1"),
        ("```bash exit=1\ntrue\n```\n", "page.md:1: it ended with 0"),
        ("```bash\necho a\n```\n\n```text\nb\n```\n", "page.md:5: it printed:\na"),
        ("```bash\ntallygate balance stranger\n```\n", "page.md:1: it ended with"),
        ("```python\nawait no_such_name()\n```\n", "page.md:1: NameError"),
        ("```python\nprint(1)\n```\n\n```json\n2\n```\n", "page.md:5: \\$ is 1"),
    ],
)
def test_a_page_that_is_wrong_fails(place: Place, page: str, says: str) -> None:
    with pytest.raises(DocError, match=says), Reading(place, "page.md", page) as reading:
        reading.run()
