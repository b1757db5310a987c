"""Usage events are read from lines or an array, and a wrong one is named by its place."""

import io
import json
import socket
from typing import Any

import pytest

from tallygate.connectors.usage_producer import BadEvents, PublishFailed, publish_events, read_events


def event(id: str, **more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "source": "test", "type": "llm", "subject": "acme", **more}


def line(id: str, **more: Any) -> bytes:
    return json.dumps(event(id, **more)).encode()


def read(text: bytes) -> list[bytes]:
    return list(read_events(io.BytesIO(text), "events.json"))


ONE, TWO = line("1"), line("2")


@pytest.mark.parametrize(
    "text",
    [
        ONE + b"\n" + TWO + b"\n",
        ONE + b"\r\n\r\n  " + TWO,
        b"\xef\xbb\xbf" + ONE + b"\n" + TWO,
        b"[" + ONE + b"," + TWO + b"]",
        b"\n [\n" + ONE + b",\n" + TWO + b"\n]\n",
    ],
)
def test_lines_and_arrays_hold_the_same_events(text: bytes) -> None:
    assert read(text) == [ONE, TWO]


def test_an_array_on_one_long_line_is_read_whole() -> None:
    many = [event(str(i), data={"text": "x" * 500}) for i in range(300)]
    assert [json.loads(value) for value in read(json.dumps(many).encode())] == many


@pytest.mark.parametrize("text", [b"", b"\n \n", b"[]"])
def test_nothing_is_no_events(text: bytes) -> None:
    assert read(text) == []


def test_an_event_is_sent_as_it_was_written() -> None:
    odd = b'{"specversion" : "1.0","id":"1","source":"t","type":"llm","subject":"acme","extra":1.50,"data":{"q":0.10}}'
    assert read(odd) == [odd]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ONE + b"\n{broken\n" + TWO, "events.json, line 2: no CloudEvent in JSON: "),
        (ONE + b"\n\n" + line("2", subject=""), "events.json, line 3: the event has no subject"),
        (ONE + b"\n" + line("2", time="2026-01-31T00:00:00"), "events.json, line 2: time has no offset"),
        (ONE + b"\n" + line("2", specversion="0.3"), "events.json, line 2: specversion '0.3'"),
        (line("1", data={"text": "x" * 70_000}), "events.json, line 1: the event has .* bytes: at most 65536"),
        (b"\xff\xfe\n", "events.json, line 1: no CloudEvent in JSON: "),
        (b"[" + ONE + b",{}]", "events.json, element 2: no CloudEvent in JSON: .* `specversion`"),
        (b"[" + ONE + b",", "events.json, line 1 begins a JSON array that cannot be read"),
        (ONE + b"\n[" + TWO + b"]", "events.json, line 2"),
    ],
)
def test_a_wrong_event_is_named_by_its_place(text: bytes, says: str) -> None:
    with pytest.raises(BadEvents, match=f"^{says}") as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_no_broker_is_one_clear_line() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        waited: list[str] = []
        with pytest.raises(PublishFailed, match=rf"^no Kafka broker answers at {where} within 0.3 s \(.*refused.*\)"):
            publish_events({"bootstrap.servers": where}, [ONE], on_wait=waited.append, patience_seconds=0.3)
    assert len(waited) == 1
    assert waited[0].startswith(f"broker {where} is away")


def test_a_setting_that_librdkafka_does_not_know_is_named() -> None:
    with pytest.raises(PublishFailed, match="nonsense"):
        publish_events({"bootstrap.servers": "127.0.0.1:1", "nonsense": "1"}, [])
