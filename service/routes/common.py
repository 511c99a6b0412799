"""What the codec's two routes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query

from service.context import Context
from service.errors import Draining, QuotaExceeded, Saturated, WorkerLost

TimeoutMs = Annotated[
    int | None, Query(ge=1, description="Deadline of the whole request; capped by the server.", examples=[5000])
]


ADMISSION = (QuotaExceeded, Saturated, Draining, WorkerLost)
"""What a route that asks for work can answer before it has looked at the request."""


def seconds(here: Context, timeout_ms: int | None) -> float:
    """The deadline of a request, from its parameter and the cap."""
    return min(timeout_ms or here.settings.timeout_ms, here.settings.timeout_ms) / 1000


def server_timing(stages: Mapping[str, float]) -> str:
    """The header of that name."""
    return ", ".join(f"{stage};dur={duration * 1000:.1f}" for stage, duration in stages.items())
