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

    What a pipe does not take now is written with a later line; what cannot be written at all is lost and counted, and
    costs nothing else. Any thread may call it, and whatever Python calls in the middle of that: finalisers, handlers of
    signals.

    Args:
        file: the descriptor to write to. Not Python's own stream: whoever ends the process would wait for it.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._writing = False
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._fails = False  # as a full disk does, and not for ever
        self._begun = self._torn = False  # a piece is out of the line that waits first, or of one that was lost

    def msg(self, line: str) -> None:
        """Write a line, without waiting."""
        with self._lock:
            if len(self._waiting) < _MOST:
                self._waiting.append(f"{line}\n".encode(errors="replace"))
            else:
                self._lost += 1
            self._write()
            lost = 0 if self._waiting or self._fails else self._lost
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
            self._takes(left)
            with self._lock:
                self._write()

    def _takes(self, seconds: float = 0) -> bool:
        """Whether the reader takes a piece, or is gone; no `poll` object is of two threads at a time."""
        poll = select.poll()
        poll.register(self._file, select.POLLOUT)
        return bool(poll.poll(1000 * seconds))

    def _write(self) -> None:
        """As much as is taken. A line that is logged in the middle of this, by a finaliser, joins those that wait."""
        if self._writing:
            return
        self._writing = True
        try:
            for _ in range(_PIECES):
                if not (self._waiting and self._takes()):
                    return
                self._write_piece()
        finally:
            self._writing = False

    def _write_piece(self) -> None:
        line = self._waiting[0]
        if self._torn and not self._begun:
            line = b"\n" + line
        try:
            written = os.write(self._file, line[:_PIECE])
        except BlockingIOError:
            return
        except OSError:
            self._fails, self._torn, self._begun = True, self._torn or self._begun, False
            self._lost += 1
            self._waiting.popleft()
            return
        self._fails = self._torn = False
        self._begun = written < len(line)
        if self._begun:
            self._waiting[0] = line[written:]
        else:
            self._waiting.popleft()
