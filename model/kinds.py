"""Which image files are read; of others, what they are and what to do about it."""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from model import avif
from model.container import MAGIC, MAX_METADATA
from model.errors import CorruptImage, ModelError, TooManyPixels, UnsupportedImage, reason

INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
"""What is read: formats with a memory-safe enough decoder in Pillow; none that starts another program (EPS)."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".ppm"})
"""Of photographs, in folders of them."""

_KNOWN = f"known are {', '.join(INPUT_FORMATS)}"
_RAW = "a raw photograph, which is not read here: develop it to TIFF or JPEG first"
_PREVIEW = "its first picture is only a preview of another, as in raw photographs: develop it to TIFF or JPEG first"
_CR2 = b"II*\0\x10\0\0\0CR\x02"
"""How raw photographs of Canon's begin, and no other TIFF: its first directory lies behind that."""
_STRANGERS = (
    (re.escape(MAGIC), "a .tcm file, which is coded already: decode it"),
    (rb"8BPS", "a Photoshop document, which is not read here: export it as PNG or TIFF"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL file, which is not read here: convert it to JPEG or PNG"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "a JPEG 2000 file, which is not read here: convert it to PNG or TIFF"),
    (
        rb"....ftyp(?!.{0,120}avi[fs]).{0,120}(hei[cxms]|hev[cx])",
        "a HEIC file, which is not read here: export it as JPEG",
    ),
    (rb"....ftypcrx |II(RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|" + re.escape(_CR2), _RAW),
)
"""How files of other kinds begin."""

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
_COMPRESSION = 259
_NEW_SUBFILE_TYPE, _DNG_VERSION, _OF_SENSORS = 254, 50706, (32803, 34892)
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
_SAMPLES = {1: "whole numbers", 2: "numbers with a sign", 3: "floating-point numbers"}
_SELDOM = ("webp", "tiff_sgilog", "tiff_sgilog24", "tiff_thunderscan")
"""Compressions of TIFF that Pillow knows by name and its libtiff is often built without."""

Image.init()  # every plugin now, not in the middle of somebody's first request
PngImagePlugin.MAX_TEXT_CHUNK = 4 * MAX_METADATA  # a profile of more than 1 MiB would cost the picture
TiffImagePlugin.READ_LIBTIFF = True  # of planes of 16 bits, Pillow's own reader makes noise, for whoever opens them


def opened(data: bytes) -> Image.Image:
    """The image in a file, of which only the header is read.

    Raises:
        UnsupportedImage, CorruptImage: as `model.pixels.read_image` does.
        TooManyPixels: Pillow's own limit, where it has one.
    """
    try:
        return Image.open(io.BytesIO(data), formats=INPUT_FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{error}; `Image.MAX_IMAGE_PIXELS` sets that limit of Pillow's") from None
    except Exception:  # noqa: BLE001 - decoders raise anything on damaged headers
        if image := _without_exif(data):
            return image
        raise _refusal(data) from None


def _without_exif(data: bytes) -> Image.Image | None:
    """An AVIF whose EXIF is broken: Pillow and its decoder read that as they open the file."""
    if data[4:8] != b"ftyp" or (rest := avif.without_exif(data)) == data:
        return None
    try:
        return Image.open(io.BytesIO(rest), formats=["AVIF"])
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return None


def _refusal(data: bytes) -> ModelError:
    """Why a file cannot be opened, in the words of the format that it begins like."""
    for beginning, what in _STRANGERS:
        if re.match(beginning, data, re.DOTALL):
            return UnsupportedImage(f"{what} ({_KNOWN})")
    for name in INPUT_FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is not True:
            continue
        try:
            factory(io.BytesIO(data), "")
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            if re.match(r"not an? \S+ file", str(error), re.IGNORECASE):
                continue  # it only begins alike
            return _tiff(data, error) if name == "TIFF" else _named(name, error)
    return UnsupportedImage(f"not an image that can be read here; {_KNOWN}")


def _named(name: str, error: Exception) -> ModelError:
    said = reason(error).replace("not identified by this driver", "its header makes no sense")
    if re.match("unsupported|cannot handle|.*not yet supported", said, re.IGNORECASE):
        return UnsupportedImage(
            f"a kind of {name} that is not read here ({said}): save it as PNG or TIFF of 8 or 16 bits"
        )
    return CorruptImage(f"damaged or truncated {name}: {said}")


class _Directory(TiffImagePlugin.TiffImageFile):
    """The tags of a TIFF, of whatever kind its pixels are."""

    def _setup(self) -> None:
        self._mode, self._size = "L", (1, 1)


def _tiff(data: bytes, error: Exception) -> ModelError:
    """Why a TIFF cannot be opened: its tags say more than Pillow does."""
    try:
        tags: Any = _Directory(io.BytesIO(data)).tag_v2
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return _named("TIFF", error)
    if why := _no_photograph(tags):
        return UnsupportedImage(why)
    compression = tags.get(_COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return UnsupportedImage(f"a TIFF of compression {compression!r:.20}, which is not read here: save it with LZW")
    if str(error) != "unknown pixel mode":
        return _named("TIFF", error)
    (kind, *_), bits = tags.get(SAMPLE_FORMAT, (1,)), tags.get(BITS, (1,))
    colours, samples = _COLOURS.get(tags.get(PHOTOMETRIC, 0), "some colours"), _SAMPLES.get(kind, "samples")
    order = ", the lowest first" if tags.get(TiffImagePlugin.FILLORDER) == 2 else ""
    return UnsupportedImage(
        f"a TIFF of {colours} in {samples} of {'+'.join(map(str, bits[:6]))} bits{order}, which is not read here: "
        "save it as PNG, or as RGB of 8 or 16 bits"
    )


def _no_photograph(tags: Any) -> str | None:
    """Why the first picture in a TIFF is not the one that people mean."""
    if _DNG_VERSION in tags or tags.get(PHOTOMETRIC) in _OF_SENSORS:
        return _RAW
    preview = tags.get(_NEW_SUBFILE_TYPE, 0)
    return _PREVIEW if isinstance(preview, int) and preview & 1 else None


def _lost(image: TiffImagePlugin.TiffImageFile) -> str | None:
    """Why Pillow would lose the alpha of a TIFF in planes: it takes the fourth and last of them for it, or none."""
    tags: Any = image.tag_v2
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 and (
        image.mode in ("LA", "La", "PA")
        or (image.mode in ("RGBA", "RGBa") and tags.get(TiffImagePlugin.SAMPLESPERPIXEL) != 4)
    ):
        return (
            "a TIFF whose alpha is a plane of its own, the second or one of five: that is not read here, save it as PNG"
        )
    return None


def check_kind(image: Image.Image) -> None:
    """Of images that Pillow opens, those that would come out as another picture.

    Raises:
        UnsupportedImage: it is one of them.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile) and (why := _no_photograph(image.tag_v2) or _lost(image)):
        raise UnsupportedImage(why)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or image.fp is None:
        return  # no file, or loaded by others: what is left does not say it
    if image.format == "TIFF":
        place = image.fp.tell()
        image.fp.seek(0)
        beginning = image.fp.read(len(_CR2))
        image.fp.seek(place)
        if beginning == _CR2:
            raise UnsupportedImage(_RAW)


def undecodable(image: Image.Image, error: Exception) -> ModelError:
    """Why the pixels of a file that could be opened cannot be read."""
    compression = image.info.get("compression")
    if image.format == "TIFF" and compression in _SELDOM:
        return UnsupportedImage(f"a TIFF of compression {compression!r}, which is not read here: save it with LZW")
    return CorruptImage(f"damaged or truncated {image.format or 'image'}: {reason(error)}")
