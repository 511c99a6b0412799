"""The file in a request: its raw body, or the field `file` of a multipart form."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.errors import BadForm, ClientGone, EmptyBody, UnsupportedMediaType

FIELD = "file"
_LONGEST_NAME = 200  # characters, each of up to 12 in an answer's Content-Disposition
# what `curl --data-binary` says when it is told nothing, and what S3 does: read as raw bytes, too
_UNTYPED = {"", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Upload:
    """A file that a client sent.

    Attributes:
        data: its bytes, at least one.
        stem: its name without directory and suffix.
    """

    data: bytes
    stem: str


async def read_upload(request: Request, media_types: Collection[str], max_bytes: int) -> Upload:
    """Read the one file of a request.

    Args:
        request: whose body is limited already.
        media_types: that a raw body may have, beside the untyped ones; `image/*` means any image.
        max_bytes: that a form's file may keep in memory.

    Raises:
        UnsupportedMediaType: the body is of another type.
        EmptyBody: there is no file, or nothing in it.
        BadForm: the form is not one file in the field `file`.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"send the file as it is, not with Content-Encoding {encoding!r:.100}")
    try:
        if media_type == "multipart/form-data":
            upload = await _read_form(request, max_bytes)
        elif media_type in _UNTYPED or media_type in media_types or f"{media_type.partition('/')[0]}/*" in media_types:
            upload = Upload(b"".join([chunk async for chunk in request.stream()]), "image")  # body() would keep it
        else:
            taken = ", ".join([*media_types, "application/octet-stream", "multipart/form-data"])
            raise UnsupportedMediaType(f"{media_type!r:.100} is not taken here; what is: {taken}")
    except ClientDisconnect:
        raise ClientGone("the client left while it was sending") from None
    if not upload.data:
        raise EmptyBody("the request carries no bytes; send the file as the body or as the form field `file`")
    return upload


class _Form(MultiPartParser):
    """Starlette's, which takes a form for whole that was cut between two chunks."""

    begun = ended = False

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self.begun = True

    def on_end(self) -> None:
        super().on_end()
        self.ended = True


async def _read_form(request: Request, max_bytes: int) -> Upload:
    parser = _Form(request.headers, request.stream(), max_files=2, max_fields=2, max_part_size=1024)
    parser.spool_max_size = max_bytes  # stays in memory: nothing is written to disk, which may be read-only
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "maximum size" in error.message:
            raise BadForm("a field of the form is text: send the file as a file, with a file name") from None
        if "Too many" in error.message:
            raise BadForm("one field `file` is expected; parameters go into the query string") from None
        raise BadForm(f"the form cannot be read: {error.message.rstrip('.')}") from None
    except UnicodeError:
        raise BadForm("the form cannot be read: its names are not in the charset that it states") from None
    try:
        if parser.begun and not parser.ended:
            raise BadForm("the form ends before its last boundary: was it cut on its way?")
        return await _only_file(form.multi_items())
    finally:
        await form.close()


async def _only_file(items: list[tuple[str, UploadFile | str]]) -> Upload:
    if not items:
        raise EmptyBody("the form has no fields; send the file in the field `file`")
    names = [name for name, _ in items]
    if names != [FIELD]:
        raise BadForm(f"one field `file` is expected, not {names!s:.200}; parameters go into the query string")
    value = items[0][1]
    if not isinstance(value, UploadFile):
        raise BadForm("the field `file` is text: send it as a file, with a file name")
    return Upload(await value.read(), _stem(value.filename or "") or "image")


def _stem(filename: str) -> str:
    """Without directory and suffix, without what no header can carry, and no longer than any proxy lets a header be."""
    return PurePosixPath(filename.replace("\\", "/").encode(errors="replace").decode()).stem[:_LONGEST_NAME]


def disposition(kind: str, filename: str) -> str:
    """A Content-Disposition header for any file name (RFC 6266)."""
    quoted = quote(filename, safe="")
    plain = f'filename="{filename}"' if quoted == filename else f"filename*=UTF-8''{quoted}"
    return f"{kind}; {plain}"
