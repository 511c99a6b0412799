"""Colours that a file states as numbers instead of as a profile: H.273 in AVIF and PNG, gAMA and cHRM in PNG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageFile

from model import avif, profiles
from model.profiles import SRGB, Primaries

_D65, _C, _DCI = (0.3127, 0.329), (0.31, 0.316), (0.314, 0.351)
_PRIMARIES: dict[int, Primaries] = {
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (*_DCI, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    22: (*_D65, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077),
}
"""As ITU-T H.273, table 2 numbers them; all others are taken for those of sRGB."""
_POWERS = {4: 2.2, 5: 2.8, 8: 1.0}
"""Transfer functions (table 3) that are powers; the curves of video (1, 6, 14, 15) are shown as sRGB by everybody."""
_HDR = (16, 18)
"""PQ and HLG."""
_SAME_POWER, _SAME_PRIMARIES = 0.05, 0.005
"""What differs by less is meant to be the same: a share, as libpng has it, and a distance."""
_POWER = 2.2
"""Of files for sRGB that only know powers."""
_MOST_POWER = 5.0


@dataclass(frozen=True)
class Colours:
    """What the numbers of a picture mean.

    Attributes:
        primaries: x and y (CIE 1931) of white, red, green and blue.
        power: of the number that gives the light; none for the curve of sRGB.
        hdr: the light is that of PQ or HLG, whose white is no paper's.
    """

    primaries: Primaries = SRGB
    power: float | None = None
    hdr: bool = False

    def profile(self, *, grey: bool) -> bytes | None:
        """The profile that says the same; none for sRGB, and for numbers that no profile can say."""
        if self.power is None and (grey or self.primaries == SRGB):
            return None
        return profiles.made(self.primaries, self.power, grey=grey)


def stated(image: ImageFile.ImageFile) -> Colours | None:
    """What a file whose pixels are not decoded yet says of its colours by numbers; none where it says nothing.

    A profile says what they are to those who do not know the numbers, and so to us.
    """
    if image.fp is None or image.info.get("icc_profile"):
        return None
    place = image.fp.tell()
    try:
        if image.format == "AVIF":
            return _of_avif(image.fp)
        return (_of_png(image.fp) or _measured(image)) if image.format == "PNG" else None
    finally:
        image.fp.seek(place)


def _of_png(file: IO[bytes]) -> Colours | None:
    """By the chunk cICP, which Pillow does not read."""
    place = 8
    while True:
        file.seek(place)
        chunk = file.read(12)
        if len(chunk) < 12 or chunk[4:8] == b"IDAT":
            return None
        if chunk[4:8] == b"cICP":
            return _numbered(chunk[8], chunk[9])
        place += 12 + int.from_bytes(chunk[:4], "big")


def _of_avif(file: IO[bytes]) -> Colours | None:
    file.seek(0)
    for kind, content in avif.properties(file.read()):
        if kind == b"colr" and content.startswith(b"nclx") and len(content) >= 8:
            return _numbered(int.from_bytes(content[4:6], "big"), int.from_bytes(content[6:8], "big"))
    return None


def _numbered(primaries: int, transfer: int) -> Colours:
    return Colours(_PRIMARIES.get(primaries, SRGB), _POWERS.get(transfer), transfer in _HDR)


def _measured(image: Image.Image) -> Colours | None:
    """By the chunk gAMA, and cHRM beside it: alone, no browser takes that into account. sRGB says more than they do."""
    gamma, found = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or not gamma:
        return None
    primaries, power = SRGB, None
    if found and len(found) == 8 and max(abs(a - b) for a, b in zip(found, SRGB, strict=True)) > _SAME_PRIMARIES:
        primaries = found
    if 1 / _MOST_POWER <= gamma <= 1 + _SAME_POWER and abs(gamma * _POWER - 1) > _SAME_POWER:
        power = 1 / gamma
    return Colours(primaries, power)
