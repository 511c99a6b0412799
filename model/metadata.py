"""What lies beside the pixels of an image file: EXIF and XMP, without the orientation, which is applied."""

from __future__ import annotations

import re
import struct
from typing import Any

from PIL import Image, TiffTags

from model import tiff
from model.container import MAX_METADATA

EXIF_PREFIX = b"Exif\0\0"
"""Of EXIF in JPEG files; other formats leave it out, and so may who writes them."""
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 274
_SIZE = (0xA002, 0xA003)  # width and height, in the directory of EXIF
_THUMBNAIL = (0x0201, 0x0202)  # place and length, in the second directory
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SIDEWAYS = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}
_IN_XMP = re.compile(
    rb"""\s?\b(?:tiff:Orientation|xmpNote:HasExtendedXMP)=(?:"[^"]*"|'[^']*')"""
    rb"""|<(tiff:Orientation|xmpNote:HasExtendedXMP)>[^<]*</\1>"""
)  # no part that could be tried in many ways: packets have megabytes
_AS_PILLOW_FINDS_IT = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def bounded(block: object) -> bytes | None:
    """Metadata; a block that is empty, absurdly large, or of anything but bytes is left out."""
    return block if isinstance(block, bytes) and 0 < len(block) <= MAX_METADATA else None


def upright(image: Image.Image) -> tuple[Image.Image, bytes | None, bytes | None]:
    """The image with its EXIF orientation applied, and its EXIF and XMP without it."""
    _unwrap(image.info)
    said_in_xmp = bounded(image.info.get("xmp"))
    xmp = upright_xmp(said_in_xmp)
    try:
        tags = image.getexif()
        turn = _TURNS.get(tags.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken EXIF says nothing of the pixels
        found = _AS_PILLOW_FINDS_IT.search(said_in_xmp or b"")
        return _turned(image, found and _TURNS.get(int(found[1]))), None, xmp
    turned = _turned(image, turn)
    try:
        block = bounded(image.info.get("exif"))
        exif = _written(tags, turned.size) if image.format == "TIFF" else upright_exif(block, turn)
    except Exception:  # noqa: BLE001 - one broken tag must not cost what another says of the pixels
        exif = None
    return turned, exif, xmp


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _unwrap(info: dict[str | tuple[int, int], Any]) -> None:
    """EXIF and XMP that are text, lie elsewhere in a PNG or have too many first bytes, as Pillow expects them."""
    if isinstance(text := info.get("xmp"), str):
        info["xmp"] = text.encode()
    for name in ("exif", "APP1", "xmp"):
        block = _raw_profile(info.get(f"Raw profile type {name}"))
        if block is not None and (name == "xmp" or block.startswith(_XMP_PREFIX)):
            info.setdefault("xmp", block.removeprefix(_XMP_PREFIX))
        elif block is not None:
            info.setdefault("exif", block)
    if isinstance(exif := info.get("exif"), bytes):
        info["exif"] = EXIF_PREFIX + _bare(exif)


def _raw_profile(text: object) -> bytes | None:
    """What ImageMagick writes into a text of PNG: a name, a length, and the bytes in hexadecimal."""
    if not isinstance(text, str) or len(text) > 3 * MAX_METADATA:
        return None
    try:
        return bytes.fromhex(text.split("\n", 3)[3])
    except (ValueError, IndexError):
        return None


def _bare(exif: bytes) -> bytes:
    return re.sub(rb"\A(?:Exif\0\0)+", b"", exif)  # some write it before EXIF that has it


def upright_xmp(xmp: bytes | None) -> bytes | None:
    """XMP without orientation, and without the name of a second part, which JPEG alone has and Pillow does not read."""
    if xmp is not None:
        xmp = _IN_XMP.sub(b"", xmp)
    return None if xmp is None or _AS_PILLOW_FINDS_IT.search(xmp) else xmp


def upright_exif(exif: bytes | None, turn: Image.Transpose | None = None) -> bytes | None:
    """EXIF behind its prefix, without orientation; none where it cannot be read.

    All else stays as and where it was, whatever its type: Pillow would write much of it anew as something else. Of a
    picture that was turned, the thumbnail goes, which was not.
    """
    if exif is None:
        return None
    exif = _bare(exif)
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (place,) = struct.unpack_from(order + "L", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, place)
        end = place + 2 + 12 * count
        entries = [exif[at : at + 12] for at in range(place + 2, end, 12)]
        kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] != _ORIENTATION]
        if turn is not None:
            exif = _turned_exif(exif, order, place, end, sideways=turn in _SIDEWAYS)
    except struct.error:
        return None
    if not kept:
        return None
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + exif[end : end + 4]
    return EXIF_PREFIX + exif[:place] + directory.ljust(2 + 12 * count + 4, b"\0") + exif[end + 4 :]


def _turned_exif(exif: bytes, order: str, place: int, end: int, *, sideways: bool) -> bytes:
    """Without the thumbnail, width and height as they are now."""
    turned = bytearray(exif)
    if len(turned) >= end + 4:
        (second,) = struct.unpack_from(order + "L", turned, end)
        turned[end : end + 4] = bytes(4)
        tags = _places(exif, order, second) if second else {}
        if tags.keys() >= {*_THUMBNAIL}:
            start, length = (struct.unpack_from(order + "L", exif, tags[tag] + 8)[0] for tag in _THUMBNAIL)
            if exif[start : start + 2] == b"\xff\xd8" and exif[start : start + length].endswith(b"\xff\xd9"):
                stop = min(start + length, len(exif))
                turned[start:stop] = bytes(stop - start)  # which take no room
    inner = _places(exif, order, place).get(tiff.EXIF)
    if sideways and inner is not None:
        tags = _places(exif, order, struct.unpack_from(order + "L", exif, inner + 8)[0])
        if tags.keys() >= {*_SIZE}:
            one, other = (slice(tags[tag] + 2, tags[tag] + 12) for tag in _SIZE)
            turned[one], turned[other] = exif[other], exif[one]
    return bytes(turned)


def _places(exif: bytes, order: str, place: int) -> dict[int, int]:
    """Where each tag of a directory lies; of one that is cut, or lies elsewhere, those that are there."""
    if place + 2 > len(exif):
        return {}
    (count,) = struct.unpack_from(order + "H", exif, place)
    places = range(place + 2, place + 2 + 12 * count, 12)
    return {struct.unpack_from(order + "H", exif, at)[0]: at for at in places if at + 12 <= len(exif)}


def _written(tags: Image.Exif, size: tuple[int, int]) -> bytes | None:
    """EXIF of a TIFF of this size: without what lays out its pixels; text as it was, of whatever alphabet."""
    inner = dict(tags.get_ifd(tiff.EXIF)) if tiff.EXIF in tags else {}
    if (inner.get(_SIZE[1]), inner.get(_SIZE[0])) == size:  # as it was before Pillow turned it
        inner |= dict(zip(_SIZE, size, strict=True))
        if tiff.INTEROPERABILITY in inner:  # the directory, not its place
            inner[tiff.INTEROPERABILITY] = tags.get_ifd(tiff.INTEROPERABILITY)
        tags[tiff.EXIF] = inner
    for tag in tiff.LAYOUT & set(tags):
        del tags[tag]
    for tag, value in list(tags.items()):
        if isinstance(value, str) and TiffTags.lookup(tag).type == TiffTags.ASCII:
            tags[tag] = value.encode("latin-1")  # as Pillow has read it; it would write ASCII
    return tags.tobytes() if len(tags) else None
