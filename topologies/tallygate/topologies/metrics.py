"""What an operator needs to know of a worker, for Prometheus: a registry of its own on an address of its own.

No metric carries a customer: there may be millions.
"""

import contextlib
from collections import Counter as Counted
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from tallygate.pipeline.transition import Transition
from tallygate.topologies.settings import ENV_PREFIX, parse_address

_STEP_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
_ROUND_TRIP_SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_LAG_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000)


class MetricsError(Exception):
    """The metrics cannot be served; one line says why."""


class Metrics:
    """The figures of one worker process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._server: tuple[object, Callable[[], None]] | None = None

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tallygate_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"tallygate_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"tallygate_{name}", text, labels, registry=self.registry, buckets=tuple(buckets))

        self.decisions = counter("decisions", "Decisions in force.", "op", "outcome", "reason")
        self.events = counter("events", "Usage events counted.")
        self.duplicates = counter("duplicate_events", "Usage events known already, not counted again.")
        self.dead_letters = counter("dead_letters", "Records put aside.", "reason")
        self.replies = counter("replies", "Answers handed to the client library.")
        self.replies_failed = counter(
            "replies_failed", "Answers that did not reach their topic; the caller asks again."
        )
        self.stale_records = counter("stale_records", "Journal records of former owners, refused by their term.")
        self.repaired_rows = counter("repaired_rows", "Rows written again because a stale record lay over them.")
        self.journal_records = counter("journal_records", "Records appended to the journal.")
        self.chunk_records = histogram("chunk_records", "Records in a chunk as it came.", _SIZES, "topic")
        self.step_inputs = histogram("step_inputs", "Inputs decided in one step.", _SIZES)
        self.step_seconds = histogram(
            "step_seconds", "One step: decided, journaled, read back, answered.", _STEP_SECONDS
        )
        self.decide_seconds = histogram("decide_seconds", "The rules' part of a step.", _STEP_SECONDS)
        self.journal_seconds = histogram(
            "journal_round_trip_seconds", "From an append to its own records read back.", _ROUND_TRIP_SECONDS
        )
        self.lag_seconds = histogram("lag_seconds", "Age of an input when it was answered.", _LAG_SECONDS, "topic")
        self.standby = gauge("standby_partitions", "Followed partitions whose tables lack nothing but the tail.")
        self.unfinished_records = gauge("unfinished_records", "Records taken in and not in force yet.", "topic")
        self.unfinished_bytes = gauge("unfinished_bytes", "The bytes of their values.", "topic")
        self.owned = gauge("owned_partitions", "Partitions that this worker owns.")
        self.term = gauge("term", "The term under which a partition is owned.", "partition")
        self.catalog = gauge("catalog_version", "The newest catalog this worker knows.")
        self.recovery_seconds = gauge("recovery_seconds", "How long the last recovery took.", "partition")
        self.recovery_records = gauge("recovery_records", "Journal records read by the last recovery.", "partition")
        self.rebuilds = counter("table_rebuilds", "Local tables built anew from the journal.")

    def took_effect(self, transition: Transition) -> None:
        """Counts what a transition decided, once it is in force."""
        self.events.inc(transition.events)
        self.duplicates.inc(transition.duplicates)
        for (op, how, reason), count in Counted((o.op, o.outcome, o.reason) for o in transition.outcomes).items():
            self.decisions.labels(op, how, reason.value).inc(count)
        for letter in transition.dead_letters:
            self.dead_letters.labels(letter.reason.value).inc()

    def watch_unfinished(self, topic: str, unfinished: Callable[[str], tuple[int, int]]) -> None:
        """What a lane has under way is asked for when somebody looks."""
        self.unfinished_records.labels(topic).set_function(lambda: unfinished(topic)[0])
        self.unfinished_bytes.labels(topic).set_function(lambda: unfinished(topic)[1])

    def forget(self, partition: int) -> None:
        """Drops the figures of a partition that is owned no more."""
        number = str(partition)
        for metric in (self.term, self.recovery_seconds, self.recovery_records):
            with contextlib.suppress(KeyError):
                metric.remove(number)

    def serve(self, address: str) -> str | None:
        """Serves `/metrics` on `host:port` and returns where (port 0 takes a free one); None where it is empty."""
        if not address:
            return None
        host, port = parse_address(address)
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise MetricsError(
                f"metrics cannot be served on {address} ({error.strerror}): set {ENV_PREFIX}METRICS_ADDRESS "
                "(port 0 takes a free one, empty serves none)"
            ) from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._server = (server, stop)
        return f"http://{host}:{server.server_port}/metrics"

    def close(self) -> None:
        if self._server is not None:
            self._server[1]()
            self._server = None
