"""Bodies: unpacked up to what is allowed and no further; events checked one by one, all or none."""

import gzip
import json
import zlib

import pytest
import zstandard

from tallygate.connectors.gateway.bodies import BODY_BYTES_MAX, unpack
from tallygate.connectors.gateway.problems import Problem
from tallygate.connectors.gateway.usage import BATCH_EVENTS_MAX, _parts, check_events
from tallygate.schemas.topics import EVENT_BYTES_MAX


def event(id: str = "1", **more: object) -> bytes:
    return json.dumps({"specversion": "1.0", "id": id, "source": "s", "type": "t", "subject": "acme", **more}).encode()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize(("pack", "encoding"), [(gzip.compress, "gzip"), (zstd, "zstd")])
@pytest.mark.parametrize("content", [b"", b"x", b"event" * 1000, b"\0" * BODY_BYTES_MAX])
def test_what_was_packed_is_unpacked(pack, encoding: str, content: bytes) -> None:  # type: ignore[no-untyped-def]
    assert unpack(pack(content), encoding, BODY_BYTES_MAX) == content


def test_zstd_without_a_size_in_its_head() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    packed = packer.compress(b"event" * 1000) + packer.flush()
    assert unpack(packed, "zstd", BODY_BYTES_MAX) == b"event" * 1000


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"\0" * (BODY_BYTES_MAX + 1), mtime=0)),
        ("gzip", gzip.compress(b"\0" * (48 << 20), mtime=0)),
        ("zstd", zstd(b"\0" * (BODY_BYTES_MAX + 1))),
        ("zstd", zstd(b"\0" * (48 << 20))),
    ],
    ids=["gzip one more", "gzip bomb", "zstd one more", "zstd bomb"],
)
def test_a_bomb_is_not_unpacked(encoding: str, packed: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(Problem) as caught:
        unpack(packed, encoding, BODY_BYTES_MAX)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 4 * BODY_BYTES_MAX


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(b"event" * 100, mtime=0)[:-9]),
        ("gzip", gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0)),
        ("gzip", zlib.compress(b"a")),
        ("gzip", b""),
        ("zstd", b"no zstd"),
        ("zstd", zstd(b"event" * 100)[:-3]),
        ("zstd", zstd(b"a") + zstd(b"b")),
        ("zstd", b""),
    ],
)
def test_what_is_cut_off_or_something_else_is_refused(encoding: str, packed: bytes) -> None:
    with pytest.raises(Problem) as caught:
        unpack(packed, encoding, BODY_BYTES_MAX)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("kind", "body", "count"),
    [
        ("application/cloudevents+json", event(), 1),
        ("application/json", event(), 1),
        ("application/json", b" [" + event("1") + b"," + event("2") + b"]", 2),
        ("application/cloudevents-batch+json", b"[" + event() + b"]", 1),
        ("application/x-ndjson", event("1") + b"\r\n\n" + event("2") + b"\n", 2),
        ("application/jsonl", event("1") + b"\n" + event("2"), 2),
    ],
)
def test_the_forms_of_events(kind: str, body: bytes, count: int) -> None:
    checked = check_events(list(_parts(kind, body)))
    assert [customer for customer, _, _ in checked] == ["acme"] * count
    assert all(json.loads(value)["source"] == "s" for _, value, _ in checked)


def test_every_wrong_event_is_named_and_nothing_is_taken() -> None:
    with pytest.raises(Problem) as caught:
        check_events([event("1"), b"{}", event("3"), event("4", specversion="0.3")])
    assert caught.value.status == 400
    assert [line.split(":")[0] for line in caught.value.errors] == ["event 2", "event 4"]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([], 400),
        ([event(str(n)) for n in range(BATCH_EVENTS_MAX + 1)], 413),
        ([event(data={"text": "x" * EVENT_BYTES_MAX})], 413),
        ([b"[" * 50_000], 400),
    ],
)
def test_what_is_too_much_or_nothing(values: list[bytes], status: int) -> None:
    with pytest.raises(Problem) as caught:
        check_events(values)
    assert caught.value.status == status


def test_as_many_as_are_allowed() -> None:
    assert len(check_events([event(str(n)) for n in range(BATCH_EVENTS_MAX)])) == BATCH_EVENTS_MAX
