"""Whatever is raised is answered with a problem: in reach of the layers that give every answer its headers."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import answer
from service.identity import Record


class LastResort:
    """ASGI middleware around what may raise."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer it if that fails."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if begun:
                if not Record.of(scope).problem:
                    answer(scope, error)  # for the log
                raise  # half an answer is out: only cutting the connection tells the client
            await answer(scope, error)(scope, receive, send)
