"""GET /v1/bitstreams/{id}/image: the picture of a stored bitstream, for an <img> and the caches before it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import access, errors, negotiation, openapi
from service.conditional import client_has, demand
from service.context import Here
from service.file_answer import FileAnswer
from service.identity import Record
from service.lifetime import Lifetime
from service.routes.bitstreams import CACHE_CONTROL, PATH, STORE_PROBLEMS, Id, IfMatch, IfNoneMatch, digest_header
from service.routes.common import CODED, IMAGES, READING, Accept, TimeoutMs, seconds, server_timing
from service.upload import disposition

router = APIRouter(tags=["bitstreams"])

_CACHED = {
    "ETag": openapi.header("Strong: it names these bytes.", '"9f86d081884c7d65.png.2c26b46b68ffc68f"'),
    "Cache-Control": CACHE_CONTROL,
    "Vary": openapi.header("The format depends on it.", "Accept"),
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image, in the format that `Accept` prefers.",
        "content": IMAGES,
        "headers": {
            **_CACHED,
            "Content-Digest": openapi.header("SHA-256 of the image file.", "sha-256=:n4bQ…=:"),
            "TCM-Model": openapi.header("The model that it was written with.", "tcm-xs-mse-0.013"),
            "Content-Disposition": openapi.DISPOSITION,
            "Server-Timing": openapi.header("Stages, or `cache` or `shared` where nothing was decoded.", "cache"),
        },
    },
    304: {"description": "The client has it.", "headers": _CACHED},
}


@router.head(f"{PATH}/image", include_in_schema=False)
@router.get(
    f"{PATH}/image",
    summary="Get the picture of a bitstream",
    response_class=Response,
    responses=openapi.problems(
        *access.PROBLEMS,
        *STORE_PROBLEMS,
        *CODED,
        errors.BitstreamNotFound,
        errors.PreconditionFailed,
        errors.DamagedBitstream,
        errors.NotAcceptable,
        errors.IncompatibleModel,
        errors.CorruptBitstream,
    )
    | _RESPONSES,
)
async def image(
    request: Request,
    here: Here,
    digest: Id,
    reader: access.Reader,
    accept: Accept = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    timeout_ms: TimeoutMs = None,
    _: None = READING,  # behind who may read
) -> Response:
    """The reconstruction: decoded once for all who ask at the same time, and kept as long as there is room."""
    record = Record.of(request.scope)
    record.bitstream = digest
    stages = record.stages
    async with Lifetime(request, seconds(here, timeout_ms)) as lifetime:
        lifetime.ends_with_client()
        meta = await here.store.stat(digest)  # even of what is kept here: another replica may have deleted it
        container = await here.reconstructions.open(digest, stages)
        wanted = negotiation.choose(accept, container.width, container.height)
        headers = {"Vary": "Accept", "Cache-Control": reader.cache_control(here.store.remaining(meta))}
        # pictures of one bitstream may differ in their last bits from machine to machine, and each is as good: a
        # client that has any of them, which the first part of its tag says, needs no other
        first = f'"{digest[:16]}.{wanted.name}.'
        tag = client_has(if_none_match, lambda tag: tag.startswith(first)) if if_match is None else None
        if tag and tag != "*":
            return Response(status_code=304, headers=headers | {"ETag": tag})
        picture, source = await here.reconstructions.image(digest, container, wanted, stages)
    record.model = picture.model
    etag = f'{first}{picture.digest.hex()[:32]}"'
    demand(if_match, etag)
    if client_has(if_none_match, lambda tag: tag.startswith(first)):
        return Response(status_code=304, headers=headers | {"ETag": etag})
    return FileAnswer(
        picture.data,
        media_type=wanted.media_type,
        headers=headers
        | {
            "ETag": etag,
            "Content-Digest": digest_header(picture.digest),
            "TCM-Model": picture.model,
            "Content-Disposition": disposition("inline", f"{digest[:16]}.{wanted.name}"),
            "Server-Timing": server_timing(stages) if source == "made" else source,
        },
    )
