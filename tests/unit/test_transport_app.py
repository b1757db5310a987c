"""How an app on the Tallygate transport is put together; no broker."""

import asyncio
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.types.tuples import ConsumerMessage

from tallygate.schemas.records import Chunk, Record
from tallygate.topologies.transport import Transport, app_settings, chunk_topic, transport_of


def app_on(brokers: str, folder: Path, **settings: Any) -> Any:
    return faust.App("group", **app_settings(brokers=brokers, data_dir=folder, **settings))


@pytest.mark.parametrize("brokers", ["127.0.0.1:9092", "a.example:9092,b.example:9093", "[::1]:9092"])
def test_the_scheme_finds_the_transport_and_keeps_the_brokers(brokers: str, tmp_path: Path) -> None:
    transport = transport_of(app_on(brokers, tmp_path))
    assert type(transport) is Transport
    assert transport.brokers == brokers


def test_the_group_is_told_what_the_settings_say(tmp_path: Path) -> None:
    app = app_on("a:1", tmp_path, session_timeout_ms=45_000, instance_id="worker-3")
    config = transport_of(app).group_config()
    assert config["session.timeout.ms"] == 45_000
    assert config["heartbeat.interval.ms"] == 3000
    assert config["max.poll.interval.ms"] >= 600_000
    assert config["group.instance.id"] == "worker-3"
    assert "group.instance.id" not in transport_of(app_on("a:1", tmp_path)).group_config()


def test_an_app_without_hooks_is_not_built(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="hooks is not set"):
        app_on("a:1", tmp_path).consumer  # noqa: B018  # Faust builds it when it is asked for


def test_no_codec_touches_a_chunk(tmp_path: Path) -> None:
    chunk = Chunk("usage", 3, [Record("usage", 3, 7, 0, b"\xff", None)], 0, 1)
    message = ConsumerMessage("usage", 3, 7, 0.0, 1, None, None, chunk, None)
    event = asyncio.run(chunk_topic(app_on("a:1", tmp_path), "usage").decode(message))
    assert event.value is chunk
    assert event.message.partition == 3
