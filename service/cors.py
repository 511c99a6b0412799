"""Which pages of other origins may call the service from a browser; none by default."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import answer
from service.errors import CrossOriginRefused

_METHODS = ("GET", "HEAD", "POST", "DELETE")
_REQUEST_HEADERS = (
    "Authorization", "If-Match", "If-None-Match", "If-Range", "Range", "X-API-Key", "X-Request-ID", "traceparent",
    "tracestate",
)  # fmt: skip
_RESPONSE_HEADERS = (
    "Content-Digest", "Content-Disposition", "Content-Range", "ETag", "Location", "Repr-Digest", "Retry-After",
    "Server-Timing", "TCM-Bits-Per-Pixel", "TCM-Model", "WWW-Authenticate", "X-Request-ID",
)  # fmt: skip


_OTHERS = {"cross-site", "same-site"}  # the latter: another port of this host, another host of this domain


class CrossSite:
    """ASGI middleware: pages of other origins change nothing here, though they may not be let to see what they did.

    Browsers send forms, and files in them, to any address without asking first; where the service asks for no key, as
    on a developer's machine, that would be enough. They say that they do, which programs have no reason to;
    but not to plain HTTP beyond localhost.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app, self.origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] in ("POST", "DELETE"):
            headers = Headers(scope=scope)
            allowed = "*" in self.origins or headers.get("origin") in self.origins
            if headers.get("sec-fetch-site") in _OTHERS and not allowed:
                refusal = CrossOriginRefused("not allowed from a page of another origin")
                await answer(scope, refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, whose refusals are problems like any other. No cookies are ever asked for."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer a browser that asks first."""
        try:
            await super().__call__(scope, receive, send)
        except CrossOriginRefused as refusal:
            await answer(scope, refusal)(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks first.

        Raises:
            CrossOriginRefused: the origin, the method or a header is none that is allowed.
        """
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            wrong = bytes(response.body).decode().removeprefix("Disallowed CORS ")
            raise CrossOriginRefused(
                f"not allowed from this origin: {wrong}", headers={"Vary": response.headers["vary"]}
            )
        return response
