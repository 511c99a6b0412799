"""Lines on their way to standard output: who reads them slowly, or not at all, stops nobody."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque

import structlog

_MOST = 10_000
"""Lines that wait for their reader; those beyond are lost, and counted."""
_PIECE = select.PIPE_BUF
"""Bytes that a pipe takes at once when it says that it takes any."""
_PIECES = 64
"""That one call writes of what has waited: it may be the event loop's."""


class LogLines:
    """A stream for `logging`, and a logger for structlog, whose lines need nothing of `logging` then.

    What cannot be written now is written with a later line; what cannot be written at all is lost, and costs nothing
    else. Any thread may call it, and a signal's handler in the middle of that.

    Args:
        file: the descriptor to write to. Not Python's own stream: whoever ends the process would wait for it.
    """

    def __init__(self, file: int) -> None:
        self._file, self._takes = file, select.poll()
        self._takes.register(file, select.POLLOUT)
        self._lock = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._lost = 0

    def msg(self, line: str) -> None:
        """Write a line, without waiting."""
        with self._lock:
            if len(self._waiting) < _MOST:
                self._waiting.append(f"{line}\n".encode(errors="replace"))
            else:
                self._lost += 1
            self._write()
            lost = 0 if self._waiting else self._lost
            self._lost -= lost
        if lost:
            structlog.get_logger().warning("log lines lost", lines=lost)

    debug = info = warning = error = critical = exception = fatal = msg

    def write(self, text: str) -> None:
        """Likewise, as `logging` ends its lines."""
        self.msg(text.removesuffix("\n"))

    def flush(self) -> None:
        """Nothing: see `settle`."""

    def settle(self, seconds: float) -> None:
        """Wait until all lines are written, so long at most: before the process ends."""
        end = time.monotonic() + seconds
        while self._waiting and (left := end - time.monotonic()) > 0:
            self._takes.poll(1000 * left)
            with self._lock:
                self._write()

    def _write(self) -> None:
        for _ in range(_PIECES):
            if not (self._waiting and self._takes.poll(0)):
                return
            line = self._waiting[0]
            try:
                written = os.write(self._file, line[:_PIECE])
            except BlockingIOError:
                return
            except OSError:
                written = len(line)  # nobody will ever read it
            if written < len(line):
                self._waiting[0] = line[written:]
            else:
                self._waiting.popleft()
