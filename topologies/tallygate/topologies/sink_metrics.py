"""What an operator needs to know of a sink, for Prometheus: a registry of its own on an address of its own."""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from tallygate.topologies.settings import parse_address

_INSERT_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)


class SinkMetrics:
    """The figures of one sink."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.rows = Counter("tallygate_sink_rows", "Rows inserted.", ["table"], registry=registry)
        self.records = Counter("tallygate_sink_records", "Journal records read.", registry=registry)
        self.relayed = Counter("tallygate_sink_relayed", "Records published.", ["topic"], registry=registry)
        self.stale = Gauge("tallygate_sink_stale_records", "Journal records that the fence refused.", registry=registry)
        self.missing = Gauge(
            "tallygate_sink_missing_records", "Offsets that were gone before they were read.", registry=registry
        )
        self.lag = Gauge("tallygate_sink_lag", "Offsets up to the journal's end.", ["partition"], registry=registry)
        self.behind_seconds = Gauge(
            "tallygate_sink_behind_seconds",
            "Age of the last record read, where more wait: alert at half of the journal's min.compaction.lag.ms.",
            ["partition"],
            registry=registry,
        )
        self.insert_seconds = Histogram(
            "tallygate_sink_insert_seconds",
            "One batch's inserts, offsets included.",
            buckets=_INSERT_SECONDS,
            registry=registry,
        )
        self.last_error_at = Gauge(
            "tallygate_sink_last_error_timestamp_seconds", "When it last had to wait.", ["what"], registry=registry
        )

    def note_error(self, what: str) -> None:
        self.last_error_at.labels(what).set(time.time())


class MetricsPage:
    """Serves a registry on `host:port`; an empty address serves nothing. Raises OSError where the address is taken."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        self._server = None
        if address:
            host, port = parse_address(address)
            self._server, self._thread = start_http_server(port, host, registry)

    @property
    def url(self) -> str:
        """Where it is served; empty where it is not."""
        if self._server is None:
            return ""
        host, port = self._server.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else str(host)}:{port}/metrics"

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
