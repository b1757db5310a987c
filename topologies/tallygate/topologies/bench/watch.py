"""The observer: when was a usage record in force, and when had ClickHouse what followed from it?

It reads the whole journal, as the sink does, and looks at partition rows only; one thread asks the sink how far it is.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition

from tallygate.connectors.clickhouse_questions import QuestionError
from tallygate.connectors.consuming import consumer_config
from tallygate.pipeline.fence import Fence, Verdict
from tallygate.schemas.journal import OPEN_KEY, PARTITION_KEY, PartitionRow, decode_record
from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM, JOURNAL, USAGE
from tallygate.topologies.bench.jobs import Spot, Step, Watched, WatchJob
from tallygate.topologies.settings import Settings, load_settings
from tallygate.topologies.sql_server import NobodyAnswers, ask

SINK_OFFSETS: Final = "SELECT partition, max(next_offset) AS next_offset FROM sink_offsets GROUP BY partition"
_POLL_SECONDS: Final = 0.1
_AT_ONCE: Final = 10_000
_SAY_SECONDS: Final = 0.1


def watch(job: WatchJob, say: Callable[[dict[str, Any]], None], stop: threading.Event) -> Watched:
    settings = load_settings(**job.settings)
    consumer = Consumer({**consumer_config(settings.kafka_brokers, "tallygate-bench"), **settings.kafka_config})
    consumer.assign([TopicPartition(JOURNAL, number, offset) for number, offset in job.begins.items()])
    visible: list[Spot] = []
    asking = threading.Thread(target=_ask_sink, args=(settings, job.ask_seconds, visible, stop), daemon=True)
    asking.start()
    applied = _follow(consumer, visible, say, stop)
    asking.join()
    consumer.close()
    return Watched(applied=applied, visible=visible, cpu_seconds=time.process_time())


def _follow(
    consumer: Consumer, visible: list[Spot], say: Callable[[dict[str, Any]], None], stop: threading.Event
) -> list[Step]:
    applied: list[Step] = []
    newest: dict[int, int] = {}
    rows: dict[int, int] = {}  # by partition: where the row lies that is the first to say so
    fences: dict[int, Fence] = {}
    said_at = 0.0
    while not stop.is_set():
        first = consumer.poll(_POLL_SECONDS)
        messages = () if first is None else (first, *consumer.consume(_AT_ONCE, 0))
        now = time.monotonic_ns()
        for message in messages:
            if message.error() is not None or message.key() not in (PARTITION_KEY, OPEN_KEY):
                continue
            partition = message.partition()
            headers = dict(message.headers())
            fence = fences.setdefault(partition, Fence())
            verdict = fence.judge(int(headers[HEADER_TERM]), int(headers[HEADER_SEQ]), message.key())
            if verdict is not Verdict.ACCEPTED or message.value() is None:
                continue
            row = decode_record(message.value())
            assert isinstance(row, PartitionRow)
            offset = row.applied.get(USAGE, -1)
            if offset > newest.get(partition, -1):
                newest[partition] = offset
                rows[partition] = message.offset()
                applied.append((now, partition, message.offset(), offset))
        if time.monotonic() - said_at > _SAY_SECONDS:
            said_at = time.monotonic()
            say({"applied": newest, "rows": rows, "visible": {partition: offset for _, partition, offset in visible}})
    return applied


def _ask_sink(settings: Settings, ask_seconds: float, visible: list[Spot], stop: threading.Event) -> None:
    known: dict[int, int] = {}
    while not stop.wait(ask_seconds):
        with contextlib.suppress(NobodyAnswers, QuestionError):  # it is asked again; what never comes is told then
            answer = ask(settings, SINK_OFFSETS, "jsonl")
            now = time.monotonic_ns()
            for row in map(json.loads, answer.splitlines()):
                partition, offset = int(row["partition"]), int(row["next_offset"])
                if offset > known.get(partition, -1):
                    known[partition] = offset
                    visible.append((now, partition, offset))
