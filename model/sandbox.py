"""Image files are decoded in processes of their own, under a limit of memory and of processor time.

A decoder is a large C library that believes a stranger's file: one may ask for gigabytes before its header turns out to
lie, go over the same picture thousands of times, or crash. Here that costs a small process, which is replaced, and the
file gets a named error. Everything else goes on: the models stay loaded, the event loop keeps its interpreter lock.

This is who reads, and how many processes there are; model/sandbox_client.py is one of them as we see it, and
model/sandbox_process.py what runs in it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from model.container import DEFAULT_MAX_PIXELS
from model.errors import CorruptImage, NoProcess
from model.pixels import Picture
from model.sandbox_client import Ended, Process

SECONDS = 30.0
"""Of processor time that one file may take. The slowest honest one, 50 megapixels of AVIF, takes about a third."""
_MEMORY = 512 << 20
_BYTES_A_PIXEL = 24  # decoder, its picture and ours, in whatever mode they come


class GivenUp(Exception):
    """Nobody waits for the picture any more."""


class Reading:
    """One call of `Sandbox.read_image`, for whoever may give it up before it is done. Any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Process | None = None
        self.given_up = False

    def give_up(self) -> None:
        """End its process, if it is at work."""
        with self._lock:
            self.given_up = True
            if self._process:
                self._process.kill()

    @contextlib.contextmanager
    def by(self, process: Process) -> Iterator[None]:
        """That this process does it; afterwards the process may serve others.

        Raises:
            GivenUp: nobody wants it any more.
        """
        with self._lock:
            if self.given_up:
                raise GivenUp
            self._process = process
        try:
            yield
        finally:
            with self._lock:
                self._process = None
                if self.given_up:
                    process.usable = False  # it may be dying, though it has said its last word


class Sandbox:
    """Reads image files. Any thread may; there are as many processes as threads that read at once.

    Args:
        max_pixels: the most that any call will allow; the limit of memory follows from it.
        seconds: of processor time for one file.
    """

    def __init__(self, max_pixels: int = DEFAULT_MAX_PIXELS, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.memory = _MEMORY + _BYTES_A_PIXEL * max_pixels
        self._idle: list[Process] = []
        self._lock = threading.Lock()
        self._closed = False

    def read_image(
        self,
        data: bytes,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        *,
        keep_metadata: bool = True,
        announce: Callable[[int], None] | None = None,
        reading: Reading | None = None,
    ) -> Picture:
        """As `model.pixels.read_image`.

        Raises:
            GivenUp: `reading` was, while it was read or before.
            NoProcess: the machine gives no process for it, or has killed it, as it does when memory runs out.
            UnsupportedImage: not an image of a known format, or of a kind that cannot be coded.
            CorruptImage: damaged, truncated, or beyond the limits to decode.
            TooManyPixels: its header promises more than `max_pixels`.
        """
        reading = reading or Reading()
        process = self._take()
        try:
            with reading.by(process):
                picture = process.read_image(data, max_pixels, keep_metadata, self.seconds, announce)
        except Ended as ended:
            process.close()
            if reading.given_up:
                raise GivenUp from None
            if ended.signal == signal.SIGKILL:  # not by us: nothing that the file did
                raise NoProcess(
                    "the process that read the image was killed (is memory short?); try again later"
                ) from None
            raise CorruptImage(self._reason(ended)) from None
        except BaseException:
            self._give_back(process)
            raise
        self._give_back(process)
        return picture

    def _take(self) -> Process:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._new()
            if process.alive():
                return process
            process.close()  # somebody else ended it

    def _new(self) -> Process:
        try:
            return Process(self.memory)
        except (OSError, Ended) as error:
            why = str(error) if isinstance(error, OSError) else "it ended at once"
            raise NoProcess(f"no process can be had to read the image with ({why}); try again later") from error

    def _give_back(self, process: Process) -> None:
        if process.usable:
            process.forget()
            with self._lock:
                if not self._closed:
                    self._idle.append(process)
                    return
        process.close()

    def _reason(self, ended: Ended) -> str:
        if ended.signal == signal.SIGPROF:
            return f"it takes more than {self.seconds:g} s of processor time to decode"
        return "its decoder crashed on it"

    def close(self) -> None:
        """End the processes; those at work end when they are done."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for process in idle:
            process.close()
