"""What a stream of a language model has said so far, and what is to be settled when it ends, or breaks off."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tallygate.connectors.llm_usage import CHAT, INPUT, OUTPUT, RESPONSES, Api, characters, folded, plain, quantities_of
from tallygate.connectors.llm_usage import tokens_of as tokens

_ENDED: Final = ("response.completed", "response.incomplete", "response.failed")


class Seen:
    """Follows the pieces of one stream.

    A stream that ended has said its usage. One that broke off, or was closed early, is settled by what was seen: input
    as the provider said it, else as it was estimated; output as much as the text that came, at 4 characters a token.
    """

    def __init__(self, api: Api, meters: Sequence[str], input_tokens: int) -> None:
        self._api = api
        self._meters = meters
        self._input_tokens = input_tokens
        self._usage: dict[str, Any] = {}
        self._characters = 0
        self._whole = False

    def take(self, piece: Any) -> None:
        said = plain(piece)
        if not isinstance(said, Mapping):
            return
        if self._api.flavor == CHAT.flavor:
            choices = said.get("choices", ())
            self._characters += characters([choice.get("delta") or choice.get("text") for choice in choices])
            self._note(said.get("usage"), whole=True)
        elif self._api is RESPONSES:
            if str(said.get("type", "")).endswith(".delta"):
                self._characters += characters(said.get("delta"))
            if said.get("type") in _ENDED:
                self._note(said.get("response", {}).get("usage"), whole=True)
        else:
            self._characters += characters(said.get("delta")) if said.get("type") == "content_block_delta" else 0
            self._note(said.get("message", {}).get("usage"), whole=False)
            self._note(said.get("usage"), whole=True)  # of a message_delta: all of its output so far

    def _note(self, usage: Mapping[str, Any] | None, *, whole: bool) -> None:
        if usage:
            self._usage |= usage
            self._whole = self._whole or whole

    def quantities(self) -> dict[str, int]:
        """What to settle now."""
        if self._whole:
            return quantities_of(self._api, self._usage, self._meters)
        output = tokens(self._characters)
        if self._usage:
            output = max(output, self._usage.get("output_tokens", 0))
            return quantities_of(self._api, {**self._usage, "output_tokens": output}, self._meters)
        return folded({INPUT: self._input_tokens, OUTPUT: output}, self._meters)
