"""Features in OpenMeter's form: those of the catalog."""

from typing import Any, Final

from starlette.responses import Response

from tallygate.connectors.gateway.openmeter.asked import (
    impossible,
    number,
    operation,
    paged,
    several,
    since,
)
from tallygate.connectors.gateway.operations import Call, json_response
from tallygate.connectors.gateway.problems import Problem
from tallygate.schemas.catalog import Feature
from tallygate.schemas.reasons import Reason


def feature_of(call: Call, wanted: str) -> Feature:
    for feature in call.gateway.newest.catalog.features:
        if feature.name == wanted:
            return feature
    raise Problem(404, "feature-unknown", "the catalog has no such feature", reason=Reason.FEATURE_UNKNOWN)


def _told(call: Call, feature: Feature) -> dict[str, Any]:
    """A feature. One of OpenMeter's has one meter at most; `meterSlug` is left out where there are more."""
    return {
        "id": feature.name,
        "key": feature.name,
        "name": feature.name,
        **({"meterSlug": feature.meters[0]} if len(feature.meters) == 1 else {}),
        **since(call.gateway.newest.published_at),
    }


async def _list(call: Call) -> Response:
    slugs = several(call, "meterSlug")
    found = [
        _told(call, each)
        for each in call.gateway.newest.catalog.features
        if not slugs or any(meter in slugs for meter in each.meters)
    ]
    found.sort(key=lambda each: str(each["key"]), reverse=(call.query("order") or "").upper() == "DESC")
    if call.query("page") is not None or call.query("pageSize") is not None:
        return json_response(paged(call, found))
    skipped = number(call, "offset", 0, 10**6, 0)
    return json_response(found[skipped:][: number(call, "limit", 1_000, 1_000)])


async def _get(call: Call) -> Response:
    return json_response(_told(call, feature_of(call, call.request.path_params["feature"])))


async def _not_here(call: Call) -> Response:
    raise impossible("features are part of the catalog: `tallygate catalog apply`, or POST /v1/catalog")


OPERATIONS: Final = (
    operation("GET", "/api/v1/features", _list, "read", tenant=True),
    operation("POST", "/api/v1/features", _not_here, "admin", tenant=True),
    operation("GET", "/api/v1/features/{feature}", _get, "read", tenant=True),
    operation("DELETE", "/api/v1/features/{feature}", _not_here, "admin", tenant=True),
)
