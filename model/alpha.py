"""The alpha channel of a file: lossless, as a PNG of nothing but pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from model.errors import CorruptBitstream, reason
from model.pixels import Pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1 << 14
_PIECE = 1 << 16  # bytes that are inflated at a time


def encode_alpha(alpha: Pixels) -> bytes:
    """Lossless: one byte when the whole channel has one value, else a greyscale PNG."""
    if alpha.min() == alpha.max():
        return bytes([int(alpha.flat[0])])
    out = io.BytesIO()
    Image.fromarray(alpha).save(out, format="PNG", compress_level=6)  # the ninth takes up to 15 times as long
    return out.getvalue()


def decode_alpha(data: bytes, width: int, height: int) -> Pixels:
    """The inverse of `encode_alpha`: (height, width).

    Raises:
        CorruptBitstream: it is not such a channel of that size, to the last byte.
    """
    if len(data) == 1:
        return np.full((height, width), data[0], np.uint8)
    _check(data, width, height)
    try:
        return np.asarray(PngImageFile(io.BytesIO(data))).copy()  # Image.open has a limit of pixels of its own
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged data
        raise CorruptBitstream(f"its alpha channel cannot be read: {reason(error)}") from None


def _check(data: bytes, width: int, height: int) -> None:
    """Refuse what a decoder of PNG would skip, fill up or leave unread."""
    header, rows = _bare_png(data)
    if header != struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0):
        raise CorruptBitstream("its alpha channel has another size than its image, or is not plain grey of 8 bits")
    try:
        whole = _inflates_to(height * (1 + width), rows)
    except zlib.error:
        whole = False
    if not whole:
        raise CorruptBitstream("its alpha channel does not have the rows of its image and nothing else")


def _bare_png(data: bytes) -> tuple[memoryview, list[memoryview]]:
    """The header and the deflated rows of a PNG of nothing but these, in not too many chunks, every checksum right."""
    view, place = memoryview(data), len(_SIGNATURE)
    bodies: list[memoryview] = []
    while data.startswith(_SIGNATURE) and len(bodies) < _MAX_CHUNKS:
        kind, end = data[place + 4 : place + 8], place + 8 + int.from_bytes(view[place : place + 4], "big")
        body, stored = view[place + 8 : end], view[end : end + 4]
        if len(stored) < 4 or zlib.crc32(view[place + 4 : end]) != int.from_bytes(stored, "big"):
            break
        place = end + 4
        if kind == b"IEND" and len(bodies) > 1 and not body and place == len(data):
            return bodies[0], bodies[1:]
        if kind != (b"IDAT" if bodies else b"IHDR"):
            break
        bodies.append(body)
    raise CorruptBitstream("its alpha channel is not a PNG of nothing but pixels")


def _inflates_to(size: int, bodies: Sequence[memoryview]) -> bool:
    """Together they are one zlib stream of so many bytes, of which a piece at a time is held.

    Raises:
        zlib.error: they are no zlib stream.
    """
    stream = zlib.decompressobj()
    for piece in _pieces(bodies):
        if stream.eof:
            return False
        rest: bytes | memoryview = piece
        full = True
        while full:
            inflated = len(stream.decompress(rest, _PIECE))
            size -= inflated
            if size < 0:
                return False
            rest, full = stream.unconsumed_tail, inflated == _PIECE
    return size == 0 and stream.eof and not stream.unused_data


def _pieces(bodies: Sequence[memoryview]) -> Iterator[memoryview]:
    for body in bodies:
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]
