"""The alpha channel of a file: lossless, as a PNG of nothing but pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from model.errors import CorruptBitstream, reason
from model.pixels import Pixels

_MAX_CHUNKS = 1 << 14


def encode_alpha(alpha: Pixels) -> bytes:
    """Lossless: one byte when the whole channel has one value, else a greyscale PNG."""
    if alpha.min() == alpha.max():
        return bytes([int(alpha.flat[0])])
    out = io.BytesIO()
    Image.fromarray(alpha).save(out, format="PNG", optimize=True)
    return out.getvalue()


def decode_alpha(data: bytes, width: int, height: int) -> Pixels:
    """The inverse of `encode_alpha`: (height, width).

    Raises:
        CorruptBitstream: it is not such a channel of that size.
    """
    if len(data) == 1:
        return np.full((height, width), data[0], np.uint8)
    if not _bare_png(data):
        raise CorruptBitstream("its alpha channel is not a PNG of nothing but pixels")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.size != (width, height) or image.mode != "L":
            raise CorruptBitstream("its alpha channel has another size than its image")
        return np.asarray(image).copy()
    except CorruptBitstream:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged data
        raise CorruptBitstream(f"its alpha channel cannot be read: {reason(error)}") from None


def _bare_png(data: bytes) -> bool:
    """It has a header, pixels and an end, in not too many chunks: nothing else that would have to be read."""
    place = 8
    for i in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            return i > 1 and place == len(data)
        if kind != (b"IDAT" if i else b"IHDR") or place > len(data):
            return False
    return False
