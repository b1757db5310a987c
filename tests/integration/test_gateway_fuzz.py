"""Whatever is sent, no fault of the server: calls made from the API's own description, against everything running.

`TALLYGATE_FUZZ_EXAMPLES` sets how many are made up for each operation, `--hypothesis-seed` replays a run.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway_stack import Stack, gateway_stack
from kafka_fixture import Broker
from tallygate.connectors.gateway.openapi import document

EXAMPLES = int(os.environ.get("TALLYGATE_FUZZ_EXAMPLES", "15"))
CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

pytestmark = pytest.mark.timeout(600)

#: Streams do not end, and have tests of their own.
API: Any = schemathesis.openapi.from_dict(
    document("http://127.0.0.1"), config=SchemathesisConfig.from_dict({})
).exclude(operation_id="stream")


@schemathesis.serializer("application/x-ndjson")
def as_lines(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@pytest.fixture(scope="module")
def stack(module_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("fuzz")
    with gateway_stack(module_kafka.bootstrap, folder, sink=True, gateway_calls_per_second=0) as running:
        for customer in ("acme", "0"):
            running.gateway.call("POST", f"/v1/customers/{customer}/grants", {"amount": "1000"})
        yield running
        assert " ERROR " not in running.gateway.log()


@API.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_fault_of_the_server(case: Any, stack: Stack) -> None:
    case.call_and_validate(
        base_url=stack.gateway.url,
        headers={"Authorization": f"Bearer {stack.gateway.admin}"},
        checks=CHECKS,
        timeout=60,
    )
