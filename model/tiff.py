"""TIFF files with all of a photograph's EXIF: Pillow's own compressed ones hold no directories inside directories."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, TiffTags

LAYOUT = {*range(254, 270), *range(273, 282), 284, 292, 293, 297, *range(301, 304), *range(317, 348), *range(512, 522),
          *range(529, 533), TiffImagePlugin.XMP, 33723, 34377, 34675, 37724, 50706}  # fmt: skip
"""Tags that lay out a file's pixels, what has a place of its own, be it in Photoshop, and the one that makes a file a
DNG: they are no part of a photograph's EXIF."""
_STRIP = 1 << 18
_DEFLATE, _DIFFERENCES, _UNASSOCIATED = 8, 2, 2
_PREDICTOR = 317
EXIF, INTEROPERABILITY = 0x8769, 0xA005
"""Tags of directories, in the first one and in that of EXIF."""


def write_tiff(
    samples: NDArray[np.uint8], exif: Image.Exif, icc: bytes | None, xmp: bytes | None, *, alpha: bool
) -> bytes:
    """A file of one picture, deflated losslessly.

    Args:
        samples: (H, W, channels), alpha last if there is any.
        exif: what is said of the photograph; tags that lay out pixels are left out.
        icc: colour profile.
        xmp: XMP packet.
        alpha: whether there is.
    """
    height, width, channels = samples.shape
    rows = max(1, _STRIP // (width * channels))
    strips = [_deflated(samples[top : top + rows]) for top in range(0, height, rows)]
    lengths = tuple(len(strip) for strip in strips)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    _take_over(exif, directory)
    directory.update(
        {
            TiffImagePlugin.IMAGEWIDTH: width,
            TiffImagePlugin.IMAGELENGTH: height,
            TiffImagePlugin.BITSPERSAMPLE: (8,) * channels,
            TiffImagePlugin.COMPRESSION: _DEFLATE,
            TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 1 if channels < 3 else 2,
            TiffImagePlugin.SAMPLESPERPIXEL: channels,
            TiffImagePlugin.ROWSPERSTRIP: rows,
            TiffImagePlugin.PLANAR_CONFIGURATION: 1,
            _PREDICTOR: _DIFFERENCES,
        }
    )
    for tag, offsets in ((TiffImagePlugin.STRIPOFFSETS, _places(lengths)), (TiffImagePlugin.STRIPBYTECOUNTS, lengths)):
        directory.tagtype[tag] = TiffTags.LONG
        directory[tag] = offsets  # counted from the end of the directory, as Pillow wants them
    if alpha:
        directory[TiffImagePlugin.EXTRASAMPLES] = _UNASSOCIATED
    if icc:
        directory[TiffImagePlugin.ICCPROFILE] = icc
    if xmp:
        directory[TiffImagePlugin.XMP] = xmp
    out = io.BytesIO()
    directory.save(out)
    out.writelines(strips)
    return out.getvalue()


def _deflated(rows: NDArray[np.uint8]) -> bytes:
    differences = rows.copy()
    differences[:, 1:] -= rows[:, :-1]
    return zlib.compress(differences.reshape(-1).data)


def _places(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(place) for place in np.cumsum((0, *lengths[:-1])))


def _take_over(exif: Image.Exif, directory: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Every tag that Pillow can write; one that it cannot, such as a unit that is a word, costs none of the others."""
    try:
        tags = set(exif) - LAYOUT
    except Exception:  # noqa: BLE001 - Pillow raises anything on EXIF that is none
        return
    for tag in tags:
        alone = TiffImagePlugin.ImageFileDirectory_v2()
        try:
            value = exif.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else exif[tag]
            if isinstance(value, dict):
                value = _directory(exif, tag, value)
            elif isinstance(value, str):
                value = value.encode("latin-1")  # as Pillow has read it: the bytes may be of any alphabet
                alone.tagtype[tag] = TiffTags.ASCII
            if value == {}:
                continue  # an empty directory is against the rules
            alone[tag] = value
            alone.tobytes()
        except Exception:  # noqa: BLE001, S112 - Pillow raises anything on tags of another type than theirs
            continue
        if tag in alone.tagtype:
            directory.tagtype[tag] = alone.tagtype[tag]
        directory[tag] = value


def _directory(exif: Image.Exif, tag: int, inside: dict[int, Any]) -> dict[int, Any]:
    """What can be written of a directory in the directory, and of one in that."""
    sound: dict[int, Any] = {}
    for name, value in inside.items():
        alone = TiffImagePlugin.ImageFileDirectory_v2(group=tag)
        try:
            kept = dict(exif.get_ifd(name)) if (tag, name) == (EXIF, INTEROPERABILITY) else value
            if kept == {}:
                continue
            alone[name] = kept
            alone.tobytes()
        except Exception:  # noqa: BLE001, S112 - as above
            continue
        sound[name] = kept
    return sound
