"""Calls as LiteLLM's proxy shows them to its callbacks: which are metered how, and what their streams and usage say."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from tallygate.connectors.llm_usage import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    Api,
    input_estimate,
    plain,
    quantities_of,
    usage_of,
)

#: The types of calls that are metered, by the proxy's names.
METERED: Final[Mapping[str, Api]] = {
    "completion": CHAT,
    "acompletion": CHAT,
    "text_completion": COMPLETIONS,
    "atext_completion": COMPLETIONS,
    "embedding": EMBEDDINGS,
    "aembedding": EMBEDDINGS,
    "embeddings": EMBEDDINGS,
    "responses": RESPONSES,
    "aresponses": RESPONSES,
    "anthropic_messages": MESSAGES,
    "aanthropic_messages": MESSAGES,
}
#: Those that no model works for: what is there is looked at, or taken away.
FREE: Final = frozenset(
    {
        "aget_responses",
        "adelete_responses",
        "acancel_responses",
        "alist_input_items",
        "aretrieve_batch",
        "acancel_batch",
        "alist_batches",
        "afile_retrieve",
        "afile_list",
        "afile_delete",
        "afile_content",
        "list_mcp_tools",
    }
)


def estimate(api: Api, request: Mapping[str, Any]) -> int:
    """How many tokens a request's input is likely to be; where it is tokens already, as many as there are."""
    return input_estimate(api, request) + sum(_token_ids(request.get(name)) for name in ("prompt", "input"))


def _token_ids(value: Any) -> int:
    if isinstance(value, int):
        return 1
    return sum(map(_token_ids, value)) if isinstance(value, list) else 0


def took(response: Any, meters: Sequence[str]) -> dict[str, int] | None:
    """What a response took, each token in one meter; None where it does not say. Raises ValueError.

    LiteLLM says usage as OpenAI does, whoever the provider is: the input includes what came from a cache and, under a
    name of its own, what was written to one. On the routes of other APIs it says it as they do.
    """
    found = usage_of(response)
    if found is None:
        return None
    api, usage = found
    return quantities_of(api, with_cache_writes(api, usage), meters)


def with_cache_writes(api: Api, usage: Mapping[str, Any]) -> Mapping[str, Any]:
    if api is not CHAT:
        return usage
    details = dict(usage.get("prompt_tokens_details") or {})
    written = details.get("cache_creation_tokens") or usage.get("cache_creation_input_tokens") or 0
    details.setdefault("cache_write_tokens", written)
    return {**usage, "prompt_tokens_details": details}


class Pieces:
    """The pieces of a stream as mappings: some APIs come as objects, others as the bytes of server-sent events."""

    def __init__(self) -> None:
        self._rest = b""
        self._usage: Any = None

    def of(self, chunk: Any) -> Iterator[Mapping[str, Any]]:
        if isinstance(chunk, str):
            chunk = (chunk if chunk.endswith("\n") else f"{chunk}\n").encode()  # the proxy ends such a piece itself
        if isinstance(chunk, bytes):
            yield from self._events(chunk)
            return
        hidden = getattr(chunk, "_hidden_params", None)
        if isinstance(hidden, Mapping):
            self._usage = hidden  # the usage is put into it after the last piece
        said = chunk.model_dump(mode="json", exclude_none=True) if hasattr(chunk, "model_dump") else plain(chunk)
        if isinstance(said, Mapping):
            yield self._in_full(said)

    def last(self) -> Iterator[Mapping[str, Any]]:
        """What is left at the end of a stream: a line without an end, and what the proxy itself has counted."""
        yield from self._events(b"\n")
        usage = plain(self._usage.get("usage")) if self._usage is not None else None
        if isinstance(usage, Mapping) and usage.get("prompt_tokens"):
            yield self._in_full({"usage": usage})

    def _events(self, chunk: bytes) -> Iterator[Mapping[str, Any]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            try:
                said = msgspec.json.decode(line[5:])
            except msgspec.DecodeError:
                continue  # [DONE], or no JSON
            if isinstance(said, dict):
                yield said

    @staticmethod
    def _in_full(said: Mapping[str, Any]) -> Mapping[str, Any]:
        usage = said.get("usage")
        if not isinstance(usage, Mapping) or "prompt_tokens" not in usage:
            return said
        if not usage["prompt_tokens"] and not usage.get("completion_tokens"):
            return {**said, "usage": None}  # of a piece that is not the last
        return {**said, "usage": with_cache_writes(CHAT, usage)}
