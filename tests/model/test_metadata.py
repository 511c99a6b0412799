"""EXIF, XMP and profiles as they lie in files: kept if they say what they are, and never an orientation."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from model.metadata import upright_exif, upright_xmp
from model.output import OUTPUT_FORMATS, write_image
from model.pixels import Picture, from_pil, read_image, to_pil
from tests import bombs
from tests.model.test_output import parsed
from tests.model.test_pixels import exif_of
from tests.model.test_profiles import of_gamma

NAMED = (0x010F, 2, 4, b"abc\0")
ON_ITS_SIDE = exif_of((0x0112, 3, 1, b"\6"), NAMED)
NAMED_ENTRY = struct.pack("<HHL", 0x010F, 2, 4) + b"abc\0"
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"
IDAT = bombs.idat(bytes(2 * 17))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Sixteen pixels wide, two high."""
    return bombs.png(16, 2, *chunks)


def raw(name: str, block: bytes) -> tuple[bytes, bytes]:
    """A block as ImageMagick writes it."""
    lines = [block.hex()[at : at + 72] for at in range(0, 2 * len(block), 72)]
    text = "\n".join(["", name, f"{len(block):8d}", *lines, ""])
    return b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(text.encode())


def test_what_was_turned_has_no_thumbnail_on_its_side():
    """And the size that its EXIF says is the one that it has."""
    small = io.BytesIO()
    Image.effect_noise((48, 32), 80).save(small, "JPEG")
    thumbnail = small.getvalue()
    head, inner, second = 8 + 2 + 3 * 12 + 4, 2 + 2 * 12 + 4, 2 + 3 * 12 + 4
    entry = lambda tag, value: struct.pack("<HHLL", tag, 4, 1, value)  # noqa: E731
    for turn, size in ((6, (32, 48)), (3, (48, 32)), (1, (48, 32))):
        exif = b"".join([
            b"II*\0\x08\0\0\0", struct.pack("<H", 3), NAMED_ENTRY, struct.pack("<HHLHH", 0x0112, 3, 1, turn, 0),
            entry(0x8769, head), struct.pack("<L", head + inner),
            struct.pack("<H", 2), entry(0xA002, 48), entry(0xA003, 32), bytes(4),
            struct.pack("<H", 3), entry(0x0103, 6), entry(0x0201, head + inner + second),
            entry(0x0202, len(thumbnail)), bytes(4), thumbnail,
        ])  # fmt: skip
        file = io.BytesIO()
        Image.new("RGB", (48, 32)).save(file, "JPEG", exif=b"Exif\0\0" + exif)
        picture = read_image(file.getvalue())
        assert picture.exif is not None
        tags = parsed(picture.exif)
        assert dict(tags.get_ifd(0x8769)) == {0xA002: size[0], 0xA003: size[1]}
        assert (picture.width, picture.height) == size
        assert tags[0x010F] == "abc"
        again = io.BytesIO()
        Image.new("RGB", (48, 32)).save(again, "TIFF", exif=exif)
        assert dict(parsed(read_image(again.getvalue()).exif).get_ifd(0x8769)) == {0xA002: size[0], 0xA003: size[1]}
        assert (thumbnail in picture.exif) == (0x0201 in tags.get_ifd(ExifTags.IFD.IFD1)) == (turn == 1)


@pytest.mark.parametrize("second", [5000, 2**32 - 1, 60, 8])
@pytest.mark.parametrize("length", [2**32 - 1, 26, 4])
def test_a_broken_thumbnail_costs_nothing_else(second, length):
    """Found by a reviewer: all of EXIF was lost, or the text behind the thumbnail became zeros."""
    head, text = 8 + 2 + 3 * 12 + 4, b"Copyright by Bob\0"
    thumbnails = struct.pack("<HHHLLHHLL", 2, 0x0201, 4, 1, 90, 0x0202, 4, 1, length) + bytes(4)
    place = head + 10 + len(thumbnails) + 10
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + NAMED_ENTRY
    exif += struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHLL", 0x8298, 2, len(text), place)
    exif += struct.pack("<L", second) + bytes(10) + thumbnails + bytes(90 - head - 10 - len(thumbnails)) + b"\xff\xd8"
    exif = exif[:place].ljust(place, b"\0") + text
    back = upright_exif(exif, Image.Transpose.ROTATE_270)
    assert parsed(back)[0x010F] == "abc"
    assert parsed(back)[0x8298] == "Copyright by Bob"


@pytest.mark.parametrize(
    "chunks",
    [
        [raw("exif", ON_ITS_SIDE), IDAT],
        [raw("APP1", ON_ITS_SIDE), IDAT],
        [IDAT, raw("exif", ON_ITS_SIDE[6:])],
        [(b"eXIf", ON_ITS_SIDE[6:]), IDAT],
        [(b"eXIf", ON_ITS_SIDE), IDAT],  # with the six bytes that only JPEG has
        [IDAT, (b"eXIf", ON_ITS_SIDE[6:])],
    ],
    ids=["raw exif", "raw APP1", "raw, behind the pixels", "eXIf", "eXIf and its prefix", "eXIf behind the pixels"],
)
def test_exif_wherever_it_lies_in_a_png(chunks):
    """Found by trying: EXIF was lost, and the picture lay on its side."""
    file = png(*chunks)
    for picture in (read_image(file), from_pil(Image.open(io.BytesIO(file)))):
        assert (picture.width, picture.height) == (2, 16)
        assert dict(parsed(picture.exif)) == {0x010F: "abc"}
        assert (picture.exif or b"").startswith(b"Exif\0\0II")


def test_xmp_as_imagemagick_writes_it():
    for chunk in (raw("xmp", XMP), raw("APP1", b"http://ns.adobe.com/xap/1.0/\0" + XMP)):
        assert read_image(png(chunk, IDAT)).xmp == XMP


@pytest.mark.parametrize(
    "text", [b"", b"\nexif\n4\nnone\n", b"\nexif\n", b"\nexif\n3\n4578690", b"\nexif\n2\n" + b"00" * 99]
)
def test_raw_profiles_that_are_none(text):
    picture = read_image(png((b"tEXt", b"Raw profile type exif\0" + text), IDAT))
    assert (picture.width, picture.exif) == (16, None)


@pytest.mark.parametrize("orientation", [(3, 1, b"\1"), (3, 1, b"\0"), (3, 1, b"\x09"), (2, 2, b"6\0"), (4, 1, b"\1")])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_no_exif_has_an_orientation(orientation, file_format):
    """Of whatever value or type: it stayed where it turned nothing."""
    exif = exif_of((0x0112, *orientation), NAMED)
    file = bombs.file_of(Image.new("L", (16, 16)), file_format)
    if file_format == "PNG":
        file = png((b"eXIf", exif[6:]), IDAT)
    elif file_format != "AVIF":
        file = bombs.file_of(Image.new("L", (16, 16)), file_format, exif=exif)
    else:
        file = bombs.file_of(Image.new("L", (16, 16)), "AVIF", exif=exif_of((0x0113, *orientation), NAMED))
        other, wanted = (struct.pack("<HHL", tag, *orientation[:2]) for tag in (0x0113, 0x0112))
        assert file.count(other) == 1
        file = file.replace(other, wanted)
    picture = read_image(file)
    assert dict(parsed(picture.exif)) == {0x010F: "abc"}


@pytest.mark.parametrize("file_format", OUTPUT_FORMATS)
def test_no_file_that_is_written_has_an_orientation(file_format):
    """Whoever has written the .tcm."""
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation=\"6\"/>"
    picture = Picture(np.zeros((8, 16, 3), np.uint8), exif=ON_ITS_SIDE, xmp=xmp)
    image = Image.open(io.BytesIO(write_image(picture, file_format)))
    image.load()
    assert image.size == (16, 8)
    assert 0x0112 not in image.getexif()
    assert image.getexif()[0x010F] == "abc"
    assert 0x0112 not in to_pil(picture).getexif()


@pytest.mark.parametrize(
    ("xmp", "rest"),
    [
        (b'<a tiff:Orientation="6" b="c"/>', b'<a b="c"/>'),
        (b"<a\n tiff:Orientation='1'/>", b"<a\n/>"),
        (b"<a><tiff:Orientation> 8 </tiff:Orientation></a>", b"<a></a>"),
        (b'<a xmpNote:HasExtendedXMP="0123456789ABCDEF"/>', b"<a/>"),
        (b"<xmpNote:HasExtendedXMP>01</xmpNote:HasExtendedXMP>", b""),
        (b"<tiff:Orientation>6", None),
        (b"<a/>", b"<a/>"),
        (None, None),
    ],
)
def test_xmp_without_what_no_longer_holds(xmp, rest):
    assert upright_xmp(xmp) == rest


def test_broken_exif_leaves_the_orientation_to_xmp():
    xmp = b'<a tiff:Orientation="6"/>'
    file = bombs.file_of(Image.new("L", (16, 8)), "WEBP", exif=b"Exif\0\0none at all", xmp=xmp)
    picture = read_image(file)
    assert (picture.width, picture.exif, picture.xmp) == (8, None, b"<a/>")


@pytest.mark.parametrize(
    "hostile",
    [
        b" " * (4 << 20),
        b"<tiff:Orientation>" * 200_000,
        b"tiff:Orientation='" * 200_000,
        b'tiff:Orientation="' * 200_000,
    ],
)
def test_metadata_are_gone_over_once(hostile):
    """Writers do it in the service's own process."""
    start = time.process_time()
    upright_xmp(hostile)
    upright_exif(b"Exif\0\0" * 700_000)
    upright_exif(b"MM\0*\0\0\0\x08\xff\xff" + hostile)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_the_layers_of_a_tiff_are_no_exif(size):
    """What Photoshop keeps for itself: it took the place of EXIF, or cost it."""
    tags = {271: (2, b"abc\0"), 34377: (1, b"8BIM" + bytes(99)), 37724: (7, bytes(size))}
    assert dict(parsed(read_image(bombs.honest_tiff(4, 4, tags, bytes(16))).exif)) == {271: "abc"}


def test_a_second_part_of_xmp_is_not_named():
    """JPEG has XMP of more than 64 KiB in parts, which no other format does."""
    main = b'<a xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="0123"/>'
    picture = read_image(bombs.file_of(Image.new("L", (8, 8)), "JPEG", xmp=main))
    assert picture.xmp == b'<a xmlns:xmpNote="http://ns.adobe.com/xmp/note/"/>'


@pytest.mark.parametrize("space", [b"CMYK", b"GRAY", b"Lab ", b"RGB "])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_profile_of_another_kind_is_not_kept(mode, space):
    profile = of_gamma(2.2)
    profile = profile[:16] + space + profile[20:]
    picture = read_image(bombs.file_of(Image.new(mode, (8, 8)), "JPEG", icc_profile=profile))
    fits = space == b"RGB " or (mode == "L" and space == b"GRAY")
    assert picture.icc == (profile if fits else None)
