"""How the interface describes itself: binary bodies, and every problem of every route."""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from service.errors import MEDIA_TYPE, BodyTooLarge, HeadersTooLarge, InternalError, MalformedRequest, Problem

BINARY = {"type": "string", "format": "binary"}
_REF = {"$ref": "#/components/schemas/Problem"}

TAGS = [
    {"name": "codec", "description": "An image in, a bitstream out, and back."},
    {"name": "bitstreams", "description": "Bitstreams that the service keeps, by the SHA-256 of their bytes."},
    {"name": "models", "description": "What can be asked for."},
    {"name": "operation", "description": "Probes, never behind a key, and metrics."},
    {"name": "problems", "description": "What can go wrong, and what to do about it."},
]


class ProblemDocument(BaseModel):
    """An RFC 9457 problem; some have further members."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str = Field(description="Where the problem is documented, relative to this server.")
    title: str = Field(description="The same for every occurrence.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong with this request, and what to do about it.")
    code: str = Field(description="Stable name of the problem, for programs.")
    request_id: str = Field(description="As in `X-Request-ID` and in the server's log.")


def problems(*classes: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can meet these problems; what any route can meet is added."""
    responses: dict[int | str, dict[str, Any]] = {}
    every: set[type[Problem]] = {*classes, MalformedRequest, BodyTooLarge, HeadersTooLarge, InternalError}
    for cls in sorted(every, key=lambda cls: (cls.status, cls.code)):
        empty: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": _REF, "examples": {}}}}
        response = responses.setdefault(cls.status, empty)
        response["content"][MEDIA_TYPE]["examples"][cls.code] = {"summary": cls.title(), "value": _example(cls)}
    for status, response in responses.items():
        codes = response["content"][MEDIA_TYPE]["examples"]
        phrase = "Client gone" if status == 499 else http.HTTPStatus(int(status)).phrase
        response["description"] = f"{phrase}: {', '.join(f'`{code}`' for code in codes)}"
    return responses


def _example(cls: type[Problem]) -> dict[str, Any]:
    fixed = {"type": f"/problems/{cls.code}", "title": cls.title(), "status": cls.status}
    return fixed | {"detail": cls.title() + ".", "code": cls.code, "request_id": "3f2a9c1e"}


def body(description: str, *media_types: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes one file, raw or as a form."""
    form = {"type": "object", "required": ["file"], "properties": {"file": BINARY}}
    raw: dict[str, Any] = {media_type: {"schema": BINARY} for media_type in (*media_types, "application/octet-stream")}
    return {
        "requestBody": {
            "description": description,
            "required": True,
            "content": raw | {"multipart/form-data": {"schema": form}},
        }
    }


def header(description: str, example: str | float) -> dict[str, Any]:
    """A header of a response."""
    kind = "string" if isinstance(example, str) else "number"
    return {"description": description, "schema": {"type": kind}, "example": example}


DISPOSITION = header("A name for the file.", 'inline; filename="photo.png"')
SERVER_TIMING = header("Milliseconds by stage of the request.", "read_image;dur=4.1, g_a;dur=61.0")


_OF_ALL = {"X-Request-ID": header("The client's, or a new one; in the server's log, too.", "3f2a9c1e")}
_OF_NOW = {"Cache-Control": header("It is of this moment.", "no-store")}
_RETRY = {"Retry-After": header("Seconds after which to try again, where that may help.", 5)}
_OF_STATUS = {
    "401": {"WWW-Authenticate": header("How to send a key.", "Bearer")},
    "403": {"WWW-Authenticate": header("Where the key lacks a scope: which.", 'Bearer error="insufficient_scope"')},
    "406": {"Vary": header("What can be had depends on it.", "Accept")},
    "416": {"Content-Range": header("How many bytes there are.", "bytes */52311")},
    "429": _RETRY,
    "503": _RETRY,
}


def complete(app: FastAPI, *, secured: bool, metrics_secured: bool) -> None:
    """Write the schema of the finished app, with the one component that no route's annotations mention.

    Args:
        app: with all its routes.
        secured: whether keys are asked for; if not, none are mentioned.
        metrics_secured: whether one is asked for /metrics, too.
    """
    schema = app.openapi()
    components = schema["components"]["schemas"]
    components["Problem"] = ProblemDocument.model_json_schema()
    for item in schema["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                now = _OF_NOW if int(status) >= 400 or "operation" in operation["tags"] else {}
                response["headers"] = response.get("headers", {}) | _OF_ALL | now | _OF_STATUS.get(status, {})
    for unused in ("HTTPValidationError", "ValidationError"):  # the framework's own, which `errors` replaces
        components.pop(unused, None)
    if secured and metrics_secured:
        schema["paths"]["/metrics"]["get"]["security"] = [{"bearer": ["metrics"]}, {"header": ["metrics"]}]
    if not secured:
        schema["components"].pop("securitySchemes", None)
        for item in schema["paths"].values():
            for operation in item.values():
                operation.pop("security", None)
