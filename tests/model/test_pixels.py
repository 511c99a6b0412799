"""Every kind of image that people have: the right pixels and what belongs to them, or a named error."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from model.alpha import decode_alpha, encode_alpha
from model.container import MAX_METADATA
from model.errors import CorruptBitstream, CorruptImage, OutputLimit, TooManyPixels, UnsupportedImage
from model.output import write_image
from model.pixels import Picture, from_pil, read_image, to_pil
from tests import bombs
from tests.conftest import DATA


def file_of(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def gradient(mode: str, size=(40, 30)) -> Image.Image:
    rng = np.random.default_rng(1)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = rng.integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(values.squeeze(), mode) if bands == 1 else Image.merge(
        mode, [Image.fromarray(values[..., i]) for i in range(bands)]
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_native_modes_pass_through(mode):
    image = gradient(mode)
    back = to_pil(read_image(file_of(image)))
    assert back.mode == mode
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


def test_bilevel_becomes_grey():
    image = gradient("L").convert("1")
    picture = read_image(file_of(image))
    assert picture.grey
    np.testing.assert_array_equal(picture.rgb[..., 0], np.asarray(image.convert("L")))


def test_palette_with_and_without_transparency():
    image = gradient("RGB").quantize(16)
    np.testing.assert_array_equal(read_image(file_of(image)).rgb, np.asarray(image.convert("RGB")))
    data = file_of(image, transparency=3)
    picture = read_image(data)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, np.where(np.asarray(image) == 3, 0, 255))


def test_colour_key_becomes_alpha():
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    picture = read_image(file_of(image, transparency=(9, 9, 9)))
    assert picture.alpha is not None
    assert picture.alpha[0, 0] == 0
    assert picture.alpha[1, 1] == 255


def test_sixteen_bits_are_rounded_to_eight():
    values = np.array([[0, 128, 129, 65535, 32768, 257]], np.uint16)
    for data in (file_of(Image.fromarray(values)), file_of(Image.fromarray(values), "TIFF")):
        picture = read_image(data)
        assert picture.grey
        np.testing.assert_array_equal(picture.rgb[0, :, 0], np.rint(values[0] / 257))


def a_tiff(bits: int, photometric: int, data: bytes, sample_format: int = 1) -> bytes:
    """Two pixels of grey."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: 1, 279: len(data)}
    entries = [struct.pack("<HHLHH", tag, 3, 1, value, 0) for tag, value in (tags | {339: sample_format}).items()]
    head = b"II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head.ljust(200, b"\0") + data


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (a_tiff(16, 1, struct.pack("<2H", 257, 65535)), [1, 255]),
        (a_tiff(16, 0, struct.pack("<2H", 257, 65535)), [254, 0]),
        (a_tiff(12, 1, bytes([0x00, 0x0F, 0xFF])), [0, 255]),
        (a_tiff(8, 0, bytes([0, 255])), [255, 0]),
    ],
    ids=["16 bits", "16 bits, white is zero", "12 bits", "8 bits, white is zero"],
)
def test_greys_of_every_kind_of_tiff(file, expected):
    assert read_image(file).rgb[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("bits", "sample_format"), [(32, 1), (32, 2), (16, 2)])
def test_integers_without_a_range_are_named(bits, sample_format):
    with pytest.raises(UnsupportedImage, match="no stated range"):
        read_image(a_tiff(bits, 1, bytes(8), sample_format))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_that_means_transparent(bits):
    values = np.array([0, 5, (1 << bits) - 1]).astype(f">u{bits // 8}")
    header = struct.pack(">IIBBBBB", 3, 1, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 5)), (b"IDAT", zlib.compress(b"\0" + values.tobytes())),
              (b"IEND", b"")]  # fmt: skip
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    picture = read_image(data)
    assert picture.grey
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 0, 255]]


def test_a_colour_of_sixteen_bits_that_means_transparent():
    samples = np.array([[0x1234, 0x8000, 0xFFFF], [0x2234, 0x8000, 0xFFFF], [0, 0, 0]]).astype(">u2")
    data = bombs.png(3, 1, (b"tRNS", samples[0].tobytes()), bombs.idat(b"\0" + samples.tobytes()), depth=16, colour=2)
    picture = read_image(data)
    assert picture.rgb[0, :2].tolist() == [[0x12, 0x80, 0xFF], [0x22, 0x80, 0xFF]]
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[0, 255, 255]]


@pytest.mark.parametrize(
    ("depth", "key", "pixels", "alpha"),
    [
        (16, (5, 5, 5), (0x0005, 0x0505, 0x05FF, 0xFFFF), [0, 255, 255, 255]),
        (8, (0x0101, 0x0101, 0x0101), (1, 2, 0x11), [0, 255, 255]),
    ],
)
def test_a_key_is_of_as_many_bits_as_the_samples(depth, key, pixels, alpha):
    """Found by comparing: its size said of how many, and other pixels were the transparent ones.

    Of 16 bits Pillow has the high bytes alone, so that the keyed colour's neighbours go with it.
    """
    samples = np.repeat(np.array(pixels).astype(f">u{depth // 8}"), 3).tobytes()
    chunks = (b"tRNS", struct.pack(">HHH", *key)), bombs.idat(b"\0" + samples)
    picture = read_image(bombs.png(len(pixels), 1, *chunks, depth=depth, colour=2))
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [alpha]


def test_the_limit_of_pillow_is_its_users():
    """Whoever imports this package reads strangers' files elsewhere, too; programs of ours lift it for themselves."""
    told = "from PIL import Image; import model.codec, model.output; print(Image.MAX_IMAGE_PIXELS)"
    run = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert int(run.stdout) == Image.MAX_IMAGE_PIXELS
    with pytest.raises(TooManyPixels, match="MAX_IMAGE_PIXELS"):
        read_image(bombs.png(20_000, 10_000, bombs.idat(bytes(1))), 1 << 30)


def test_a_palette_with_alpha_of_its_own():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (0, 0, 4, 4))
    picture = from_pil(image.quantize())
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, np.asarray(image)[..., 3])


def test_sixteen_bit_colour_png():
    """Pillow gives the high bytes; stated in the docs."""
    raw = b"\0" + struct.pack(">6H", 0x1234, 0x8000, 0xFFFF, 0, 0x00FF, 0xFF00)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    np.testing.assert_array_equal(read_image(data).rgb, [[[0x12, 0x80, 0xFF], [0, 0, 0xFF]]])


def test_cmyk_without_and_with_a_broken_profile():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for options in ({}, {"icc_profile": b"not a profile"}):
        picture = read_image(file_of(image, "TIFF", **options))
        np.testing.assert_array_equal(picture.rgb[0, 0], np.asarray(image.convert("RGB"))[0, 0])
        assert picture.icc is None


def test_floats_are_named():
    with pytest.raises(UnsupportedImage, match="floating-point"):
        read_image(file_of(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_taken_out(orientation):
    image = gradient("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "a description"
    picture = read_image(file_of(image, "PNG", exif=exif))
    turned = {
        1: image, 2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 3: image.transpose(Image.Transpose.ROTATE_180),
        4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 5: image.transpose(Image.Transpose.TRANSPOSE),
        6: image.transpose(Image.Transpose.ROTATE_270), 7: image.transpose(Image.Transpose.TRANSVERSE),
        8: image.transpose(Image.Transpose.ROTATE_90),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(picture.rgb, np.asarray(turned))
    kept = Image.Exif()
    kept.load(picture.exif or b"")
    assert kept.get(0x010E) == "a description"
    assert kept.get(0x0112, 1) == 1


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of these tags, of whatever type: number, type, count, value of at most four bytes."""
    packed = [struct.pack("<HHL", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries]
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(packed)) + b"".join(packed) + bytes(4)


@pytest.mark.parametrize("broken", [(282, 2, 3, b"72"), (296, 2, 2, b"2"), (40965, 2, 2, b"x")])
def test_a_broken_tag_does_not_lay_a_picture_on_its_side(broken):
    """Found by reading: what Pillow could not write again cost the orientation, too."""
    image = Image.new("L", (64, 48))
    image.paste(255, (0, 0, 64, 8))
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation='6'/>"
    file = file_of(image, "JPEG", exif=exif_of((274, 3, 1, struct.pack("<H", 6)), broken), xmp=xmp)
    picture = read_image(file)
    assert (picture.width, picture.height) == (48, 64)
    assert picture.rgb[:, 44:].mean() > 250  # what was on top is at the right
    assert picture.xmp is None or b"Orientation" not in picture.xmp


def test_broken_exif_costs_nothing():
    image = gradient("RGB")
    picture = read_image(file_of(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=100, subsampling=0))
    assert picture.rgb.shape == (30, 40, 3)


@pytest.mark.parametrize("file_format", ["png", "webp", "jpeg", "avif", "tiff"])
def test_metadata_survive_every_output(file_format):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"
    picture = Picture(np.asarray(gradient("RGB")), icc=profile, exif=exif.tobytes(), xmp=xmp)
    again = read_image(write_image(picture, file_format))
    assert again.icc == profile
    assert again.exif is not None
    assert b"a description" in again.exif
    assert again.xmp == xmp


@pytest.mark.parametrize("file_format", ["png", "webp", "tiff", "jpeg"])
def test_a_large_profile_survives_and_one_beyond_the_limit_costs_no_picture(file_format):
    """Found by fuzzing: Pillow reads no PNG whose profile has more than 1 MiB, unless it is told to."""
    for size, kept in ((MAX_METADATA, True), (MAX_METADATA + 1, False)):
        file = file_of(gradient("RGB"), "PNG", icc_profile=bytes(size))
        picture = read_image(file)
        assert (picture.icc is not None) == kept
        assert read_image(write_image(picture, file_format)).icc == picture.icc


@pytest.mark.parametrize("file_format", ["png", "webp", "tiff"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_lossless_outputs_are(file_format, mode):
    picture = from_pil(gradient(mode))
    again = read_image(write_image(picture, file_format))
    np.testing.assert_array_equal(again.rgb, picture.rgb)
    if picture.alpha is not None:
        np.testing.assert_array_equal(again.alpha, picture.alpha)


def test_jpeg_lays_alpha_on_white():
    picture = Picture(np.zeros((8, 8, 3), np.uint8), alpha=np.zeros((8, 8), np.uint8))
    assert read_image(write_image(picture, "jpeg")).rgb.min() > 250


def test_output_limits_are_named():
    wide = Picture(np.zeros((1, 70_000, 3), np.uint8))
    for file_format in ("webp", "jpeg", "avif"):
        with pytest.raises(OutputLimit, match="png"):
            write_image(wide, file_format)
    with pytest.raises(OutputLimit):
        write_image(wide, "bmp")


def test_large_exif_does_not_break_jpeg():
    exif = Image.Exif()
    exif[0x010E] = "x" * 100_000
    picture = Picture(np.zeros((8, 8, 3), np.uint8), exif=exif.tobytes())
    assert read_image(write_image(picture, "jpeg")).width == 8


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(data).rgb[0, 0], [255, 0, 0])


def test_an_animation_is_transparent_where_its_first_frame_is_not():
    """Found by comparing with a browser: without the flag of alpha it was black there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body

    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    still = file_of(Image.new("RGB", (10, 8), (200, 0, 0)), "WEBP", lossless=True)[12:]
    place = b"".join(map(number, (4 // 2, 6 // 2, 10 - 1, 8 - 1, 100))) + b"\0"
    for flags in (0x02, 0x12):
        canvas = bytes([flags, 0, 0, 0]) + number(32 - 1) + number(24 - 1)
        frame = chunk(b"ANMF", place + still)
        body = b"WEBP" + chunk(b"VP8X", canvas) + chunk(b"ANIM", bytes(6)) + frame + frame
        data = chunk(b"RIFF", body)
        opened = Image.open(io.BytesIO(data))
        for picture in (read_image(data), from_pil(opened), from_pil(opened)):
            expected = np.zeros((24, 32), np.uint8)
            expected[6:14, 4:14] = 255
            np.testing.assert_array_equal(picture.alpha, expected)
            np.testing.assert_array_equal(picture.rgb[6:14, 4:14], np.broadcast_to([200, 0, 0], (8, 10, 3)))


@pytest.mark.parametrize(
    ("size", "limit"), [((0, 0), CorruptImage), ((0, 5), CorruptImage), ((2**20 + 1, 1), TooManyPixels)]
)
def test_what_cannot_be_a_picture_is_named_from_python_too(size, limit):
    with pytest.raises(limit):
        from_pil(Image.new("RGB", size))


def test_a_webp_whose_file_is_closed_is_sound(tmp_path):
    (tmp_path / "a.webp").write_bytes(file_of(gradient("RGB"), "WEBP", lossless=True))
    with (tmp_path / "a.webp").open("rb") as file:
        image = Image.open(file)
    np.testing.assert_array_equal(from_pil(image).rgb, np.asarray(gradient("RGB")))  # Pillow has read all of it
    with Image.open(DATA / "photo.png") as unread:
        pass
    with pytest.raises(ValueError, match="file is closed"):
        from_pil(unread)


def test_half_a_file_is_named_from_python_too():
    for name in ("photo.png", "sea.jpg"):
        data = (DATA / name).read_bytes()
        with pytest.raises(CorruptImage, match="truncated"):
            from_pil(Image.open(io.BytesIO(data[: len(data) // 2])))
    image = Image.new("RGB", (4, 4))
    image.info["transparency"] = b"of a palette"
    with pytest.raises(CorruptImage, match="colours cannot be read"):
        from_pil(image)


# ---- hostile


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_no_image_is_named(data):
    with pytest.raises(UnsupportedImage):
        read_image(data)


@pytest.mark.parametrize("name", ["photo.png", "sea.jpg"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_images_are_named(name, part):
    data = (DATA / name).read_bytes()
    with pytest.raises(CorruptImage, match="truncated"):
        read_image(data[: int(len(data) * part)])


def test_pixel_limit_is_checked_before_decoding():
    image = Image.new("1", (30_000, 30_000))
    with pytest.raises(TooManyPixels, match="900000000"):
        read_image(file_of(image))
    with pytest.raises(TooManyPixels):
        read_image(file_of(gradient("RGB")), max_pixels=40 * 30 - 1)
    assert read_image(file_of(gradient("RGB")), max_pixels=40 * 30).width == 40


def test_a_tiff_of_many_pages_counts_its_first():
    out = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(out) as writer:
        for size in ((8, 8), (3000, 3000)):
            Image.new("L", size).save(writer, format="TIFF")
            writer.newFrame()
    assert read_image(out.getvalue(), max_pixels=64).width == 8


def test_a_strip_counts_as_what_the_networks_see():
    with pytest.raises(TooManyPixels, match="counts as"):
        read_image(file_of(Image.new("L", (1, 500_000))))
    with pytest.raises(TooManyPixels, match="counts as 6400000"):
        read_image(file_of(Image.new("L", (50_000, 2))), max_pixels=6_399_999)
    assert read_image(file_of(Image.new("L", (2, 50_000))), max_pixels=6_400_000).height == 50_000


def test_a_file_that_is_two_files_is_the_image_that_it_begins_with():
    image = gradient("RGB")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("index.html", "<script>alert(1)</script>")
    for tail in (archive.getvalue(), file_of(Image.new("L", (9, 9)), "JPEG"), b"<?php ?>"):
        np.testing.assert_array_equal(read_image(file_of(image) + tail).rgb, np.asarray(image))
    with pytest.raises(UnsupportedImage):
        read_image(b"<html>" + file_of(image))


@pytest.mark.parametrize("file_format", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "ICNS", "MSP", "IM"])
def test_formats_that_nobody_asked_for_are_not_read(file_format):
    mode = "1" if file_format == "MSP" else "RGB"
    try:
        data = file_of(Image.new(mode, (32, 32)), file_format)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow does not write {file_format}")
    with pytest.raises(UnsupportedImage, match="known are PNG"):
        read_image(data)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_a_broken_profile_costs_nothing(file_format):
    image = gradient("RGB")
    picture = read_image(file_of(image, file_format, icc_profile=b"not a profile" * 20))
    assert (picture.width, picture.height) == image.size


def test_colours_that_contradict_themselves_are_named():
    """A colour key of another mode, a palette that ends early: right, or named."""
    image = gradient("RGB").quantize(16)
    for broken in (
        file_of(image).replace(b"PLTE", b"PLTe"),
        file_of(gradient("L"), transparency=5).replace(b"tRNS", b"tRNs"),
        file_of(image, "GIF", transparency=200),
    ):
        with contextlib.suppress(CorruptImage, UnsupportedImage):
            assert read_image(broken).width == image.width


# ---- alpha


@pytest.mark.parametrize("alpha", [np.full((5, 7), 255, np.uint8), np.arange(35, dtype=np.uint8).reshape(5, 7)])
def test_alpha_is_lossless(alpha):
    np.testing.assert_array_equal(decode_alpha(encode_alpha(alpha), 7, 5), alpha)


def test_alpha_that_does_not_fit_is_named():
    data = encode_alpha(np.arange(35, dtype=np.uint8).reshape(5, 7))
    for broken in (data[:50], b"", b"ab", data.replace(b"IHDR", b"IHDX")):
        with pytest.raises(CorruptBitstream):
            decode_alpha(broken, 7, 5)
    with pytest.raises(CorruptBitstream, match="size"):
        decode_alpha(data, 5, 7)


def test_alpha_holds_nothing_but_pixels():
    """No profile, no comment and no thousand chunks, each of which would have to be read."""
    rows = bytes(8 * 5)
    for extra in ([(b"zTXt", b"k\0\0" + zlib.compress(bytes(9999)))], [(b"abCd", b"")], [(b"IDAT", b"")] * 20_000):
        with pytest.raises(CorruptBitstream, match="nothing but pixels"):
            decode_alpha(bombs.png(7, 5, *extra, bombs.idat(rows)), 7, 5)
    with pytest.raises(CorruptBitstream, match="nothing but pixels"):
        decode_alpha(bombs.png(7, 5, bombs.idat(rows)) + b"more", 7, 5)
    assert decode_alpha(bombs.png(7, 5, bombs.idat(rows)), 7, 5).shape == (5, 7)


def test_noise_fits_into_a_jpeg():
    noise = Picture(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    assert Image.open(io.BytesIO(write_image(noise, "jpeg"))).size == (300, 300)
