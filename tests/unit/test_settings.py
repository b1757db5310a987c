"""Settings: defaults, the environment, and one line for each that is wrong."""

from pathlib import Path

import pytest

from tallygate.topologies.settings import SettingsError, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TALLYGATE_"):
            monkeypatch.delenv(name)


def test_the_defaults_are_a_laptop() -> None:
    settings = load_settings(data_dir=Path("/data"))
    assert (settings.kafka_brokers, settings.partitions) == ("127.0.0.1:9092", 8)
    assert settings.clickhouse == "chdb:///data/clickhouse"
    assert settings.librdkafka == {"bootstrap.servers": "127.0.0.1:9092"}


def test_the_environment_is_read_and_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", "a:1,b:2")
    monkeypatch.setenv(
        "TALLYGATE_KAFKA_CONFIG", '{"security.protocol": "SSL", "enable.ssl.certificate.verification": true}'
    )
    monkeypatch.setenv("TALLYGATE_REPLY_TOPICS", "tallygate.replies.a.v1, tallygate.replies.b.v1")
    monkeypatch.setenv("TALLYGATE_METRICS_ADDRESS", "")
    settings = load_settings(partitions=3, tick_ms=None)
    assert settings.kafka_brokers == "a:1,b:2"
    assert settings.kafka_config == {"security.protocol": "SSL", "enable.ssl.certificate.verification": "true"}
    assert settings.reply_topics == {"tallygate.replies.a.v1", "tallygate.replies.b.v1"}
    assert (settings.metrics_address, settings.partitions, settings.tick_ms) == ("", 3, 1000)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("KAFKA_BROKERS", "", "at least 1 character"),
        ("KAFKA_CONFIG", "{", "no JSON"),
        ("KAFKA_CONFIG", "[1]", "a JSON object"),
        ("KAFKA_CONFIG", '{"bootstrap.servers": "x"}', "'bootstrap.servers' has a setting of its own"),
        ("KAFKA_CONFIG", '{"sasl.pasword": "pw"}', "'sasl.pasword' is not carried through every client: there are"),
        ("KAFKA_CONFIG", '{"no.such.option": "1"}', 'No such configuration property: "no.such.option"'),
        ("KAFKA_CONFIG", '{"partitioner": "random"}', "'partitioner' is set by Tallygate itself"),
        ("KAFKA_CONFIG", '{"auto.offset.reset": "latest"}', "'auto.offset.reset' is set by Tallygate itself"),
        ("KAFKA_CONFIG", '{"security.protocol": "TLS"}', "security.protocol is 'TLS': there are PLAINTEXT, SSL"),
        ("KAFKA_CONFIG", '{"sasl.password": "pw"}', "sasl.password is set and security.protocol is PLAINTEXT, which"),
        ("KAFKA_CONFIG", '{"security.protocol": "SSL", "sasl.password": "pw"}', "set that to SASL_SSL"),
        (
            "KAFKA_CONFIG",
            '{"security.protocol": "SASL_PLAINTEXT", "ssl.ca.location": "x"}',
            "set that to SSL or SASL_SSL",
        ),
        ("KAFKA_CONFIG", '{"security.protocol": "SASL_SSL"}', "sasl.mechanisms is '': there are SCRAM-SHA-512"),
        (
            "KAFKA_CONFIG",
            '{"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}',
            "sasl.mechanisms is 'OAUTHBEARER': there are",
        ),
        (
            "KAFKA_CONFIG",
            '{"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "u"}',
            "sasl.password is missing",
        ),
        ("KAFKA_CONFIG", '{"security.protocol": "SSL", "ssl.key.location": "x"}', "go together: set both"),
        ("KAFKA_CONFIG", '{"security.protocol": "SSL", "ssl.ca.location": "/no/ca"}', "there is no file '/no/ca'"),
        ("KAFKA_CONFIG", '{"security.protocol": "SSL", "ssl.ca.location": "/dev/null"}', "ssl.ca.location failed"),
        ("KAFKA_CONFIG_FILE", "/no/file", "/no/file: No such file or directory"),
        ("PARTITIONS", "0", "greater than or equal to 1 (it is '0')"),
        ("PARTITIONS", "many", "valid integer"),
        ("TICK_MS", "5000", "a quarter of the session time-out"),
        ("SESSION_TIMEOUT_MS", "10", "greater than or equal to 6000"),
        ("REPLY_TOPICS", "other", "does not start with 'tallygate.replies.'"),
        ("METRICS_ADDRESS", "9464", "write host:port"),
        ("SQL_ADDRESS", "host:99999", "write host:port"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"TALLYGATE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert line.startswith(f"TALLYGATE_{name}: ")
    assert says in line
    assert "\n" not in line
    assert "pw" not in line.replace("sasl.pasword", "")


def test_secrets_come_from_a_file_and_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kafka.json"
    file.write_text('{"sasl.password": "hush", "sasl.username": "worker"}')
    monkeypatch.setenv("TALLYGATE_KAFKA_CONFIG_FILE", str(file))
    with pytest.raises(SettingsError, match=r"sasl\.username is set and security\.protocol is PLAINTEXT") as alone:
        load_settings()
    monkeypatch.setenv(
        "TALLYGATE_KAFKA_CONFIG", '{"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256"}'
    )
    settings = load_settings()
    assert settings.kafka_config["sasl.password"] == "hush"
    assert settings.kafka_config["security.protocol"] == "SASL_PLAINTEXT"
    handed_on = load_settings(**settings.model_dump(mode="json"))  # as to the members of a local stack
    assert handed_on.kafka_config == settings.kafka_config
    file.write_text('{"sasl.password": "hush", "sasl.mechanism": "PLAIN"}')
    with pytest.raises(SettingsError, match=r"both set 'sasl\.mechanism': choose one") as twice:
        load_settings()
    file.write_text('{"sasl.password": "hush"')
    with pytest.raises(SettingsError, match=f"^TALLYGATE_KAFKA_CONFIG_FILE: {file} .*: no JSON") as broken:
        load_settings()
    shown = [repr(settings), str(settings), *(str(each.value) for each in (alone, twice, broken))]
    assert not any("hush" in line for line in shown)


def test_two_wrong_settings_are_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYGATE_PARTITIONS", "x")
    monkeypatch.setenv("TALLYGATE_TICK_MS", "y")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "TALLYGATE_PARTITIONS",
        "TALLYGATE_TICK_MS",
    ]
