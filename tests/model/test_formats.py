"""What single formats do in their own way, and Pillow in another: the picture that every other program shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.errors import UnsupportedImage
from model.pixels import from_pil, read_image
from tests import bombs

# ---- TIFF


def planes(samples: np.ndarray, *extra: int) -> bytes:
    """A TIFF of RGB or more, uncompressed, one plane after another."""
    height, width, count = samples.shape
    tags = {258: (3, [8 * samples.itemsize] * count), 262: (3, [2]), 277: (3, [count]), 278: (3, [height]),
            284: (3, [2])} | ({338: (3, list(extra))} if extra else {})  # fmt: skip
    return bombs.honest_tiff(width, height, tags, *(samples[..., i].tobytes() for i in range(count)))


def test_planes_of_sixteen_bits():
    """Found by comparing: they came out as noise, with no error."""
    samples = np.random.default_rng(0).integers(0, 65536, (9, 13, 4)).astype("<u2")
    rgb, rgba = planes(samples[..., :3]), planes(samples, 2)
    np.testing.assert_array_equal(read_image(rgb).rgb, (samples[..., :3] >> 8))
    picture = read_image(rgba)
    np.testing.assert_array_equal(picture.rgb, samples[..., :3] >> 8)
    np.testing.assert_array_equal(picture.alpha, samples[..., 3] >> 8)
    np.testing.assert_array_equal(from_pil(Image.open(io.BytesIO(rgb))).rgb, samples[..., :3] >> 8)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_planes_whose_alpha_is_associated(dtype):
    samples = np.full((5, 6, 4), np.iinfo(dtype).max, dtype)
    samples[:2] = 0
    picture = read_image(planes(samples, 1))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha[:, 0], [0, 0, 255, 255, 255])
    np.testing.assert_array_equal(picture.rgb[2:], 255)


@pytest.mark.parametrize("associated", [2, 1])
def test_alpha_that_pillow_loses_is_named(associated):
    """Found by comparing: the picture came back invisible."""
    tags = {262: (3, [1]), 277: (3, [2]), 258: (3, [8, 8]), 284: (3, [2]), 338: (3, [associated])}
    kinds = [{}] if associated == 1 else [{}, {262: (3, [3]), 320: (3, [0] * 768)}]
    five = planes(np.full((2, 3, 5), 100, np.uint8), associated, 0)
    for file in (*(bombs.honest_tiff(3, 2, tags | more, bytes(6), bytes(6)) for more in kinds), five):
        with pytest.raises(UnsupportedImage, match="alpha is a plane of its own"):
            read_image(file)
    assert read_image(planes(np.full((2, 3, 5), 100, np.uint8), 0, 0)).alpha is None


def test_tiles_of_sixteen_bits():
    """Grey, whose one plane some programs say lies apart."""
    samples = np.arange(512, dtype="<u2").reshape(2, 16, 16) * 128
    tags = {258: (3, [16]), 284: (3, [2]), 322: (3, [16]), 323: (3, [16]), 325: (4, [512, 512])}
    start = len(bombs.tiff(32, 16, tags | {324: (4, [0, 0])}))
    file = bombs.tiff(32, 16, tags | {324: (4, [start, start + 512])}, samples.tobytes())
    np.testing.assert_array_equal(read_image(file).rgb[..., 0], np.rint(np.hstack(samples) / 257))


@pytest.mark.parametrize(("tag", "name"), [(700, "xmp"), (34675, "icc")])
@pytest.mark.parametrize(
    ("value", "kept"),
    [((2, "<ü/>".encode()), True), ((1, b"<x/>"), True), ((3, [1, 2, 3]), False), ((4, [1]), False), ((3, [1]), False)],
)
def test_profile_and_xmp_of_any_type(tag, name, value, kept):
    """Found by trying: XMP as text or as numbers cost the picture, and the library a bare TypeError."""
    file = bombs.honest_tiff(4, 4, {tag: value}, bytes(16))
    expected = value[1] if kept else None
    assert getattr(read_image(file), name) == expected
    assert getattr(from_pil(Image.open(io.BytesIO(file))), name) == expected


# ---- PNG


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", [0, 1, -1])
def test_a_key_of_any_depth(depth, key):
    """Found by comparing: of two and four bits, it was compared with greys of eight."""
    most = (1 << depth) - 1
    values, key = [0, 1, most, most // 2], key % (most + 1)
    row = b"".join(value.to_bytes(2, "big") for value in values) if depth == 16 else bytes(values)
    if depth < 8:
        row = int("".join(f"{value:0{depth}b}" for value in values).ljust(8 * ((4 * depth + 7) // 8), "0"), 2)
        row = row.to_bytes((4 * depth + 7) // 8, "big")
    file = bombs.png(4, 1, (b"tRNS", key.to_bytes(2, "big")), bombs.idat(b"\0" + row), depth=depth)
    for picture in (read_image(file), from_pil(Image.open(io.BytesIO(file)))):
        assert picture.alpha is not None
        assert picture.alpha[0].tolist() == [0 if value == key else 255 for value in values]
        np.testing.assert_array_equal(picture.rgb[0, :, 0], [round(value * 255 / most) for value in values])


def test_grey_of_sixteen_bits_with_alpha_is_grey():
    """Pillow has no mode for it, and makes it colour."""
    samples = np.array([[[0, 0], [0x8000, 0xFFFF], [0xFFFF, 0x1234]]]).astype(">u2")
    file = bombs.png(3, 1, bombs.idat(b"\0" + samples.tobytes()), depth=16, colour=4)
    for picture in (read_image(file), from_pil(Image.open(io.BytesIO(file)))):
        assert picture.grey
        assert picture.rgb[0, :, 0].tolist() == [0, 0x80, 0xFF]
        assert picture.alpha is not None
        assert picture.alpha[0].tolist() == [0, 0xFF, 0x12]


# ---- GIF, BMP, AVIF


@pytest.mark.parametrize(("colour", "mode"), [("red", "RGB"), (200, "L")])
def test_beyond_its_first_frame_a_gif_is_transparent(colour, mode):
    file = bytearray(bombs.file_of(Image.new(mode, (4, 4), colour), "GIF"))
    file[6:10] = (8).to_bytes(2, "little") * 2
    place = file.index(b"\x2c", 13)
    file[place + 1 : place + 5] = (1).to_bytes(2, "little") + (2).to_bytes(2, "little")
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6, 1:5] = 255
    for picture in (read_image(bytes(file)), from_pil(Image.open(io.BytesIO(file)))):
        np.testing.assert_array_equal(picture.alpha, expected)
        assert (picture.rgb[2:6, 1:5] == ([255, 0, 0] if mode == "RGB" else 200)).all()
    assert read_image(bombs.file_of(Image.new(mode, (4, 4), colour), "GIF")).alpha is None


def test_an_alpha_that_nobody_has_filled_in():
    """Of BMP: all of it zero means that there is none, to every other program."""
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    assert read_image(bombs.bmp(32, 3, masks, b"\1\2\3\0" * 64)).alpha is None
    picture = read_image(bombs.bmp(32, 3, masks, b"\1\2\3\0" * 63 + b"\1\2\3\4"))
    assert picture.alpha is not None
    assert sorted(set(picture.alpha.ravel().tolist())) == [0, 4]


def test_grey_with_alpha_in_an_avif():
    image = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).repeat(16).reshape(64, 16))
    image.putalpha(Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8)[::-1].repeat(16).reshape(64, 16)))
    picture = read_image(bombs.file_of(image, "AVIF", subsampling="4:0:0", quality=95))
    assert picture.grey
    assert picture.alpha is not None
    assert np.abs(picture.alpha.astype(int) - np.asarray(image)[..., 1]).max() < 4
    assert not read_image(bombs.file_of(image, "AVIF")).grey  # as three channels
