"""What a worker says while it waits for the cluster."""

import re

import pytest
from confluent_kafka import KafkaError, KafkaException

from tallygate.topologies.cluster import Cluster
from tallygate.topologies.settings import load_settings

AWAY = ["broker {} is away ({}); waiting", "broker {} is back"]


@pytest.mark.parametrize(
    ("brokers", "code", "says"),
    [
        ("127.0.0.1:1", KafkaError.NOT_LEADER_FOR_PARTITION, []),
        ("127.0.0.1:2", KafkaError.LEADER_NOT_AVAILABLE, []),
        ("127.0.0.1:5", KafkaError.UNKNOWN_LEADER_EPOCH, []),  # seen right after a broker came back
        ("127.0.0.1:6", KafkaError.OFFSET_NOT_AVAILABLE, []),
        ("127.0.0.1:7", KafkaError._NOENT, []),
        ("127.0.0.1:3", KafkaError._TRANSPORT, AWAY),
        ("127.0.0.1:4", KafkaError._TIMED_OUT, AWAY),
    ],
)
async def test_a_leader_that_is_being_elected_is_no_broker_that_is_away(
    brokers: str, code: int, says: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    error = KafkaError(code)
    answers = iter([KafkaException(error), KafkaException(error), 7])

    def ask() -> int:
        match next(answers):
            case KafkaException() as trouble:
                raise trouble
            case number:
                return number

    assert await Cluster(load_settings(kafka_brokers=brokers))._patiently(ask) == 7
    # Nobody listens there, and the client's own thread may say so first, in other words for the same.
    assert [re.sub(r"\(.*\);", "({});", line) for line in caplog.messages] == [
        line.format(brokers, "{}") for line in says
    ]
