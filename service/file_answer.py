"""The answer that carries a file."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class FileAnswer(Response):
    """Lets the file go when it is sent.

    The framework leaves every request in a circle of references, which is collected much later; megabytes must not
    wait for that.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, once."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.body = b""
