"""A body on its way to a request that has a place: how far it is behind, and its end where others want the place."""

from __future__ import annotations

import asyncio
import time

from service.identity import Record

PACE = 16 << 10
"""Bytes a second that a body must come with to keep its place when others want it."""
PATIENCE = 5.0
"""Seconds that it may be behind."""


class Arrival:
    """The body of one request, in whose task this is made.

    Attributes:
        cut: it came too slowly, and its request was ended.
    """

    def __init__(self, record: Record) -> None:
        self.cut = False
        self._record, self._begun = record, time.monotonic()
        task = asyncio.current_task()
        assert task  # noqa: S101 - requests are tasks
        self._task: asyncio.Task[object] = task

    @property
    def behind(self) -> float:
        """Seconds, beyond what is forgiven; not positive where the body is here or comes fast enough."""
        if self._record.arrived:
            return 0.0
        return time.monotonic() - self._begun - self._record.bytes_in / PACE - PATIENCE

    def forget(self) -> None:
        """The request goes on after all, to its answer."""
        self._task.uncancel()

    def end(self) -> None:
        """Cancel the request. Any thread may."""
        self.cut = True
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)
