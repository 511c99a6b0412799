"""The service with faults on demand: `python faulty.py …` as `python -m service …`.

Each fault lasts as long as a file of its name lies in the folder FAULTS: `hold` (the device is busy, and shows that
it goes on), `hang` (it does not), `freeze` (it keeps the interpreter to itself), `die` (its thread ends), `memory` (no
room for more than one item), `load` (loading a model hangs), `bug` (it raises what nobody has thought of),
`wrong` (it works on other pictures than it was given), `avif` (its encoder takes very long).
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.codec import Codec
from model.errors import OutOfMemory
from model.output import write_image as _write_image
from model.pixels import Picture
from service import scheduler
from service.command import run

FAULTS = Path(os.environ["FAULTS"])
_load, _analyse = Codec.load, Codec.analyse


def wanted(fault: str) -> bool:
    return (FAULTS / fault).exists()


def load(*arguments: Any, **options: Any) -> Codec:
    while wanted("load"):
        time.sleep(0.02)
    return _load(*arguments, **options)


def analyse(codec: Codec, pictures: Any, *, stages: Any = None, heartbeat: Any = None) -> Any:
    if heartbeat is None:  # when it is loaded it is tried out
        return _analyse(codec, pictures, stages=stages)
    while wanted("hold"):
        heartbeat()
        time.sleep(0.005)
    while wanted("hang"):
        time.sleep(0.02)
    if wanted("freeze"):
        ctypes.PyDLL(None).sleep(600)  # without letting go of the GIL
    if wanted("die"):
        raise SystemExit
    if wanted("bug"):
        raise ZeroDivisionError("a bug")
    if wanted("wrong"):
        pictures = [Picture(np.zeros_like(picture.rgb)) for picture in pictures]
    if wanted("memory") and len(pictures) > 1:
        raise OutOfMemory("full")
    return _analyse(codec, pictures, stages=stages, heartbeat=heartbeat)


def write_image(picture: Picture, file_format: str) -> bytes:
    while file_format == "avif" and wanted("avif"):
        time.sleep(0.02)
    return _write_image(picture, file_format)


if __name__ == "__main__":
    scheduler.write_image = write_image  # type: ignore[attr-defined]
    Codec.load = load  # type: ignore[method-assign,assignment]
    Codec.analyse = analyse  # type: ignore[method-assign,assignment]
    sys.exit(run(sys.argv[1:]))
