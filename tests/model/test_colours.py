"""Colours that a file states as numbers: they come out as others show them, or the same file without."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.errors import UnsupportedImage
from model.pixels import from_pil, read_image
from model.profiles import SRGB, in_srgb, made
from tests import bombs

P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3_TO_XYZ = [
    [0.4865709486482162, 0.26566769316909306, 0.1982172852343625],
    [0.2289745640697488, 0.6917385218365064, 0.079286914093745],
    [0.0, 0.04511338185890264, 1.043944368900976],
]
XYZ_TO_SRGB = [
    [3.2409699419045226, -1.537383177570094, -0.4986107602930034],
    [-0.9692436362808796, 1.8759675015077202, 0.04155505740717559],
    [0.05563007969699366, -0.20397695888897652, 1.0569715142428786],
]
"""CSS Color 4, section 18."""
SOFT = np.array([[210, 150, 130], [90, 120, 80], [60, 70, 120], [128, 128, 128], [255, 255, 255]], np.uint8)[None]
"""Within sRGB, whichever of these primaries they are mixed from."""


def light(numbers):
    numbers = numbers / 255
    return np.where(numbers <= 0.04045, numbers / 12.92, ((numbers + 0.055) / 1.055) ** 2.4)


def numbers(light):
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def shown(file: bytes) -> np.ndarray:
    """In sRGB, by the library that everybody uses."""
    picture = read_image(file)
    image = Image.fromarray(picture.rgb)
    return np.asarray(in_srgb(image, picture.icc) or image).astype(int)


def png(*chunks: tuple[bytes, bytes], pixels=SOFT) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    height, width, channels = pixels.shape
    return bombs.png(width, height, *chunks, bombs.idat(rows), colour={1: 0, 3: 2}[channels])


def avif(primaries: int, transfer: int, mode: str = "RGB") -> bytes:
    image = Image.fromarray(np.repeat(np.repeat(SOFT, 16, 0), 16, 1)).convert(mode)
    options = {"subsampling": "4:0:0" if mode[0] == "L" else "4:4:4", "quality": 100}
    file = bombs.file_of(image, "AVIF", **options)
    assert file.count(b"nclx\0\1\0\x0d") == 1
    return file.replace(b"nclx\0\1\0\x0d", b"nclx" + struct.pack(">HH", primaries, transfer))


def chrm(*xy: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8L", *(round(100_000 * v) for v in xy))


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">L", round(100_000 * gamma))


def test_p3_by_number_is_p3():
    """It came out as sRGB: paler than it was."""
    right = numbers(light(SOFT) @ np.array(P3_TO_XYZ).T @ np.array(XYZ_TO_SRGB).T)
    assert np.abs(right - SOFT).max() > 5
    assert np.abs(shown(png((b"cICP", bytes([12, 13, 0, 1])))) - right).max() <= 1
    in_avif = shown(avif(12, 13))[8, 8::16]
    assert np.abs(in_avif - right[0]).max() <= 3  # it is coded with a loss


def test_light_by_gamma():
    right = numbers(SOFT / 255)
    assert np.abs(shown(png(gama(1))) - right).max() <= 1
    assert np.abs(shown(png((b"cICP", bytes([1, 8, 0, 1])))) - right).max() <= 1
    assert np.abs(shown(avif(1, 8))[8, 8::16] - right[0]).max() <= 4


def test_grey_stays_grey():
    grey = np.arange(0, 256, 15, dtype=np.uint8)[None, :, None]
    picture = read_image(png(gama(1 / 1.8), pixels=grey))
    assert picture.grey
    assert picture.icc is not None
    assert picture.icc[16:20] == b"GRAY"
    ramp = in_srgb(Image.fromarray(picture.rgb[..., 0]), picture.icc)
    assert np.abs(np.asarray(ramp)[..., 0] - numbers((grey[..., 0] / 255) ** 1.8))[:, 2:].max() <= 1
    for mode in ("L", "LA"):
        assert read_image(avif(12, 4, mode)).icc == made(P3, 2.2, grey=True)
        assert read_image(avif(12, 13, mode)).icc is None  # greys of P3 are those of sRGB


@pytest.mark.parametrize(
    "chunks",
    [
        (), [gama(0.45455)], [gama(0.45455), chrm(*SRGB)], [gama(0.45), chrm(0.3128, 0.3291, *SRGB[2:])], [chrm(*P3)],
        [(b"sRGB", b"\0"), gama(1), chrm(*P3)], [(b"cICP", bytes([1, 13, 0, 1])), gama(1)],
        [(b"cICP", bytes([2, 2, 0, 1]))], [(b"cICP", bytes([1, 1, 0, 1]))], [(b"cICP", bytes([200, 201, 0, 1]))],
        [gama(0)], [gama(2.2)], [gama(0.01)], [gama(0.45), (b"cHRM", bytes(32))], [gama(0.45), (b"cHRM", b"\xff" * 32)],
        [(b"cICP", b"")], [(b"cICP", b"\x0c")], [(b"cICP", bytes([12, 13, 9, 1]))], [(b"cICP", bytes([12, 13, 0, 7]))],
        [(b"cICP", bytes([9, 16, 9, 1]))], [(b"tEXt", b"gamma\0002.2")], [(b"tEXt", b"transparency\0x")],
        [(b"tEXt", b"chromaticity\00012345678"), gama(0.45)], [(b"tEXt", b"icc_profile\0x")],
        [gama(0.45), chrm(*P3[:2], *[0.3, 0.3] * 3)], [gama(0.45), chrm(0.3, 0, *P3[2:])],
        [gama(0.45), chrm(0.9, 0.05, *P3[2:])],
    ],
)  # fmt: skip
def test_numbers_of_srgb_or_of_nothing_need_no_profile(chunks):
    picture = read_image(png(*chunks))
    assert picture.icc is None
    np.testing.assert_array_equal(picture.rgb, SOFT)


def test_what_wins():
    """cICP, a profile, sRGB, gAMA: as in PNG (third edition). What says nothing, or nonsense, leaves it to the next."""
    profile = (b"iCCP", b"a profile\0\0" + zlib.compress(bytes(200)))
    p3, unknown, hdr = ((b"cICP", bytes([*numbers, 0, 1])) for numbers in ((12, 13), (2, 2), (9, 16)))
    by_number, linear = made(P3, None, grey=False), made(SRGB, 1.0, grey=False)
    for chunks, expected in (
        ((profile, gama(1), p3), by_number), ((gama(1), p3), by_number), ((p3, (b"sRGB", b"\0")), by_number),
        ((profile, (b"cICP", bytes([1, 13, 0, 1]))), None), ((profile, unknown, gama(1)), bytes(200)),
        ((profile, hdr), bytes(200)), ((unknown, gama(1)), linear), (((b"cICP", b"\x0c"), gama(1)), linear),
        (((b"tEXt", b"icc_profile\0x"), p3), by_number), (((b"tEXt", b"srgb\0x"), gama(1)), linear),
    ):  # fmt: skip
        assert read_image(png(*chunks)).icc == expected
    with pytest.raises(UnsupportedImage, match="HDR"):
        read_image(png((b"tEXt", b"icc_profile\0x"), hdr))


def test_a_gamma_beside_other_primaries_is_no_curve_of_srgb():
    """As browsers have it: shadows of Adobe RGB by gAMA and cHRM."""
    shadows = np.array([[5] * 3, [10] * 3, [20] * 3, [30] * 3, [150, 20, 20]], np.uint8)[None]
    file = png(gama(0.45455), chrm(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), pixels=shadows)
    assert np.abs(shown(file)[0] - [[1] * 3, [3] * 3, [12] * 3, [24] * 3, [176, 12, 12]]).max() <= 1


@pytest.mark.parametrize("primaries", [4, 5, 6, 7, 8, 9, 11, 12, 22])
@pytest.mark.parametrize("transfer", [4, 5, 8, 13])
def test_profiles_are_of_icc(primaries, transfer):
    """White is white, and the library reads every tag."""
    file = png((b"cICP", bytes([primaries, transfer, 0, 1])))
    icc = read_image(file).icc
    assert icc is not None
    profile = ImageCms.getOpenProfile(io.BytesIO(icc))
    assert profile.profile.version == 4.3
    assert profile.profile.creation_date.year == 2026
    assert ImageCms.getProfileDescription(profile).strip() == "numbered colours"
    assert int.from_bytes(icc[:4], "big") == len(icc) <= 520
    assert np.abs(shown(file)[0, -1] - 255).max() <= 1
    assert np.ptp(shown(file)[0, -2]) <= 1


def test_for_pil_too():
    image = Image.open(io.BytesIO(png((b"cICP", bytes([12, 13, 0, 1])))))
    assert from_pil(image).icc == made(P3, None, grey=False)


ADOBE = made((0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.2, grey=False)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_colours_that_lose_their_profile_are_brought_to_srgb(mode):
    """They kept their numbers, so that a photograph in P3, as telephones take it, came out pale."""
    image = Image.fromarray(SOFT).convert(mode)
    if mode[-1] == "A":
        image.putalpha(Image.fromarray(np.array([[0, 1, 2, 3, 255]], np.uint8)))
    for icc in (ADOBE, made(SRGB, 1.0, grey=True)) if mode[0] == "L" else (ADOBE,):
        picture = read_image(bombs.file_of(image, "PNG", icc_profile=icc), keep_metadata=False)
        kept = read_image(bombs.file_of(image, "PNG", icc_profile=icc))
        assert picture.icc is None
        assert picture.grey == kept.grey == (mode[0] == "L")
        colours = Image.fromarray(kept.rgb[..., 0] if icc[16:20] == b"GRAY" else kept.rgb)
        np.testing.assert_allclose(picture.rgb, np.asarray(in_srgb(colours, icc)), atol=1)
        assert mode[-1] != "A" or (picture.alpha == kept.alpha).all()
        assert np.abs(picture.rgb.astype(int) - kept.rgb).max() > 0


@pytest.mark.parametrize("icc", [b"no profile " * 20, bytes(200), ADOBE[:150], made(SRGB, 1.0, grey=True)])
def test_a_profile_that_is_none_changes_nothing(icc):
    file = bombs.file_of(Image.fromarray(SOFT), "PNG", icc_profile=icc)
    np.testing.assert_array_equal(read_image(file, keep_metadata=False).rgb, SOFT)
