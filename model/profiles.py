"""Colour profiles (ICC.1): which picture one fits, and what its numbers are in sRGB."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_FOREIGN = {True: (b"CMYK", b"Lab "), False: (b"CMYK", b"Lab ", b"GRAY")}
"""Spaces of profiles that fit no grey picture, and none of colours."""
_MOST_TAGS = 256


def fitting(icc: bytes | None, *, grey: bool) -> bytes | None:
    """The profile, unless it says that it is of pictures of another kind."""
    return None if icc is None or icc[16:20] in _FOREIGN[grey] else icc


def of_grey(icc: bytes | None) -> bool:
    """Whether a profile is of grey alone."""
    return icc is not None and icc[16:20] == b"GRAY"


def in_srgb(image: Image.Image, icc: bytes | None) -> Image.Image | None:
    """The image through its profile, as RGB that needs none; nothing where the profile is broken or missing."""
    if not icc:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def greys_in_srgb(icc: bytes) -> NDArray[np.uint8] | None:
    """What each of 256 greys of a profile is in sRGB; nothing where it has no curve that says it.

    Unlike `in_srgb`, this may be asked of a stranger's profile outside the sandbox.
    """
    try:
        with np.errstate(all="ignore"):
            light = np.nan_to_num(_curve(_tag(icc, b"kTRC"))).clip(0, 1)
    except (struct.error, LookupError, ValueError):
        return None
    greys = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    in_bytes: NDArray[np.uint8] = np.rint(255 * greys).astype(np.uint8)
    return in_bytes


def _tag(icc: bytes, wanted: bytes) -> bytes:
    (count,) = struct.unpack_from(">L", icc, 128)
    for i in range(min(count, _MOST_TAGS)):
        name, place, size = struct.unpack_from(">4sLL", icc, 132 + 12 * i)
        if name == wanted:
            return icc[place : place + size]
    raise LookupError(wanted)


def _curve(content: bytes) -> NDArray[np.float64]:
    """Light of 256 numbers: a power, a table, or a power with a straight piece near black."""
    numbers: NDArray[np.float64] = np.arange(256) / 255
    if content.startswith(b"curv"):
        (count,) = struct.unpack_from(">L", content, 8)
        if count > 1:
            table = np.frombuffer(content, ">u2", count, 12) / 65535
            return np.interp(numbers, np.linspace(0, 1, count), table)
        return np.power(numbers, struct.unpack_from(">H", content, 12)[0] / 256 if count else 1)
    form = {b"para\0\0\0\0\0\0": ">l", b"para\0\0\0\0\0\3": ">5l"}[content[:10]]
    power, *pieces = (value / 65536 for value in struct.unpack_from(form, content, 12))
    if not pieces:
        return np.power(numbers, power)
    factor, offset, slope, start = pieces
    return np.where(numbers < start, slope * numbers, (factor * numbers + offset) ** power)
