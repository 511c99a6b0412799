"""The first gate for size: bytes of the body, counted before anything parses them."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, MalformedRequest
from service.identity import Record


class BodyLimit:
    """ASGI middleware: who reads a body is told 413 from `Content-Length` at once, else where it passes the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record.of(scope)

        async def counted() -> Message:
            if not record.bytes_in:  # before the first byte, and before the client is told to go on (100 Continue)
                check_length(declared_length(Headers(scope=scope)), self.max_bytes)
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            record.arrived = not message.get("more_body", False)
            check_length(record.bytes_in, self.max_bytes)
            return message

        await self.app(scope, counted, send)


def check_length(length: int, max_bytes: int) -> None:
    """Refuse a body of more than `max_bytes`.

    Raises:
        BodyTooLarge: it has more.
    """
    if length > max_bytes:
        raise BodyTooLarge(f"the body has more than {max_bytes} bytes, the limit of this server")


def declared_length(headers: Headers) -> int:
    """The `Content-Length`, 0 where there is none.

    Raises:
        MalformedRequest: it is not one number.
    """
    values = set(headers.getlist("content-length"))
    if not values:
        return 0
    value = values.pop()
    if values or not (value.isascii() and value.isdigit() and len(value) < 20):
        raise MalformedRequest("Content-Length is not one number")
    return int(value)
