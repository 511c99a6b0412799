"""/v1/bitstreams: an image or a bitstream in, kept under the SHA-256 of its bytes; and those bytes out."""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from model.container import MAGIC, MEDIA_TYPE
from service import access, auth, errors, openapi
from service.conditional import client_has, demand, wanted_range
from service.context import Here
from service.file_answer import FileAnswer
from service.identity import Record
from service.lifetime import Lifetime
from service.routes.common import (
    CODED,
    ENCODING,
    READING,
    SENT,
    Metadata,
    ModelName,
    Quality,
    TimeoutMs,
    choose,
    seconds,
    server_timing,
)
from service.store.medium import ID_PATTERN
from service.upload import disposition, read_upload

router = APIRouter(tags=["bitstreams"])

PATH = "/v1/bitstreams/{id}"
STORE_PROBLEMS = (errors.StoreDisabled, errors.StoreUnavailable, errors.DeadlineExceeded, errors.InvalidParameter)

Id = Annotated[str, Path(alias="id", pattern=ID_PATTERN, description="SHA-256 of the bitstream, hexadecimal.")]
IfNoneMatch = Annotated[str | None, Header(description="Entity tags that the client has: 304 if one is current.")]
IfMatch = Annotated[str | None, Header(description="Entity tags, of which one must be current: else 412.")]


class Stored(BaseModel):
    """A bitstream that is kept."""

    id: str = Field(description="SHA-256 of its bytes, hexadecimal.")
    model: str = Field(description="That it was written with.", examples=["tcm-xs-mse-0.013"])
    width: int
    height: int
    bytes: int
    bpp: float = Field(description="Bits per pixel, of the whole file.")


def digest_header(digest: bytes) -> str:
    """A value of Content-Digest (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


_EXAMPLE = "`curl --data-binary @photo.png -H 'Content-Type: image/png' …/v1/bitstreams`"
_STORED: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "It is kept, durably; the same bytes are the same bitstream.",
        "headers": {
            "Location": openapi.header("Where it can be read.", "/v1/bitstreams/9f86d0…"),
            "TCM-Model": openapi.header("The model it was written with.", "tcm-xs-mse-0.013"),
            "Server-Timing": openapi.SERVER_TIMING,
        },
    }
}


@router.post(
    "/v1/bitstreams",
    status_code=201,
    summary="Keep an image or a bitstream",
    dependencies=[auth.ENCODE, ENCODING],
    response_model=Stored,
    responses=openapi.problems(
        *SENT,
        *CODED,
        *STORE_PROBLEMS,
        errors.AmbiguousModel,
        errors.UnknownModel,
        errors.IncompatibleModel,
        errors.UnsupportedImage,
        errors.UnsupportedBitstream,
        errors.CorruptImage,
        errors.CorruptBitstream,
    )
    | _STORED,
    openapi_extra=openapi.body(f"An image file, or a .tcm bitstream. {_EXAMPLE}", "image/*", MEDIA_TYPE),
)
async def keep(
    request: Request,
    here: Here,
    model: ModelName = None,
    quality: Quality = None,
    metadata: Metadata = "keep",
    timeout_ms: TimeoutMs = None,
) -> Response:
    """Send an image file, which is encoded as by /v1/encode, or a ready bitstream, which is checked; either is kept."""
    here.store.require_room()
    entry = choose(here, model, quality)
    record = Record.of(request.scope)
    stages = record.stages
    async with Lifetime(request, seconds(here, timeout_ms)) as lifetime:
        upload = await read_upload(request, ["image/*", MEDIA_TYPE], here.settings.max_body_bytes)
        lifetime.ends_with_client()
        if upload.data.startswith(MAGIC) or request.headers.get("content-type", "").lower().startswith(MEDIA_TYPE):
            if model is not None or quality is not None:
                superfluous = "model" if model is not None else "quality"
                raise errors.InvalidParameter.of(
                    [(superfluous, "a ready bitstream says its model itself: leave this out")]
                )
            container = await here.scheduler.inspect(upload.data, stages=stages)
            entry = here.zoo.by_fingerprint(container.fingerprint, container.model)
            data, width, height = upload.data, container.width, container.height
            if metadata == "strip":
                data = await here.scheduler.stripped(container, stages=stages)
        else:
            encoded = await here.scheduler.encode(upload.data, entry, keep_metadata=metadata == "keep", stages=stages)
            here.metrics.bits_per_pixel.labels(entry.name).observe(encoded.bits_per_pixel)
            data, width, height = encoded.data, encoded.width, encoded.height
        record.model = entry.name
        del upload  # an image may be large
        here.admission.leave()  # the store may take long, and the device works for others meanwhile
        with stages("store"):
            digest = record.bitstream = await here.store.put(data)
    stored = Stored(
        id=digest,
        model=entry.name,
        width=width,
        height=height,
        bytes=len(data),
        bpp=round(8 * len(data) / (width * height), 4),
    )
    return JSONResponse(
        stored.model_dump(),
        status_code=201,
        headers={
            "Location": f"/v1/bitstreams/{digest}",
            "TCM-Model": entry.name,
            "Server-Timing": server_timing(stages),
        },
    )


CACHE_CONTROL = openapi.header("For ever, or as long as it lives.", "public, max-age=31536000, immutable")
_CACHED = {"ETag": openapi.header("Its id.", '"9f86d0…"'), "Cache-Control": CACHE_CONTROL}
_HEADERS = {
    **_CACHED,
    "Content-Digest": openapi.header("SHA-256 of what is sent.", "sha-256=:n4bQ…=:"),
    "Repr-Digest": openapi.header("SHA-256 of the whole bitstream.", "sha-256=:n4bQ…=:"),
    "Content-Disposition": openapi.DISPOSITION,
    "Accept-Ranges": openapi.header("Ranges can be had.", "bytes"),
}
_CONTENT = {MEDIA_TYPE: {"schema": openapi.BINARY}}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bitstream.", "content": _CONTENT, "headers": _HEADERS},
    206: {
        "description": "The range that was asked for.",
        "content": _CONTENT,
        "headers": {**_HEADERS, "Content-Range": openapi.header("Which bytes, of how many.", "bytes 0-99/52311")},
    },
    304: {"description": "The client has it.", "headers": _CACHED},
}


@router.head(PATH, include_in_schema=False)
@router.get(
    PATH,
    summary="Get a bitstream",
    response_class=Response,
    responses=openapi.problems(
        *access.PROBLEMS,
        *STORE_PROBLEMS,
        errors.Saturated,
        errors.BitstreamNotFound,
        errors.PreconditionFailed,
        errors.RangeNotSatisfiable,
        errors.DamagedBitstream,
    )
    | _BYTES,
)
async def read(
    request: Request,
    here: Here,
    digest: Id,
    reader: access.Reader,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    byte_range: Annotated[
        str | None, Header(alias="Range", description="One range of bytes.", examples=["bytes=0-99"])
    ] = None,
    if_range: Annotated[str | None, Header(description="The entity tag that the range belongs to.")] = None,
    timeout_ms: TimeoutMs = None,
    _: None = READING,  # behind who may read
) -> Response:
    """The bytes that were stored: exactly those, or a problem."""
    etag = f'"{digest}"'
    Record.of(request.scope).bitstream = digest
    async with Lifetime(request, seconds(here, timeout_ms)) as lifetime:
        lifetime.ends_with_client()
        meta = await here.store.stat(digest)
        headers = {"ETag": etag, "Cache-Control": reader.cache_control(here.store.remaining(meta))}
        demand(if_match, etag)
        if client_has(if_none_match, lambda tag: tag == etag):
            return Response(status_code=304, headers=headers)
        data = await here.store.get(digest)
    wanted = wanted_range(byte_range, if_range, etag, len(data)) if request.method == "GET" else None
    content = data[wanted] if wanted else data
    if wanted:
        headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{len(data)}"
    return FileAnswer(
        content,
        status_code=206 if wanted else 200,
        media_type=MEDIA_TYPE,
        headers=headers
        | {
            "Accept-Ranges": "bytes",
            "Content-Digest": digest_header(hashlib.sha256(content).digest() if wanted else bytes.fromhex(digest)),
            "Repr-Digest": digest_header(bytes.fromhex(digest)),
            "Content-Disposition": disposition("attachment", f"{digest[:16]}.tcm"),
        },
    )


@router.delete(
    PATH,
    status_code=204,
    summary="Delete a bitstream",
    dependencies=[auth.ADMIN, READING],
    response_class=Response,
    responses=openapi.problems(
        *auth.PROBLEMS,
        *STORE_PROBLEMS,
        errors.CrossOriginRefused,
        errors.BitstreamNotFound,
        errors.PreconditionFailed,
    )
    | {204: {"description": "It is gone. Caches between may still have it."}},
)
async def delete(
    request: Request,
    here: Here,
    digest: Id,
    if_match: IfMatch = None,
    timeout_ms: TimeoutMs = None,
) -> Response:
    """Remove a bitstream, sound or damaged, from the store."""
    Record.of(request.scope).bitstream = digest
    here.store.require()
    demand(if_match, f'"{digest}"')
    async with Lifetime(request, seconds(here, timeout_ms)):
        here.reconstructions.forget(digest)
        try:
            await here.store.delete(digest)
        finally:  # what was decoded meanwhile
            here.reconstructions.forget(digest)
    return Response(status_code=204)
