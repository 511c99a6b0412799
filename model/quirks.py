"""What single formats mean and Pillow decodes otherwise: put right before and after the pixels are decoded."""

from __future__ import annotations

from PIL import Image, ImageFile

from model import avif, colours

_SCALES = {"L;2": (0x3, 85), "L;4": (0xF, 17)}
"""Greys of PNG that Pillow brings to eight bits, but not the key among them: its bits, and the factor."""
_MONOCHROME = 0x10
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B")


def loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels. One whose pixels others have loaded is past putting right, and stays as it is.

    Raises:
        Exception: anything that decoders raise on damaged data.
    """
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        image.load()
        return image
    numbers = colours.stated(image)
    image = _loaded(image)
    if numbers and (icc := numbers.profile(grey=image.mode in _GREY)):
        image.info["icc_profile"] = icc
    return image


def _loaded(image: ImageFile.ImageFile) -> Image.Image:
    if image.format == "AVIF":
        return _loaded_avif(image)
    tile = image.tile[0]
    if image.format == "PNG":
        _scale_key(image, tile.args)
    elif image.format == "TIFF":
        _to_bytes(image)
    image.load()
    if tile.args == "LA;16B":  # grey with alpha, which Pillow has no other mode for
        return image.convert("LA")
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getbbox() is None:
        return image.convert("RGB")  # whose alpha nobody has filled in
    if image.format == "GIF" and image.tell() == 0 and "transparency" not in image.info:
        return _beyond_frame(image, tile.extents)
    return image


def _scale_key(image: Image.Image, rawmode: object) -> None:
    key = image.info.get("transparency")
    if isinstance(key, int) and isinstance(rawmode, str) and rawmode in _SCALES:
        bits, factor = _SCALES[rawmode]
        image.info["transparency"] = (key & bits) * factor


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
    image.load()
    shown: Image.Image = image
    if box := avif.clean_aperture(said.get(b"clap", b""), image.size):
        shown = image.crop(box)
    monochrome = any(byte & _MONOCHROME for byte in said.get(b"av1C", b"")[2:3])
    return shown.convert("LA") if monochrome and image.mode == "RGBA" else shown


def _beyond_frame(image: Image.Image, frame: tuple[int, int, int, int] | None) -> Image.Image:
    """A canvas that its first frame does not fill is transparent there, as browsers show it."""
    if frame is None or (frame[0] <= 0 and frame[1] <= 0 and frame[2] >= image.width and frame[3] >= image.height):
        return image
    shown = Image.new("L", image.size)
    shown.paste(255, frame)
    image = image.convert("RGB" if image.mode == "P" else "L")
    image.putalpha(shown)
    return image
