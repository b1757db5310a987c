"""What a person reads when a local Kafka cannot start: one line that says what, where and what to do."""

import os
import shutil
from pathlib import Path

import pytest

from tallygate.connectors import kafka_fetch, kafka_folder
from tallygate.connectors.kafka_fetch import LocalKafkaError, fetch_jars, find_java, maven_reason
from tallygate.connectors.kafka_local import LocalKafka


def one_line(error: pytest.ExceptionInfo[LocalKafkaError]) -> str:
    said = str(error.value)
    assert said
    assert "\n" not in said
    return said


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH; empty at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_java_missing(only_path: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalKafkaError) as error:
        LocalKafka(tmp_path / "data").start()
    said = one_line(error)
    assert "Java is missing" in said
    assert "install Java 17 or newer" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("version", "named"),
    [('java version "1.8.0_292"', "Java 8"), ('openjdk version "11.0.2" 2019-01-15', "Java 11")],
)
def test_java_too_old(only_path: Path, version: str, named: str) -> None:
    java = tool(only_path, "java", f"echo '{version}' >&2")
    with pytest.raises(LocalKafkaError) as error:
        find_java()
    assert f"Java is too old: {java} is {named}" in one_line(error)


@pytest.mark.parametrize("version", ['openjdk version "17.0.15" 2025-04-15', 'openjdk version "26-ea" 2026-03-17'])
def test_java_new_enough(only_path: Path, version: str) -> None:
    java = tool(only_path, "java", f"echo '{version}' >&2")
    assert find_java() == str(java)


def test_java_is_only_a_placeholder(only_path: Path) -> None:
    tool(only_path, "java", "echo 'The operation could not be completed.' >&2; echo more >&2; exit 1")
    with pytest.raises(LocalKafkaError) as error:
        find_java()
    assert "says: The operation could not be completed.; install Java 17" in one_line(error)


def test_maven_missing(only_path: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalKafkaError) as error:
        fetch_jars(tmp_path / "cache")
    said = one_line(error)
    assert "Maven is missing" in said
    assert "install Maven" in said


@pytest.mark.skipif(shutil.which("mvn") is None, reason="asks the real Maven")
def test_maven_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real Maven, with nothing in its repository and no network."""
    (tmp_path / "bin").mkdir()
    tool(tmp_path / "bin", "mvn", f'exec "{shutil.which("mvn")}" -o "-Dmaven.repo.local={tmp_path}/empty" "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    heard: list[str] = []
    with pytest.raises(LocalKafkaError) as error:
        fetch_jars(tmp_path / "cache", heard.append)
    said = one_line(error)
    assert "Maven could not fetch Kafka 4.3.0" in said
    assert "offline" in said
    assert f"`mvn -B -f {kafka_fetch.POM}" in said
    assert heard[0].startswith("fetching Kafka 4.3.0")
    kept = sorted(p.name for p in (tmp_path / "cache").rglob("*"))
    assert kept in (["kafka-4.3.0"], ["fetch.lock", "kafka-4.3.0"])


def test_maven_fetches_nothing(only_path: Path, tmp_path: Path) -> None:
    tool(only_path, "mvn", "exit 0")
    with pytest.raises(LocalKafkaError) as error:
        fetch_jars(tmp_path / "cache")
    assert "fetched no Kafka 4.3.0" in one_line(error)


def test_cache_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(LocalKafkaError) as error:
        fetch_jars(tmp_path / "cache")
    assert f"cannot be kept in {tmp_path / 'cache'}" in one_line(error)


def test_the_pom_pins_this_version() -> None:
    assert f"<version>{kafka_fetch.KAFKA_VERSION}</version>" in kafka_fetch.POM.read_text()


@pytest.mark.parametrize("heap_mb", [0, 127, 513, 4096])
def test_heap_out_of_bounds(heap_mb: int) -> None:
    with pytest.raises(ValueError, match="take 128 to 512"):
        LocalKafka(heap_mb=heap_mb)


@pytest.mark.parametrize("port", [-1, 0, 65_536])
def test_port_out_of_bounds(port: int) -> None:
    with pytest.raises(ValueError, match="take 1 to 65535"):
        LocalKafka(port=port)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "[WARNING] slow\n[ERROR] Failed to execute goal x: Could not transfer artifact y -> [Help 1]\n[ERROR] \n"
            "[ERROR] To see the full stack trace of the errors, re-run Maven with the -e switch.\n",
            "Failed to execute goal x: Could not transfer artifact y",
        ),
        ("\x1b[1;31m[ERROR]\x1b[m No plugin found for prefix 'dependency'", "No plugin found for prefix 'dependency'"),
        ("Error: JAVA_HOME is not defined correctly.\n\n", "Error: JAVA_HOME is not defined correctly."),
        ("", "it said nothing"),
    ],
)
def test_maven_reason(output: str, reason: str) -> None:
    assert maven_reason(output) == reason


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "2026-01-01T00:00:00,000 INFO starting (KafkaServer)\n"
            "2026-01-01T00:00:01,000 ERROR Exiting Kafka (Kafka$)\n"
            "java.lang.RuntimeException: outer\n\tat a.B.c(D.java:1)\n"
            "Caused by: java.io.IOException: inner\n\tat a.B.c(D.java:1)\n\t... 3 more\n"
            "2026-01-01T00:00:02,000 INFO App info unregistered (AppInfoParser)\n",
            "java.io.IOException: inner",
        ),
        ("2026 INFO a (B)\n2026 ERROR no frobs left (C)\n2026 INFO bye (D)\n", "2026 ERROR no frobs left (C)"),
        (
            "Error occurred during initialization of VM\nCould not reserve enough space for object heap\n",
            "Error occurred during initialization of VM",
        ),
        ("2026 INFO hello (B)\n", "2026 INFO hello (B)"),
        ("", "it said nothing"),
    ],
)
def test_telling_line(said: str, line: str) -> None:
    assert kafka_folder.telling_line(said) == line


def test_log_is_read_from_the_last_start_on(tmp_path: Path) -> None:
    log = tmp_path / kafka_folder.LOG
    log.write_text("old ERROR trouble\n")
    start = kafka_folder.log_size(tmp_path)
    with log.open("a") as file:
        file.write("new line\n")
    assert kafka_folder.said_since(tmp_path, start).split("\n")[0] == "new line"
    log.write_text("rolled\n")
    assert kafka_folder.said_since(tmp_path, start).split("\n")[0] == "rolled"


def test_cluster_ids_never_look_like_an_option() -> None:
    made = {kafka_folder.new_cluster_id() for _ in range(2_000)}
    assert len(made) == 2_000
    assert all(len(i) == 22 and not i.startswith("-") for i in made)
