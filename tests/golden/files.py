"""Golden files on disc: writing them, and checking that they still read as they did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model import Codec
from model.container import Container, read_container
from model.entropy import stream_count
from model.pixels import from_pil, to_pil
from tests.conftest import psnr
from tests.golden.kinds import KINDS
from tests.symbols import decoded

FOLDER = Path(__file__).parent
INDEX = "index.json"
_METADATA = ("icc", "exif", "xmp")


def sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def facts(codec: Codec, kind: str, data: bytes) -> dict[str, Any]:
    """What must stay true of a file, but for its name."""
    container = read_container(data)
    back, symbols = _read(codec, container)
    return {
        "kind": kind,
        "model": container.model,
        "fingerprint": container.fingerprint,
        "file": sha256(data),
        "symbols": symbols,
        "mode": back.mode,
        "size": list(back.size),
        "streams": streams(codec, container),
        "psnr": round(psnr(_upright(kind).convert("RGB"), back.convert("RGB")), 3),
        "metadata": {name: sha256(getattr(container, name)) for name in _METADATA},
    }


def write(folder: Path, codecs: Iterable[Codec], kept: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Every kind of image by every model, and the index that says what they and those `kept` hold."""
    index = list(kept)
    for codec in codecs:
        for kind, original in KINDS.items():
            data = codec.encode(original())
            name = f"{codec.info.name}@{codec.info.fingerprint}.{kind}.tcm"
            (folder / name).write_bytes(data)
            index.append({"name": name} | facts(codec, kind, data))
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return index


def check(folder: Path, codec: Codec, expected: dict[str, Any]) -> None:
    """The file is there as it was written, and reads as it did."""
    data = (folder / expected["name"]).read_bytes()
    assert sha256(data) == expected["file"], "another file than was written"
    found = {"name": expected["name"]} | facts(codec, expected["kind"], data)
    assert abs(found.pop("psnr") - expected["psnr"]) < 0.05
    assert found == {key: value for key, value in expected.items() if key != "psnr"}
    original, back = _upright(expected["kind"]), to_pil(codec.decode_container(read_container(data)))
    assert back.size == original.size
    if "A" in original.mode:
        np.testing.assert_array_equal(np.asarray(back.getchannel("A")), np.asarray(original.getchannel("A")))


def streams(codec: Codec, container: Container) -> int:
    """That the payload is cut into."""
    width, height = codec.padded(container.width, container.height)
    c = codec.info.config
    return stream_count(c.M * (width // 16) * (height // 16) + c.hyper_channels * (width // 64) * (height // 64))


def _upright(kind: str) -> Image.Image:
    return to_pil(from_pil(KINDS[kind]()))


def _read(codec: Codec, container: Container) -> tuple[Image.Image, str]:
    (one,) = decoded(codec, [container])
    return to_pil(codec.decode_container(container)), one.sha256
