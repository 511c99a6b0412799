"""Image files are decoded in processes of their own, under a limit of memory and of processor time.

A decoder is a large C library that believes a stranger's file: one may ask for gigabytes before its header turns out to
lie, go over the same picture thousands of times, or crash. Here that costs a small process, which is replaced, and the
file gets a named error. Everything else goes on: the models stay loaded, the event loop keeps its interpreter lock.

    parent   ── JSON line ──>   process: model/sandbox_process.py, which knows Pillow and no torch
             <── its pixels ──
             ── go, or stop ──>
             <── JSON line ──
                 bytes of the file, then of the picture, in a file in memory that both have open
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model import errors
from model.container import DEFAULT_MAX_PIXELS
from model.errors import CorruptImage, NoProcess
from model.pixels import Picture

SECONDS = 30.0
"""Of processor time that one file may take. The slowest honest one, 50 megapixels of AVIF, takes about a third."""
_MEMORY = 512 << 20
_BYTES_A_PIXEL = 24  # decoder, its picture and ours, in whatever mode they come
_PATIENCE = 300.0  # seconds of the clock for an answer, on a machine that has other work
_HOME = str(Path(__file__).resolve().parents[1])
_PROGRAM = """
import sys
home = sys.argv.pop(1)
if home not in sys.path:  # -P: whatever lies in the working directory is not ours, though it may be called so
    sys.path.insert(0, home)
from model.sandbox_process import main
main()
"""
_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_READABLE = {cls.code: cls for cls in (errors.UnsupportedImage, errors.CorruptImage, errors.TooManyPixels)}


class GivenUp(Exception):
    """Nobody waits for the picture any more."""


class Reading:
    """One call of `Sandbox.read_image`, for whoever may give it up before it is done. Any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self.given_up = False

    def give_up(self) -> None:
        """End its process, if it is at work."""
        with self._lock:
            self.given_up = True
            if self._process:
                self._process.kill()

    @contextlib.contextmanager
    def by(self, process: _Process) -> Iterator[None]:
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
        self._idle: list[_Process] = []
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
        except _Ended as ended:
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

    def _take(self) -> _Process:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._new()
            if process.alive():
                return process
            process.close()  # somebody else ended it

    def _new(self) -> _Process:
        try:
            return _Process(self.memory)
        except (OSError, _Ended) as error:
            why = str(error) if isinstance(error, OSError) else "it ended at once"
            raise NoProcess(f"no process can be had to read the image with ({why}); try again later") from error

    def _give_back(self, process: _Process) -> None:
        if process.usable:
            process.forget()
            with self._lock:
                if not self._closed:
                    self._idle.append(process)
                    return
        process.close()

    def _reason(self, ended: _Ended) -> str:
        if ended.signal == signal.SIGPROF:
            return f"it takes more than {self.seconds:g} s of processor time to decode"
        return "its decoder crashed on it"

    def close(self) -> None:
        """End the processes; those at work end when they are done."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for process in idle:
            process.close()


class _Ended(Exception):
    """The process is gone."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal_number


class _Process:
    """One process, and the file in memory that it shares with us.

    Attributes:
        usable: it may read another file.
    """

    def __init__(self, memory: int) -> None:
        self._shared, self.usable = _file_in_memory(), False
        try:
            self._child = self._begin(memory)
        except BaseException:
            os.close(self._shared)  # the machine gives no process
            raise
        try:
            self.usable = bool(self._answer()["ready"])
        except BaseException:
            self.close()
            raise

    def _begin(self, memory: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
            [sys.executable, "-P", "-c", _PROGRAM, _HOME, str(self._shared), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # a second answer must stay in the pipe, where `select` sees it
            pass_fds=(self._shared,),
            env=_environment(),
        )

    def alive(self) -> bool:
        return self._child.poll() is None

    def read_image(
        self,
        data: bytes,
        max_pixels: int,
        keep_metadata: bool,
        seconds: float,
        announce: Callable[[int], None] | None,
    ) -> Picture:
        self.usable = False  # until it has said its last word
        os.ftruncate(self._shared, 0)
        _write(self._shared, data)
        request = {"bytes": len(data), "max_pixels": max_pixels, "keep_metadata": keep_metadata, "seconds": seconds}
        self._tell(json.dumps(request))
        answer = self._answer()
        if "pixels" in answer:
            try:
                if announce:
                    announce(int(answer["pixels"]))
            except BaseException:
                with contextlib.suppress(_Ended):
                    self._tell("stop")  # a refusal must not cost a process: there are many under load
                    self._answer()
                    self.usable = True
                raise
            self._tell("go")
            answer = self._answer()
        self.usable = not answer.get("spent", False)
        if "error" in answer:
            if answer["error"] not in _READABLE:
                raise RuntimeError(f"reading an image failed: {answer['message']}")
            raise _READABLE[answer["error"]](str(answer["message"]))
        return self._picture(answer, max_pixels)

    def kill(self) -> None:
        """Now, whatever it is at; whoever waits for its answer finds it gone."""
        self._child.kill()

    def forget(self) -> None:
        """Give the memory of the last picture back."""
        os.ftruncate(self._shared, 0)

    def _tell(self, line: str) -> None:
        assert self._child.stdin  # noqa: S101 - it is a pipe
        try:
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise _Ended(self._signal()) from None

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout  # noqa: S101 - it is a pipe
        ready = select.poll()  # `select` knows no descriptor beyond 1023
        ready.register(self._child.stdout, select.POLLIN)
        if not ready.poll(_PATIENCE * 1000):
            self._child.kill()
            raise _Ended(signal.SIGPROF)
        line = self._child.stdout.readline(1 << 16)
        if not line.endswith(b"\n"):
            raise _Ended(self._signal())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _picture(self, answer: dict[str, Any], max_pixels: int) -> Picture:
        """What it says is checked like what a stranger says: it may no longer be the program that we started."""
        width, height, grey = int(answer["width"]), int(answer["height"]), bool(answer["grey"])
        if not (width > 0 and height > 0 and width * height <= max_pixels):
            raise _Ended(0)
        place = 0

        def take(count: int) -> bytearray:
            nonlocal place
            block = bytearray(count)
            if os.preadv(self._shared, [block], place) != count:
                raise _Ended(0)
            place += count
            return block

        size = os.fstat(self._shared).st_size
        lengths = {name: answer[name] for name in ("icc", "exif", "xmp") if answer[name] is not None}
        planes = (1 if grey else 3) + bool(answer["alpha"])
        if any(length < 0 for length in lengths.values()) or planes * width * height + sum(lengths.values()) != size:
            raise _Ended(0)
        samples = np.frombuffer(take((1 if grey else 3) * width * height), np.uint8).reshape(height, width, -1)
        rgb = np.repeat(samples, 3, axis=2) if grey else samples
        alpha = np.frombuffer(take(width * height), np.uint8).reshape(height, width) if answer["alpha"] else None
        os_bytes = {name: bytes(take(length)) for name, length in lengths.items()}
        return Picture(rgb, grey, alpha, **os_bytes)

    def _signal(self) -> int:
        try:
            return -self._child.wait(5)
        except subprocess.TimeoutExpired:
            return 0

    def close(self) -> None:
        self.usable = False
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child.kill()
        self._child.wait()
        os.close(self._shared)


def _environment() -> dict[str, str]:
    """What the interpreter needs to find its modules, and none of the service's secrets."""
    kept = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    # every further arena reserves address space; numpy's threads, one a core, would have nothing to do
    return kept | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}


def _file_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("picture")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], done)
