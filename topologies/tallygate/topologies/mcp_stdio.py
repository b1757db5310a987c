"""The process behind `tallygate mcp`: one customer's tools, on standard input and output, over Kafka."""

from tallygate.connectors.client_async import Tallygate
from tallygate.connectors.gateway.confirmed import ConfirmedProducer
from tallygate.connectors.mcp.desks import CustomerDesk
from tallygate.connectors.mcp.tools import build_server
from tallygate.schemas.names import NAME_MAX, has_control
from tallygate.topologies.exits import Exit, Trouble
from tallygate.topologies.settings import Settings


async def serve(settings: Settings, customer: str, timeout_seconds: float) -> None:
    """Answers until the input ends. Raises NotConnected."""
    if not customer or len(customer) > NAME_MAX or has_control(customer):
        raise Trouble(Exit.WRONG, f"--customer: 1 to {NAME_MAX} characters and no control characters")
    brokers, kafka = settings.kafka_brokers, settings.kafka_config
    producer = ConfirmedProducer(brokers, kafka)
    async with Tallygate(brokers, service="cli", timeout=timeout_seconds, kafka=kafka) as client:
        producer.start()
        try:
            desk = CustomerDesk(client, producer, customer, timeout_seconds)
            await build_server(lambda context: desk).run_stdio_async()
        finally:
            await producer.close()
