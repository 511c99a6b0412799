"""Pixels -> image files, with what belongs to them as far as each format holds it."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from model import metadata, profiles, tiff
from model.container import MAX_METADATA
from model.errors import OutputLimit
from model.pixels import Picture, bare, mean_of_channels, without_profile

OUTPUT_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 4},
    "webp": {"format": "WEBP", "lossless": True, "exact": True, "quality": 50},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0, "optimize": True},
    "avif": {"format": "AVIF", "quality": 90, "subsampling": "4:4:4"},
    "tiff": {},  # written by model/tiff.py
}
SLOW_FORMATS = frozenset({"webp", "avif"})
"""Which take longest to write: several seconds for ten megapixels."""
_MAX_PARSED_EXIF = 256 << 10
"""Bytes of EXIF that a writer takes apart: in Python, at some thirty times their size."""
_LONGEST = {("jpeg", "exif"): 65_533, ("jpeg", "xmp"): 65_504, ("avif", "exif"): _MAX_PARSED_EXIF}
"""Bytes: of what fills a segment of JPEG, and of what Pillow takes apart. Else as many as a bitstream holds."""
MAX_OUTPUT_SIDE = {"webp": 16383, "jpeg": 65500, "avif": 32768}
"""Longest side that Pillow writes and reads back; the other formats hold any."""


def check_format(file_format: str) -> None:
    """That a format can be written.

    Raises:
        OutputLimit: it is not known.
    """
    if file_format not in OUTPUT_FORMATS:
        raise OutputLimit(f"no output format {file_format!r}; known are {', '.join(OUTPUT_FORMATS)}")


def write_image(picture: Picture, file_format: str) -> bytes:
    """An image file: png, webp and tiff lossless, jpeg and avif at high quality.

    JPEG has no alpha: the picture is laid on white.

    Raises:
        OutputLimit: the format is not known or cannot hold so large a picture.
    """
    check_format(file_format)
    side = max(picture.width, picture.height)
    if side > MAX_OUTPUT_SIDE.get(file_format, side):
        raise OutputLimit(f"{file_format} holds sides up to {MAX_OUTPUT_SIDE[file_format]}: ask for png or tiff")
    picture = _as_stated(picture, file_format)
    if file_format == "tiff":
        return _write_tiff(picture)
    image = bare(picture)
    if file_format == "jpeg" and picture.alpha is not None:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA")).convert("L" if picture.grey else "RGB")
    options = OUTPUT_FORMATS[file_format] | ({"subsampling": "4:0:0"} if file_format == "avif" and picture.grey else {})
    out = io.BytesIO()
    try:
        image.save(out, **options, **_metadata_options(picture, file_format))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises anything on metadata of another kind than its own
        # metadata that this format's writer refuses must not cost the picture; nor must Pillow's buffer for optimised
        # JPEGs, which noise does not fit
        out = io.BytesIO()
        image.save(out, **options | {"optimize": False}, icc_profile=picture.icc)
    return out.getvalue()


def _as_stated(picture: Picture, file_format: str) -> Picture:
    """The picture with what a file may say of it, whoever wrote the bitstream: no orientation, a profile that fits."""
    exif, xmp = metadata.upright_exif(picture.exif), metadata.upright_xmp(picture.xmp)
    picture = replace(picture, exif=exif, xmp=xmp, icc=profiles.fitting(picture.icc, grey=picture.grey))
    as_colour = file_format == "webp" or (file_format == "avif" and picture.alpha is not None)
    return without_profile(picture) if as_colour and picture.grey and profiles.of_grey(picture.icc) else picture


def _write_tiff(picture: Picture) -> bytes:
    planes = [mean_of_channels(picture.rgb)[..., None] if picture.grey else picture.rgb]
    if picture.alpha is not None:
        planes.append(picture.alpha[..., None])
    samples = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]
    return tiff.write_tiff(samples, _parsed(picture.exif), picture.icc, picture.xmp, alpha=picture.alpha is not None)


def _parsed(exif: bytes | None) -> Image.Exif:
    tags = Image.Exif()
    if exif is not None and len(exif) <= _MAX_PARSED_EXIF:
        try:
            tags.load(exif)
        except Exception:  # noqa: BLE001 - Pillow raises anything on EXIF that is none
            return Image.Exif()
    return tags


def _metadata_options(picture: Picture, file_format: str) -> dict[str, Any]:
    """Where each of Pillow's writers wants the profile, EXIF and XMP."""
    exif, xmp = (
        block if block is not None and len(block) <= _LONGEST.get((file_format, name), MAX_METADATA) else None
        for name, block in (("exif", picture.exif), ("xmp", picture.xmp))
    )
    options: dict[str, Any] = {"icc_profile": picture.icc}
    if exif is not None:
        options["exif"] = exif
    if xmp is not None and file_format == "png":
        text = options["pnginfo"] = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    elif xmp is not None:
        options["xmp"] = xmp
    return options
