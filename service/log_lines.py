"""Lines on their way to standard output, on a thread of their own: who reads them slowly, or not, stops nobody else."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time

import structlog

_MOST = 10_000
"""Lines that wait for their reader; those beyond are lost, and counted."""
_AT_ONCE = 200


class LogLines:
    """A stream for `logging`, and a logger for structlog, whose lines need nothing of `logging` then.

    A line that cannot be written is lost and costs nothing else.

    Args:
        file: the descriptor to write to.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._waiting: queue.Queue[str] = queue.Queue(_MOST)
        self._lost = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def msg(self, line: str) -> None:
        """Write a line, later."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._lost += 1

    debug = info = warning = error = critical = exception = fatal = msg

    def write(self, text: str) -> None:
        """Likewise, as `logging` ends its lines."""
        self.msg(text.removesuffix("\n"))

    def flush(self) -> None:
        """Nothing: see `settle`."""

    def settle(self, seconds: float) -> None:
        """Wait until all lines are written, so long at most: before the process ends."""
        end = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    def _write_all(self) -> None:
        while True:
            lines = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(lines) < _AT_ONCE:
                    lines.append(self._waiting.get_nowait())
            with contextlib.suppress(OSError):
                self._write("".join(f"{line}\n" for line in lines).encode(errors="replace"))
            for _ in lines:
                self._waiting.task_done()
            if self._lost:
                lost, self._lost = self._lost, 0
                structlog.get_logger().warning("log lines lost", lines=lost)

    def _write(self, data: bytes) -> None:
        """Past Python's own stream: whoever ends the process flushes that, and would wait for this thread."""
        while data:
            data = data[os.write(self._file, data) :]
