"""POST /v1/encode: an image in, a bitstream out."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model.container import MEDIA_TYPE
from service import auth, errors, openapi
from service.context import Here
from service.file_answer import FileAnswer
from service.identity import Record
from service.lifetime import Lifetime
from service.routes.common import (
    CODED,
    ENCODING,
    SENT,
    Metadata,
    ModelName,
    Quality,
    TimeoutMs,
    choose,
    seconds,
    server_timing,
)
from service.upload import disposition, read_upload

router = APIRouter(tags=["codec"])

_EXAMPLE = "`curl --data-binary @photo.png -H 'Content-Type: image/png' …/v1/encode -o photo.tcm`"
_RESPONSES = openapi.problems(
    *SENT,
    *CODED,
    errors.AmbiguousModel,
    errors.UnknownModel,
    errors.UnsupportedImage,
    errors.CorruptImage,
) | {
    200: {
        "description": "The bitstream.",
        "content": {MEDIA_TYPE: {"schema": openapi.BINARY}},
        "headers": {
            "TCM-Model": openapi.header("The model it was written with.", "tcm-xs-mse-0.013"),
            "TCM-Bits-Per-Pixel": openapi.header("Of the whole file.", 0.4213),
            "Content-Disposition": openapi.DISPOSITION,
            "Server-Timing": openapi.SERVER_TIMING,
        },
    }
}


@router.post(
    "/v1/encode",
    summary="Compress an image",
    dependencies=[auth.ENCODE, ENCODING],
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=openapi.body(f"An image file. {_EXAMPLE}", "image/*"),
)
async def encode(
    request: Request,
    here: Here,
    model: ModelName = None,
    quality: Quality = None,
    metadata: Metadata = "keep",
    timeout_ms: TimeoutMs = None,
) -> Response:
    """Send an image file, raw or as the form field `file`; get a .tcm bitstream."""
    entry = choose(here, model, quality)
    record = Record.of(request.scope)
    record.model = entry.name
    stages = record.stages
    async with Lifetime(request, seconds(here, timeout_ms)) as lifetime:
        upload = await read_upload(request, ["image/*"], here.settings.max_body_bytes)
        lifetime.ends_with_client()
        encoded = await here.scheduler.encode(upload.data, entry, keep_metadata=metadata == "keep", stages=stages)
    here.metrics.bits_per_pixel.labels(entry.name).observe(encoded.bits_per_pixel)
    return FileAnswer(
        encoded.data,
        media_type=MEDIA_TYPE,
        headers={
            "TCM-Model": entry.name,
            "TCM-Bits-Per-Pixel": f"{encoded.bits_per_pixel:.4f}",
            "Content-Disposition": disposition("attachment", f"{upload.stem}.tcm"),
            "Server-Timing": server_timing(stages),
        },
    )
