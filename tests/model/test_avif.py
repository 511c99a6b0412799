"""Boxes in boxes: what an AVIF says of its picture, whoever has written it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from model import avif
from model.errors import CorruptImage
from model.pixels import from_pil, read_image
from tests import bombs
from tests.model.test_pixels import exif_of


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">L4s", 8 + len(body), kind) + body


def nclx(transfer: int) -> bytes:
    return box(b"colr", b"nclx", struct.pack(">HHHB", 9, transfer, 9, 128))


def file_of(*, wide: bool, large: bool) -> bytes:
    """Two items, of which the second is the picture: numbers of items and of properties as wide as they may be."""
    number, version = (">L", b"\1\0\0") if wide else (">H", b"\0\0\0")
    index, flag = (">BH", b"\1") if large else (">BB", b"\0")
    entries = [struct.pack(number, item) + struct.pack(index, 1, item) for item in (1, 2)]
    shared = box(b"iprp", box(b"ipco", nclx(16), nclx(13)), box(b"ipma", version, flag, struct.pack(">L", 2), *entries))
    return box(b"ftyp", b"avif") + box(b"meta", bytes(4), box(b"pitm", version, b"\0", struct.pack(number, 2)), shared)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_properties_are_those_of_the_picture(wide, large):
    """Not those of a gain map, say, that lies beside it."""
    assert avif.properties(file_of(wide=wide, large=large)) == [(b"colr", nclx(13)[8:])]


def test_what_is_no_avif_has_no_properties():
    file = file_of(wide=True, large=True)
    assert avif.properties(b"") == avif.properties(bytes(1000)) == avif.properties(b"\xff" * 1000) == []
    for end in range(len(file)):
        avif.properties(file[:end])
        avif.without_exif(file[:end])
    for place in range(len(file)):
        avif.properties(file[:place] + b"\xff" + file[place + 1 :])


def with_property(file: bytes, kind: bytes, content: bytes) -> bytes:
    """A file of libavif's, of one picture, with one more property of it."""
    data, grown = bytearray(file), box(kind, content)

    def start(name: bytes) -> int:
        assert data.count(name) == 1
        return data.index(name) - 4

    def add(name: bytes, offset: int, more: int, form: str = ">L") -> None:
        place = start(name) + offset
        struct.pack_into(form, data, place, struct.unpack_from(form, data, place)[0] + more)

    def end(name: bytes) -> int:
        return start(name) + int.from_bytes(data[start(name) :][:4], "big")

    last, place = end(b"ipco"), start(b"ipco") + 8
    index = 1
    while place < last:
        place, index = place + int.from_bytes(data[place : place + 4], "big"), index + 1
    place = end(b"ipma") - (b"irot" in data)  # pictures are cut before they are turned
    data[place:place] = bytes([0x80 | index])
    data[last:last] = grown
    add(b"ipma", 0, 1)
    add(b"ipma", 18, 1, ">B")  # how many properties the picture has
    add(b"ipco", 0, len(grown))
    add(b"iprp", 0, len(grown) + 1)
    add(b"meta", 0, len(grown) + 1)
    for item in range(struct.unpack_from(">H", data, start(b"iloc") + 14)[0]):
        add(b"iloc", 22 + 14 * item, len(grown) + 1)  # where its bytes lie
    return bytes(data)


def clap(wide: int, high: int, right: tuple[int, int], down: tuple[int, int]) -> bytes:
    return struct.pack(">LLLLlLlL", wide, 1, high, 1, *right, *down)


@pytest.mark.parametrize("turned", [False, True])
def test_a_clean_aperture_is_what_is_shown(photo, turned):
    """It was shown whole. It is cut before it is turned."""
    exif = exif_of((274, 3, 1, b"\6")) if turned else b""
    file = bombs.file_of(photo.crop((0, 0, 96, 64)), "AVIF", exif=exif[6:])
    whole = read_image(file).rgb
    data = with_property(file, b"clap", clap(40, 30, (-8, 1), (5, 1)))
    shown = read_image(data).rgb  # edges: 20, 22, 60, 52
    again = Image.open(io.BytesIO(data))
    assert from_pil(again).rgb.shape == from_pil(again).rgb.shape == shown.shape
    np.testing.assert_array_equal(shown, whole[20:60, 64 - 52 : 64 - 22] if turned else whole[22:52, 20:60])


@pytest.mark.parametrize(
    "content",
    [
        clap(40, 30, (1, 3), (0, 1)), clap(40, 30, (0, 0), (0, 1)), clap(40, 30, (29, 1), (0, 1)),
        clap(41, 30, (0, 1), (0, 1)), clap(0, 30, (0, 1), (0, 1)), clap(98, 64, (0, 1), (0, 1)), b"", bytes(32),
    ],
)  # fmt: skip
def test_an_aperture_that_is_none_cuts_nothing(content):
    assert avif.clean_aperture(content, (96, 64)) is None


@pytest.mark.parametrize(("tag", "text"), [(282, b"72\0"), (296, b"2\0"), (40965, b"x\0")])
def test_a_broken_tag_costs_no_turned_picture(tag, text):
    """Found by trying: Pillow writes the EXIF of a file with a turn of its own anew as it opens it, and could not."""
    exif = exif_of((271, 2, len(text), text), (274, 3, 1, b"\6"))
    file = bombs.file_of(Image.new("RGB", (48, 32)), "AVIF", exif=exif, xmp=b"<x/>")
    assert b"irot" in file
    sound, broken = (struct.pack("<HHL", number, 2, len(text)) for number in (271, tag))
    assert file.count(sound) == 1
    picture = read_image(file.replace(sound, broken))
    assert (picture.width, picture.height) == (32, 48)
    assert picture.xmp == b"<x/>"


@pytest.mark.parametrize("beginning", [b"garb", b"\0\0\0\0"])
def test_exif_that_is_none_costs_no_picture(beginning):
    exif = exif_of((271, 2, 2, b"x"))
    file = bombs.file_of(Image.new("RGB", (48, 32)), "AVIF", exif=exif, xmp=b"<x/>")
    picture = read_image(file.replace(exif[6:], beginning + exif[10:]))
    assert (picture.width, picture.exif, picture.xmp) == (48, None, b"<x/>")
    with pytest.raises(CorruptImage, match="AVIF"):
        read_image(file.replace(exif[6:], beginning + exif[10:]).replace(b"av1C", b"av1D"))
