"""Colour profiles (ICC.1): which picture one fits, what its numbers are in sRGB, and one for colours of numbers."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_FOREIGN = {True: (b"CMYK", b"Lab "), False: (b"CMYK", b"Lab ", b"GRAY")}
"""Spaces of profiles that fit no grey picture, and none of colours."""
_MOST_TAGS = 256
_ROWS = 256
_DATE = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
"""Of every profile that is made here, so that the same colours are the same bytes."""

Primaries = tuple[float, float, float, float, float, float, float, float]
"""x and y (CIE 1931) of white, red, green and blue."""
SRGB: Primaries = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_PIECES = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}
"""Numbers in a parametric curve of each kind."""
_MOST = 4.0
"""XYZ that no screen's primaries reach."""
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


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


def colours_in_srgb(rgb: NDArray[np.uint8], icc: bytes) -> NDArray[np.uint8] | None:
    """What the colours (H, W, 3) of a profile are in sRGB; nothing where it is broken."""
    out = np.empty_like(rgb)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        for top in range(0, len(rgb), _ROWS):  # Pillow's images take four bytes a pixel
            band = Image.fromarray(rgb[top : top + _ROWS])
            out[top : top + _ROWS] = np.asarray(ImageCms.applyTransform(band, transform))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return out


def greys_in_srgb(icc: bytes) -> NDArray[np.uint8] | None:
    """What each of 256 greys of a profile is in sRGB; nothing where it has no curve that says it.

    Unlike `in_srgb`, this may be asked of a stranger's profile outside the sandbox.
    """
    try:
        with np.errstate(all="ignore"):
            light = np.nan_to_num(_curve(_tag(icc, b"kTRC"))).clip(0, 1)
            if icc[20:24] == b"Lab ":  # then it is lightness
                light = np.where(light > 0.08, ((100 * light + 16) / 116) ** 3, 100 * light / 903.3)
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
    """Light of 256 numbers: a power, a table, or a power with a straight piece near black (ICC.1:2010, 10.15)."""
    numbers: NDArray[np.float64] = np.arange(256) / 255
    if content.startswith(b"curv"):
        (count,) = struct.unpack_from(">L", content, 8)
        if count > 1:
            table = np.frombuffer(content, ">u2", count, 12) / 65535
            return np.interp(numbers, np.linspace(0, 1, count), table)
        return np.power(numbers, struct.unpack_from(">H", content, 12)[0] / 256 if count else 1)
    if not content.startswith(b"para"):
        raise LookupError(content[:4])
    (form,) = struct.unpack_from(">H", content, 8)
    power, *pieces = (value / 65536 for value in struct.unpack_from(f">{_PIECES[form]}l", content, 12))
    pieces = pieces or [1.0]
    factor, offset, slope, start, above, below = pieces + [0.0] * (6 - len(pieces))
    if form in (1, 2):  # whose third number, if any, is added everywhere
        slope, start, above, below = 0.0, np.divide(-offset, factor), slope, slope
    return np.where(numbers < start, slope * numbers + below, np.maximum(factor * numbers + offset, 0) ** power + above)


def made(primaries: Primaries, power: float | None, *, grey: bool) -> bytes | None:
    """A profile (ICC.1:2010) of pictures whose colours are mixed from three primaries, or of greys alone.

    Args:
        primaries: of the colours; greys have no need of them.
        power: of the number (0 to 1) that gives the light; none for the curve of sRGB.
        grey: for pictures in grey.

    Returns:
        Some 500 bytes; nothing where no colours can be mixed like that.
    """
    curve = (0, power) if power is not None else (3, *_SRGB_CURVE)
    light = struct.pack(">4s4xHxx", b"para", curve[0]) + _numbers(*curve[1:])
    tags = {b"desc": _text("numbered colours"), b"cprt": _text("no copyright"), b"wtpt": _xyz(_D50)}
    if grey:
        return _profile(b"GRAY", tags | {b"kTRC": light})
    try:
        with np.errstate(all="raise"):
            columns, adaptation = _mixed(np.array(primaries).reshape(4, 2))
    except (np.linalg.LinAlgError, FloatingPointError, ValueError):
        return None
    tags[b"chad"] = b"sf32" + bytes(4) + _numbers(*adaptation.ravel())
    for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
        tags |= {name + b"XYZ": _xyz(column), name + b"TRC": light}
    return _profile(b"RGB ", tags)


def _mixed(xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """XYZ of red, green and blue as columns, on white paper in the light of D50; and what brought them there.

    Raises:
        ValueError, numpy.linalg.LinAlgError, FloatingPointError: they mix to no white, or to one that cannot be told.
    """
    white, *colours = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in xy)
    columns = np.stack(colours, axis=1)
    shares = np.linalg.solve(columns, white)
    columns = columns * shares
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD
    columns = adaptation @ columns
    if not ((shares > 0).all() and max(np.abs(columns).max(), np.abs(adaptation).max()) <= _MOST):
        raise ValueError("not colours that a screen could have")
    return columns, adaptation


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        at = body.find(content)  # the three curves are one
        if at < 0 or at % 4:
            at, body = len(body), body + content + bytes(-len(content) % 4)
        table += struct.pack(">4sLL", name, place + at, len(content))
    kind = (0x04300000, b"mntr", space, b"XYZ ", _DATE, b"acsp")
    head = struct.pack(">L4xL4s4s4s12s4s28x", place + len(body), *kind) + _numbers(*_D50)
    return head.ljust(128, b"\0") + struct.pack(">L", len(tags)) + table + body


def _numbers(*values: float) -> bytes:
    return struct.pack(f">{len(values)}l", *(round(65536 * value) for value in values))


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + _numbers(*values)


def _text(text: str) -> bytes:
    """In one language."""
    coded = text.encode("utf-16-be")
    return struct.pack(">4s4xLL4sLL", b"mluc", 1, 12, b"enUS", len(coded), 28) + coded
