"""One member of a group on the Tallygate transport, for test_transport.py: says what happens to it, a JSON line each.

    python transport_member.py OPTIONS_AS_JSON

What it has taken is noted in the folder, a file a partition, as an owner's journal would: the next opening, by whatever
member, starts there. `first` is where an unknown partition starts.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import faust
import uvloop

from tallygate.topologies.transport import app_settings, chunk_events, chunk_topic, transport_of

OPTIONS = json.loads(sys.argv[1])
FOLDER = Path(OPTIONS["folder"])
TOPICS: list[str] = OPTIONS["topics"]


def say(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, "at": time.monotonic(), **more}), flush=True)


class Hooks:
    def __init__(self) -> None:
        self._closing = asyncio.Event()

    async def opening(self, partition: int) -> Mapping[str, int]:
        say("opening", partition=partition)
        if OPTIONS.get("opening_ends_with_closing"):
            await self._closing.wait()
        await asyncio.sleep(OPTIONS.get("opening_seconds", 0))
        if OPTIONS.get("opening_fails"):
            raise RuntimeError("the opening failed")
        say("opened", partition=partition)
        note = FOLDER / str(partition)
        return json.loads(note.read_text()) if note.exists() else dict.fromkeys(TOPICS, OPTIONS.get("first", 0))

    async def closing(self, partition: int) -> None:
        say("closing", partition=partition)
        self._closing.set()
        await asyncio.sleep(OPTIONS.get("closing_seconds", 0))
        say("closed", partition=partition)

    async def lost(self, partitions: Collection[int]) -> bool:
        say("lost", partitions=sorted(partitions))
        return bool(OPTIONS.get("stays"))


def note(topic: str, partition: int, following: int) -> None:
    path = FOLDER / str(partition)
    offsets = json.loads(path.read_text()) if path.exists() else dict.fromkeys(TOPICS, OPTIONS.get("first", 0))
    offsets[topic] = following
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(offsets))
    fresh.replace(path)


def main() -> None:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    logging.getLogger("tallygate").setLevel(logging.INFO)
    settings = app_settings(
        brokers=OPTIONS["brokers"],
        data_dir=FOLDER / f"faust-{os.getpid()}",
        session_timeout_ms=6000,
        instance_id=OPTIONS.get("instance_id"),
    )
    app = faust.App(OPTIONS["group"], **settings)
    transport = transport_of(app)
    transport.hooks = Hooks()
    transport.closing_seconds = OPTIONS.get("closing_seconds_max", 20)

    @app.agent(chunk_topic(app, *TOPICS), name="accounts")
    async def accounts(stream: Any) -> None:
        async for event in chunk_events(app, stream):
            chunk = event.value
            if OPTIONS.get("agent_fails"):
                raise RuntimeError("the agent failed")
            values = [int(record.value) for record in chunk.records]
            note(chunk.topic, chunk.partition, chunk.last_offset + 1)
            say("took", topic=chunk.topic, partition=chunk.partition, values=values)
            event.ack()

    worker = faust.Worker(app, loglevel="WARNING", quiet=True)
    worker.spinner = None  # it writes between our lines
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
