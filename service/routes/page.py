"""GET /, a page to try it, and GET /docs, the description of the API: nothing of either comes from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

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


@router.get("/")
async def page() -> Response:
    """The page itself; its script and style lie under /static."""
    return _file("index.html", _POLICY)


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI, which writes styles into its elements."""
    return _file("docs.html", _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'"))


def _file(name: str, policy: str) -> Response:
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Cache-Control": "no-cache",
    }
    return FileResponse(WEB / name, headers=headers)
