"""The end of connections: once the server is being stopped, and where nobody knows what comes next."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.health import Health


class Farewell:
    """ASGI middleware: answers that end their connections.

    Once the server is being stopped, all do, so that none is cut later. And those to clients that wait to be told to
    send their body, if they are not: whether it follows all the same, or the next request, is theirs to know.
    """

    def __init__(self, app: ASGIApp, health: Health) -> None:
        self.app, self.health = app, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        waits = scope["type"] == "http" and Headers(scope=scope).get("expect", "").lower() == "100-continue"

        async def told() -> Message:
            nonlocal waits
            waits = False  # uvicorn tells it so when somebody wants to read
            return await receive()

        async def parting(message: Message) -> None:
            if message["type"] == "http.response.start" and (waits or self.health.stopping):
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, told, parting)
