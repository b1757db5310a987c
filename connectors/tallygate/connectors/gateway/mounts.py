"""Everything that the gateway answers: the one place where routes are added.

A module of routes lists `OPERATIONS` (`operations.Operation`), or `MOUNTED` (`operations.Mounted`) for applications of
their own, and stands in `MODULES`. Whatever is listed has the same authentication, limits, metrics and errors, and the
test of every route against every wrong key covers it. The first path that fits is taken: the busiest stand first.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Final

from tallygate.connectors.gateway import (
    administration,
    catalog_routes,
    customers,
    decisions,
    history,
    mcp_mount,
    otlp,
    stream,
    system,
    usage,
)
from tallygate.connectors.gateway.openmeter import customers as openmeter_customers
from tallygate.connectors.gateway.openmeter import entitlements as openmeter_entitlements
from tallygate.connectors.gateway.openmeter import events as openmeter_events
from tallygate.connectors.gateway.openmeter import features as openmeter_features
from tallygate.connectors.gateway.openmeter import meters as openmeter_meters
from tallygate.connectors.gateway.operations import Mounted, Operation

MODULES: Final[tuple[ModuleType, ...]] = (
    decisions,
    usage,
    otlp,
    mcp_mount,
    stream,
    customers,
    history,
    administration,
    catalog_routes,
    system,
    openmeter_events,
    openmeter_meters,
    openmeter_features,
    openmeter_entitlements,
    openmeter_customers,
)


def operations() -> Iterator[Operation]:
    for module in MODULES:
        yield from getattr(module, "OPERATIONS", ())


def mounted() -> Iterator[Mounted]:
    for module in MODULES:
        yield from getattr(module, "MOUNTED", ())
