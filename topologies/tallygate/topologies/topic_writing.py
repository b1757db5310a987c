"""Some records into a topic of one partition, for commands: confirmed by the broker, or an error."""

from typing import Final

from confluent_kafka import KafkaException, Producer

from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.topologies.settings import Settings
from tallygate.topologies.topic_reading import TIMEOUT_SECONDS, bounds

_CONFIG: Final = {"acks": "all", "enable.idempotence": True, "log_level": "2", "error_cb": lambda error: None}


def write(settings: Settings, topic: str, sent: list[tuple[bytes, bytes]]) -> None:
    """Returns when the broker has confirmed all keys and values. Raises KafkaUnreachable, KafkaRefused."""
    bounds(settings, topic)  # says what to do where it is missing; a broker might make it, in its own way
    failed: list[str] = []
    producer = Producer({**settings.librdkafka, **_CONFIG, "message.timeout.ms": str(int(TIMEOUT_SECONDS * 1000))})
    try:
        for key, value in sent:
            producer.produce(
                topic,
                value,
                key,
                partition=0,
                on_delivery=lambda error, message: failed.append(error.str()) if error else None,
            )
        unsent = producer.flush(TIMEOUT_SECONDS + 1)
    except (KafkaException, BufferError) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise KafkaRefused(f"{topic} on {settings.kafka_brokers} cannot be written: {why}") from error
    if failed or unsent:
        why = failed[0] if failed else f"no answer within {TIMEOUT_SECONDS:g} s"
        raise KafkaUnreachable(f"{topic} on {settings.kafka_brokers} was not written: {why}")
