"""Tokens of a language model's call as quantities of meters: estimated before it, taken from its usage after it.

Providers count differently: OpenAI's input tokens include those that came from a cache, Anthropic's do not.
genai-prices knows how each says it; here each token is in one meter, as in the catalogs of `catalog import-prices`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

INPUT: Final = "input_tokens"
CACHED: Final = "cached_input_tokens"
CACHE_WRITE: Final = "cache_write_tokens"
OUTPUT: Final = "output_tokens"
METERS: Final = (INPUT, CACHED, CACHE_WRITE, OUTPUT)

_CHARACTERS_A_TOKEN: Final = 4
#: What stands beside the text of a message or a piece of a stream, and is no text.
_NO_TEXT: Final = frozenset({"type", "role", "id", "index", "signature", "cache_control"})


class Api(NamedTuple):
    """One way of asking a model: where it is in a client, how it limits output, what its input is made of."""

    path: tuple[str, ...]
    provider: str
    flavor: str
    limits: tuple[str, ...]
    inputs: tuple[str, ...]


CHAT: Final = Api(
    ("chat", "completions"), "openai", "chat", ("max_completion_tokens", "max_tokens"), ("messages", "tools")
)
RESPONSES: Final = Api(
    ("responses",), "openai", "responses", ("max_output_tokens",), ("input", "instructions", "tools")
)
MESSAGES: Final = Api(("messages",), "anthropic", "default", ("max_tokens",), ("messages", "system", "tools"))
COMPLETIONS: Final = Api(("completions",), "openai", "chat", ("max_tokens",), ("prompt",))
EMBEDDINGS: Final = Api(("embeddings",), "openai", "embeddings", (), ("input",))
#: Those of which `wrap` knows how to meter a client's calls.
APIS: Final = (CHAT, RESPONSES, MESSAGES)


def plain(value: Any) -> Any:
    """A provider's object as mappings and sequences, without what is not said."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(each) for each in value]
    return value


def characters(value: Any) -> int:
    """How much text there is in a message, or in a piece of a stream."""
    match value:
        case str():
            return len(value)
        case Mapping():
            return sum(characters(each) for name, each in value.items() if name not in _NO_TEXT)
        case list() | tuple():
            return sum(map(characters, value))
        case _:
            return 0


def tokens_of(count: int) -> int:
    """A rough number of tokens of so many characters, rounded up."""
    return -(-count // _CHARACTERS_A_TOKEN)


def input_estimate(api: Api, arguments: Mapping[str, Any]) -> int:
    return tokens_of(sum(characters(plain(arguments.get(name))) for name in api.inputs))


def quantities_of(api: Api, usage: Mapping[str, Any], meters: Sequence[str] = METERS) -> dict[str, int]:
    """Each token in one of the meters. Where there is none for cached tokens, they are input. Raises ValueError."""
    _, found = _providers()[api.provider].extract_usage({"model": "", "usage": usage}, api_flavor=api.flavor)
    cached, written = found.cache_read_tokens or 0, found.cache_write_tokens or 0
    quantities = {
        INPUT: max(0, (found.input_tokens or 0) - cached - written),
        CACHED: cached,
        CACHE_WRITE: written,
        OUTPUT: found.output_tokens or 0,
    }
    return folded(quantities, meters)


def folded(quantities: Mapping[str, int], meters: Sequence[str]) -> dict[str, int]:
    """The quantities by the meters that there are."""
    made = {meter: quantities.get(meter, 0) for meter in METERS if meter in meters}
    for meter in (CACHED, CACHE_WRITE):
        if meter not in meters and INPUT in meters:
            made[INPUT] += quantities.get(meter, 0)
    return made


def usage_of(response: Any) -> tuple[Api, dict[str, Any]] | None:
    """The usage in a response of one of the APIs, if it is one and has it."""
    said = response.get("usage") if isinstance(response, Mapping) else getattr(response, "usage", None)
    usage = plain(said)
    if not isinstance(usage, dict):
        return None
    if "prompt_tokens" in usage:
        return CHAT, usage
    if "input_tokens" not in usage:
        return None
    return RESPONSES if "input_tokens_details" in usage or "total_tokens" in usage else MESSAGES, usage


@lru_cache(maxsize=1)
def _providers() -> dict[str, Any]:
    from genai_prices.data_snapshot import get_snapshot  # a large table: read when the first call is made

    return {provider.id: provider for provider in get_snapshot().providers if provider.id in ("openai", "anthropic")}
