"""What an AVIF file says of its picture, as far as Pillow does not tell: boxes in boxes (ISO 14496-12, 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction

_MOST = 4096
"""Boxes, or entries, in a box that are looked at; an honest file has some dozens."""


def properties(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each property of the picture; none where they cannot be read."""
    try:
        return _properties(data)
    except (struct.error, LookupError):
        return []


def clean_aperture(content: bytes, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Edges of what is to be shown of a picture, by its property `clap`; none where these are no pixels of it."""
    try:
        numbers = struct.unpack_from(">LLLLlLlL", content)
        wide, high, right, down = (Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
    except (struct.error, ZeroDivisionError):
        return None
    left, top = (size[0] - wide) / 2 + right, (size[1] - high) / 2 + down
    edges = (left, top, left + wide, top + high)
    whole = all(edge.denominator == 1 for edge in edges)
    if not (whole and 0 <= left < edges[2] <= size[0] and 0 <= top < edges[3] <= size[1]):
        return None
    return int(left), int(top), int(edges[2]), int(edges[3])


def without_exif(data: bytes) -> bytes:
    """The file with its EXIF called something else, so that nobody reads it."""
    patched = bytearray(data)
    try:
        start, end = _inside(data, b"meta", 0, len(data))
        start, end = _inside(data, b"iinf", start + 4, end)
        for kind, place, _ in _boxes(data, start + (8 if data[start] else 6), end):
            named = place + (10 if data[place] > 2 else 8)  # behind the item's number and its protection
            if kind == b"infe" and data[named : named + 4] == b"Exif":
                patched[named : named + 4] = b"none"
    except (struct.error, LookupError):
        return data
    return bytes(patched)


def _properties(data: bytes) -> list[tuple[bytes, bytes]]:
    start, end = _inside(data, b"meta", 0, len(data))
    start += 4
    place, _ = _inside(data, b"pitm", start, end)
    (picture,) = struct.unpack_from(">L" if data[place] else ">H", data, place + 4)
    start, end = _inside(data, b"iprp", start, end)
    known = [(kind, data[at:last]) for kind, at, last in _boxes(data, *_inside(data, b"ipco", start, end))]
    place, _ = _inside(data, b"ipma", start, end)
    number, association, mask = (">L" if data[place] else ">H"), "B", 0x7F
    if data[place + 3] & 1:
        association, mask = "H", 0x7FFF
    (items,) = struct.unpack_from(">L", data, place + 4)
    place += 8
    for _ in range(min(items, _MOST)):
        (item,) = struct.unpack_from(number, data, place)
        place += struct.calcsize(number)
        associated = f">{data[place]}{association}"
        if item == picture:
            indexes = [index & mask for index in struct.unpack_from(associated, data, place + 1)]
            return [known[index - 1] for index in indexes if 0 < index <= len(known)]
        place += 1 + struct.calcsize(associated)
    return []


def _boxes(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and where the content begins and ends."""
    for _ in range(_MOST):
        if place + 8 > end:
            return
        size, kind = struct.unpack_from(">L4s", data, place)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        size = size or end - place
        if not head <= size <= end - place:
            return
        yield kind, place + head, place + size
        place += size


def _inside(data: bytes, wanted: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of the first box of a type begins and ends."""
    for kind, place, last in _boxes(data, start, end):
        if kind == wanted:
            return place, last
    raise LookupError(wanted)
