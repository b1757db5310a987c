"""The usage batch that writers of other languages can compare with: its bytes, and the events that they stand for."""

from pathlib import Path

import msgspec

from partition import T0, Partition
from tallygate.pipeline.rules import Rules
from tallygate.schemas import topics
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import encode_event
from tallygate.schemas.journal import split_key
from tallygate.schemas.records import Record
from tallygate.schemas.usage_batch import BatchId, read_batch_id
from tallygate.topologies.usage_runs import RunReader

VECTORS = Path(__file__).parent / "vectors"
CATALOG = read_catalog(
    {
        "meters": {
            "tokens": {"event_type": "llm.call", "value": "input_tokens", "dimensions": ["model", "stream"]},
            "stored": {"event_type": "disk.hour", "value": "gb"},
        }
    },
    "vector",
).compile(1)


def rows(partition: Partition) -> dict[bytes, bytes]:
    return {k: v for k, v in partition.rows.items() if k[:1] != b"\0" and split_key(k)[1] == "usage"}


def test_the_batch_holds_what_it_says() -> None:
    said = msgspec.json.decode((VECTORS / "usage-batch.json").read_bytes())
    headers = {name: value.encode() for name, value in said["headers"].items()}
    assert read_batch_id(headers) == BatchId("vector", 1_767_225_600_000, 7)
    value = (VECTORS / "usage-batch.arrow").read_bytes()
    record = Record(topics.USAGE, said["partition"], 0, T0, None, value, tuple(headers.items()))
    run = RunReader(said["partitions"], Rules()).read([record], CATALOG)
    assert [batch.refused for batch in run.batches] == [None]
    assert run.batches[0].events == len(said["events"])
    batched, singles = Partition(CATALOG), Partition(CATALOG)
    batched.apply(run.next(1 << 30))
    singles.use(*(encode_event(event) for event in said["events"]))
    assert rows(batched) == rows(singles)
    assert len(rows(batched)) == 4
