"""Curves of profiles, against the library that everybody uses; and profiles that nobody has written honestly."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from model.profiles import greys_in_srgb, in_srgb


def gray_profile(curve: bytes) -> bytes:
    """A colour profile of grey."""
    white = struct.pack(">3l", 63190, 65536, 54061)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, b"kTRC": curve.ljust(-len(curve) % 4 + len(curve), b"\0")}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">LL", place + len(body), len(content))
        body += content
    head = struct.pack(">L4xL", place + len(body), 0x04200000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    return (head + white).ljust(128, b"\0") + struct.pack(">L", len(tags)) + table + body


def of_gamma(gamma: float) -> bytes:
    """One whose curve is a power."""
    return gray_profile(b"curv" + struct.pack(">4xLH", 1, round(256 * gamma)))


def parametric(form: int, *numbers: float) -> bytes:
    return b"para" + struct.pack(f">4xHxx{len(numbers)}l", form, *(round(65536 * number) for number in numbers))


CURVES = {
    "power": b"curv" + struct.pack(">4xLH", 1, 461),
    "table": b"curv" + struct.pack(">4xL700H", 700, *(round(65535 * (i / 699) ** 2.4) for i in range(700))),
    "parametric power": b"para" + struct.pack(">4xHxxl", 0, 144179),
    "sRGB": b"para" + struct.pack(">4xHxx5l", 3, 157286, 62119, 3416, 5072, 2651),
    "cut off": parametric(1, 2.2, 1.05, -0.05),
    "cut off, nothing added": parametric(2, 1.8, 1, 0, 0),
    "in two pieces": parametric(4, 1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081, 0, 0),
}


@pytest.mark.parametrize("lightness", [False, True])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_greys_are_those_of_little_cms(curve, lightness):
    profile = gray_profile(curve)
    if lightness:
        profile = profile.replace(b"GRAYXYZ ", b"GRAYLab ")
    greys, image = greys_in_srgb(profile), Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert greys is not None
    reference = in_srgb(image, profile)
    assert reference is not None
    off = np.abs(np.asarray(reference).astype(int)[0] - greys[:, None])
    assert off[16:].max() <= 1
    assert off.max() <= 6  # its own arithmetic is coarse near black


def test_blacks_that_give_light():
    """These little CMS makes black."""
    for curve in (parametric(2, 1.8, 0.8, -0.1, 0.2), parametric(4, 2, 0.8, 0, 0, 0.5, 0.2, 0.2)):
        greys = greys_in_srgb(gray_profile(curve))
        assert greys is not None
        assert greys[0] == 124  # of 0.2


def test_a_profile_without_a_curve_says_nothing():
    sound = of_gamma(2.2)
    place = sound.index(b"curv")
    for broken in (
        b"", sound[:140], sound.replace(b"kTRC", b"A2B0"), sound[: place + 8],
        sound[:place] + b"curv" + struct.pack(">4xL", 1 << 31) + bytes(99),
        gray_profile(b"para" + struct.pack(">4xHxx", 9)), gray_profile(b"para" + struct.pack(">4xHxxl", 3, 1)),
        sound[:128] + b"\xff" * 4 + sound[132:140],
    ):  # fmt: skip
        assert greys_in_srgb(broken) is None
    wild = greys_in_srgb(gray_profile(b"para" + struct.pack(">4xHxx5l", 3, *[-(1 << 31)] * 5)))
    assert wild is not None
    assert wild.shape == (256,)
