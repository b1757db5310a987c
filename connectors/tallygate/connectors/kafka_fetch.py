"""Java, and Apache Kafka's jars: looked for, fetched once from Maven Central, kept in the user's cache folder."""

import hashlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

KAFKA_VERSION: Final = "4.3.0"
JAVA_VERSION_MIN: Final = 17
POM: Final = Path(__file__).parent / "kafka_jars" / "pom.xml"
FETCH_SECONDS_MAX: Final = 900
_HEARTBEAT_SECONDS: Final = 10

Progress = Callable[[str], None]


class LocalKafkaError(Exception):
    """The local Kafka cannot run; the message is one line that says what, where and what to do."""


def find_java() -> str:
    """The path of a `java` that Kafka runs on. Raises LocalKafkaError when there is none."""
    java = shutil.which("java")
    wanted = f"install Java {JAVA_VERSION_MIN} or newer, or name a running Kafka with TALLYGATE_KAFKA_BROKERS"
    if java is None:
        raise LocalKafkaError(f"Java is missing: no `java` on the PATH; {wanted}")
    try:
        ran = subprocess.run(
            [java, "-version"], capture_output=True, text=True, errors="replace", timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalKafkaError(f"Java cannot be run: {java}: {error}; {wanted}") from error
    said = (ran.stderr + ran.stdout).strip()
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if ran.returncode != 0 or version is None:
        first = said.splitlines()[0] if said else f"exit code {ran.returncode}"
        raise LocalKafkaError(f"Java cannot be run: {java} -version says: {first}; {wanted}")
    if int(version[1]) < JAVA_VERSION_MIN:
        raise LocalKafkaError(f"Java is too old: {java} is Java {version[1]}; {wanted}")
    return java


def fetch_jars(cache_dir: Path | None = None, on_progress: Progress = lambda line: None) -> Path:
    """The folder with Kafka's jars, fetched with Maven when it is not there yet.

    `cache_dir` is the user's cache folder for Tallygate unless given. Processes that ask at once wait for one download;
    the folder appears whole or not at all. Raises LocalKafkaError.
    """
    pinned = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    home = (cache_dir or user_cache_path("tallygate")) / f"kafka-{KAFKA_VERSION}"
    jars = home / f"jars-{pinned}"
    if jars.is_dir():
        return jars
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "fetch.lock", timeout=FETCH_SECONDS_MAX):
            if jars.is_dir():
                return jars
            for abandoned in home.glob("fetching-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=home, prefix="fetching-") as partial:
                _copy_dependencies(Path(partial) / "jars", on_progress)
                (Path(partial) / "jars").rename(jars)
    except Timeout as error:
        raise LocalKafkaError(
            f"another process has been fetching Kafka for {FETCH_SECONDS_MAX} s: end it, or remove {home}/fetch.lock"
        ) from error
    except OSError as error:
        raise LocalKafkaError(
            f"Kafka's jars cannot be kept in {home}: {error}; make room or make it writable"
        ) from error
    return jars


def _copy_dependencies(into: Path, on_progress: Progress) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalKafkaError(
            "Maven is missing: no `mvn` on the PATH to fetch Kafka with; "
            "install Maven, or name a running Kafka with TALLYGATE_KAFKA_BROKERS"
        )
    command = [maven, "-B", "-q", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={into}"]
    on_progress(f"fetching Kafka {KAFKA_VERSION} from Maven Central (first time, 44 MB)")
    started_at = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            while True:
                try:
                    said, _ = process.communicate(timeout=_HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    seconds = int(time.monotonic() - started_at)
                    if seconds > FETCH_SECONDS_MAX:
                        raise LocalKafkaError(f"Maven took longer than {seconds} s; {_by_hand()}") from None
                    on_progress(f"still fetching Kafka {KAFKA_VERSION} ({seconds} s)")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise LocalKafkaError(f"Maven could not fetch Kafka {KAFKA_VERSION}: {maven_reason(said)}; {_by_hand()}")
    if not (into / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
        raise LocalKafkaError(f"Maven ended well but fetched no Kafka {KAFKA_VERSION}; {_by_hand()}")


def _by_hand() -> str:
    return f"see what `mvn -B -f {POM} dependency:resolve` says"


def maven_reason(output: str) -> str:
    """The line of Maven's output that tells why it failed; Maven ends with lines of general advice."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in output.splitlines()]
    lines = [line for line in lines if line]
    errors = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    advice = ("->", "[Help", "To see the full stack", "Re-run Maven", "For more information")
    telling = [line.split(" -> [Help")[0] for line in errors if line and not line.startswith(advice)]
    return (telling[:1] or lines[-1:] or ["it said nothing"])[0]
