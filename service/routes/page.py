"""GET /, a page to try it, and what describes the API, /docs for people: nothing of them comes from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from service.identity import Record

WEB = Path(__file__).parent.parent / "web"
SWAGGER = Path(str(files("fastapi_swagger"))) / "resources"
"""Swagger UI as it is published, unpacked by pip."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

router = APIRouter(include_in_schema=False)


@router.head("/")
@router.get("/")
async def page() -> Response:
    """The page itself; its script and style lie under /static."""
    return _file("index.html", _POLICY)


@router.head("/docs")
@router.get("/docs")
async def docs() -> Response:
    """Swagger UI, which writes styles into its elements."""
    return _file("docs.html", _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'"))


@router.head("/openapi.json")
@router.get("/openapi.json")
async def description(request: Request) -> Response:
    """OpenAPI, which FastAPI's own route would serve as well, but of which it tells no metric the name."""
    return JSONResponse(request.app.openapi())


def _file(name: str, policy: str) -> Response:
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Cache-Control": "no-cache",
    }
    return _WholeFile(WEB / name, headers=headers)


class _WholeFile(FileResponse):
    """The framework's own ranges have refusals that are no problems; a page is small, and sent whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await super().__call__(_without_range(scope), receive, _offering_none(send))


class Assets(StaticFiles):
    """A folder of files that are sent whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send one of them."""
        Record.of(scope).route = "/static/{file}"
        await super().__call__(_without_range(scope), receive, _offering_none(send))


def _offering_none(send: Send) -> Send:
    async def offering(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            del headers["Accept-Ranges"]
            headers.setdefault("Cache-Control", "no-cache")  # or a new page may run an old script
        await send(message)

    return offering


def _without_range(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"range", b"if-range")]
    return {**scope, "headers": headers}
