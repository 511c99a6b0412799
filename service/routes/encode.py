"""POST /v1/encode: an image in, a bitstream out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from model.container import MEDIA_TYPE
from model.zoo import ZooEntry
from service import auth, errors, openapi
from service.context import Context, Here
from service.identity import Record
from service.lifetime import Lifetime
from service.routes.common import ADMISSION, TimeoutMs, seconds, server_timing
from service.upload import disposition, read_upload

router = APIRouter(tags=["codec"])

_EXAMPLE = "`curl --data-binary @photo.png -H 'Content-Type: image/png' …/v1/encode -o photo.tcm`"
_RESPONSES = openapi.problems(
    *auth.PROBLEMS,
    errors.MalformedRequest,
    errors.EmptyBody,
    errors.BadForm,
    errors.AmbiguousModel,
    errors.UnknownModel,
    errors.UnsupportedMediaType,
    errors.UnsupportedImage,
    errors.CorruptImage,
    errors.TooManyPixels,
    errors.InvalidParameter,
    errors.OutOfMemory,
    errors.ModelUnavailable,
    errors.DeadlineExceeded,
    *ADMISSION,
) | {
    200: {
        "description": "The bitstream.",
        "content": {MEDIA_TYPE: {"schema": openapi.BINARY}},
        "headers": {
            "TCM-Model": openapi.header("The model it was written with.", "tcm-xs-mse-0.013"),
            "TCM-Bits-Per-Pixel": openapi.header("Of the whole file.", 0.4213),
            "Server-Timing": openapi.SERVER_TIMING,
        },
    }
}


@router.post(
    "/v1/encode",
    summary="Compress an image",
    dependencies=[auth.ENCODE],
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=openapi.body(f"An image file. {_EXAMPLE}", "image/*"),
)
async def encode(
    request: Request,
    here: Here,
    model: Annotated[
        str | None, Query(description="Name of a model from /v1/models.", examples=["tcm-xs-mse-0.013"])
    ] = None,
    quality: Annotated[
        int | None,
        Query(ge=1, le=6, description="Instead of a name: the model of the default's family whose λ is nearest."),
    ] = None,
    metadata: Annotated[
        Literal["keep", "strip"], Query(description="Whether ICC profile, EXIF and XMP go into the bitstream.")
    ] = "keep",
    timeout_ms: TimeoutMs = None,
) -> Response:
    """Send an image file, raw or as the form field `file`; get a .tcm bitstream."""
    entry = _choose(here, model, quality)
    record = Record.of(request.scope)
    record.model = entry.name
    stages = record.stages
    async with Lifetime(request, seconds(here, timeout_ms)) as lifetime:
        upload = await read_upload(request, ["image/*"], here.settings.max_body_bytes)
        lifetime.ends_with_client()
        encoded = await here.scheduler.encode(upload.data, entry, keep_metadata=metadata == "keep", stages=stages)
    here.metrics.bits_per_pixel.labels(entry.name).observe(encoded.bits_per_pixel)
    return Response(
        encoded.data,
        media_type=MEDIA_TYPE,
        headers={
            "TCM-Model": entry.name,
            "TCM-Bits-Per-Pixel": f"{encoded.bits_per_pixel:.4f}",
            "Content-Disposition": disposition("attachment", f"{upload.stem}.tcm"),
            "Server-Timing": server_timing(stages),
        },
    )


def _choose(here: Context, model: str | None, quality: int | None) -> ZooEntry:
    if model is not None and quality is not None:
        raise errors.AmbiguousModel("`model` and `quality` both choose the model: send one of them")
    if model is not None:
        return here.zoo.get(model)
    if quality is not None:
        return here.zoo.for_quality(quality, like=here.default_entry)
    return here.default_entry
