"""What an operator needs to know of a gateway, for Prometheus. No figure carries a customer or a key."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)


class Figures:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.calls = Counter(
            "tallygate_gateway_calls", "Calls answered.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "tallygate_gateway_seconds",
            "From a call's head to the head of its answer.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.events = Counter("tallygate_gateway_events", "Usage events that Kafka has confirmed.", registry=registry)
        self.fallbacks = Counter(
            "tallygate_gateway_fallbacks",
            "Calls allowed because no worker answered and their feature fails open.",
            ["op"],
            registry=registry,
        )
        self.ready = Gauge("tallygate_gateway_ready", "1 when the gateway is connected.", registry=registry)
        self.keys = Gauge("tallygate_gateway_keys", "API keys known.", registry=registry)
        self.streams = Gauge("tallygate_gateway_streams", "Streams of decisions open.", registry=registry)
