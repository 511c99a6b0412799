"""GET /metrics, for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from service import auth, openapi
from service.context import Here
from service.keys import Scope

router = APIRouter(tags=["operation"])

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The metrics.",
        "content": {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")},
    }
}


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", summary="Metrics", response_class=Response, responses=openapi.problems(*auth.PROBLEMS) | _TEXT)
async def metrics(request: Request, here: Here) -> Response:
    """Counters and histograms in the text format of Prometheus, or OpenMetrics where that is preferred."""
    if here.settings.metrics_key:
        auth.authorise(request, here, Scope.METRICS)
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(here.metrics.registry), headers={"Content-Type": content_type, "Cache-Control": "no-store"})
