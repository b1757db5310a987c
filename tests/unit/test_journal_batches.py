"""What the owner reckons a batch to take is never less than what Kafka's format takes."""

import random

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder

from tallygate.schemas.topics import HEADER_SEQ, HEADER_TERM
from tallygate.topologies.journal import producer_options
from tallygate.topologies.owner import batch_bytes


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_is_never_larger_than_reckoned(seed: int) -> None:
    chance = random.Random(seed)
    records = [
        (
            chance.randbytes(chance.choice((1, 30, 300))),
            chance.choice((None, b"", chance.randbytes(chance.randint(1, 5000)))),
        )
        for _ in range(chance.choice((1, 10, 1000)))
    ]
    builder = BatchBuilder(1 << 30, 0)
    headers = [(HEADER_TERM, b"9" * 19), (HEADER_SEQ, b"9" * 19)]
    for key, value in records:
        assert builder.append(timestamp=None, key=key, value=value, headers=headers)
    size = len(builder._build())
    assert size <= batch_bytes(records)
    assert batch_bytes(records) <= size + 64 + 60 * len(records)


def test_the_security_of_librdkafka_is_carried_over() -> None:
    options = producer_options(
        {
            "security.protocol": "sasl_ssl",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "worker",
            "sasl.password": "secret",
            "linger.ms": "5",
        }
    )
    context = options.pop("ssl_context")
    assert context.check_hostname
    assert options == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "worker",
        "sasl_plain_password": "secret",
    }
    assert producer_options({"linger.ms": "5"}) == {"security_protocol": "PLAINTEXT"}
