"""One process that decodes image files, as `model.sandbox` sees it: started, asked, and not believed.

The two talk in lines of JSON, and share a file in memory: in it lie the bytes of the file, then those of the picture.

    parent   ── JSON line ──>   process: model/sandbox_process.py, which knows Pillow and no torch
             <── its pixels ──
             ── go, or stop ──>
             <── JSON line ──
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model import errors
from model.container import MAX_METADATA, MAX_SIDE, seen_pixels
from model.pixels import Picture

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


class Ended(Exception):
    """The process is gone."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal_number


class Process:
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
        """Whether it still runs."""
        return self._child.poll() is None

    def read_image(
        self,
        data: bytes,
        max_pixels: int,
        keep_metadata: bool,
        seconds: float,
        announce: Callable[[int], None] | None,
    ) -> Picture:
        """As `Sandbox.read_image`; `Ended` where it does not get to its end, or says what it cannot have found."""
        self.usable = False  # until it has said its last word
        os.ftruncate(self._shared, 0)
        _write(self._shared, data)
        request = {"bytes": len(data), "max_pixels": max_pixels, "keep_metadata": keep_metadata, "seconds": seconds}
        self._tell(json.dumps(request))
        answer, pixels = self._answer(), 0
        if "pixels" in answer:
            pixels = _whole(answer["pixels"], seen_pixels(MAX_SIDE, MAX_SIDE))
            try:
                if announce:
                    announce(pixels)
            except BaseException:
                with contextlib.suppress(Ended):
                    self._tell("stop")  # a refusal must not cost a process: there are many under load
                    self._answer()
                    self.usable = True
                raise
            self._tell("go")
            answer = self._answer()
        if "error" in answer:
            self.usable = not answer.get("spent", False)
            error, message = str(answer["error"]), str(answer.get("message"))
            if error not in _READABLE:
                raise RuntimeError(f"reading an image failed: {message}")
            raise _READABLE[error](message)
        picture = self._picture(answer, max_pixels, pixels)
        self.usable = True
        return picture

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
            raise Ended(self._signal()) from None

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout  # noqa: S101 - it is a pipe
        ready = select.poll()  # `select` knows no descriptor beyond 1023
        ready.register(self._child.stdout, select.POLLIN)
        if not ready.poll(_PATIENCE * 1000):
            self._child.kill()
            raise Ended(signal.SIGPROF)
        line = self._child.stdout.readline(1 << 16)
        if not line.endswith(b"\n"):
            raise Ended(self._signal())
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(answer := json.loads(line), dict):
                return answer
        raise Ended(0)

    def _picture(self, answer: dict[str, Any], max_pixels: int, announced: int) -> Picture:
        """What it says is checked like what a stranger says: it may no longer be the program that we started."""
        width, height = (_whole(answer.get(side), MAX_SIDE) for side in ("width", "height"))
        grey, transparent = bool(answer.get("grey")), bool(answer.get("alpha"))
        lengths = {
            name: _whole(answer[name], MAX_METADATA) for name in ("icc", "exif", "xmp") if answer.get(name) is not None
        }
        planes = (1 if grey else 3) + transparent
        if not (0 < width * height <= max_pixels and seen_pixels(width, height) <= announced):
            raise Ended(0)
        if planes * width * height + sum(lengths.values()) != os.fstat(self._shared).st_size:
            raise Ended(0)
        place = 0

        def take(count: int) -> bytearray:
            nonlocal place
            block = bytearray(count)
            view = memoryview(block)
            while view:  # the kernel gives 2 GiB at once at most
                done = os.preadv(self._shared, [view], place)
                if not done:
                    raise Ended(0)
                view, place = view[done:], place + done
            return block

        samples = np.frombuffer(take((1 if grey else 3) * width * height), np.uint8).reshape(height, width, -1)
        rgb = np.repeat(samples, 3, axis=2) if grey else samples
        alpha = np.frombuffer(take(width * height), np.uint8).reshape(height, width) if transparent else None
        os_bytes = {name: bytes(take(length)) for name, length in lengths.items()}
        return Picture(rgb, grey, alpha, **os_bytes)

    def _signal(self) -> int:
        try:
            return -self._child.wait(5)
        except subprocess.TimeoutExpired:
            return 0

    def close(self) -> None:
        """End it, whatever it is at."""
        self.usable = False
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child.kill()
        self._child.wait()
        os.close(self._shared)


def _whole(value: object, most: int) -> int:
    """A number of the process's from 0 to `most`."""
    if type(value) is int and 0 <= value <= most:
        return value
    raise Ended(0)


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
