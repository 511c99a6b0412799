"""The originals of the golden files: every kind of image, made from one photograph by exact operations alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[1] / "data" / "photo.png"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><!-- golden --></x:xmpmeta>'
ICC = b"not a profile that anybody applies, kept as it came: " + bytes(range(64))


def _photo() -> Image.Image:
    image = Image.open(PHOTO).convert("RGB")
    image.info.clear()
    return image


def _crop(left: int, top: int, width: int, height: int) -> Image.Image:
    return _photo().crop((left, top, left + width, top + height))


def _alpha(image: Image.Image, levels: int) -> Image.Image:
    """With an alpha channel: a ramp of so many levels."""
    ramp = np.add.outer(np.arange(image.height), np.arange(image.width)) * 3 % 256
    ramp = ramp * levels // 256 * (255 // (levels - 1))
    image.putalpha(Image.fromarray(ramp.astype(np.uint8)))
    return image


def _described() -> Image.Image:
    """With a colour profile, EXIF and XMP."""
    exif = Image.Exif()
    exif[0x010F] = "golden"
    exif[0x0112] = 6  # to be turned by a quarter
    out = io.BytesIO()
    _crop(100, 60, 96, 64).save(out, "JPEG", quality=95, exif=exif, icc_profile=ICC, xmp=XMP)
    image = Image.open(out)
    image.load()
    return image


def _mirrored() -> Image.Image:
    """768x512: several streams."""
    quarter = np.asarray(_photo())
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    return Image.fromarray(np.concatenate([half, half[::-1]]))


KINDS: dict[str, Callable[[], Image.Image]] = {
    "rgb": _photo,
    "grey": lambda: _crop(100, 60, 200, 150).convert("L"),
    "alpha": lambda: _alpha(_crop(180, 20, 130, 90), 2),
    "grey-alpha": lambda: _alpha(_crop(20, 120, 70, 60).convert("L"), 16),
    "metadata": _described,
    "one-pixel": lambda: _crop(200, 100, 1, 1),
    "odd": lambda: _crop(7, 3, 255, 129),
    "streams": _mirrored,
}
