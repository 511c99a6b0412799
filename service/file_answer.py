"""The answer that carries a file."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.connection import Connection
from service.context import Context
from service.errors import Saturated


class FileAnswer(Response):
    """Keeps what clients leave unread within bounds, and lets the file go when it is sent.

    The framework leaves every request in a circle of references, which is collected much later; megabytes must not
    wait for that.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, once.

        Raises:
            Saturated: other clients have left too much unread; whoever is alone gets a file of any size.
        """
        context: Context = scope["app"].state.context
        unread = Connection.unread
        try:
            if unread and unread + len(self.body) > context.settings.max_unread_bytes:
                raise Saturated(
                    f"{unread} bytes of answers wait for their clients to read them; try again in 1 s",
                    headers={"Retry-After": "1"},
                )
            await super().__call__(scope, receive, send)
        finally:
            self.body = b""
