"""What lies beside the pixels of an image file: EXIF and XMP, without the orientation, which is applied."""

from __future__ import annotations

import re
import struct

from PIL import Image, TiffTags

from model import tiff
from model.container import MAX_METADATA

EXIF_PREFIX = b"Exif\0\0"
"""Of EXIF in JPEG files; other formats leave it out, and so may who writes them."""
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_IN_XMP = re.compile(rb"""\s*tiff:Orientation=(["'])\d\1|<tiff:Orientation>\s*\d\s*</tiff:Orientation>""")


def bounded(block: bytes | str | None) -> bytes | None:
    """Metadata as bytes; a block that is empty or absurdly large is left out."""
    if isinstance(block, str):
        block = block.encode()
    return block if isinstance(block, bytes) and 0 < len(block) <= MAX_METADATA else None


def upright(image: Image.Image) -> tuple[Image.Image, bytes | None, bytes | str | None]:
    """The image with its EXIF orientation applied, its EXIF without it, and its XMP."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    try:
        tags = image.getexif()
        turn = _TURNS.get(tags.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken EXIF says nothing of the pixels
        return image, None, xmp
    try:
        if image.format == "TIFF":
            exif = _written(tags)
        elif turn is not None and exif is not None:
            exif = _without_orientation(exif.removeprefix(EXIF_PREFIX))
    except Exception:  # noqa: BLE001 - one broken tag must not cost what another says of the pixels
        exif = None
    if turn is not None:
        image, xmp = image.transpose(turn), _IN_XMP.sub(b"", bounded(xmp) or b"")
    return image, exif and EXIF_PREFIX + exif.removeprefix(EXIF_PREFIX), xmp


def _without_orientation(exif: bytes) -> bytes | None:
    """All else stays as and where it was, whatever its type: Pillow would write much of it anew as something else."""
    order = "<" if exif.startswith(b"II") else ">"
    (place,) = struct.unpack_from(order + "L", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, place)
    end = place + 2 + 12 * count
    entries = [exif[at : at + 12] for at in range(place + 2, end, 12)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] != _ORIENTATION]
    if not kept:
        return None
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + exif[end : end + 4]
    return exif[:place] + directory.ljust(2 + 12 * count + 4, b"\0") + exif[end + 4 :]


def _written(tags: Image.Exif) -> bytes | None:
    """EXIF of a TIFF: without what lays out its pixels; text as it was, of whatever alphabet."""
    for tag in tiff.LAYOUT & set(tags):
        del tags[tag]
    for tag, value in list(tags.items()):
        if isinstance(value, str) and TiffTags.lookup(tag).type == TiffTags.ASCII:
            tags[tag] = value.encode("latin-1")  # as Pillow has read it; it would write ASCII
    return tags.tobytes() if len(tags) else None
