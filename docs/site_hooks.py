"""What mkdocs asks for while it builds: the generated pages, and fences without the words that tests read."""

import re
from typing import Any

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

#: A fence's language, and what follows it for `tests/doc_blocks.py`; a title is shown.
_FENCE = re.compile(r"^( *`{3,}[a-z]+) +(.+)$", re.MULTILINE)
_TITLE = re.compile(r'title="[^"]*"')


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for path, content in reference.generated().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _FENCE.sub(lambda fence: " ".join([fence[1], *_TITLE.findall(fence[2])]), markdown)
