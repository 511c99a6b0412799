"""Image files that are written: the same picture, and what is said of it, in every format that can hold it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from model.output import OUTPUT_FORMATS, write_image
from model.pixels import Picture, read_image
from model.tiff import write_tiff
from tests.conftest import DATA
from tests.model.test_pixels import exif_of
from tests.model.test_profiles import of_gamma

EXPOSURE, PIXELS_ACROSS, INTEROPERABILITY = 0x829A, 0xA002, 0xA005
EXIF, GPS = 0x8769, 0x8825


def from_a_camera() -> Image.Exif:
    """What every telephone writes: directories inside the directory."""
    exif = Image.Exif()
    exif[0x010F], exif[0x011A], exif[0x0128] = "a maker", IFDRational(300, 1), 2
    exif[EXIF] = {EXPOSURE: IFDRational(1, 100), 0x9286: b"ASCII\0\0\0a comment", INTEROPERABILITY: {1: "R98"}}
    exif[GPS] = {1: "N", 2: (IFDRational(52), IFDRational(31), IFDRational(12))}
    return parsed(exif.tobytes())


def parsed(exif: bytes | None) -> Image.Exif:
    tags = Image.Exif()
    tags.load(exif or b"")
    return tags


def file_of(image: Image.Image, file_format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


@pytest.mark.parametrize("file_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_a_camera_says_survives(source, file_format):
    """Found by reading: a TIFF of any photograph with directories inside its EXIF failed."""
    image, exif = Image.new("RGB", (24, 16), (200, 30, 60)), from_a_camera()
    if source == "TIFF":  # Pillow writes none with EXIF in full
        file = write_tiff(np.asarray(image), exif, None, None, alpha=False)
    else:
        file = file_of(image, source, exif=exif)
    picture = read_image(file)
    again = read_image(write_image(picture, file_format))
    assert np.abs(again.rgb.astype(int) - picture.rgb).max() < 4
    tags = parsed(again.exif)
    assert tags[0x010F] == "a maker"
    assert float(tags[0x011A]) == 300
    inside = tags.get_ifd(EXIF)
    assert float(inside[EXPOSURE]) == 0.01
    assert inside[0x9286] == b"ASCII\0\0\0a comment"
    assert tags.get_ifd(INTEROPERABILITY)[1] == "R98"
    assert [float(part) for part in tags.get_ifd(GPS)[2]] == [52, 31, 12]


@pytest.mark.parametrize("file_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("tag", [256, 258, 259, 262, 273, 277, 279, 284, 317, 338, 339])
def test_exif_does_not_say_how_the_pixels_lie(file_format, tag):
    """Found by reading: a JPEG whose EXIF has tags of another file's layout gave another picture as a TIFF."""
    exif = Image.Exif()
    exif[tag], exif[0x010E] = 5, "a description"
    picture = Picture(np.full((8, 8, 3), (12, 130, 12), np.uint8), exif=exif.tobytes())
    again = read_image(write_image(picture, file_format))
    assert np.abs(again.rgb.astype(int) - picture.rgb).max() < 4
    assert parsed(again.exif)[0x010E] == "a description"


@pytest.mark.parametrize("file_format", OUTPUT_FORMATS)
def test_exif_without_its_first_six_bytes(file_format):
    """As it lies in WebP files."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    picture = Picture(np.zeros((8, 8, 3), np.uint8), exif=exif.tobytes().removeprefix(b"Exif\0\0"))
    file = write_image(picture, file_format)
    assert Image.open(io.BytesIO(file)).getexif()[0x010E] == "a description"
    assert (read_image(file).exif or b"").startswith(b"Exif\0\0")


@pytest.mark.parametrize("file_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"none", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69"])
@pytest.mark.filterwarnings("ignore")
def test_exif_that_is_none_costs_no_picture(file_format, exif):
    picture = Picture(np.full((8, 8, 3), 77, np.uint8), exif=exif, xmp=b"\xff\xfe no XML")
    assert np.abs(read_image(write_image(picture, file_format)).rgb.astype(int) - 77).max() < 4


def test_a_tag_that_cannot_be_written_costs_none_of_the_others():
    exif = from_a_camera()
    unit = exif_of((0x0128, 4, 1, struct.pack("<L", 70_000)), (0x0131, 2, 4, b"abc\0"))  # beyond a unit's type
    again = parsed(read_image(write_image(Picture(np.zeros((8, 8, 3), np.uint8), exif=unit), "tiff")).exif)
    assert again[0x0131] == "abc"
    exif.get_ifd(EXIF)[0xA002] = "no number"
    again = parsed(read_image(write_tiff(np.zeros((8, 8, 3), np.uint8), exif, None, None, alpha=False)).exif)
    assert again[0x010F] == "a maker"
    assert float(again.get_ifd(EXIF)[EXPOSURE]) == 0.01


def types_of(exif: bytes) -> dict[int, object]:
    """The type of every tag, and of those of the directories inside."""
    block = exif.removeprefix(b"Exif\0\0")
    order = "<" if block.startswith(b"II") else ">"

    def directory(place: int) -> dict[int, object]:
        (count,) = struct.unpack_from(order + "H", block, place)
        found: dict[int, object] = {}
        for at in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHLL", block, at)
            if tag == INTEROPERABILITY:  # Pillow before 13 makes an empty one as it writes, and not always
                continue
            found[tag] = directory(value) if tag in (EXIF, GPS) else kind
        return found

    return directory(struct.unpack_from(order + "L", block, 4)[0])


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
def test_a_turned_picture_keeps_all_else_of_its_exif(source):
    """Found by looking once more: written anew by Pillow, times and names of lenses became numbers."""
    exif = from_a_camera()
    exif.get_ifd(EXIF)[0x9003] = "2026:01:01 10:00:00"
    exif[0x0112] = 6
    before = types_of(exif.tobytes())
    picture = read_image(file_of(Image.new("RGB", (24, 16)), source, exif=exif))
    assert (picture.width, picture.height) == (16, 24)
    assert picture.exif is not None
    assert before.pop(0x0112) == 3
    assert types_of(picture.exif) == before
    assert before[EXIF][0x9003] == 2  # text
    assert parsed(picture.exif).get_ifd(EXIF)[0x9003] == "2026:01:01 10:00:00"
    alone = Image.Exif()
    alone[0x0112] = 6
    assert read_image(file_of(Image.new("RGB", (24, 16)), source, exif=alone)).exif is None


def test_what_would_make_a_tiff_a_raw_photograph_is_left_out():
    """Found by trying: a photograph that says which DNG it was made from came back as a file that is not read."""
    exif = Image.Exif()
    exif[0x010F], exif[50706] = "Camera", b"\1\4\0\0"
    picture = read_image(file_of(Image.new("RGB", (24, 16)), "JPEG", exif=exif))
    again = read_image(write_image(picture, "tiff"))
    assert dict(parsed(again.exif)) == {0x010F: "Camera"}


def test_text_of_any_alphabet():
    picture = Picture(np.zeros((8, 8, 3), np.uint8), exif=exif_of((0x013B, 2, 3, "é\0".encode())))
    for file_format in ("tiff", "jpeg", "png"):
        again = read_image(write_image(picture, file_format)).exif or b""
        assert "é".encode() in again, file_format
    turned = exif_of((0x0112, 3, 1, b"\x06"), (0x013B, 2, 3, "é\0".encode()))  # of which Pillow writes EXIF anew
    assert "é".encode() in (read_image(file_of(Image.new("RGB", (8, 4)), "JPEG", exif=turned)).exif or b"")


@pytest.mark.parametrize("file_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("alpha", [False, True])
def test_grey_with_a_profile_of_grey(file_format, alpha):
    """Found by trying: WebP and AVIF were of colour, with a profile of grey, which no reader knows what to do with."""
    grey = np.arange(0, 256, 4, dtype=np.uint8).repeat(64).reshape(64, 64)
    profile = of_gamma(1.4)  # of which a grey is much brighter than the same number in sRGB
    picture = Picture(grey[..., None].repeat(3, 2), True, np.full_like(grey, 255) if alpha else None, profile)
    file = write_image(picture, file_format)
    image = Image.open(io.BytesIO(file))
    kept = image.info.get("icc_profile")
    if file_format == "webp" or (file_format == "avif" and alpha):
        assert kept is None
        light = (grey / 255) ** 1.4
        expected = 255 * np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    else:
        assert (image.mode, kept) == ("LA" if alpha and file_format != "jpeg" else "L", profile)
        expected = grey
    assert np.abs(read_image(file).rgb[..., 0] - expected.astype(float)).max() < 5
    assert read_image(file).grey == (file_format != "webp")


def test_grey_is_written_as_grey():
    picture = Picture(np.full((16, 16, 3), 90, np.uint8), grey=True)
    for file_format in set(OUTPUT_FORMATS) - {"webp"}:  # which has none
        assert Image.open(io.BytesIO(write_image(picture, file_format))).mode == "L", file_format


@pytest.mark.parametrize(("tag", "longest"), [("exif", 65_533), ("xmp", 65_504)])
def test_what_just_fits_into_a_segment_of_jpeg(tag, longest):
    filled = {"exif": exif_of((0x0131, 2, 4, b"abc\0")), "xmp": b"<x/>"}[tag]
    for size in (65_500, longest, longest + 1):
        block = filled.ljust(size, b"\0")
        picture = Picture(np.zeros((8, 8, 3), np.uint8), **{tag: block})
        assert getattr(read_image(write_image(picture, "jpeg")), tag) == (block if size <= longest else None)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (1000, 301), (300_000, 2)])
def test_tiffs_of_many_strips(mode, size):
    channels = len(mode)
    samples = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = write_tiff(samples, from_a_camera(), profile, b"<xmp/>", alpha=mode.endswith("A"))
    image = Image.open(io.BytesIO(file))
    assert image.mode == mode
    assert image.info["icc_profile"] == profile
    np.testing.assert_array_equal(np.asarray(image).reshape(samples.shape), samples)


def test_a_tiff_is_smaller_than_its_pixels():
    photograph = read_image((DATA / "photo.png").read_bytes())
    assert len(write_image(photograph, "tiff")) < 0.8 * photograph.rgb.size
