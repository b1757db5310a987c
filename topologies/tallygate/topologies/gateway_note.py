"""Where a gateway listens, noted in its data folder for whoever started it there: a free port is known only then."""

import contextlib
import json
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tallygate.topologies.settings import Settings

LISTENING_FILE: Final = "gateway-http.json"
_ASK_SECONDS: Final = 2.0


@contextlib.contextmanager
def noted(data_dir: Path, url: str) -> Iterator[None]:
    """The note is there for as long as the gateway listens. Of several on one folder, it names the last."""
    path = data_dir / LISTENING_FILE
    data_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": url}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def listening_url(settings: Settings) -> str | None:
    """The URL of the gateway that listens on this data folder."""
    try:
        return str(json.loads((settings.data_dir / LISTENING_FILE).read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_ready(url: str) -> bool:
    """Whether it is connected. Its certificate is looked at by whoever sends it a key."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=_ASK_SECONDS, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
