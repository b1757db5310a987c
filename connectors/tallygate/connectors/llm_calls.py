"""One call of a language model: what it asks of the gate before it is made, and what it took after it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tallygate.connectors.llm_streams import Seen
from tallygate.connectors.llm_usage import CHAT, METERS, OUTPUT, Api, folded, input_estimate, plain, quantities_of
from tallygate.schemas.answers import Answer

Arguments = Mapping[str, Any]

OUTPUT_TOKENS_DEFAULT: Final = 4096


class Plan:
    """How calls are metered: `wrap` explains each of these."""

    def __init__(
        self,
        feature: str,
        meters: Sequence[str],
        input_tokens: Callable[[Arguments], int] | None,
        output_tokens: int,
        at_least: int | None,
        ttl_seconds: int | None,
    ) -> None:
        if wrong := set(meters) - set(METERS):
            raise ValueError(f"meters are {', '.join(METERS)}: not {', '.join(sorted(wrong))}")
        self.feature = feature
        self.meters = tuple(meters)
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.at_least = at_least
        self.ttl_seconds = ttl_seconds


class Call:
    """What is asked of the gate, and what of the provider."""

    def __init__(self, plan: Plan, api: Api, arguments: Arguments) -> None:
        self._plan = plan
        self._api = api
        self.arguments = arguments
        count = plan.input_tokens
        self._input = input_estimate(api, arguments) if count is None else count(arguments)
        choices = arguments.get("n")
        self._choices = choices if isinstance(choices, int) and choices > 0 else 1
        self._limit = next(
            (name for name in api.limits if isinstance(arguments.get(name), int)), next(iter(api.limits), "")
        )
        given = arguments.get(self._limit)
        self._output = (given if isinstance(given, int) else plan.output_tokens) * self._choices if self._limit else 0
        self.streams = bool(arguments.get("stream"))
        self.adds_usage = False

    def asked(self, dimensions: Mapping[str, str]) -> dict[str, Any]:
        """What `reserve` is asked; the dimension `model` is added."""
        plan = self._plan
        model = self.arguments.get("model")
        asked: dict[str, Any] = {
            "feature": plan.feature,
            "quantities": folded({"input_tokens": self._input, OUTPUT: self._output}, plan.meters),
            "dimensions": {**({"model": model} if isinstance(model, str) else {}), **dimensions},
            "ttl_seconds": plan.ttl_seconds,
        }
        if plan.at_least is not None and self._limit:
            asked["at_least"] = {OUTPUT: min(plan.at_least * self._choices, self._output)}
        return asked

    def limited(self, answer: Answer) -> dict[str, Any]:
        """The argument that lets the provider answer no more than was affordable, where less would do."""
        if self._plan.at_least is None or answer.hold is None or not self._limit:
            return {}
        return {self._limit: max(1, int(answer.hold.quantities[OUTPUT].partition(".")[0]) // self._choices)}

    def sent(self, answer: Answer) -> dict[str, Any]:
        """What the provider is asked: no more output than was affordable, and with its usage."""
        sent = {**self.arguments, **self.limited(answer)}
        if self.streams and self._api is CHAT:
            options = dict(sent.get("stream_options") or {})
            self.adds_usage = not options.get("include_usage")
            sent["stream_options"] = {**options, "include_usage": True}
        return sent

    def seen(self) -> Seen:
        return Seen(self._api, self._plan.meters, self._input)

    def shown(self, piece: Any) -> bool:
        """Whether a piece of a stream is one that the caller asked for."""
        return not (self.adds_usage and getattr(piece, "usage", None) is not None and not piece.choices)

    def quantities(self, response: Any) -> dict[str, int] | None:
        """What a response took; None, if it does not say so: then what was held is settled."""
        usage = plain(getattr(response, "usage", None))
        return quantities_of(self._api, usage, self._plan.meters) if usage else None
