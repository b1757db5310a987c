"""Usage batches of invented customers, made fast: what benches send. The same seed makes the same events."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tallygate.connectors.usage_batches import UTC_MS, encode_columns
from tallygate.schemas.partitions import partition_of

MODELS = ("large", "medium", "small")
EVENT_TYPE = "tallygate.bench.call"


class UsageLoad:
    """Batches of `events` events each: `customers` in all, with the weights 1, 1/2^tail, 1/3^tail, …

    The events are LLM calls: tokens by model. A partition's batches are drawn from `variety` that are
    prepared; only their times differ, so that making one costs some 50 µs.
    """

    def __init__(
        self,
        partitions: int,
        *,
        customers: int = 10_000,
        tail: float = 1.1,
        events: int = 1_000,
        variety: int = 64,
        seed: int = 1,
    ) -> None:
        self.events = events
        self.customers = [f"customer-{number:05d}" for number in range(customers)]
        self._rng = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, customers + 1) ** tail
        homes = np.array([partition_of(customer, partitions) for customer in self.customers])
        #: How much of all events falls to each partition: batches of a partition come in this proportion.
        self.shares = [float(weights[homes == number].sum() / weights.sum()) for number in range(partitions)]
        self._prepared = [
            [self._columns(np.flatnonzero(homes == number), weights) for _ in range(variety)]
            for number in range(partitions)
        ]
        self._next = [0] * partitions

    def order(self) -> Iterator[int]:
        """Partitions, for ever, each as often as its share says: whose batch comes next."""
        while True:
            yield from (int(number) for number in self._rng.choice(len(self.shares), 4096, p=self.shares))

    def batch(self, partition: int, at_ms: int) -> bytes:
        """The value of the partition's next record; its events happened at `at_ms`."""
        prepared = self._prepared[partition]
        columns = prepared[self._next[partition] % len(prepared)]
        self._next[partition] += 1
        times = pa.array(np.full(self.events, at_ms, np.int64)).view(UTC_MS)
        return encode_columns({**columns, "time": times})

    def _columns(self, own: "np.ndarray[tuple[int], np.dtype[np.int64]]", weights: object) -> dict[str, pa.Array]:
        assert len(own), "a partition without customers: take more customers or fewer partitions"
        chances = np.asarray(weights)[own]
        drawn = self._rng.choice(own, self.events, p=chances / chances.sum())
        present, subjects = np.unique(drawn, return_inverse=True)
        names = [self.customers[number] for number in present]
        return {
            "subject": _strings(subjects, names),
            "type": _strings(np.zeros(self.events, np.int64), [EVENT_TYPE]),
            "model": _strings(self._rng.integers(0, len(MODELS), self.events), list(MODELS)),
            "tokens": pa.array(self._rng.integers(1, 4_000, self.events)),
        }


def _strings(codes: object, texts: list[str]) -> pa.Array:
    narrow = np.int8 if len(texts) < 128 else np.int16 if len(texts) < 32_768 else np.int32
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(codes).astype(narrow)), pa.array(texts))
