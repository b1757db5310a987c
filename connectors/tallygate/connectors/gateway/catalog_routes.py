"""The catalog over HTTP: shown as people write it, and applied as the next version."""

from decimal import Decimal
from typing import Any, Final

import msgspec
from starlette.responses import Response

from tallygate.connectors.gateway.operations import JSON, Call, Operation, Shown, json_response
from tallygate.connectors.gateway.problems import Problem, unavailable
from tallygate.connectors.kafka_admin import KafkaRefused, KafkaUnreachable
from tallygate.schemas.catalog_file import CatalogError, CatalogFile, read_catalog
from tallygate.schemas.catalog_text import document
from tallygate.schemas.samples import CATALOG
from tallygate.schemas.samples_catalog import FILE

_decoder: Final = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


class CatalogVersion(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version, and the catalog as people write it. `changed`: whether this call made the version."""

    version: int
    catalog: dict[str, Any]
    changed: bool = False


async def _show(call: Call) -> Response:
    newest = call.gateway.newest.catalog
    return json_response(CatalogVersion(newest.version, document(newest)))


async def _apply(call: Call) -> Response:
    content = await call.json(_decoder)
    try:
        file = read_catalog(content, "body")
    except CatalogError as error:
        lines = str(error).splitlines()
        raise Problem(422, "catalog", f"nothing was applied: {lines[0]}", errors=tuple(lines[:50])) from None
    return await _publish(call, file)


async def _publish(call: Call, file: CatalogFile) -> Response:
    names = {"meters": sorted(file.meters), "features": sorted(file.features), "plans": sorted(file.plans)}
    audited = await call.gateway.audit.begin(
        who=call.key.id, origin=call.origin, action="catalog.apply", customer="", target="", details=names
    )
    try:
        applied = await call.gateway.apply_catalog(file)
    except KafkaRefused as error:
        await audited.end("refused", str(error))
        raise Problem(409, "catalog", str(error)) from None
    except KafkaUnreachable as error:
        await audited.end("failed", str(error))
        raise unavailable("not-connected", str(error)) from None
    await audited.end("done", target=f"version {applied.catalog.version}")
    return json_response(CatalogVersion(applied.catalog.version, document(applied.catalog), applied.changed))


_EXAMPLE: Final = CatalogVersion(3, document(CATALOG.full), changed=True)

OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/catalog",
        name="catalog",
        summary="Show the catalog in force",
        group="Catalog",
        scope="read",
        tenant=True,
        handler=_show,
        answers={200: Shown("The newest version.", CatalogVersion, _EXAMPLE)},
    ),
    Operation(
        method="POST",
        path="/v1/catalog",
        name="apply-catalog",
        summary="Put a catalog in force",
        text="As the next version, in every worker; one that says the same makes no version. Wrong ones are refused.",
        group="Catalog",
        scope="admin",
        tenant=True,
        handler=_apply,
        body={JSON: ("catalog-file", FILE)},
        answers={200: Shown("The version in force.", CatalogVersion, _EXAMPLE)},
        problems=(400, 409, 413, 415, 422),
    ),
)
