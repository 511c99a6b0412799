"""Notices work that has stopped: what shows no progress within its bound, or a thread that is no longer there.

Nothing that runs in this process can free a hung device or a thread stuck in a library. So it is only noticed here:
`/livez` fails, whoever waits is told, and the process ends (`server.py`), so that the orchestrator replaces it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """One piece of work.

    Attributes:
        what: it is, for the log.
        seconds: that may pass between two signs of progress.
    """

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        self._last = time.monotonic()

    def beat(self) -> None:
        """It goes on."""
        self._last = time.monotonic()

    def overdue(self) -> bool:
        """Whether it has shown nothing for too long."""
        return time.monotonic() - self._last > self.seconds


class Watchdog:
    """Everything under watch. Any thread may call it.

    Args:
        hang_seconds: that any work may take before it counts as hung; each says what its size adds to that.
    """

    def __init__(self, hang_seconds: float) -> None:
        self._hang_seconds = hang_seconds
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._lost: str | None = None

    @contextmanager
    def watch(self, what: str, more_seconds: float = 0) -> Iterator[Watch]:
        """Watch a block, which may take `more_seconds` longer than `hang_seconds`."""
        watch = Watch(what, self._hang_seconds + more_seconds)
        with self._lock:
            self._watches.add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)

    def lose(self, reason: str) -> None:
        """Something is beyond repair; the first reason stays."""
        with self._lock:
            self._lost = self._lost or reason

    def lost(self) -> str | None:
        """Why this process must be replaced; None as long as all is well. Once lost, it stays so."""
        with self._lock:
            late = next((watch for watch in self._watches if watch.overdue()), None)
            if late and not self._lost:
                self._lost = f"{late.what} has shown no progress for {late.seconds:.0f} seconds"
            return self._lost
