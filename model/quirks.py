"""What single formats mean and Pillow decodes otherwise: put right before and after the pixels are decoded."""

from __future__ import annotations

from typing import IO

from PIL import Image, ImageFile

from model import avif, colours

_SCALES = {"L;2": (0x3, 85), "L;4": (0xF, 17)}
"""Greys of PNG that Pillow brings to eight bits, but not the key among them: its bits, and the factor."""
_MONOCHROME = 0x10
_GREY = ("1", "L", "LA", "I;16")
_APERTURE = "clean_aperture"
"""In `info`: what of an AVIF is to be shown, for who comes with the same image again."""
_FRAME = "first_frame"
"""In `info`: where on its canvas that of a WebP lies, likewise."""


def loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels. One whose pixels others have loaded is past putting right, and stays as it is.

    Raises:
        UnsupportedImage: its light is that of HDR.
        Exception: anything that decoders raise on damaged data.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format == "WEBP" and image.mode == "RGB" and not image.tile:
        return _loaded_webp(image)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        image.load()
        return _within_aperture(image)
    if image.format == "AVIF":
        return _loaded_avif(image)
    if image.format == "PNG":
        return _loaded_png(image)
    tile = image.tile[0]
    if image.format == "TIFF":
        _to_bytes(image)
    image.load()
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getbbox() is None:
        return image.convert("RGB")  # whose alpha nobody has filled in
    if image.format == "GIF" and image.tell() == 0 and "transparency" not in image.info:
        return _beyond_frame(image, tile.extents)
    return image


def _loaded_png(image: ImageFile.ImageFile) -> Image.Image:
    for name in ("icc_profile", "transparency"):
        if isinstance(image.info.get(name), str):
            del image.info[name]  # a text of that name
    found = image.fp and colours.of_png(image.fp, profile="icc_profile" in image.info)
    rawmode = image.tile[0].args
    _scale_key(image, rawmode)
    image.load()
    if found:
        _state(image, found)
    return image.convert("LA") if rawmode == "LA;16B" else image  # which Pillow has no other mode for


def _state(image: Image.Image, found: colours.Colours, *, grey: bool = False) -> None:
    """Put the profile of these colours where Pillow has its own."""
    image.info["icc_profile"] = found.profile(grey=grey or image.mode in _GREY)


def _scale_key(image: Image.Image, rawmode: object) -> None:
    key = image.info.get("transparency")
    if isinstance(key, int) and isinstance(rawmode, str) and rawmode in _SCALES:
        bits, factor = _SCALES[rawmode]
        image.info["transparency"] = (key & bits) * factor
    if isinstance(key, tuple):  # as Pillow brings the samples to eight bits; of eight, the lower byte counts
        image.info["transparency"] = tuple((value >> 8 if rawmode == "RGB;16B" else value) & 0xFF for value in key)


def _to_bytes(image: Image.Image) -> None:
    """Profile and XMP, which some programs write as text; numbers are neither."""
    for name in ("icc_profile", "xmp"):
        block = image.info.get(name)
        if isinstance(block, str):
            image.info[name] = block.encode("latin-1")  # as Pillow has read it
        elif not isinstance(block, bytes):
            image.info.pop(name, None)


def _loaded_avif(image: ImageFile.ImageFile) -> Image.Image:
    said: dict[bytes, bytes] = {}
    if image.fp is not None:
        image.fp.seek(0)
        said = dict(avif.properties(image.fp.read()))
    found = None if image.info.get("icc_profile") else colours.of_avif(said)
    image.load()
    grey = any(byte & _MONOCHROME for byte in said.get(b"av1C", b"")[2:3])
    if found:
        _state(image, found, grey=grey)
    if box := avif.clean_aperture(said.get(b"clap", b""), image.size):
        image.info[_APERTURE] = box
    shown = _within_aperture(image)
    return shown.convert("LA") if grey and image.mode == "RGBA" else shown


def _within_aperture(image: Image.Image) -> Image.Image:
    """What of an AVIF is to be shown."""
    box = image.info.get(_APERTURE) if image.format == "AVIF" else None
    return image.crop(box) if box else image


def _loaded_webp(image: ImageFile.ImageFile) -> Image.Image:
    if image.fp and not getattr(image.fp, "closed", False) and _FRAME not in image.info:
        image.info[_FRAME] = _first_frame(image.fp)
    image.load()
    return image if image.tell() else _beyond_frame(image, image.info.get(_FRAME))


def _first_frame(file: IO[bytes]) -> tuple[int, int, int, int] | None:
    """Where on its canvas the first frame of an animated WebP lies."""
    place = 12
    file.seek(place)
    while len(head := file.read(20)) == 20:
        if head.startswith(b"ANMF"):
            x, y, width, height = (int.from_bytes(head[at : at + 3], "little") for at in range(8, 20, 3))
            return 2 * x, 2 * y, 2 * x + width + 1, 2 * y + height + 1
        size = int.from_bytes(head[4:8], "little")
        place += 8 + size + size % 2
        file.seek(place)
    return None


def _beyond_frame(image: Image.Image, frame: tuple[int, int, int, int] | None) -> Image.Image:
    """A canvas that its first frame does not fill is transparent there, as browsers show it."""
    if frame is None or (frame[0] <= 0 and frame[1] <= 0 and frame[2] >= image.width and frame[3] >= image.height):
        return image
    shown = Image.new("L", image.size)
    shown.paste(255, frame)
    image = image.convert("L" if image.mode == "L" else "RGB")
    image.putalpha(shown)
    return image
