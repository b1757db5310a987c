"""What a name may look like: customers, ids, features, meters, dimensions and their values.

Source of the excluded characters: the CloudEvents 1.0.2 type `String`, which allows neither C0 nor C1 controls. The
journal relies on it: ␀ separates the parts of its keys.
"""

import re
from typing import Annotated, Final

from msgspec import Meta

NAME_MAX: Final = 256
#: No control character anywhere. `(?![\s\S])` is the end of the text; `$` would let a last line feed pass in Python.
NAME_PATTERN: Final = r"^[^\x00-\x1f\x7f-\x9f]+(?![\s\S])"

Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX, pattern=NAME_PATTERN)]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def has_control(text: str) -> bool:
    """Whether a control character is in the text; the common case costs one pass in C."""
    return not text.isprintable() and _CONTROL.search(text) is not None
