"""The local broker: what it keeps, when it ends, and what it says when it cannot start."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_fixture import needs_java
from tallygate.connectors import kafka_folder, kafka_local
from tallygate.connectors.kafka_local import LocalKafka, LocalKafkaError

pytestmark = needs_java

WAIT_SECONDS = 30


def write(kafka: LocalKafka, *values: str) -> None:
    """Appends to the topic `kept`, made when missing; returns when the broker has the records."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    if "kept" not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result()
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    errors: list[object] = []
    for value in values:
        producer.produce("kept", value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(WAIT_SECONDS) == 0
    assert errors == [None] * len(values)


def read(kafka: LocalKafka, count: int) -> list[str]:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition("kept", 0, 0)])
    try:
        return [m.value().decode() for m in consumer.consume(count, WAIT_SECONDS)]
    finally:
        consumer.close()


def alive(pid: int) -> bool:
    """False also for a zombie, which only waits for its parent to ask."""
    ran = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not ran.stdout.strip().startswith("Z") and ran.returncode == 0


def gone(pid: int) -> bool:
    until = time.monotonic() + WAIT_SECONDS
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


def failure(kafka: LocalKafka) -> str:
    with pytest.raises(LocalKafkaError) as error:
        kafka.start()
    assert not kafka.running
    said = str(error.value)
    assert said
    assert "\n" not in said
    return said


@contextlib.contextmanager
def small_disk(at: Path, options: str) -> Iterator[Path]:
    at.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", at], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def test_records_outlive_stop_and_kill() -> None:
    """On the same port and folder, so that clients just go on."""
    with LocalKafka() as kafka:
        first, cluster_id, pid = kafka.bootstrap, kafka.cluster_id, kafka.pid
        write(kafka, "one")
        kafka.restart()
        assert gone(pid)
        write(kafka, "two")
        kafka.kill()
        assert not kafka.running
        kafka.start()
        assert (kafka.bootstrap, kafka.cluster_id) == (first, cluster_id)
        assert read(kafka, 2) == ["one", "two"]
        folder, pid = kafka.data_dir, kafka.pid
    assert gone(pid)
    assert not folder.exists()
    kafka.stop()


def test_a_folder_is_kept_for_the_next_broker(tmp_path: Path) -> None:
    """Whatever its name, and on another port."""
    folder = tmp_path / "Größe, 50% of it: a=b"
    heard: list[str] = []
    with LocalKafka(folder, heap_mb=256, on_progress=heard.append) as one:
        first = one.port, one.cluster_id
        write(one, "kept")
    assert heard[-2:] == ["starting Kafka", f"Kafka is up on 127.0.0.1:{first[0]}"]
    with LocalKafka(folder) as other:
        assert other.port != first[0]
        assert other.cluster_id == first[1]
        assert read(other, 1) == ["kept"]
    log = (folder / "kafka.log").read_text()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:,]+ INFO .* \(\S+\)\n", log), "as log4j 2 was told to write"
    assert (folder / "kafka.out").read_text() == "", "no complaint of a missing logger, and nothing of Java's"


def test_it_listens_on_loopback_only() -> None:
    if sys.platform != "linux":
        pytest.skip("reads Linux' table of sockets")
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    with LocalKafka() as kafka:
        sockets = {os.readlink(fd) for fd in Path(f"/proc/{kafka.pid}/fd").iterdir() if fd.is_symlink()}
        rows = [r.split() for t in ("tcp", "tcp6") for r in Path(f"/proc/net/{t}").read_text().splitlines()[1:]]
        listening = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
        assert len(listening) == 2, "one for clients, one for the controller"
        assert kafka.port in {int(port, 16) for _, port in listening}
        assert {address for address, _ in listening} <= loopback


PARENT = """
import signal, sys, time
from pathlib import Path
from tallygate.connectors.kafka_local import LocalKafka
signal.signal(signal.SIGINT, lambda *_: None)
folder = Path(sys.argv[1]) if sys.argv[1] else None
kafka = LocalKafka(folder).start()
print(kafka.pid, kafka.bootstrap, kafka.data_dir, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["kill -9", "exit"])
def test_it_ends_with_its_parent(end: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        pid, bootstrap, folder = parent.stdout.readline().split()
        os.killpg(parent.pid, signal.SIGINT)  # a Ctrl-C reaches the parent only, which may still need the broker
        assert AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).brokers
        if end == "exit":
            parent.stdin.write("\n")
            parent.stdin.flush()
        else:
            parent.kill()
    assert gone(int(pid))
    until = time.monotonic() + WAIT_SECONDS
    while Path(folder).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(folder).exists()


def test_it_starts_again_right_after_its_parent_was_killed(tmp_path: Path) -> None:
    """The former broker may still be ending: it is waited for."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid, bootstrap, _ = parent.stdout.readline().split()
        parent.kill()
    with LocalKafka(tmp_path, int(bootstrap.split(":")[1])) as kafka:
        assert kafka.pid != int(pid)
        write(kafka, "goes on")


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    fetch = (
        "import sys; from pathlib import Path; from tallygate.connectors.kafka_fetch import fetch_jars;"
        "print('jars', fetch_jars(Path(sys.argv[1]), print))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", fetch, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=150)[0] for process in both]
    assert sum(s.count("(first time, ") for s in said) == 1  # it says so again while it goes on
    jars = {re.findall(r"^jars (.+)$", s, re.MULTILINE)[0] for s in said}
    assert len(jars) == 1
    assert len(list(Path(jars.pop()).glob("*.jar"))) > 40
    assert not list(tmp_path.rglob("fetching-*"))


def test_port_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = failure(LocalKafka(tmp_path, port))
    assert said == (f"port {port} on 127.0.0.1 is taken: stop what listens there, or choose another port for Kafka")


def test_a_port_that_is_taken_in_between_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = kafka_local._free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answers = [free_port(), taken.getsockname()[1]]  # the controller's is lost to another process
        monkeypatch.setattr(
            kafka_local, "_free_port", lambda besides=0: answers.pop(0) if answers else free_port(besides)
        )
        heard: list[str] = []
        with LocalKafka(on_progress=heard.append) as kafka:
            write(kafka, "up")
    assert heard.count("starting Kafka") == 2


def test_folder_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_folder, "_LOCK_SECONDS", 0.2)
    with LocalKafka(tmp_path) as kafka:
        said = failure(LocalKafka(tmp_path))
        assert f"{tmp_path} is used by another local Kafka" in said
        write(kafka, "unharmed")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    said = failure(LocalKafka(tmp_path / "data"))
    assert said.startswith(f"the data folder {tmp_path / 'data'} cannot be used: File exists: ")


def test_folder_not_writable(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        with small_disk(tmp_path / "disk", "size=200m,ro") as disk:
            said = failure(LocalKafka(disk / "data"))
        assert "Read-only file system: make it writable" in said
    else:
        tmp_path.chmod(0o500)
        said = failure(LocalKafka(tmp_path / "data"))
        assert "Permission denied: make it writable" in said
    assert "the data folder" in said


def test_disk_too_small(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        said = failure(LocalKafka(disk))
        assert said == (
            f"the disk is full at {disk} (8 MB free, 64 MB are needed): make room, or choose another data folder"
        )


@pytest.mark.parametrize("files", [3, 5])
def test_disk_full_while_starting(tmp_path: Path, files: int) -> None:
    """The real ENOSPC, while the folder is prepared and while it is formatted: bytes are left, files are not."""
    with small_disk(tmp_path / "disk", f"size=200m,nr_inodes={files}") as disk:
        assert failure(LocalKafka(disk)).startswith(f"the disk is full at {disk} ")


def test_disk_full_while_running(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=200m") as disk, LocalKafka(disk) as kafka:
        write(kafka, "fits")
        assert kafka.why_ended() is None
        with (disk / "filler").open("wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1024 * 1024))
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "message.timeout.ms": 3000, "log_level": 0})
        until = time.monotonic() + WAIT_SECONDS
        while kafka.running and time.monotonic() < until:
            producer.produce("kept", bytes(500_000))
            producer.flush(0.5)
        assert not kafka.running
        assert str(kafka.why_ended()).startswith(f"the disk is full at {disk} ")


def test_broker_ends_early(tmp_path: Path) -> None:
    with LocalKafka(tmp_path) as kafka:
        write(kafka, "fine")
    meta = tmp_path / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    said = failure(LocalKafka(tmp_path))
    assert said.startswith("Kafka ended while starting (exit code 1): ")
    assert "node" in said
    assert said.endswith(f"; its log is {tmp_path}/kafka.log")


def test_not_up_in_time(tmp_path: Path) -> None:
    said = failure(LocalKafka(tmp_path, up_seconds_max=0.01))
    assert re.match(r"Kafka is not up on 127\.0\.0\.1:\d+ after 0\.01 s; its last words: ", said)


def test_killed_by_another(tmp_path: Path) -> None:
    with LocalKafka(tmp_path) as kafka:
        os.kill(kafka.pid, signal.SIGKILL)
        until = time.monotonic() + WAIT_SECONDS
        while kafka.running and time.monotonic() < until:
            time.sleep(0.05)
        assert str(kafka.why_ended()).startswith("Kafka ended (signal 9): ")
        kafka.start()
        assert kafka.why_ended() is None
