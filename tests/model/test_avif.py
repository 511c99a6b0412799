"""Boxes in boxes: what an AVIF says of its picture, whoever has written it."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from model import avif
from model.errors import CorruptImage
from model.pixels import read_image
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
