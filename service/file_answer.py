"""The answer that carries a file."""

from __future__ import annotations

from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.connection import Connection
from service.context import Context
from service.errors import Saturated


class FileAnswer(Response):
    """Keeps what clients leave unread within bounds, and lets the file go when it is sent.

    The framework leaves every request in a circle of references, which is collected much later; megabytes must not
    wait for that.

    Attributes:
        waiting: bytes of those that have not been given to their connections, whose clients have earlier ones to read.
    """

    waiting: ClassVar[int] = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, once.

        Raises:
            Saturated: other clients have left too much unread; whoever is alone gets a file of any size.
        """
        context: Context = scope["app"].state.context
        size = len(self.body)
        if scope["method"] == "HEAD":
            size = 0
            del self.headers["content-digest"]  # is of what is sent
        others = Connection.unread + FileAnswer.waiting
        if size and others and others + size > context.settings.max_unread_bytes:
            self.body = b""
            raise Saturated(f"{others} bytes of answers wait for their clients to read them; try again in 1 s")
        FileAnswer.waiting += size
        try:
            await super().__call__(scope, receive, send)
        finally:
            FileAnswer.waiting -= size
            self.body = b""
