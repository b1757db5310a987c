"""What of LiteLLM's proxy can be said without it: its configuration, who calls, what streams and usage say."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tallygate.connectors.client import Tallygate, TallygateHTTP
from tallygate.connectors.litellm_calls import Pieces, estimate, took
from tallygate.connectors.litellm_settings import GateSettings, customer_of, dimensions_of, read_settings
from tallygate.connectors.llm_streams import Seen
from tallygate.connectors.llm_usage import CHAT, COMPLETIONS, EMBEDDINGS, METERS

FIELDS = ("metadata", "team_metadata", "team_id", "user_id", "end_user_id", "api_key")
HTTP = {"url": "http://127.0.0.1:8086", "key": "tg_", "customer": "metadata.customer"}


def test_settings_name_a_gateway_or_brokers() -> None:
    assert isinstance(read_settings(HTTP, FIELDS).client(), TallygateHTTP)
    found = read_settings({"brokers": "127.0.0.1:9092", "customer": ["team_id"], "fail_open": "llm.call"}, FIELDS)
    assert isinstance(found.client(), Tallygate)


@pytest.mark.parametrize(
    ("given", "trouble"),
    [
        (None, "is missing: it says where Tallygate is"),
        ({"url": "http://x", "key": "k"}, "missing required field `customer`"),
        ({**HTTP, "custommer": "x"}, "unknown field `custommer`"),
        ({**HTTP, "output_tokens": 0}, r"`int` >= 1 - at `\$.output_tokens`"),
        ({**HTTP, "brokers": "x:9092"}, "give either url (and key) of a gateway, or brokers"),
        ({"customer": "user_id"}, "give either url (and key) of a gateway, or brokers"),
        ({**HTTP, "key": ""}, "url needs a key"),
        ({**HTTP, "meters": ["tokens"]}, "meters are input_tokens, cached_input_tokens, .*: not tokens"),
        ({**HTTP, "customer": "request.user"}, "whoever calls would choose who pays"),
        ({**HTTP, "customer": ["user_id", "teem_id"]}, "there is no field 'teem_id'"),
        ({**HTTP, "dimensions": {"key": "api_key"}}, "there is no field 'api_key'"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(given: Any, trouble: str) -> None:
    pattern = trouble.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"^callback_settings.tallygate of LiteLLM's config.yaml.*{pattern}"):
        read_settings(given, FIELDS)


def test_every_setting_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/pages/interfaces/litellm.md").read_text()
    named = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in msgspec.structs.fields(GateSettings)} <= named


def test_the_first_field_that_says_something_names_the_customer() -> None:
    settings = read_settings(
        {
            **HTTP,
            "customer": ["metadata.customer", "team_metadata.billing.customer", "team_id"],
            "dimensions": {"team": "team_id", "user": "user_id", "agent": "request.metadata.agent"},
        },
        FIELDS,
    )
    caller = SimpleNamespace(metadata={"customer": ""}, team_metadata=None, team_id="t1", user_id=7)
    request = {"metadata": {"agent": "crawler", "customer": "else"}}
    assert customer_of(settings, caller, request) == "t1"
    assert dimensions_of(settings, caller, request) == {"team": "t1", "user": "7", "agent": "crawler"}
    caller.team_metadata = {"billing": {"customer": "acme"}}
    assert customer_of(settings, caller, request) == "acme"
    assert customer_of(settings, SimpleNamespace(metadata=None), request) is None
    assert dimensions_of(settings, caller, {"metadata": {"agent": {"no": "text"}}}) == {"team": "t1", "user": "7"}


def test_what_is_written_to_a_cache_is_not_input_too() -> None:
    usage = {
        "prompt_tokens": 105,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 40, "cache_creation_tokens": 5},
    }
    assert took(SimpleNamespace(usage=usage), METERS) == dict(zip(METERS, (60, 40, 5, 20), strict=True))
    assert took({"usage": None}, METERS) is None


def test_tokens_count_as_tokens_and_text_by_its_length() -> None:
    assert estimate(EMBEDDINGS, {"input": ["x" * 40, "y" * 40]}) == 20
    assert estimate(EMBEDDINGS, {"input": [[1, 2, 3], [4]]}) == 4
    assert estimate(COMPLETIONS, {"prompt": [1, 2]}) == 2


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_server_sent_events_are_read_however_they_are_cut(size: int) -> None:
    said = [{"type": "content_block_delta", "delta": {"text": "a\nb: }"}}, {"usage": {"output_tokens": 3}}]
    text = b"".join(b"event: x\ndata: " + msgspec.json.encode(each) + b"\n\n" for each in said) + b"data: [DONE]\n\n"
    pieces = Pieces()
    found = [piece for at in range(0, len(text), size) for piece in pieces.of(text[at : at + size])]
    assert [*found, *pieces.last()] == said


def test_a_stream_whose_pieces_say_no_usage_is_settled_by_what_the_proxy_counted_or_by_its_text() -> None:
    class Chunk:
        def __init__(self, **hidden: Any) -> None:
            self._hidden_params = hidden

        def model_dump(self, **_: Any) -> dict[str, Any]:
            none = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            return {"choices": [{"text": "x" * 40}], "usage": none}

    counted = {"usage": {"prompt_tokens": 9, "completion_tokens": 11}}
    for hidden, expected in (({}, (7, 20)), (counted, (9, 11))):
        pieces, seen = Pieces(), Seen(CHAT, ("input_tokens", "output_tokens"), 7)
        for chunk in (Chunk(), Chunk(**hidden)):
            for piece in pieces.of(chunk):
                seen.take(piece)
        for piece in pieces.last():
            seen.take(piece)
        assert tuple(seen.quantities().values()) == expected


def test_without_litellm_it_says_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"needs litellm: pip install 'litellm\[proxy\]'"):
        importlib.import_module("tallygate.connectors.litellm")
