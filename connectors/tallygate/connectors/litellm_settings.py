"""How LiteLLM's proxy is put behind the gate: what stands in its config.yaml, and whose credits a call takes.

    callback_settings:
      tallygate:
        url: http://127.0.0.1:8086
        key: os.environ/TALLYGATE_KEY
        customer: [metadata.customer, team_id]
        dimensions: {team: team_alias, user: user_id, agent: request.metadata.agent}

`customer` and `dimensions` name fields of what the proxy knows of its caller (LiteLLM's `UserAPIKeyAuth`): `user_id`,
`team_id`, `org_id`, `end_user_id`, `key_alias`, `metadata.…` of the key, `team_metadata.…` and so on; the first of a
list that says something holds. A dimension may also come from the request, which the caller writes: `request.…`. So
does `end_user_id`: as the customer it is good where callers are services of your own.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from tallygate.connectors.client_async import Tallygate
from tallygate.connectors.client_calls import TallygateClient
from tallygate.connectors.client_http import TallygateHTTP
from tallygate.connectors.llm_calls import OUTPUT_TOKENS_DEFAULT
from tallygate.connectors.llm_usage import METERS

TIMEOUT_SECONDS_DEFAULT: Final = 7.0
_REQUEST: Final = "request"
#: The key itself: it would stand in the journal.
_SECRET: Final = "api_key"
_Positive = Annotated[int, Meta(ge=1)]


class GateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`callback_settings.tallygate`.

    Either `url` and `key` of a gateway, or Kafka's `brokers`, with a `service` (`tallygate topics --service litellm`)
    and more options of librdkafka (`kafka`). `feature`, `meters`, `output_tokens`, `at_least` and `ttl_seconds` are
    those of `wrap`. Without an answer within `timeout` seconds, longer than the gateway's own, a call is refused with
    503; with `fail_open` it goes ahead, and what it took is reported as an event of that type. Kinds of calls that are
    not metered (images, audio, batches, ...) are refused, unless `unmetered` names them, as LiteLLM does
    (`image_generation`).
    """

    customer: str | list[str]
    dimensions: dict[str, str | list[str]] = {}
    url: str = ""
    key: str = ""
    brokers: str = ""
    service: str = "litellm"
    kafka: dict[str, str] = {}
    feature: str = "llm"
    meters: tuple[str, ...] = METERS
    output_tokens: _Positive = OUTPUT_TOKENS_DEFAULT
    at_least: _Positive | None = None
    ttl_seconds: _Positive | None = None
    timeout: Annotated[float, Meta(gt=0)] = TIMEOUT_SECONDS_DEFAULT
    fail_open: str = ""
    unmetered: tuple[str, ...] = ()

    def client(self) -> TallygateClient:
        """Not started yet."""
        fail_open = {self.feature: self.fail_open} if self.fail_open else None
        if self.url:
            return TallygateHTTP(
                self.url, key=self.key, timeout=self.timeout, try_timeout=self.timeout, fail_open=fail_open
            )
        return Tallygate(
            self.brokers, service=self.service, timeout=self.timeout, kafka=self.kafka, fail_open=fail_open
        )


def read_settings(found: object, fields: Collection[str]) -> GateSettings:
    """The settings, checked; `fields` are those that a caller of the proxy has. Raises ValueError: one clear line."""
    where = "callback_settings.tallygate of LiteLLM's config.yaml"
    if found is None:
        raise ValueError(f"{where} is missing: it says where Tallygate is (url, key) and which field is the customer")
    try:
        settings = msgspec.convert(found, GateSettings)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from None
    trouble = _trouble(settings, fields)
    if trouble:
        raise ValueError(f"{where}: {trouble}")
    return settings


def _trouble(settings: GateSettings, fields: Collection[str]) -> str:
    if bool(settings.url) == bool(settings.brokers):
        return "give either url (and key) of a gateway, or brokers of Kafka"
    if settings.url and not settings.key:
        return "url needs a key: `tallygate keys create litellm --scope decide --scope ingest`"
    if wrong := [meter for meter in settings.meters if meter not in METERS]:
        return f"meters are {', '.join(METERS)}: not {', '.join(wrong)}"
    for path in _listed(settings.customer):
        if path.partition(".")[0] == _REQUEST:
            return f"customer cannot be {path!r}: whoever calls would choose who pays"
    for path in [*_listed(settings.customer), *(each for of in settings.dimensions.values() for each in _listed(of))]:
        name = path.partition(".")[0]
        if name != _REQUEST and (name not in fields or name == _SECRET):
            return f"there is no field {name!r} (in {path!r}) to tell callers by; metadata.… is the key's"
    return ""


def customer_of(settings: GateSettings, caller: object, request: Mapping[str, Any]) -> str | None:
    return _first(settings.customer, caller, request)


def dimensions_of(settings: GateSettings, caller: object, request: Mapping[str, Any]) -> dict[str, str]:
    found = {name: _first(paths, caller, request) for name, paths in settings.dimensions.items()}
    return {name: value for name, value in found.items() if value is not None}


def _first(paths: str | list[str], caller: object, request: Mapping[str, Any]) -> str | None:
    for path in _listed(paths):
        head, *rest = path.split(".")
        value: Any = request if head == _REQUEST else getattr(caller, head, None)
        for name in rest:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def _listed(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths
