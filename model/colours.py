"""Colours that a file states as numbers instead of as a profile: H.273 in AVIF and PNG, gAMA and cHRM in PNG."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

from model import profiles
from model.errors import UnsupportedImage
from model.profiles import SRGB, Primaries

_D65, _C, _DCI = (0.3127, 0.329), (0.31, 0.316), (0.314, 0.351)
_PRIMARIES: dict[int, Primaries] = {
    1: SRGB,
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
"""As ITU-T H.273, table 2 numbers them."""
_POWERS = {1: None, 4: 2.2, 5: 2.8, 6: None, 7: None, 8: 1.0, 13: None, 14: None, 15: None}
"""Transfer functions (table 3) as powers. The curve of sRGB is none; those of video are shown as if they were it."""
_HDR = (16, 18)
"""PQ and HLG."""
_SAME_POWER, _SAME_PRIMARIES = 0.05, 0.005
"""What differs by less is meant to be the same: a share, as libpng has it, and a distance."""
_POWER = 2.2
"""That is nearest to the curve of sRGB."""
_MOST_POWER = 5.0
_SIZES = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
"""Bytes of the chunks of a PNG that say something of its colours."""


@dataclass(frozen=True)
class Colours:
    """What the numbers of a picture mean.

    Attributes:
        primaries: x and y (CIE 1931) of white, red, green and blue.
        power: of the number (0 to 1) that gives the light; none for the curve of sRGB.
    """

    primaries: Primaries = SRGB
    power: float | None = None

    def profile(self, *, grey: bool) -> bytes | None:
        """The profile that says the same; none for sRGB, and for colours that no profile can say."""
        if self.power is None and (grey or self.primaries == SRGB):
            return None
        return profiles.made(self.primaries, self.power, grey=grey)


def of_png(file: IO[bytes], *, profile: bool) -> Colours | None:
    """What the chunks of a PNG before its pixels state, in the order of its third edition; none where a profile does.

    Args:
        file: at any place, where it is left.
        profile: whether it has a profile, which stands behind cICP and before all else. It stands before HDR, too: it
            says it to those who do not know that.

    Raises:
        UnsupportedImage: HDR, and no profile.
    """
    place = file.tell()
    chunks = _chunks(file)
    file.seek(place)
    if numbered := chunks.get(b"cICP"):
        primaries, transfer, matrix, full_range = numbered
        sound = matrix == 0 and full_range <= 1
        if sound and primaries in _PRIMARIES and (transfer in _POWERS or (transfer in _HDR and not profile)):
            return _numbered(primaries, transfer)
    if profile or b"sRGB" in chunks or b"gAMA" not in chunks:
        return None  # browsers take no cHRM into account that has no gAMA beside it
    return _measured(int.from_bytes(chunks[b"gAMA"], "big") / 100_000, chunks.get(b"cHRM"))


def _chunks(file: IO[bytes]) -> dict[bytes, bytes]:
    """The first of each that is as long as it must be."""
    found: dict[bytes, bytes] = {}
    place = 8
    while True:
        file.seek(place)
        head = file.read(8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IDAT":
            return found
        if _SIZES.get(kind) == size:
            found.setdefault(kind, file.read(size))
        place += 12 + size


def _measured(gamma: float, chromaticities: bytes | None) -> Colours | None:
    primaries = SRGB
    if chromaticities:
        given: Primaries = tuple(value / 100_000 for value in struct.unpack(">8L", chromaticities))
        if max(abs(a - b) for a, b in zip(given, SRGB, strict=True)) > _SAME_PRIMARIES:
            primaries = given
    if not 1 / _MOST_POWER <= gamma <= 1 + _SAME_POWER:
        return None
    meant = primaries == SRGB and abs(gamma * _POWER - 1) <= _SAME_POWER  # for sRGB, by a writer that knows powers only
    return Colours(primaries, None if meant else 1 / gamma)


def of_avif(properties: dict[bytes, bytes]) -> Colours | None:
    """What the properties of a picture (`model.avif.properties`) state of its colours.

    Raises:
        UnsupportedImage: HDR.
    """
    stated = properties.get(b"colr", b"")
    if not stated.startswith(b"nclx") or len(stated) < 8:
        return None
    return _numbered(*struct.unpack_from(">HH", stated, 4))


def _numbered(primaries: int, transfer: int) -> Colours:
    """By their numbers in ITU-T H.273; what is not known there is taken for sRGB.

    Raises:
        UnsupportedImage: HDR, whose white is no paper's.
    """
    if transfer in _HDR:
        raise UnsupportedImage("its brightness is coded as HDR (PQ or HLG), which is not read here: convert it to SDR")
    return Colours(_PRIMARIES.get(primaries, SRGB), _POWERS.get(transfer))
