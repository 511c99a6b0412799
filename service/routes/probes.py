"""Probes: alive as long as work goes on, ready from the models' trial until the server is told to stop."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from service import openapi
from service.context import Here
from service.errors import NotReady, WorkerLost

router = APIRouter(tags=["operation"])

_ALIVE = openapi.problems(WorkerLost)
_READY = openapi.problems(NotReady)
_NO_STORE = {"Cache-Control": "no-store"}


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Is the process alive?", responses=_ALIVE)
async def livez(here: Here) -> Response:
    """200 as long as the event loop answers and nothing hangs; after a failure the process ends by itself."""
    _must_be_alive(here.health.lost)
    return JSONResponse({"status": "alive"}, headers=_NO_STORE)


@router.head("/startupz", include_in_schema=False)
@router.head("/healthz", include_in_schema=False)
@router.head("/readyz", include_in_schema=False)
@router.get("/startupz", summary="Has it started?", operation_id="startupz", responses=_READY)
@router.get("/healthz", summary="As /readyz", operation_id="healthz", responses=_READY)
@router.get("/readyz", summary="Is it ready for requests?", operation_id="readyz", responses=_READY)
async def readyz(here: Here) -> Response:
    """200 once the preloaded models have made a round trip of a known image, and until the server is told to stop."""
    _must_be_ready(here.health.reason)
    return JSONResponse({"status": "ready"}, headers=_NO_STORE)


@router.head("/v2/health/live", include_in_schema=False)
@router.get("/v2/health/live", summary="KServe: is it alive?", responses=_ALIVE)
async def kserve_live(here: Here) -> Response:
    """As /livez."""
    _must_be_alive(here.health.lost)
    return JSONResponse({"live": True}, headers=_NO_STORE)


@router.head("/v2/health/ready", include_in_schema=False)
@router.get("/v2/health/ready", summary="KServe: is it ready?", responses=_READY)
async def kserve_ready(here: Here) -> Response:
    """As /readyz."""
    _must_be_ready(here.health.reason)
    return JSONResponse({"ready": True}, headers=_NO_STORE)


def _must_be_alive(lost: str | None) -> None:
    if lost is not None:
        raise WorkerLost(lost)


def _must_be_ready(reason: str | None) -> None:
    if reason is not None:
        raise NotReady(reason)
