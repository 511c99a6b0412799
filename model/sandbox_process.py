"""The process that decodes image files for `model.sandbox_client`: its limits, and one file after another."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin

from model.errors import CorruptImage, ModelError
from model.pixels import Picture, no_limit_of_pillow, read_image

_AVIF_THREADS = 2


def main() -> None:
    """Arguments: the file in memory, and the bytes of memory beyond those that the program itself takes."""
    shared, memory = int(sys.argv[1]), int(sys.argv[2])
    for end in (signal.SIGINT, signal.SIGTERM):  # are for the parent, which lets us finish and closes our input
        signal.signal(end, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the end of the time of a file is the end of the process
    warnings.simplefilter("ignore")  # Pillow's, of a stranger's metadata
    AvifImagePlugin.DEFAULT_MAX_THREADS = _AVIF_THREADS
    no_limit_of_pillow()
    answers = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    _limit_memory(memory)
    _say(answers, {"ready": True})
    os.dup2(nothing, 2)  # what C libraries print about a stranger's file is nobody's log
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))
        answer = _answer(shared, memory, answers, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answers, answer)


def _limit_memory(memory: int) -> None:
    """Beyond what is mapped now; only Linux keeps to it, and ends this process first when a container's runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        size = int(statistics.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(answers: int, message: dict[str, Any]) -> None:
    try:
        os.write(answers, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        sys.exit()  # whoever asked is gone


class _Stopped(Exception):
    """Nobody wants a picture of so many pixels."""


def _ask(answers: int, pixels: int) -> None:
    _say(answers, {"pixels": pixels})
    if sys.stdin.buffer.readline() != b"go\n":
        raise _Stopped


def _answer(shared: int, memory: int, answers: int, request: dict[str, Any]) -> dict[str, Any]:
    try:
        data = _get(shared, request["bytes"])
        picture = read_image(
            data,
            request["max_pixels"],
            keep_metadata=request["keep_metadata"],
            announce=lambda pixels: _ask(answers, pixels),
        )
        return _put(shared, picture)
    except _Stopped:
        return {"error": "stopped", "message": ""}
    except ModelError as error:
        return {"error": error.code, "message": str(error)}
    except MemoryError:
        message = f"it takes more than {memory >> 20} MiB of memory to decode"
        return {"error": CorruptImage.code, "message": message, "spent": True}
    except Exception:  # noqa: BLE001 - the parent raises it
        return {"error": "unexpected", "message": traceback.format_exc(limit=-5), "spent": True}


def _get(shared: int, count: int) -> bytes:
    """The file; the kernel gives at most 2 GiB at once."""
    data = bytearray(count)
    view = memoryview(data)
    while view and (done := os.preadv(shared, [view], count - len(view))):
        view = view[done:]
    view.release()
    return bytes(data)


def _put(shared: int, picture: Picture) -> dict[str, Any]:
    """The picture's planes and metadata, one after another, and what they are."""
    blocks = {name: getattr(picture, name) for name in ("icc", "exif", "xmp")}
    rgb = picture.rgb[..., :1] if picture.grey else picture.rgb
    os.ftruncate(shared, 0)
    place = 0
    for block in (rgb, picture.alpha, *blocks.values()):
        view = memoryview(b"" if block is None else block if isinstance(block, bytes) else block.tobytes())
        while view:
            done = os.pwrite(shared, view, place)
            view, place = view[done:], place + done
    lengths = {name: None if block is None else len(block) for name, block in blocks.items()}
    shape = {"width": picture.width, "height": picture.height, "grey": picture.grey}
    return shape | {"alpha": picture.alpha is not None} | lengths


if __name__ == "__main__":
    main()
