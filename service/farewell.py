"""The end of connections, once the server is being stopped."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.health import Health


class Farewell:
    """ASGI middleware: once the server is being stopped, answers end their connections, so that none is cut later."""

    def __init__(self, app: ASGIApp, health: Health) -> None:
        self.app, self.health = app, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def parting(message: Message) -> None:
            if message["type"] == "http.response.start" and self.health.stopping:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, parting)
