"""Image files -> pixels, and what has to survive beside them: alpha, greyscale, ICC profile, EXIF, XMP.

What goes in comes back with the same size, mode family (L, LA, RGB, RGBA) and metadata. Conversions, once and stated:
EXIF orientation is applied to the pixels and taken out of the metadata; 16-bit samples are rounded to 8 (of colour and
of alpha, their high bytes are taken); palette and CMYK become RGB (CMYK through its profile, which is then dropped); of
an animation the first frame is taken; without metadata, colours of a profile become those of sRGB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from model import kinds, metadata, profiles, quirks
from model.container import DEFAULT_MAX_PIXELS, MAX_SIDE, check_pixels, seen_pixels
from model.errors import CorruptImage, ModelError, UnsupportedImage, reason

Pixels = NDArray[np.uint8]


def no_limit_of_pillow() -> None:
    """For programs of ours, whose readers check the size in the header themselves: pictures of any size may be opened.

    It is the whole process's and takes a protection away, so that importing this package must not do it.
    """
    Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Picture:
    """8-bit pixels and what came with them.

    Attributes:
        rgb: (H, W, 3). A greyscale picture has three equal channels.
        grey: it came as greyscale and goes back as such.
        alpha: (H, W), or None for an opaque picture.
        icc: colour profile.
        exif: EXIF block without orientation, behind the six bytes that JPEG has before it.
        xmp: XMP packet.
    """

    rgb: Pixels
    grey: bool = False
    alpha: Pixels | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.rgb.shape[0])


def read_image(
    data: bytes,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    keep_metadata: bool = True,
    announce: Callable[[int], None] | None = None,
) -> Picture:
    """Decode an image file.

    Args:
        data: the file.
        max_pixels: that are taken.
        keep_metadata: or neither EXIF nor XMP, and colours in sRGB, which need no profile.
        announce: is told the number of pixels that the header promises, before any is decoded; it may raise.

    Raises:
        UnsupportedImage: not an image of a known format, or of a kind that cannot be coded.
        CorruptImage: damaged or truncated.
        TooManyPixels: its header promises more than `max_pixels`.
    """
    if canvas := _webp_canvas(data):
        check_pixels(*canvas, max_pixels)  # its decoder takes the memory of the canvas when it is opened
    return _read(kinds.opened(data), max_pixels, keep_metadata=keep_metadata, announce=announce)


def from_pil(image: Image.Image, *, keep_metadata: bool = True) -> Picture:
    """The picture in a PIL image of any mode.

    Raises:
        UnsupportedImage: samples are floating-point numbers, whose range nothing states, or Pillow has opened what is
            another picture to others: HDR, the preview in a raw photograph.
        CorruptImage: it has no pixels, or they are in a file that is damaged or truncated.
        TooManyPixels: a side is longer than a .tcm file can say.
        ValueError: its file was closed before its pixels were read.
        TypeError: it is no PIL image.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"a PIL image is needed (Image.open, Image.fromarray), not {type(image).__name__}")
    if isinstance(image, ImageFile.ImageFile) and image.tile and getattr(image.fp, "closed", image.fp is None):
        raise ValueError("the image's file is closed: call its load() before that")
    return _read(image, MAX_SIDE**2, keep_metadata=keep_metadata)


def _read(
    image: Image.Image, max_pixels: int, *, keep_metadata: bool, announce: Callable[[int], None] | None = None
) -> Picture:
    _check_size(image, max_pixels)
    kinds.check_kind(image)
    if announce:
        announce(seen_pixels(*image.size))
    try:
        image = quirks.loaded(image)
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged data
        raise kinds.undecodable(image, error) from None
    _check_size(image, max_pixels)
    try:
        picture = _picture(image)
        del image  # before its colours take as much again
        return picture if keep_metadata else without_metadata(picture)
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # noqa: BLE001 - a palette, a colour key or a profile may be of any kind
        raise CorruptImage(f"its colours cannot be read: {reason(error)}") from None


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP file with features; other WebP files hold 16383 a side at most."""
    if not (data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X" and len(data) >= 30):
        return None
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise CorruptImage("it has no pixels")
    check_pixels(width, height, max_pixels)


def _picture(image: Image.Image) -> Picture:
    image, exif, xmp = metadata.upright(image)
    icc = image.info.get("icc_profile")
    image, converted = _to_eight_bits(image, icc)
    samples = np.asarray(image)
    grey, alpha = image.mode in ("L", "LA"), None
    if image.mode in ("LA", "RGBA"):
        alpha = np.ascontiguousarray(samples[..., -1])
        samples = samples[..., :-1]
    if grey:
        samples = np.broadcast_to(samples.reshape(image.height, image.width, 1), (image.height, image.width, 3))
    icc = None if converted else profiles.fitting(metadata.bounded(icc), grey=grey)
    rgb = np.array(samples)  # a copy: torch wants memory that may be written
    return Picture(rgb, grey, alpha, icc, metadata.bounded(exif), xmp)


def without_metadata(picture: Picture) -> Picture:
    """The same colours in sRGB, which need no profile, and neither EXIF nor XMP."""
    return replace(without_profile(picture), exif=None, xmp=None)


def without_profile(picture: Picture) -> Picture:
    """The same colours in sRGB; where the profile is broken, the same numbers."""
    icc = picture.icc
    if icc is None:
        return picture
    if picture.grey:
        greys = profiles.greys_in_srgb(icc) if profiles.of_grey(icc) else _greys_in_srgb(icc)
        rgb = None if greys is None else _three(greys[mean_of_channels(picture.rgb)])
    else:
        rgb = profiles.colours_in_srgb(picture.rgb, icc)
    return replace(picture, icc=None, rgb=picture.rgb if rgb is None else rgb)


def _greys_in_srgb(icc: bytes) -> Pixels | None:
    """What each of 256 greys of a profile of colours is in sRGB."""
    greys = profiles.colours_in_srgb(_three(np.arange(256, dtype=np.uint8)[None]), icc)
    return None if greys is None else mean_of_channels(greys)[0]


def _three(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


def _to_eight_bits(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, bool]:
    """The image as L, LA, RGB or RGBA, and whether its colours were converted, so that its profile no longer fits."""
    mode = image.mode
    key = image.info.get("transparency")
    transparent = key is not None
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, where others have loaded the high bytes of the samples
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if mode == "F":
        raise UnsupportedImage("floating-point samples have no stated range: convert the image to 8 or 16 bits first")
    if mode.startswith("I"):
        return _from_integers(image), False
    if mode == "CMYK":
        return profiles.in_srgb(image, icc) or image.convert("RGB"), True  # as every viewer does
    if mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB"), False
    if mode in ("1", "L"):
        return image.convert("LA" if transparent else "L"), False
    if mode == "RGB":
        return (image.convert("RGBA") if transparent else image), False
    if mode in ("LA", "RGBA"):
        return image, False
    if mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[mode]), False
    return image.convert("RGB"), mode in ("LAB", "HSV")


def _from_integers(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, whatever Pillow calls it; of TIFF's many kinds those whose range is known."""
    tags = getattr(image, "tag_v2", {})
    (bits, *_), (kind, *_) = tags.get(kinds.BITS, (16,)), tags.get(kinds.SAMPLE_FORMAT, (1,))
    if bits > 16 or kind != 1:
        raise UnsupportedImage("integers of 32 bits or with a sign have no stated range: convert to 8 or 16 bits first")
    most = (1 << bits) - 1
    stored = np.asarray(image)
    samples = np.clip(stored, 0, most).astype(np.uint32)
    if tags.get(kinds.PHOTOMETRIC) == 0:  # white is zero
        samples = most - samples
    samples *= 255
    samples += most // 2
    samples //= most
    grey = Image.fromarray(samples.astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(stored == key, 0, 255).astype(np.uint8)))
    return grey


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a PIL image in L, LA, RGB or RGBA; metadata lie in `info`, where Pillow looks for them."""
    image = bare(picture)
    exif, xmp = metadata.upright_exif(picture.exif), metadata.upright_xmp(picture.xmp)  # whoever wrote the bitstream
    for key, block in (("icc_profile", picture.icc), ("exif", exif), ("xmp", xmp)):
        if block is not None:
            image.info[key] = block
    return image


def bare(picture: Picture) -> Image.Image:
    """As `to_pil`, without metadata."""
    image = Image.fromarray(mean_of_channels(picture.rgb) if picture.grey else picture.rgb)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    return image


def mean_of_channels(rgb: Pixels) -> Pixels:
    """Rounded: (H, W)."""
    mean: Pixels = ((rgb.sum(axis=2, dtype=np.uint16) + 1) // 3).astype(np.uint8)
    return mean
