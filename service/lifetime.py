"""What ends a request early: its deadline, or a client that has gone. Either cancels what its handler awaits."""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import Context, ContextVar, copy_context
from types import TracebackType

from starlette.requests import Request

from service.errors import ClientGone, DeadlineExceeded, Problem

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


def deadline() -> float:
    """When the request in hand ends, by `time.monotonic`; never, for work of the service's own."""
    return _deadline.get()


def detached() -> Context:
    """A copy of the context of the request in hand, without its end: for work that others wait for, too."""
    context = copy_context()
    context.run(_deadline.set, math.inf)
    return context


class Lifetime:
    """`async with Lifetime(request, seconds) as lifetime:` around the work of a handler.

    Work that waits in a queue leaves it when cancelled; on the device it ends before its next tile or slice; an image
    that is being read loses its process. What the other threads have begun is finished and thrown away.
    """

    def __init__(self, request: Request, seconds: float) -> None:
        self._request, self._seconds = request, seconds
        self._timeout = asyncio.timeout(seconds)
        self._watcher: asyncio.Task[None] | None = None
        self._ended_by: Problem | None = None

    def ends_with_client(self) -> None:
        """From here on, a client that leaves ends the work. The body must have been read."""
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        try:
            while (await self._request.receive())["type"] != "http.disconnect":
                pass
            ended_by: Problem = ClientGone("the client left before its answer was there")
        except Problem as problem:  # a body where none is expected, and what is wrong with it
            ended_by = problem
        if not self._timeout.expired():
            self._ended_by = ended_by
            self._timeout.reschedule(asyncio.get_running_loop().time())  # now

    async def __aenter__(self) -> Lifetime:
        _deadline.set(time.monotonic() + self._seconds)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher:
            self._watcher.cancel()
            self._watcher = None  # which refers to this
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._ended_by:
                raise self._ended_by from None
            raise DeadlineExceeded(f"not done within {round(self._seconds * 1000)} ms") from None
