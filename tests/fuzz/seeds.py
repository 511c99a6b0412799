"""The sound files that hostile ones are made of: every kind of .tcm, every kind of image file."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from model.codec import Codec

PHOTO = Path(__file__).parents[1] / "data" / "photo.png"


def bitstreams(codec: Codec) -> list[bytes]:
    """Small files of one model: greyscale, alpha, metadata, odd sizes, two padded sizes."""
    photo = Image.open(PHOTO).convert("RGB")
    ramp = Image.fromarray(np.arange(90, dtype=np.uint8)[:, None].repeat(100, 1))
    translucent = photo.resize((100, 90))
    translucent.putalpha(ramp)
    opaque = photo.resize((40, 50))
    opaque.putalpha(255)
    described = photo.resize((61, 47))
    described.info |= metadata()
    images = [
        photo.resize((100, 90)), photo.resize((100, 90)).rotate(180), photo.resize((130, 60)),
        photo.resize((33, 120)).convert("L"), translucent, opaque, described, Image.new("RGB", (1, 1), "red"),
    ]  # fmt: skip
    return [codec.encode(image) for image in images]


def metadata() -> dict[str, bytes]:
    """Profile, EXIF and XMP as Pillow keeps them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"icc_profile": profile, "exif": exif.tobytes(), "xmp": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"}


def images() -> list[bytes]:
    """Small image files of every format that is read, in every mode that it has."""
    return [data for _, data in _images()]


def _images() -> Iterator[tuple[str, bytes]]:
    rgb = Image.open(PHOTO).convert("RGB").resize((48, 32))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(np.arange(48, dtype=np.uint8)[None].repeat(32, 0)))
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    deep = Image.fromarray((np.arange(48 * 32, dtype=np.uint16) * 40).reshape(32, 48))
    extras = metadata()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield "PNG", _file((rgba if mode in ("LA", "RGBA") else rgb).convert(mode), "PNG")
    yield "PNG", _file(deep, "PNG")
    yield "PNG", _file(rgb.quantize(16), "PNG", transparency=3)
    yield "PNG", _file(rgb, "PNG", transparency=(1, 2, 3), exif=extras["exif"], icc_profile=extras["icc_profile"])
    yield "PNG", _file(rgb, "PNG", **frames)
    numbered, measured = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    numbered.add(b"cICP", bytes([12, 13, 0, 1]))
    measured.add(b"gAMA", struct.pack(">L", 55_556))
    measured.add(b"cHRM", struct.pack(">8L", 31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000))
    yield "PNG", _file(rgb, "PNG", pnginfo=numbered)
    yield "PNG", _file(rgb.convert("L"), "PNG", pnginfo=measured)
    yield "PNG", _file(rgb, "PNG", pnginfo=measured)
    yield "JPEG", _file(rgb, "JPEG", **extras)
    yield "JPEG", _file(rgb, "JPEG", progressive=True, subsampling=0)
    yield "JPEG", _file(rgb.convert("L"), "JPEG", restart_marker_blocks=2)
    yield "JPEG", _file(rgb.convert("CMYK"), "JPEG")
    yield "WEBP", _file(rgb, "WEBP", **extras)
    yield "WEBP", _file(rgba, "WEBP", lossless=True)
    yield "WEBP", _file(rgb, "WEBP", **frames)
    yield "AVIF", _file(rgb, "AVIF", speed=10, **extras)
    yield "AVIF", _file(rgba, "AVIF", speed=10)
    yield "AVIF", _file(rgb, "AVIF", speed=10).replace(b"nclx\0\1\0\x0d", b"nclx\0\x0c\0\4")
    yield "AVIF", _file(rgb, "AVIF", speed=10, **frames)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield "TIFF", _file(rgb, "TIFF", compression=compression)
    for image in (rgba, deep, rgb.convert("1"), rgb.convert("CMYK"), rgb.convert("P"), rgb.convert("LAB")):
        yield "TIFF", _file(image, "TIFF", compression="tiff_lzw" if image.mode == "RGBA" else None)
    yield "TIFF", _file(rgb.convert("1"), "TIFF", compression="group4")
    yield "TIFF", _file(rgb, "TIFF", exif=extras["exif"], icc_profile=extras["icc_profile"])
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield "BMP", _file(rgb.convert(mode), "BMP")
    yield "GIF", _file(rgb, "GIF", comment=b"a comment")
    yield "GIF", _file(rgb.quantize(16), "GIF", transparency=3, **frames)
    for mode in ("1", "L", "RGB"):
        yield "PPM", _file(rgb.convert(mode), "PPM")
    yield "PPM", b"P2 # plain\n3 2\n255\n0 1 2 3 4 255\n"


def _file(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()
