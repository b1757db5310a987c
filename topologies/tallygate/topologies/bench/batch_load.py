"""The generator of usage batches: Arrow records of a thousand events of one partition, made from prepared columns."""

import random
import time
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallygate.connectors.usage_batches import UTC_MS, encode_columns
from tallygate.schemas.partitions import partition_of
from tallygate.schemas.usage_batch import BatchId, batch_headers
from tallygate.topologies.bench.jobs import UsageJob
from tallygate.topologies.bench.usage_load import (
    AGENTS,
    DIMENSIONS,
    EVENT_TYPE,
    MODELS,
    TEAMS,
    USERS,
    Sender,
    customer_name,
    weights,
)

EVENTS: Final = 1_000
#: Prepared for each partition; a batch differs from its fellows in time and number only.
_VARIETY: Final = 32
_ORDER: Final = 4_096


class Batches(Sender):
    """Batches of the same calls as the single events, each partition's as often as its customers ask."""

    events_per_record = EVENTS

    def __init__(self, job: UsageJob) -> None:
        super().__init__(job)
        assert job.partitions
        self._run = job.run
        self._dimensions = job.dimensions
        self._epoch = time.time_ns() // 1_000_000
        self._duplicate_every = job.duplicate_every
        self._random = np.random.default_rng(random.Random(job.run).getrandbits(64))
        names = [customer_name(job.prefix, number) for number in range(job.customers)]
        chances = np.array(weights(job.customers))
        homes = np.array([partition_of(name, job.partitions) for name in names])
        shares = np.array([chances[homes == number].sum() for number in range(job.partitions)])
        self._prepared = [
            [self._columns(own, chances, names) for _ in range(_VARIETY)]
            if len(own := np.flatnonzero(homes == n))
            else []
            for n in range(job.partitions)
        ]
        self._order = self._random.choice(job.partitions, _ORDER, p=shares / shares.sum()).tolist()

    def send(self, number: int, due_ns: int, sampled: bool) -> None:
        partition = self._order[number % _ORDER]
        columns = self._prepared[partition][number % _VARIETY]
        now_ms = time.time_ns() // 1_000_000
        times = pa.array(np.full(EVENTS, now_ms, np.int64)).view(UTC_MS)
        value = encode_columns({**columns, "time": times})
        headers = batch_headers(BatchId(self._run, self._epoch, number))
        self.value_bytes += len(value)
        self.produce(value, due_ns if sampled else None, partition=partition, headers=headers)
        if number % self._duplicate_every == self._duplicate_every - 1:
            self.produce(value, None, partition=partition, headers=headers)
            self.duplicates += 1

    def _columns(self, own: Any, chances: Any, names: list[str]) -> dict[str, Any]:
        drawn = self._random.choice(own, EVENTS, p=chances[own] / chances[own].sum())
        present, subjects = np.unique(drawn, return_inverse=True)
        users = self._random.integers(0, USERS, EVENTS)
        who = {
            "model": _strings(self._random.integers(0, len(MODELS), EVENTS), list(MODELS)),
            "team": _strings(users % TEAMS, [f"team-{number}" for number in range(TEAMS)]),
            "agent": _strings(users % AGENTS, [f"agent-{number}" for number in range(AGENTS)]),
            "user": _strings(users, [f"user-{number}" for number in range(USERS)]),
        }
        return {
            "subject": _strings(subjects, [names[number] for number in present]),
            "type": _strings(np.zeros(EVENTS, np.int64), [EVENT_TYPE]),
            "tokens": pa.array(self._random.integers(1, 4_000, EVENTS)),
            **{name: who[name] for name in DIMENSIONS[: self._dimensions]},
        }


def _strings(codes: Any, texts: list[str]) -> Any:
    narrow = np.int8 if len(texts) < 128 else np.int16
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(narrow)), pa.array(texts))
