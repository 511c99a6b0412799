"""POST /v1/decode: a bitstream in, an image out."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model.container import MEDIA_TYPE
from service import auth, errors, negotiation, openapi
from service.context import Here
from service.file_answer import FileAnswer
from service.identity import Record
from service.lifetime import Lifetime
from service.routes.common import CODED, IMAGES, SENT, Accept, TimeoutMs, known, seconds, server_timing
from service.upload import disposition, read_upload

router = APIRouter(tags=["codec"])

_EXAMPLE = "`curl --data-binary @photo.tcm …/v1/decode -o photo.png`"
_RESPONSES = openapi.problems(
    *SENT,
    *CODED,
    errors.NotAcceptable,
    errors.IncompatibleModel,
    errors.UnsupportedBitstream,
    errors.CorruptBitstream,
) | {
    200: {
        "description": "The image, in the format that `Accept` prefers.",
        "content": IMAGES,
        "headers": {
            "TCM-Model": openapi.header("The model that it was written with.", "tcm-xs-mse-0.013"),
            "Vary": openapi.header("The format depends on it.", "Accept"),
            "Content-Disposition": openapi.DISPOSITION,
            "Server-Timing": openapi.SERVER_TIMING,
        },
    }
}


@router.post(
    "/v1/decode",
    summary="Get the image back",
    dependencies=[auth.DECODE, known("timeout_ms")],
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=openapi.body(f"A .tcm bitstream. {_EXAMPLE}", MEDIA_TYPE),
)
async def decode(
    request: Request,
    here: Here,
    accept: Accept = None,
    timeout_ms: TimeoutMs = None,
) -> Response:
    """Send a .tcm bitstream, raw or as the form field `file`; get an image of exactly the original's size."""
    record = Record.of(request.scope)
    stages = record.stages
    async with Lifetime(request, seconds(here, timeout_ms)) as lifetime:
        upload = await read_upload(request, [MEDIA_TYPE], here.settings.max_body_bytes)
        lifetime.ends_with_client()
        container = await here.scheduler.inspect(upload.data, stages=stages)
        wanted = negotiation.choose(accept, container.width, container.height)
        entry = here.zoo.by_fingerprint(container.fingerprint, container.model)
        record.model = entry.name
        image = await here.scheduler.decode(container, entry, wanted.name, stages=stages)
    return FileAnswer(
        image,
        media_type=wanted.media_type,
        headers={
            "Vary": "Accept",
            "TCM-Model": entry.name,
            "Content-Disposition": disposition("inline", f"{upload.stem}.{wanted.name}"),
            "Server-Timing": server_timing(stages),
        },
    )
