"""The client over Kafka, for asyncio."""

from collections.abc import Mapping
from typing import Final

from tallygate.connectors.client_calls import IN_FLIGHT_MAX_DEFAULT, TallygateClient
from tallygate.connectors.client_transport import Transport
from tallygate.connectors.client_usage import BUFFER_EVENTS_DEFAULT, LINGER_SECONDS_DEFAULT
from tallygate.connectors.client_usage_kafka import KafkaUsage
from tallygate.schemas.answers import Answer
from tallygate.schemas.requests import Request

TIMEOUT_SECONDS_DEFAULT: Final = 5.0


class Tallygate(TallygateClient):
    """A client on one event loop, for any number of tasks.

    `brokers` are Kafka's addresses, `service` names the reply topic (`tallygate topics --service NAME` declares it) and
    `kafka` adds settings of librdkafka, e.g. `{"security.protocol": "SASL_SSL", ...}`. More than `in_flight_max` calls
    at once wait for each other, within their time-outs. `fail_open` is explained at `TallygateClient`. A usage event
    waits `usage_linger` seconds for others to go with; `usage_buffer` of them may wait or be on their way.
    """

    def __init__(
        self,
        brokers: str,
        *,
        service: str,
        timeout: float = TIMEOUT_SECONDS_DEFAULT,
        in_flight_max: int = IN_FLIGHT_MAX_DEFAULT,
        kafka: Mapping[str, str] | None = None,
        fail_open: Mapping[str, str] | None = None,
        usage_linger: float = LINGER_SECONDS_DEFAULT,
        usage_buffer: int = BUFFER_EVENTS_DEFAULT,
    ) -> None:
        super().__init__(timeout, fail_open)
        self._transport = Transport(brokers, service, in_flight_max, kafka or {})
        self._usage = KafkaUsage({**(kafka or {}), "bootstrap.servers": brokers}, service, usage_linger, usage_buffer)

    async def _connect(self) -> None:
        await self._transport.start(self._timeout)

    async def _disconnect(self) -> None:
        await self._transport.close()

    async def _send(self, request: Request, value: bytes, within: float) -> Answer:
        return await self._transport.ask(request, value, within)
