"""The settings: the only place where the environment is read. Each is `TALLYGATE_` and its name in capitals.

Lists are written with commas, mappings as JSON: `TALLYGATE_KAFKA_CONFIG='{"security.protocol": "SASL_SSL"}'`. What is
in the file that `TALLYGATE_KAFKA_CONFIG_FILE` names is added to that mapping: no secret need be in the environment.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Self

import platformdirs
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tallygate.connectors.kafka_security import wrong_options
from tallygate.schemas.topics import PARTITIONS_DEFAULT, REPLIES_PREFIX

ENV_PREFIX: Final = "TALLYGATE_"

#: What the sink can publish.
RELAYED: Final = ("decisions", "postings", "alerts")

#: The consumer group of all workers of one installation.
GROUP: Final = "tallygate-workers"

_FROM_ELSEWHERE: Final = ("bootstrap.servers", "group.id")
_CONFIG_FILE: Final = f"{ENV_PREFIX}KAFKA_CONFIG_FILE"


class SettingsError(ValueError):
    """What is wrong with the settings: a line each, naming the variable, ready to be shown."""


def _data_dir() -> Path:
    return platformdirs.user_data_path("tallygate", appauthor=False)


class Settings(BaseSettings):
    """Everything an operator may set. Addresses are `host:port`; port 0 takes a free one, an empty address is off."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, str_strip_whitespace=True)

    kafka_brokers: str = Field(
        default="127.0.0.1:9092", min_length=1, description="Kafka's bootstrap servers, with commas"
    )
    kafka_config: Annotated[dict[str, str], NoDecode] = Field(
        default={}, repr=False, description="more librdkafka options for every client, as JSON: security, mostly"
    )
    kafka_config_file: str = Field(
        default="", description="a file with more of them, for what must not be in the environment"
    )
    data_dir: Path = Field(default_factory=_data_dir, description="local tables and the embedded ClickHouse")
    group: str = Field(default=GROUP, min_length=1, description="the consumer group that all workers share")
    instance_id: str = Field(
        default="", description="a worker's lasting name: restarted within a session, it finds its partitions waiting"
    )
    partitions: int = Field(
        default=PARTITIONS_DEFAULT, ge=1, le=4096, description="of the input topics and the journal, when declared"
    )
    reply_topics: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(), description="the reply topics that may be answered on; empty: tallygate.replies.<name>.v1"
    )
    session_timeout_ms: int = Field(
        default=10_000, ge=6_000, le=300_000, description="how long a silent worker keeps its partitions"
    )
    append_timeout_ms: int = Field(
        default=30_000, ge=1_000, le=600_000, description="how long one append may take before the worker ends"
    )
    tick_ms: int = Field(default=1_000, ge=10, le=60_000, description="how often the clock enters the journal")
    step_events_max: int = Field(
        default=100, ge=1, le=100_000, description="usage events decided in one step while requests come"
    )
    step_calm_events_max: int = Field(
        default=2000, ge=1, le=100_000, description="usage events decided in one step while none come"
    )
    step_requests_max: int = Field(default=256, ge=1, le=100_000, description="requests decided in one step")
    standby: bool = Field(
        default=False, description="follow the partitions of other workers, too, so that taking one over is quick"
    )
    accounts_cached_max: int = Field(
        default=100_000,
        ge=1_000,
        le=100_000_000,
        description="how many customers a worker keeps in memory",
    )
    table_memory_mb: int = Field(
        default=256, ge=32, le=1_000_000, description="what a worker's local tables take of memory, all together"
    )
    skip_deleted_inputs: bool = Field(
        default=False, description="go on though inputs were deleted (by retention) before a worker read them"
    )
    clickhouse_dsn: str = Field(
        default="", description="of the sink; default: chdb:///<data_dir>/clickhouse, the embedded engine"
    )
    relay: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=lambda: frozenset(RELAYED),
        description="what the sink publishes on topics of its own; empty: nothing",
    )
    sql_address: str = Field(default="127.0.0.1:9466", description="where the sink answers `tallygate sql`")
    metrics_address: str = Field(default="127.0.0.1:9464", description="where Prometheus reads a worker's metrics")
    gateway_address: str = Field(default="127.0.0.1:8086", description="where the gateway answers HTTP")
    gateway_metrics_address: str = Field(
        default="127.0.0.1:9467", description="where Prometheus reads the gateway's metrics"
    )
    gateway_tls_cert: Path | None = Field(default=None, description="the gateway's certificate chain, a PEM file: TLS")
    gateway_tls_key: Path | None = Field(default=None, description="the certificate's private key, a PEM file")
    gateway_timeout_ms: int = Field(
        default=5_000, ge=50, le=60_000, description="how long the gateway waits for a worker's answer, and for Kafka"
    )
    gateway_calls_per_second: int = Field(
        default=1_000, ge=0, le=1_000_000, description="of each API key without a limit of its own; 0: any number"
    )
    gateway_otlp_customer_attribute: str = Field(
        default="tallygate.customer",
        min_length=1,
        description="the attribute of OpenTelemetry spans or their resource that names the customer",
    )
    gateway_otlp_event_type: str = Field(
        default="llm.call",
        min_length=1,
        max_length=200,
        description="what OpenTelemetry spans become",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_config_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Adds the file's options, once: settings that are handed on name no file any more."""
        if not values.get("kafka_config_file"):
            return values
        path = Path(values["kafka_config_file"])
        try:
            from_file = _options(path.read_text())
            options = _options(values.get("kafka_config", {}))
        except OSError as error:
            raise ValueError(f"{_CONFIG_FILE}: {path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{_CONFIG_FILE}: {path} or {ENV_PREFIX}KAFKA_CONFIG: {error}") from None
        if twice := sorted(from_file.keys() & options.keys()):
            raise ValueError(f"{_CONFIG_FILE}: {path} and {ENV_PREFIX}KAFKA_CONFIG both set {twice[0]!r}: choose one")
        return {**values, "kafka_config": {**options, **from_file}, "kafka_config_file": ""}

    @field_validator("kafka_config", mode="before")
    @classmethod
    def _json_mapping(cls, value: Any) -> Any:
        return _options(value)

    @field_validator("kafka_config")
    @classmethod
    def _right_options(cls, value: dict[str, str]) -> dict[str, str]:
        for name in _FROM_ELSEWHERE:
            if name in value:
                raise ValueError(f"{name!r} has a setting of its own")
        if value and (wrong := wrong_options(value)):
            raise ValueError(wrong)
        return value

    @field_validator("reply_topics", "relay", mode="before")
    @classmethod
    def _comma_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return frozenset(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("reply_topics")
    @classmethod
    def _only_replies(cls, value: frozenset[str]) -> frozenset[str]:
        for topic in sorted(value):
            if not topic.startswith(REPLIES_PREFIX):
                raise ValueError(f"{topic!r} does not start with {REPLIES_PREFIX!r}")
        return value

    @field_validator("relay", mode="after")
    @classmethod
    def _only_what_is_relayed(cls, value: frozenset[str]) -> frozenset[str]:
        if unknown := sorted(value.difference(RELAYED)):
            raise ValueError(f"{unknown[0]!r} is not relayed: choose among {', '.join(RELAYED)}")
        return value

    @field_validator("sql_address", "metrics_address", "gateway_address", "gateway_metrics_address")
    @classmethod
    def _address(cls, value: str) -> str:
        if value:
            parse_address(value)
        return value

    @model_validator(mode="after")
    def _ticks_within_a_session(self) -> Self:
        if self.tick_ms > self.session_timeout_ms // 4:
            raise ValueError(
                f"{ENV_PREFIX}TICK_MS: {self.tick_ms} is more than a quarter of the session time-out of "
                f"{self.session_timeout_ms} ms: an owner must read its journal well within that time"
            )
        return self

    @model_validator(mode="after")
    def _both_of_tls(self) -> Self:
        if (self.gateway_tls_cert is None) != (self.gateway_tls_key is None):
            missing = "CERT" if self.gateway_tls_cert is None else "KEY"
            raise ValueError(f"{ENV_PREFIX}GATEWAY_TLS_{missing}: TLS needs the certificate and its key, both")
        return self

    @property
    def clickhouse(self) -> str:
        """The sink's DSN."""
        return self.clickhouse_dsn or f"chdb:///{(self.data_dir / 'clickhouse').absolute().as_posix().lstrip('/')}"

    @property
    def librdkafka(self) -> dict[str, Any]:
        """What every confluent_kafka client of ours starts from."""
        return {"bootstrap.servers": self.kafka_brokers, **self.kafka_config}


def load_settings(**given: Any) -> Settings:
    """The settings from the environment; what is `given` (and not None) wins. Raises `SettingsError`."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem) for problem in error.errors())) from None


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; `ValueError` says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is no address: write host:port, like 127.0.0.1:9464")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _options(value: Any) -> dict[str, str]:
    """librdkafka's options from a mapping, or from the JSON of one. What is wrong is said without any value."""
    try:
        parsed = json.loads(value or "{}") if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f'no JSON ({error}): write it like {{"security.protocol": "SASL_SSL"}}') from None
    if not isinstance(parsed, dict) or any(isinstance(v, dict | list) or v is None for v in parsed.values()):
        raise ValueError("a JSON object of option names and plain values is needed")
    return {str(name): _option_text(option) for name, option in parsed.items()}


def _option_text(option: Any) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)


def _line(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    name = ENV_PREFIX + str(problem["loc"][0]).upper()
    shown = "" if problem["type"] == "value_error" else f" (it is {str(problem['input'])[:80]!r})"
    return f"{name}: {text}{shown}"
