"""Files that are not read: each is told what it is, and what to do about it."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from model.container import Container, write_container
from model.errors import CorruptImage, UnsupportedImage
from model.pixels import from_pil, read_image
from tests import bombs
from tests.conftest import DATA

RGB = Image.new("RGB", (8, 8), "red")


def ftyp(brand: bytes, *others: bytes) -> bytes:
    return struct.pack(">L", 16 + 4 * len(others)) + b"ftyp" + brand + bytes(4) + b"".join(others) + bytes(99)


def a_tcm() -> bytes:
    return write_container(Container("tcm-xs-mse-0.013", "00" * 6, 8, 8, b"payload"))


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "a HEIC file.*export it as JPEG"),
        (ftyp(b"mif1", b"heic"), "a HEIC file"),
        (ftyp(b"crx ", b"isom"), "a raw photograph"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000"),
        (b"8BPS\0\1" + bytes(99), "Photoshop.*export"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(99), "a raw photograph"),
        (a_tcm(), "coded already: decode it"),
        (b"Python is no picture", "not an image"),
    ],
)
def test_files_of_other_kinds_are_named(file, what):
    with pytest.raises(UnsupportedImage, match=f"{what}.*known are PNG"):
        read_image(file)


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ({258: (3, [32] * 3), 262: (3, [2]), 277: (3, [3]), 339: (3, [3] * 3)}, r"RGB in floating.*32\+32\+32"),
        ({258: (3, [64]), 339: (3, [3])}, "grey in floating-point numbers of 64"),
        ({258: (3, [16, 16]), 277: (3, [2]), 338: (3, [2])}, r"grey in whole numbers of 16\+16"),
        ({258: (3, [16] * 3), 262: (3, [8]), 277: (3, [3])}, "Lab in whole numbers"),
        ({258: (3, [8] * 3), 262: (3, [2]), 277: (3, [3]), 339: (3, [2] * 3)}, "numbers with a sign"),
        ({258: (3, [16]), 266: (3, [2]), 262: (3, [0])}, "16 bits, the lowest first"),
        ({259: (3, [34887])}, "compression 34887"),
        ({259: (3, [34676])}, "compression 'tiff_sgilog'"),
    ],
)
def test_tiffs_that_are_sound_and_not_read(tags, what):
    """They were said to be no image at all, or damaged."""
    with pytest.raises(UnsupportedImage, match=f"{what}.*save it"):
        read_image(bombs.honest_tiff(4, 4, tags, bytes(999)))


def test_other_formats_that_are_sound_and_not_read():
    jpeg = bombs.file_of(RGB, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for file, what in (
        (jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "JPEG.*12-bit.*save it"),
        (bombs.bmp(2), r"BMP.*\(2\)"),
        (bombs.bmp(0, 4), "BMP"),
        (bombs.bmp(16, 3, (0xF00, 0xF0, 0xF, 0xF000)), "BMP.*layout"),
    ):
        with pytest.raises(UnsupportedImage, match=what):
            read_image(file)


@pytest.mark.parametrize("name", ["photo.png", "sea.jpg"])
def test_damage_is_no_other_kind(name):
    data = (DATA / name).read_bytes()
    with pytest.raises(CorruptImage, match="damaged or truncated"):
        read_image(data[:14])
    with pytest.raises(CorruptImage, match=r"damaged or truncated PNG.*checksum"):
        read_image(bombs.png(1, 1, (b"tEXt", b"k\0v"), bombs.idat(bytes(2))).replace(b"k\0v", b"k\0w"))


def test_tiffs_that_end_early_are_damaged():
    """Their directory may lie behind the pixels."""
    file = bombs.file_of(RGB, "TIFF")
    with pytest.raises(CorruptImage, match="TIFF"):
        read_image(file[:4] + struct.pack("<L", 100_000) + file[8:])


@pytest.mark.parametrize(
    "tags",
    [
        {254: (4, [1]), 330: (4, [8])},  # NEF, ARW: a preview, and the photograph in a directory of its own
        {50706: (1, [1, 4, 0, 0])},  # DNG
        {262: (3, [32803]), 258: (3, [16])},  # the sensor's own samples
    ],
)
def test_a_raw_photograph_is_not_its_preview(tags):
    """Found by trying: the thumbnail was coded in its place."""
    file = bombs.honest_tiff(8, 8, tags, bytes(128))
    with pytest.raises(UnsupportedImage, match=r"raw photograph.*develop it to TIFF"):
        read_image(file)
    if 262 not in tags:
        with pytest.raises(UnsupportedImage, match="raw photograph"):
            from_pil(Image.open(io.BytesIO(file)))
    assert read_image(bombs.honest_tiff(8, 8, {254: (4, [0])}, bytes(64))).width == 8


def test_a_raw_photograph_by_its_beginning():
    file = bombs.honest_tiff(8, 8, {}, bytes(64))
    assert struct.unpack_from("<L", file, 4) == (8,)
    moved = b"II*\0" + struct.pack("<L", 16) + b"CR\2\0" + bytes(4) + file[8:]
    with pytest.raises(UnsupportedImage, match="raw photograph"):
        read_image(moved)


def test_pixels_that_spell_a_beginning_are_pixels():
    """Found by looking over it: of TIFFs with their pixels first, two greys were enough to be a raw photograph."""
    pixels = b"CR\2\0".ljust(64, b"\x80")
    file = bombs.honest_tiff(8, 8, {}, bytes(64))
    (count,) = struct.unpack_from("<H", file, 8)
    entries = [file[at : at + 12] for at in range(10, 10 + 12 * count, 12)]
    entries = [e if e[:2] != b"\x11\x01" else e[:8] + struct.pack("<L", 8) for e in entries]  # the strip's place
    first = b"II*\0" + struct.pack("<L", 72) + pixels + file[8:10] + b"".join(entries) + bytes(4)
    assert read_image(first).rgb[0, :4, 0].tolist() == [67, 82, 2, 0]


@pytest.mark.parametrize("transfer", [13, 16, 18])
def test_brightness_that_is_coded_otherwise(transfer):
    """PQ and HLG came out washed."""
    png = bombs.png(1, 1, (b"cICP", bytes([9, transfer, 0, 1])), bombs.idat(bytes(4)), colour=2)
    avif = bombs.file_of(RGB, "AVIF").replace(b"nclx\0\1\0\x0d", b"nclx\0\x09\0" + bytes([transfer]))
    for file in (png, avif):
        if transfer == 13:  # sRGB
            assert read_image(file).rgb.size
            continue
        with pytest.raises(UnsupportedImage, match=r"HDR.*convert"):
            read_image(file)
        with pytest.raises(UnsupportedImage, match="HDR"):
            from_pil(Image.open(io.BytesIO(file)))


def test_a_profile_says_what_the_brightness_is():
    """A picture that has both is kept as what the profile says."""
    profile = (b"iCCP", b"a profile\0\0" + zlib.compress(bytes(200)))
    file = bombs.png(1, 1, (b"cICP", bytes([9, 16, 0, 1])), profile, bombs.idat(bytes(4)), colour=2)
    assert read_image(file).icc == bytes(200)
